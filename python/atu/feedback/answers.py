"""From what a network gives for images to an answer: is this one unwanted?

samples in the GAN's range -> the network's size, channels and range -> its outputs -> probabilities -> yes or no
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.images import map_range
from ..gan import GAN
from ..measures.features import discriminator_features
from ..support import progress
from .network_files import Network
from .spec import OPTIONS, OUTPUTS, Spec

UNWANTED = "unwanted"  # the class that needs no naming: what `atu label` and `atu train-classifier` call it
GREY = (0.299, 0.587, 0.114)  # of red, green and blue, as Pillow has it


@dataclass(frozen=True)
class Answers:
    """What a spec stands for, for one GAN: samples [N, ...] in its range -> bool [N], whether they are unwanted.

    spec, sha256: what it was made of, to be written down; the hash is of the file (None where there is none). own:
    whether the hash is all that it is, so that another spec with the same hash is the same network.
    decide: the rule. score: samples -> float32 [N], higher the likelier unwanted, to rank them by; None for a rule
    that only says yes or no. classifier, chosen: as a judge, see `judge_arguments`. names: of the
    classes that are looked for, where there are several.
    """

    spec: str
    sha256: str | None
    decide: Callable[[Tensor], Tensor]
    own: bool = False
    score: Callable[[Tensor], Tensor] | None = None
    classifier: Any = None
    chosen: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        return self.decide(x)

    @property
    def name(self) -> str:
        """What its figures are said to come from."""
        return self.spec

    @property
    def identity(self) -> dict[str, str | None]:
        """Plain data by which a run folder knows it again."""
        return {"spec": self.spec, "sha256": self.sha256}

    def rank(self, x: Tensor) -> Tensor:
        """Scores float32 [N] of samples [N, ...] in the GAN's range, higher the likelier unwanted: probabilities where
        a network gave them, else 0 and 1."""
        return self.decide(x).float().cpu() if self.score is None else self.score(x)

    def judge_arguments(self) -> dict[str, Any]:
        """classifier, negative_classes and is_negative for `evaluate`: a classifier gives classes and features too."""
        if self.classifier is None:
            return dict(classifier=None, negative_classes=(), is_negative=self)
        if self.chosen:
            return dict(classifier=self.classifier, negative_classes=self.chosen, is_negative=None)
        return dict(classifier=self.classifier, negative_classes=(), is_negative=self)

    def goal_arguments(self) -> tuple[Any, tuple[str, ...]]:
        """What an attack is told to look for: a classifier and classes, or a rule."""
        return (self.classifier, self.chosen) if self.chosen else (self.decide, ())


@dataclass(frozen=True)
class View:
    """How a network sees the GAN's images: size (H, W) or None, channels, range, and mean and std in it."""

    source: tuple[float, float]
    size: tuple[int, int] | None
    channels: int | None
    target: tuple[float, float]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    mode: str = "bilinear"

    def __call__(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] in the GAN's range, as the network takes them; scaled with every pixel counting
        (antialiased)."""
        x = map_range(x, self.source, self.target)
        if x.ndim == 4 and self.channels is not None and x.shape[1] != self.channels:
            x = _with_channels(x, self.channels)
        if x.ndim == 4 and self.size is not None and tuple(x.shape[2:]) != self.size:
            x = F.interpolate(x.float(), self.size, mode=self.mode, antialias=True)
        if self.mean == (0.0,) and self.std == (1.0,):
            return x
        mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device)[:, None, None] for v in (self.mean, self.std))
        return (x - mean) / std


def _with_channels(x: Tensor, channels: int) -> Tensor:
    if x.shape[1] == 1:
        return x.expand(-1, channels, -1, -1)
    grey = (x[:, :3] * torch.tensor(GREY, dtype=x.dtype, device=x.device)[:, None, None]).sum(1, keepdim=True)
    return grey if channels == 1 else x[:, :channels]


def view_of(spec: Spec, network: Network, gan: GAN, default: tuple[float, float]) -> View:
    """What the spec, the network's own file and the GAN say of the network's input, in this order.

    Raises:
        ValueError: an option cannot be read, or the GAN's samples are no images.
    """
    shape = gan.sample_shape
    if len(shape) != 3:
        given = [name for name in ("size", "channels", "range", "mean", "std") if name in spec.options]
        if given:
            raise ValueError(f"{spec.source}: {given[0]} is for images, and this GAN's samples are {list(shape)}")
        return View(gan.image_range, None, None, gan.image_range)
    size = _size_of(spec) or (network.shape[1] or shape[1], network.shape[2] or shape[2])
    channels = int((spec.numbers("channels", (1,), None) or (network.shape[0] or shape[0],))[0])
    if channels not in (1, 3) and channels != shape[0]:
        raise ValueError(f"{spec.source}: expected {OPTIONS['channels']}; got {channels}")
    mean, std = spec.numbers("mean", (1, channels), (0.0,)), spec.numbers("std", (1, channels), (1.0,))
    normalised = "mean" in spec.options or "std" in spec.options
    low, high = spec.numbers("range", (2,), (0.0, 1.0) if normalised else network.values or default) or default
    assert mean is not None and std is not None
    if not low < high or not all(value > 0 for value in std):
        raise ValueError(f"{spec.source}: expected a range whose low is below its high, and std above 0")
    return View(gan.image_range, size, channels, (low, high), mean, std)


def _size_of(spec: Spec) -> tuple[int, int] | None:
    text = spec.options.get("size")
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdigit() and 0 < int(side) <= 4096 for side in sides):
        raise ValueError(f"{spec.source}: expected {OPTIONS['size']} (1 to 4096); got size={text}")
    return int(sides[0]), int(sides[-1])


class NetworkAnswers:
    """Probabilities, scores and decisions from a network's outputs, by the options of a spec.

    output: "softmax" (one logit a class, exclusive), "sigmoid" (one logit a class, each yes or no by itself) or
    "probabilities". features, errors: a classifier's own penultimate layer, and what it knows of its errors (see
    `Classifier`). Where the spec does not say, the outputs for some samples do: one number a sample, or several.

    Raises:
        ValueError: outputs that are not finite, are not one row a sample, or leave open what they are; a class there is
            none of; a threshold that is no probability.
    """

    def __init__(
        self,
        network: Network,
        view: View,
        spec: Spec,
        gan: GAN,
        names: Sequence[str] | None = None,
        output: str | None = None,
        features: Callable[[Tensor], Tensor] | None = None,
        errors: Tensor | None = None,
    ):
        self.network, self.view, self.what, self.gan = network, view, spec.source, gan
        self.name = Path(spec.source).name  # of what gave the figures, in a report
        self.own_features, self.confusion = features, errors
        x = gan.sample(4)
        outputs = self.outputs(x)
        self.output = output or _output_of(spec, outputs)
        count = outputs.shape[1]
        self.names = list(names) if names is not None else _names_of(spec, count)
        if len(self.names) != count:
            raise ValueError(f"{self.what}: gives {count} numbers a sample, and there are {len(self.names)} names")
        self.exclusive = count > 1 and (self.output == "softmax" or _sums_to_one(outputs, self.output))
        self.threshold = _threshold_of(spec)
        self.chosen = _chosen(spec, self.names)
        if self.exclusive and len(self.chosen) == count:
            raise ValueError(f"{self.what}: class: all of its {count} classes are named, and none is left to be good")
        self.probabilities(x)

    def outputs(self, x: Tensor) -> Tensor:
        """float32 [N, K] on the CPU for samples [N, ...] in the GAN's range."""
        seen = self.view(x)
        try:
            y = self.network.run(seen.float())
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(
                f"{self.what}: cannot take images {list(seen.shape)} ({_told(error)}); say size=, channels= as it "
                "expects them"
            ) from error
        if len(x) == 1:  # networks that squeeze lose the batch axis here
            y = y.reshape(1, -1)
        if y.ndim == 0 or len(y) != len(x) or y.numel() == 0:
            raise ValueError(
                f"{self.what}: expected a row of numbers for each of {len(x)} samples, got {list(y.shape)}"
            )
        y = y.reshape(len(y), -1).float()
        if not torch.isfinite(y).all():
            raise ValueError(f"{self.what}: gives values that are not finite")
        return y

    def probabilities(self, x: Tensor) -> Tensor:
        """float32 [N, K] of samples in the GAN's range."""
        y = self.outputs(x)
        if self.output == "softmax":
            return y.softmax(1)
        if self.output == "sigmoid":
            return y.sigmoid()
        if y.min() < -1e-4 or y.max() > 1 + 1e-4:
            raise ValueError(f"{self.what}: expected probabilities, got values from {y.min():.3g} to {y.max():.3g}")
        return y

    def score(self, x: Tensor) -> Tensor:
        """Probability float32 [N] that samples are unwanted: of exclusive classes their sum, else the highest."""
        p = self.probabilities(x)[:, self.chosen]
        return p.sum(1) if self.exclusive else p.max(1).values

    def decide(self, x: Tensor) -> Tensor:
        """bool [N]: by the threshold where there is one; the likeliest of exclusive classes, else above one half."""
        if self.exclusive and self.threshold is None:
            return torch.isin(self.outputs(x).argmax(1), torch.tensor(self.chosen))
        return self.score(x) >= (0.5 if self.threshold is None else self.threshold)

    # --- as a classifier, see `AnyClassifier` of evaluation/judges.py

    @property
    def classes(self) -> list[str]:
        return self.names

    @property
    def image_range(self) -> tuple[float, float]:
        return self.gan.image_range

    @property
    def feature_source(self) -> str:
        """Whose features `logits_and_features` gives: the classifier's own, the discriminator's, or its outputs."""
        return "discriminator" if self.own_features is None and self.gan.discriminator is not None else "classifier"

    def logits_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [N, K], features [N, F]) of samples in the GAN's range."""
        y = self.outputs(x)
        logits = y.clamp(min=1e-12).log() if self.output == "probabilities" else y
        if self.own_features is not None:
            return logits, self.own_features(self.view(x))
        return logits, y if self.gan.discriminator is None else discriminator_features(self.gan, [x])

    def class_indices(self, classes: Iterable[int | str]) -> list[int]:
        """Indices of classes given by name or index."""
        return [_index(self.what, self.names, str(name)) for name in classes]


