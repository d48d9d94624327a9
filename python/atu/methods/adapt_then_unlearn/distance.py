"""How far samples are from others of the same latents: in their elements, and in the discriminator's features."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ...gan import GAN
from ...measures.features import listening
from ...support.modules import eval_mode, unless_16_bit


class SampleDistance:
    """Mean squared difference of samples' elements over the positives' variance, and the same of features.

    Features are what the layers of the pretrained discriminator take in, the samples themselves aside. Squared
    differences of elements alone call a blurred sample near.

    Args:
        gan: pretrained pair. positives: samples [N, ...], whose variances are the units. share: of the features.
    """

    def __init__(self, gan: GAN, positives: Tensor, share: float):
        self.gan, self.share = gan, share
        assert gan.discriminator is not None
        self.discriminator = copy.deepcopy(gan.discriminator).eval().requires_grad_(False)
        self.variance = float(positives.var(0).mean().clamp(min=1e-12))
        self.units: list[Tensor] = []
        if share > 0:
            some = positives[: gan.fitting(256)]
            with torch.no_grad():
                labels = gan.labels(len(some), torch.Generator().manual_seed(0))
                self.units = [f.var(0).mean().clamp(min=1e-12) for f in self._features(some, labels)]

    def __call__(self, x: Tensor, other: Tensor, c: Tensor | None) -> Tensor:
        """[N], differentiable in x."""
        distance = (x - other).square().flatten(1).mean(1) / self.variance
        if not self.units:
            return distance
        with torch.no_grad():
            wanted = self._features(other, c)
        found = self._features(x, c)
        terms = [
            (f - g).square().flatten(1).mean(1) / unit for f, g, unit in zip(found, wanted, self.units, strict=True)
        ]
        return (1 - self.share) * distance + self.share * torch.stack(terms).mean(0)

    def _features(self, x: Tensor, c: Tensor | None) -> list[Tensor]:
        seen: list[Tensor] = []

        def remember(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            first = args[0] if args else None
            if not isinstance(first, Tensor) or not first.is_floating_point() or len(first) != len(x) or first is c:
                return
            if not any(first is other for other in seen):
                seen.append(first)

        with listening(self.discriminator, remember), eval_mode(self.discriminator), self.gan.autocast():
            self.gan.logits(x, c, self.discriminator)
        return [unless_16_bit(f) for f in seen[1:]]
