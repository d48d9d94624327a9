"""The distance between samples: in their elements, and in the inputs of the guide's layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...support.modules import unless_16_bit
from .guide import Guide, Seen


class _MeanSquare(torch.autograd.Function):
    """Mean square of each row: [N, M] to [N], in one pass each way without a tensor of squares. bfloat16 has float32's
    range, so it is summed in float32 and its gradient stays bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        dtype = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
        return torch.linalg.vector_norm(x, dim=1, dtype=dtype).square() / x.shape[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x * (grad * (2 / x.shape[1])).to(x.dtype)[:, None]


def _mean_square(x: Tensor) -> Tensor:
    """Mean square of each sample's elements: [N, ...] to [N]."""
    rows = x.flatten(1)
    squares: Tensor = _MeanSquare.apply(rows.float() if x.dtype == torch.float16 else rows)
    return squares


def variance(x: Tensor) -> Tensor:
    """Variance of each element over samples [N, ...]; 0 for a single sample."""
    return x.var(0, correction=min(len(x) - 1, 1))


@torch.no_grad()
def _variances(guide: Guide, x: Tensor) -> list[Tensor]:
    """Variance of each element of each of the guide's features, over samples [N, ...], as many at once as fit."""
    at_once = guide.gan.fitting(len(x))
    if at_once >= len(x):
        return [variance(unless_16_bit(f)) for f in guide.look(x).features]
    sums: list[list[Tensor]] = []
    for part in x.split(at_once):
        features = [f.double() for f in guide.look(part).features]
        new = [[f.sum(0), f.square().sum(0)] for f in features]
        sums = [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(sums, new, strict=True)] if sums else new
    n = len(x)
    return [((squares - total.square() / n) / max(n - 1, 1)).float() for total, squares in sums]


class SampleDistance:
    """Mean squared difference of samples over the positives' variance, mixed with the same of their features.

    Features are the inputs of the guide's layers, without the samples themselves: the guide sees each sample anyway.
    Squared differences of the samples alone call a blurred sample near.

    Args:
        positives: samples [N, ...]; their variances are the units. share: of the features in the mixture.
    """

    def __init__(self, guide: Guide, positives: Tensor, share: float = 0.7):
        self.share = share
        self.variance = float(variance(positives).mean().clamp(min=1e-12))
        self.units: list[Tensor] = []
        if share > 0:
            self.units = [unit.mean().clamp(min=1e-12) for unit in _variances(guide, positives[:256])]

    def __call__(self, x: Seen, other: Seen) -> Tensor:
        """[N], differentiable in both."""
        distance = _mean_square(x.samples - other.samples) / self.variance
        if not self.units:
            return distance
        pairs = zip(x.features, other.features, self.units, strict=True)
        terms = [_mean_square(f - g) / unit for f, g, unit in pairs]
        return (1 - self.share) * distance + self.share * torch.stack(terms).mean(0)