def _output_of(spec: Spec, y: Tensor) -> str:
    """What outputs [N, K] are, by the spec, or by themselves."""
    said = spec.options.get("output")
    if said is not None:
        if said not in OUTPUTS:
            raise ValueError(f"{spec.source}: expected {OPTIONS['output']}; got output={said}")
        if said == "softmax" and y.shape[1] == 1:
            raise ValueError(
                f"{spec.source}: gives one number a sample, of which a softmax is always 1: output=sigmoid"
            )
        return said
    inside = bool((y >= 0).all() and (y <= 1).all())
    if y.shape[1] == 1:
        taken = "probabilities" if inside else "sigmoid"
        told = "a probability" if inside else "a logit"
        progress.log.info("%s gives one number a sample, taken for %s (output=%s)", spec.source, told, taken)
        return taken
    if not inside:
        return "softmax"
    if _sums_to_one(y, "probabilities"):
        return "probabilities"
    raise ValueError(
        f"{spec.source}: gives {y.shape[1]} numbers from 0 to 1 a sample that do not add up to 1: say "
        "output=probabilities if each is a probability by itself, or output=softmax if they are logits"
    )


def _sums_to_one(y: Tensor, output: str) -> bool:
    return output == "probabilities" and y.shape[1] > 1 and bool(((y.sum(1) - 1).abs() < 1e-3).all())


