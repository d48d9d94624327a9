"""The range (low, high) of the values of samples: as given, or told from some of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def checked_range(image_range: Any) -> tuple[float, float]:
    """(low, high) as given; ValueError where that is no range."""
    try:
        low, high = (float(value) for value in image_range)
    except (TypeError, ValueError) as error:
        raise ValueError(f"image_range: expected (low, high), got {image_range!r}") from error
    if not low < high:
        raise ValueError(f"image_range: expected (low, high) with low < high, got {image_range!r}")
    return low, high


def inferred_range(x: Tensor) -> tuple[tuple[float, float], str | None]:
    """The range that samples x [N, ...] are in, and what to tell the user where that is not plainly (-1, 1).

    Samples that are no images [N, C, H, W] have no range: (-1, 1) stands for it.
    """
    usual = (-1.0, 1.0)
    if x.ndim != 4 or not torch.isfinite(x).all():
        return usual, None
    low, high = float(x.min()), float(x.max())
    seen = f"image_range: not given, and some samples lie in [{low:.3g}, {high:.3g}]"
    if low < -0.02:
        if low > -20 and high < 20:  # untrained ones, and those without a squashing output, overshoot
            return usual, None
    elif high <= 0.02:  # nothing but black: no evidence
        return usual, None
    elif high <= 1.02:
        return (0.0, 1.0), f"{seen}: taken for (0, 1). Confirm it with GAN(..., image_range=(0, 1)), or say otherwise"
    elif 20 < high < 300:
        return (0.0, 255.0), f"{seen}: taken for (0, 255). Confirm it with GAN(..., image_range=(0, 255))"
    return usual, f"{seen}: neither (-1, 1) nor (0, 1) nor (0, 255). (-1, 1) is assumed: say GAN(..., image_range=...)"
