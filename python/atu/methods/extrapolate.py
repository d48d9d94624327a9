"""The closed form: no second stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .. import config
from ..feedback.feedback import Feedback
from ..gan import GAN
from ..training.run_folder import RunFolder
from ..training.score import Score
from .adapt_then_unlearn.adapt import adapt_all
from .finetune import Outcome


@torch.no_grad()
def extrapolated(gan: GAN, adapted: Sequence[Mapping[str, Tensor]], s: float) -> GAN:
    """A copy of `gan` with theta_G - s (theta_N - theta_G), theta_N the mean of the adapted generators' weights."""
    twin = gan.copy()
    for module in {id(m): m for m in (twin.generator, twin.sampling_generator)}.values():
        base = dict(gan.sampling_generator.named_parameters())
        for name, p in module.named_parameters():
            mean = torch.stack([state[name].to(p.device) for state in adapted]).mean(0)
            p.copy_(base[name] - s * (mean - base[name]))
    return twin


def extrapolate(gan: GAN, feedback: Feedback, cfg: config.Config, run: RunFolder, seed: int) -> Outcome:
    """Stage 1, then the closed form."""
    own = cfg.methods.extrapolate
    adapted = adapt_all(gan, feedback, cfg.adapt, run, seed)
    twin = extrapolated(gan, adapted, own.s)
    found = Score(gan, feedback, own.check_samples, own.drift_weight, seed)(twin.sampling_generator)
    run.picture("extrapolate", twin.sample(100, seed=seed), gan.image_range)
    return Outcome(twin, {"s": own.s, **found, **feedback.notes}, adapted)
