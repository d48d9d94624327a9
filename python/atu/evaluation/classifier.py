"""A frozen image classifier: it says which samples are negative, and its penultimate layer measures distances.

File format: one safetensors file, with the network's kind and arguments, the class names, the image range and its
errors on held-out images as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..data.images import to_range
from ..formats.tensors import CheckpointError, fill, load_format, module_tensors, save_tensors
from ..measures.features import flat_features, last_input
from ..measures.shares import share_of
from ..networks.classifier import ConvClassifier, ResidualClassifier
from ..networks.timm_classifier import TimmClassifier
from ..support.modules import eval_mode

if TYPE_CHECKING:
    from typing_extensions import Self

FORMAT = "atu-classifier"
# Bytes of a map, of some 32 channels, that a pass makes: glibc takes blocks of twice as many from the system each time,
# which clears them page by page (1.9 times the time at 64 x 64). Of fewer than FEWEST images a pass takes longer each.
MAP_BYTES, FEWEST = 2**24, 8
Network = ConvClassifier | ResidualClassifier | TimmClassifier
NETWORKS: dict[str, type[Network]] = {
    "conv": ConvClassifier,
    "residual": ResidualClassifier,
    "timm": TimmClassifier,
}


def class_indices(names: Sequence[str], classes: Iterable[int | str]) -> list[int]:
    """Indices of classes given by name or index.

    Raises:
        ValueError: on a class there is none of, or none at all, or all of them.
    """
    found = []
    for one in classes:
        name = str(one)
        if name in names:
            found.append(names.index(name))
        elif name.isdigit() and int(name) < len(names):
            found.append(int(name))
        else:
            raise ValueError(f"class: expected one of {', '.join(names)}, got {name!r}")
    unique = sorted(set(found))
    if not 0 < len(unique) < len(names):
        raise ValueError(f"class: expected 1 to {len(names) - 1} classes to unlearn, got {len(unique)}")
    return unique


class FrozenNetwork:
    """A trained network in eval mode, with gradients off, and the range of the images that it expects.

    Args:
        module: one of networks/classifier.py or the like, with `features` and a `head`; it is frozen in place.
        image_range: (low, high) of the images. name: what figures that it gave are said to come from.
    """

    def __init__(self, module: Any, image_range: tuple[float, float], name: str):
        self.module = module.eval().requires_grad_(False)
        self.image_range = (float(image_range[0]), float(image_range[1]))
        self.name = name

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        return self.module.img_channels, self.module.img_resolution, self.module.img_resolution

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        """Move the network in place; returns self."""
        self.module.to(device)
        return self

    @torch.no_grad()
    def logits_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [N, C], penultimate features [N, F]) of images [N, ...] in `image_range`.

        Raises:
            ValueError: images of another size.
        """
        if tuple(x.shape[1:]) != self.sample_shape:
            expected = ", ".join(map(str, self.sample_shape))
            raise ValueError(f"images: the classifier expects [N, {expected}], got {list(x.shape)}")
        parts = x.split(self._at_once())
        features = torch.cat([self.module.features(part.to(self.device, torch.float32)) for part in parts])
        return self.module.head(features), features

    def _at_once(self) -> int:
        """How many images pass together; all of them on a GPU."""
        if self.device.type != "cpu":
            return sys.maxsize
        return max(MAP_BYTES // (4 * 32 * self.module.img_resolution**2), FEWEST)


class Classifier(FrozenNetwork):
    """A trained network of `NETWORKS` in eval mode, with class names and the range of the images it expects.

    Args:
        module: the network; it is frozen in place.
        classes: one name a class.
        image_range: (low, high) of the images given to `logits`, `probabilities`, `predict` and `features`.
        name: what figures that it gave are said to come from; a file's name where it was read from one.
        confusion: int64 [classes, classes], of held-out real images that it has not seen: those of class i that it
            calls j. It says how far to believe it, see `atu.measures.prevalence`. None where it is not known.
    """

    def __init__(
        self,
        module: Network,
        classes: Sequence[str],
        image_range: tuple[float, float] = (-1.0, 1.0),
        name: str = "classifier",
        confusion: Tensor | None = None,
    ):
        if len(classes) != module.head.out_features:
            raise ValueError(f"classes: expected {module.head.out_features} names, got {len(classes)}")
        super().__init__(module, image_range, name)
        self.classes = [str(name) for name in classes]
        self.confusion = confusion

    def logits(self, x: Tensor) -> Tensor:
        """Logits [N, classes]."""
        return self.logits_and_features(x)[0]

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features [N, num_features]."""
        return self.logits_and_features(x)[1]

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
        return class_indices(self.classes, classes)

    def oracle(self, classes: Iterable[int | str]) -> Callable[[Tensor], Tensor]:
        """images [N, ...] -> bool [N]: whether the classifier calls it one of `classes`."""
        wanted = torch.tensor(self.class_indices(classes))

        def is_negative(images: Tensor) -> Tensor:
            return torch.isin(self.predict(images), wanted.to(self.device)).to(images.device)

        return is_negative

    def errors(self) -> dict[str, dict[str, Any]]:
        """Of each class: its sensitivity and specificity on the held-out images, with their 95 % intervals; see
        `confusion`.

        Raises:
            ValueError: they are not known.
        """
        if self.confusion is None:
            raise ValueError(f"confusion: the errors of {self.name} on held-out images are not known")
        found = {}
        for index, name in enumerate(self.classes):
            hits, size, passed, others = error_counts(self.confusion, [index])
            found[name] = dict(sensitivity=share_of(hits, size), specificity=share_of(passed, others))
        return found

    def save(self, path: str | Path) -> Path:
        """Write the classifier atomically; returns the path."""
        kind = next(name for name, network in NETWORKS.items() if isinstance(self.module, network))
        known = None if self.confusion is None else self.confusion.tolist()
        config: dict[str, Any] = dict(network=kind, kwargs=self.module.init_kwargs, classes=self.classes)
        config.update(image_range=list(self.image_range), confusion=known)
        return save_tensors(path, module_tensors("net", self.module), {"format": FORMAT, "config": json.dumps(config)})

    @classmethod
    def load(cls, path: str | Path) -> Classifier:
        """Read a classifier that `save` wrote.

        Raises:
            CheckpointError: the file is missing, corrupt, or no classifier of this format.
        """
        tensors, metadata = load_format(path, FORMAT)
        try:
            config = json.loads(metadata["config"])
            module = NETWORKS[config.get("network", "conv")](**config["kwargs"])
            classes, image_range = config["classes"], tuple(config["image_range"])
            known = config.get("confusion")
            counts = None if known is None else _counts(known, len(classes))
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, OverflowError) as error:
            raise CheckpointError(f"{path}: its config cannot be read ({error})") from error
        fill(module, {name.removeprefix("net."): t for name, t in tensors.items()}, str(path))
        return cls(module, classes, image_range, Path(path).stem, counts)


def confusion(classifier: Any, images: Tensor, labels: Tensor, batch_size: int = 500) -> Tensor:
    """int64 [classes, classes]: of the images of class i (labels int64 [N]), those that the classifier calls j.

    images: [N, ...], uint8 or floats in the classifier's range.
    """
    parts = (to_range(part, classifier.image_range) for part in images.split(batch_size))
    calls = torch.cat([classifier.logits_and_features(x)[0].argmax(1).cpu() for x in parts])
    return count_calls(labels.cpu(), calls, len(classifier.classes))


def count_calls(labels: Tensor, calls: Tensor, size: int) -> Tensor:
    """int64 [size, size]: how often class i (labels int64 [N]) was called j (calls int64 [N])."""
    return torch.bincount(labels * size + calls, minlength=size * size).reshape(size, size)


def _counts(rows: Any, size: int) -> Tensor:
    counts = torch.tensor(rows, dtype=torch.long)
    if tuple(counts.shape) != (size, size) or bool((counts < 0).any()):
        raise ValueError(f"confusion: expected counts [{size}, {size}], got {list(counts.shape)}")
    return counts


def error_counts(confusion: Tensor, negative: Sequence[int]) -> tuple[int, int, int, int]:
    """(negatives that were called so, negatives, others that were not, others) where some classes are negative."""
    chosen = torch.zeros(len(confusion), dtype=torch.bool)
    chosen[list(negative)] = True
    inside, outside = confusion[chosen], confusion[~chosen]
    return int(inside[:, chosen].sum()), int(inside.sum()), int(outside[:, ~chosen].sum()), int(outside.sum())


class ModuleClassifier:
    """Any nn.Module that gives one logit a class; the likeliest class is its answer.

    It is left as it is: each call puts it into eval mode and back. Its features are what its last layer with weights
    takes in.

    Args:
        module: images [N, ...] -> logits [N, classes].
        classes: one name a class. image_range: (low, high) of the images that it expects. name, confusion: as of a
            `Classifier`; the module's class names it when not given.
    """

    def __init__(
        self,
        module: nn.Module,
        classes: Sequence[str],
        image_range: tuple[float, float] = (-1.0, 1.0),
        name: str | None = None,
        confusion: Tensor | None = None,
    ):
        self.module, self.classes = module, [str(name) for name in classes]
        self.image_range = (float(image_range[0]), float(image_range[1]))
        self.name, self.confusion = name or type(module).__name__, confusion

    @property
    def device(self) -> torch.device:
        tensor = next((t for t in [*self.module.parameters(), *self.module.buffers()]), None)
        return torch.device("cpu") if tensor is None else tensor.device

    @torch.no_grad()
    def logits_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [N, classes], features [N, F]), float32, of images in `image_range`.

        Raises:
            ValueError: the module gives something other than one logit a class.
        """
        x = x.to(self.device, torch.float32)
        with eval_mode(self.module), last_input(self.module) as last:
            logits = self.module(x)
        check_logits(logits, len(x), len(self.classes))
        return logits.float(), flat_features(last[0] if last else logits).float()

    def class_indices(self, classes: Iterable[int | str]) -> list[int]:
        """Indices of classes given by name or index; see `class_indices`."""
        return class_indices(self.classes, classes)


def check_logits(logits: object, n: int, classes: int | None = None) -> None:
    """Raise ValueError unless these are logits [n, classes] (two classes or more) of a classifier."""
    fits = isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == n and logits.shape[1] > 1
    if not fits or (classes is not None and logits.shape[1] != classes):  # type: ignore[attr-defined]
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"classifier: expected logits [{n}, {classes or 'two classes or more'}] for {n} samples, got {got}; a rule "
            "that says yes or no goes to is_negative"
        )