def _names_of(spec: Spec, count: int) -> list[str]:
    text = spec.options.get("names")
    if text is None:
        return [UNWANTED] if count == 1 else [str(index) for index in range(count)]
    if Path(text).is_file():
        names = [line.strip() for line in Path(text).read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        names = text.split(",")
    if len(names) != count or len(set(names)) != count:
        raise ValueError(
            f"{spec.source}: gives {count} numbers a sample, and {len(names)} names ({len(set(names))} different) were "
            f"given: {OPTIONS['names']}"
        )
    return names


def _threshold_of(spec: Spec) -> float | None:
    found = spec.numbers("threshold", (1,), None)
    if found is not None and not 0 < found[0] < 1:
        raise ValueError(f"{spec.source}: expected a threshold between 0 and 1, got {found[0]:g}")
    return None if found is None else found[0]


def _chosen(spec: Spec, names: list[str]) -> list[int]:
    text = spec.options.get("class")
    if text is None:
        if UNWANTED not in names:
            some = ", ".join(names[:12]) + (f" ... ({len(names)} in all)" if len(names) > 12 else "")
            raise ValueError(
                f"{spec.source}: class: say which of its classes are unwanted, one of {some}: {spec.source}?class="
                f"{names[0]}, or --class {names[0]}"
            )
        return [names.index(UNWANTED)]
    return sorted({_index(spec.source, names, part) for part in text.split(",")})


def _index(what: str, names: Sequence[str], one: str) -> int:
    if one in names:
        return list(names).index(one)
    if one.isdigit() and int(one) < len(names):
        return int(one)
    some = ", ".join(names[:12]) + (f" ... ({len(names)} in all)" if len(names) > 12 else "")
    raise ValueError(f"{what}: class: expected one of {some}, got {one!r}")


def _told(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:300]
