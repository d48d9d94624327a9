"""How far samples are from others of the same latents: in their elements, and in what the guide's layers take in."""

from __future__ import annotations

import torch
from torch import Tensor

from .guide import Guide, Seen


class SampleDistance:
    """Mean squared difference of samples' elements over the positives' variance, and the same of features.

    Features are what the guide's layers take in, the samples themselves aside: the guide looks at each sample anyway.
    Squared differences of elements alone call a blurred sample near.

    Args:
        positives: samples [N, ...], whose variances are the units. share: of the features.
    """

    def __init__(self, guide: Guide, positives: Tensor, share: float):
        self.share = share
        self.variance = float(positives.var(0).mean().clamp(min=1e-12))
        self.units: list[Tensor] = []
        if share > 0:
            with torch.no_grad():
                features = guide.look(positives[: guide.gan.fitting(256)]).features
            self.units = [f.var(0).mean().clamp(min=1e-12) for f in features]

    def __call__(self, x: Seen, other: Seen) -> Tensor:
        """[N], differentiable in both."""
        distance = (x.samples - other.samples).square().flatten(1).mean(1) / self.variance
        if not self.units:
            return distance
        pairs = zip(x.features, other.features, self.units, strict=True)
        terms = [(f - g).square().flatten(1).mean(1) / unit for f, g, unit in pairs]
        return (1 - self.share) * distance + self.share * torch.stack(terms).mean(0)
