"""How far samples are from others of the same latents: in their elements, and in what the guide's layers take in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...support.modules import unless_16_bit
from .guide import Guide, Seen


class _MeanSquare(torch.autograd.Function):
    """Of rows [N, M], [N]: one pass each way, without a tensor of squares. bfloat16, whose range is that of float32, is
    summed in float32 and has a gradient of its own kind."""

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
    """Of samples' elements [N, ...], [N]."""
    rows = x.flatten(1)
    found: Tensor = _MeanSquare.apply(rows.float() if x.dtype == torch.float16 else rows)
    return found


def variance(x: Tensor) -> Tensor:
    """Of the elements of samples [N, ...]; 0 where there is one."""
    return x.var(0, correction=min(len(x) - 1, 1))


@torch.no_grad()
def _variances(guide: Guide, x: Tensor) -> list[Tensor]:
    """Of the elements of each of the guide's features of samples [N, ...], as many at once as fit."""
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
    """Mean squared difference of samples' elements over the positives' variance, and the same of features.

    Features are what the guide's layers take in, the samples themselves aside: the guide looks at each sample anyway.
    Squared differences of elements alone call a blurred sample near.

    Args:
        positives: samples [N, ...], whose variances are the units. share: of the features.
    """

    def __init__(self, guide: Guide, positives: Tensor, share: float):
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
