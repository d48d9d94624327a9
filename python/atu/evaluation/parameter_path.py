"""The straight line through parameter space: the same latents at theta_G + s (theta_N - theta_G).

s = 1 is the adapted generator, 0 the original; below 0 lies extrapolation away from the negatives (the paper's
observation that this direction has a meaning, and that going far along it costs quality).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..gan import GAN
from ..measures.frechet import frechet
from ..measures.shares import share_of
from ..support import progress
from ..support.modules import copied
from .judged import Look, judge_samples

POINTS = (-1.5, -1.25, -1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass
class ParameterPath:
    """points: one dict a point: s, negative (count, share, ci95), frechet to the original's kept samples.
    images: [points, shown, ...] of the same latents. image_range: theirs."""

    points: list[dict[str, Any]]
    images: Tensor
    image_range: tuple[float, float]


@torch.no_grad()
def between(original: nn.Module, adapted: Mapping[str, Tensor], s: float) -> nn.Module:
    """A copy of `original` at theta_G + s (theta_N - theta_G).

    adapted: state dict of theta_N. Buffers (batch norm's) follow too, but not beyond either end, as a variance must
    stay positive.
    """
    module = copied(original)
    parameters = {name for name, _ in module.named_parameters()}
    state = module.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            factor = s if name in parameters else min(max(s, 0.0), 1.0)
            value.add_(adapted[name].to(value) - value, alpha=factor)
    return module


def parameter_path(
    gan: GAN,
    adapted: Mapping[str, Tensor],
    look: Look,
    kept: Tensor,
    points: Sequence[float] = POINTS,
    n: int = 400,
    shown: int = 6,
    seed: int = 0,
) -> ParameterPath:
    """Judge n samples of the same latents and noise at each point.

    Args:
        adapted: state dict of an adapted generator. look: of a judge (`verdicts_of`).
        kept: features [N, F] of the original's non-negative samples, to measure the Frechet distance to.
    """
    rows, images = [], []
    for s in progress.track("parameter path", points, len(points)):
        generator = between(gan.sampling_generator, adapted, s)
        judged = judge_samples(gan.batches(n, seed, generator=generator), look, shown)
        distance = frechet(kept, judged.features) if bool(torch.isfinite(judged.features).all()) else None
        rows.append(dict(s=float(s), negative=asdict(share_of(int(judged.negative.sum()), n)), frechet=distance))
        images.append(judged.first)
    return ParameterPath(rows, torch.stack(images), gan.image_range)
