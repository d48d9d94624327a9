"""A classifier: a network with one output a class, the classes' names, and the range of the images that it expects.

Its file is one safetensors file: the weights, and as JSON the network's kind and arguments, the class names, the image
range and the errors on held-out images.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..formats.tensors import CheckpointError, fill, load_format, module_tensors, save_tensors
from ..measures.features import flat_features, last_input
from ..measures.shares import share_of
from ..networks.classifier import ConvClassifier, ResidualClassifier
from ..networks.timm_classifier import TimmClassifier
from ..support.digest import sha256_of
from ..support.modules import eval_mode
from .errors import counts_from, error_counts

if TYPE_CHECKING:
    from typing_extensions import Self

FORMAT = "atu-classifier"
NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "conv": ConvClassifier,
    "residual": ResidualClassifier,
    "timm": TimmClassifier,
}
# Bytes of one map, of some 32 channels, that a pass makes: glibc takes larger blocks from the system each time, which
# clears them page by page (1.9 times the time at 64 x 64). Passes of fewer than MIN_IMAGES take longer an image.
MAP_BYTES, MIN_IMAGES = 2**24, 8


class Classifier:
    """A network with one output a class.

    The network is left as it is: each pass puts it into eval mode and back. Its features are what its `head` takes in
    where it has `features` and a `head` (networks/classifier.py), else what its last layer with weights takes in.

    Args:
        module: images [N, ...] -> outputs [N, classes]. It may say the one size that it takes (img_channels,
            img_resolution), and that no gradient passes through it (differentiable = False).
        classes: one name a class.
        image_range: (low, high) of the images that it expects.
        name: what its figures are said to come from; the file's name where it was read from one.
        confusion: int64 [classes, classes], of held-out real images those of class i that it calls j; see
            `atu.measures.prevalence`. None where it was not counted.
        sha256: of its file.
        output: what the network gives: "softmax" (logits of exclusive classes), "sigmoid" (one logit a class, each a
            yes or no by itself) or "probabilities".
        exclusive: True if each image is of exactly one class.

    Raises:
        ValueError: the network has another number of outputs than there are names.
    """

    def __init__(
        self,
        module: Any,
        classes: Sequence[str],
        image_range: tuple[float, float] = (-1.0, 1.0),
        name: str = "classifier",
        confusion: Tensor | None = None,
        *,
        sha256: str | None = None,
        output: str = "softmax",
        exclusive: bool = True,
    ):
        count = getattr(getattr(module, "head", None), "out_features", len(classes))
        if len(classes) != count:
            raise ValueError(f"classes: expected {count} names, got {len(classes)}")
        self.module, self.classes = module, [str(name) for name in classes]
        self.image_range = (float(image_range[0]), float(image_range[1]))
        self.name, self.confusion, self.sha256 = name, confusion, sha256
        self.output, self.exclusive = output, exclusive

    @property
    def sample_shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of the images that it takes; None where the network does not say."""
        side, channels = (getattr(self.module, f"img_{name}", None) for name in ("resolution", "channels"))
        return None if side is None or channels is None else (channels, side, side)

    @property
    def differentiable(self) -> bool:
        """True if gradients pass through the network."""
        return bool(getattr(self.module, "differentiable", True))

    @property
    def has_features(self) -> bool:
        """False if only the outputs are known: `features` are then the outputs."""
        return self.differentiable or self._has_head

    @property
    def _has_head(self) -> bool:
        return hasattr(self.module, "features") and hasattr(self.module, "head")

    @property
    def device(self) -> torch.device | None:
        """The device of the network's weights; None where it has none."""
        return next((t.device for t in [*self.module.parameters(), *self.module.buffers()]), None)

    def to(self, device: torch.device | str) -> Self:
        """Move the network in place; returns self."""
        self.module.to(device)
        return self

    # --- passes

    @torch.no_grad()
    def logits_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [N, classes], penultimate features [N, F]) of images [N, ...] in `image_range`.

        Raises:
            ValueError: images of another size, or a network that does not give one output a class.
        """
        y, features = self._outputs_and_features(x)
        return (y.clamp(min=1e-12).log() if self.output == "probabilities" else y), features

    def logits(self, x: Tensor) -> Tensor:
        """Logits [N, classes]."""
        return self.logits_and_features(x)[0]

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features [N, F]."""
        return self.logits_and_features(x)[1]

    @torch.no_grad()
    def probabilities(self, x: Tensor) -> Tensor:
        """Class probabilities [N, classes].

        Raises:
            ValueError: the network says that it gives probabilities, and does not.
        """
        y, _ = self._outputs_and_features(x)
        if self.output == "softmax":
            return y.softmax(1)
        if self.output == "sigmoid":
            return y.sigmoid()
        if y.min() < -1e-4 or y.max() > 1 + 1e-4:
            raise ValueError(f"{self.name}: expected probabilities, got values from {y.min():.3g} to {y.max():.3g}")
        return y

    def predict(self, x: Tensor) -> Tensor:
        """The likeliest class of each image, int64 [N]."""
        return self.logits(x).argmax(1)

    def log_odds(self, x: Tensor, classes: Sequence[int]) -> Tensor:
        """Log odds [N] of exclusive classes (indices) against the others, differentiable in the images x."""
        chosen = torch.zeros(len(self.classes), dtype=torch.bool, device=self.device)
        chosen[list(classes)] = True
        with eval_mode(self.module):
            logits: Tensor = self.module(x.to(self.device, torch.float32))
        return logits[:, chosen].logsumexp(1) - logits[:, ~chosen].logsumexp(1)

    def _outputs_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = self.sample_shape
        if shape is not None and tuple(x.shape[1:]) != shape:
            raise ValueError(f"images: the classifier expects [N, {', '.join(map(str, shape))}], got {list(x.shape)}")
        with eval_mode(self.module):
            if self._has_head:
                parts = [part.to(self.device, torch.float32) for part in x.split(self._at_once())]
                features = torch.cat([self.module.features(part) for part in parts])
                return self.module.head(features), features
            with last_input(self.module) as last:
                y = self.module(x.to(self.device, torch.float32))
        check_outputs(y, len(x), len(self.classes))
        return y.float(), flat_features(last[0] if last else y).float()

    def _at_once(self) -> int:
        """How many images pass together; all of them on a GPU, or where the network does not say their size."""
        side = getattr(self.module, "img_resolution", None)
        if side is None or self.device != torch.device("cpu"):
            return sys.maxsize
        return max(MAP_BYTES // (4 * 32 * int(side) ** 2), MIN_IMAGES)

    # --- names, errors

    def class_indices(self, classes: Iterable[int | str]) -> list[int]:
        """Indices of classes given by name or index.

        Raises:
            ValueError: on an unknown class, or on none or all of them.
        """
        indices = set()
        for one in classes:
            name = str(one)
            if name in self.classes:
                indices.add(self.classes.index(name))
            elif name.isdigit() and int(name) < len(self.classes):
                indices.add(int(name))
            else:
                raise ValueError(f"class: expected one of {', '.join(self.classes)}, got {name!r}")
        if not 0 < len(indices) < len(self.classes):
            raise ValueError(f"class: expected 1 to {len(self.classes) - 1} classes to unlearn, got {len(indices)}")
        return sorted(indices)

    def errors(self) -> dict[str, dict[str, Any]]:
        """Sensitivity and specificity of each class on the held-out images, with their 95 % intervals; see `confusion`.

        Raises:
            ValueError: they were not counted.
        """
        if self.confusion is None:
            raise ValueError(f"confusion: the errors of {self.name} on held-out images are not known")
        errors = {}
        for index, name in enumerate(self.classes):
            hits, size, passed, others = error_counts(self.confusion, [index])
            errors[name] = dict(sensitivity=asdict(share_of(hits, size)), specificity=asdict(share_of(passed, others)))
        return errors

    # --- files

    def save(self, path: str | Path) -> Path:
        """Write the classifier atomically; returns the path."""
        kind = next(name for name, network in NETWORKS.items() if type(self.module) is network)
        counts = None if self.confusion is None else self.confusion.tolist()
        config: dict[str, Any] = dict(network=kind, kwargs=self.module.init_kwargs, classes=self.classes)
        config.update(image_range=list(self.image_range), confusion=counts)
        return save_tensors(path, module_tensors("net", self.module), {"format": FORMAT, "config": json.dumps(config)})

    @classmethod
    def load(cls, path: str | Path) -> Classifier:
        """Read a classifier that `save` wrote; its gradients are off.

        Raises:
            CheckpointError: the file is missing, corrupt, or no classifier of this format.
        """
        tensors, metadata = load_format(path, FORMAT)
        try:
            config = json.loads(metadata["config"])
            module = NETWORKS[config.get("network", "conv")](**config["kwargs"])
            classes, image_range = config["classes"], tuple(config["image_range"])
            counts = config.get("confusion")
            confusion = None if counts is None else counts_from(counts, len(classes))
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, OverflowError) as error:
            raise CheckpointError(f"{path}: its config cannot be read ({error})") from error
        fill(module, {name.removeprefix("net."): t for name, t in tensors.items()}, str(path))
        module.eval().requires_grad_(False)
        return cls(module, classes, image_range, Path(path).stem, confusion, sha256=sha256_of(Path(path)))


def check_outputs(y: object, n: int, classes: int | None = None) -> None:
    """Raise ValueError unless these are outputs [n, classes] of a classifier; without `classes`, [n, two or more]."""
    fits = isinstance(y, Tensor) and y.ndim == 2 and len(y) == n
    if not fits or (y.shape[1] != classes if classes else y.shape[1] < 2):  # type: ignore[attr-defined]
        got = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(
            f"classifier: expected logits [{n}, {classes or 'two classes or more'}] for {n} samples, got {got}; give a "
            "rule that says yes or no as a function"
        )
