"""Measured features of a drawn stroke: its thickness, its lean, its width.

All are functions of the ink a(x, y) in [0, 1], the image mapped from its range, x to the right and y down, in pixels:

    m = sum a     (cx, cy) = sum a (x, y) / m     mu_pq = sum a (x - cx)^p (y - cy)^q / m

    thickness  2 m / perimeter, the perimeter being the total variation of a: a stroke of length L and width t holds
               t L of ink, and its outline is 2 L + 2 t long
    lean       atan(mu_11 / mu_02) in degrees: the shear that makes the stroke upright. Positive leans to the left (\\)
    width      sqrt(mu_20): standard deviation of the ink to the sides

Images without ink measure 0 in each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.images import map_range
from ..gan import GAN
from .rule import Rule

FEATURE_SHARE = 0.2  # of the original GAN's samples that have a feature: the threshold lies at this upper quantile
QUANTILE_SAMPLES = 2000  # of which the quantile is taken
MIN_INK = 1e-3  # total ink below which an image counts as empty


def ink(x: Tensor, image_range: tuple[float, float]) -> Tensor:
    """Images [N, C, H, W] as ink [N, H, W] in [0, 1], float64: clamped to the range, the channels averaged.

    Raises:
        ValueError: the samples are no images.
    """
    if x.ndim != 4:
        raise ValueError(f"images: expected [N, C, H, W], got {list(x.shape)}; strokes are measured on images")
    return map_range(x, image_range, (0.0, 1.0)).double().mean(1)


def _second_moments(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(mu_20, mu_02, mu_11) of ink [N, H, W], each [N]; 0 where there is no ink."""
    y = torch.arange(a.shape[1], dtype=a.dtype, device=a.device)[:, None]
    x = torch.arange(a.shape[2], dtype=a.dtype, device=a.device)[None, :]
    mass = a.sum((1, 2))
    weight = torch.where(mass > MIN_INK, 1 / mass.clamp(min=MIN_INK), torch.zeros_like(mass))[:, None, None]
    p = a * weight
    dx, dy = (axis - (p * axis).sum((1, 2), keepdim=True) for axis in (x, y))
    return (p * dx * dx).sum((1, 2)), (p * dy * dy).sum((1, 2)), (p * dx * dy).sum((1, 2))


def _root(x: Tensor) -> Tensor:
    """The square root, with a gradient of 0 at 0: flat places are most of an image."""
    return torch.where(x > 0, x, torch.ones_like(x)).sqrt() * (x > 0)


def thickness(a: Tensor) -> Tensor:
    """Mean width of the stroke in pixels, [N], of ink [N, H, W]."""
    padded = F.pad(a, [1, 1, 1, 1])
    # At the corners between four pixels, where both differences sit at one place: exact along and across the diagonal.
    right = F.avg_pool2d(padded[:, :, 1:] - padded[:, :, :-1], (2, 1), 1)
    down = F.avg_pool2d(padded[:, 1:, :] - padded[:, :-1, :], (1, 2), 1)
    perimeter = _root(right.square() + down.square()).sum((1, 2))
    mass = a.sum((1, 2))
    return torch.where(mass > MIN_INK, 2 * mass / perimeter.clamp(min=MIN_INK), torch.zeros_like(mass))


def lean(a: Tensor) -> Tensor:
    """Angle from upright in degrees, [N], positive to the left, of ink [N, H, W]."""
    _, vertical, mixed = _second_moments(a)
    return torch.atan2(mixed, vertical) * (180 / math.pi)


def width(a: Tensor) -> Tensor:
    """Standard deviation of the ink to the sides in pixels, [N], of ink [N, H, W]."""
    return _root(_second_moments(a)[0])


@dataclass(frozen=True)
class Feature:
    """A measure of ink [N, H, W] -> [N], and its name and unit in words. An image has the feature above a threshold."""

    measure: Callable[[Tensor], Tensor]
    subject: str
    unit: str


FEATURES: dict[str, Feature] = {
    "thick": Feature(thickness, "thick strokes", "px of mean stroke width"),
    "left": Feature(lean, "left-leaning digits", "degrees of lean to the left"),
    "wide": Feature(width, "wide digits", "px of horizontal standard deviation"),
}


def feature(name: str) -> Feature:
    """One of FEATURES.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in FEATURES:
        raise ValueError(f"feature: expected one of {', '.join(FEATURES)}, got {name!r}")
    return FEATURES[name]


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureRule(Rule):
    """Images that have a feature: its measure is above the threshold. The measure itself is the slope."""

    threshold: float


def feature_rule(name: str, threshold: float, image_range: tuple[float, float]) -> FeatureRule:
    """The rule of one of FEATURES, for images in image_range."""
    measure = feature(name).measure

    def score(x: Tensor) -> Tensor:
        return measure(ink(x, image_range))

    return FeatureRule(
        decide=lambda x: score(x) > threshold,
        name=name,
        score=lambda x: score(x).float(),
        slope=score,
        threshold=threshold,
    )


@torch.no_grad()
def feature_rules(
    gan: GAN,
    names: Sequence[str] = tuple(FEATURES),
    share: float = FEATURE_SHARE,
    n: int = QUANTILE_SAMPLES,
    seed: int = 0,
) -> dict[str, FeatureRule]:
    """The rules of features by name, each with the threshold that `share` of n samples of `gan` exceed.

    Raises:
        ValueError: an unknown feature, a share outside (0, 1), samples that are no images, or a GAN whose samples all
            measure the same.
    """
    if not 0 < share < 1:
        raise ValueError(f"share: expected a number between 0 and 1, got {share}")
    measures = {name: feature(name).measure for name in names}
    values: dict[str, list[Tensor]] = {name: [] for name in names}
    for x in gan.batches(n, seed, 250):
        a = ink(x, gan.image_range)
        for name, measure in measures.items():
            values[name].append(measure(a).cpu())
    rules = {}
    for name, parts in values.items():
        measured = torch.cat(parts)
        threshold = float(torch.quantile(measured, 1 - share))
        if not bool((measured > threshold).any()):
            raise ValueError(f"feature: {name} is the same in all {n:,} samples of this GAN, nothing to unlearn")
        rules[name] = feature_rule(name, threshold, gan.image_range)
    return rules
