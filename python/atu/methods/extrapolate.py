"""The closed form: stage 1, then weights on the other side of theta_G; no second stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from ..config import SAMPLES, STRICT, Config, PositiveCount
from ..gan import GAN
from ..presets import PAPER_ADAPT
from ..training.score import Score, pictured
from .adapt_then_unlearn.adapt import ADAPT_TITLE, adapt_all, adapt_stage
from .registry import Method, Outcome, Plan, Task


@dataclass(config=STRICT)
class Extrapolate:
    """The closed form theta_G - s (theta_N - theta_G) after stage 1."""

    s: Annotated[float, Field(allow_inf_nan=False, description="How far; 0 is the original, -1 the adapted one.")] = 1.0
    check_samples: Annotated[PositiveCount, SAMPLES, Field(description="On how many the result is scored.")] = 1000


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


def extrapolate(task: Task) -> Outcome:
    """Stage 1, then the closed form."""
    cfg, gan, feedback = task.config.own, task.gan, task.feedback
    adapted = adapt_all(task)
    twin = extrapolated(gan, adapted, cfg.s)
    scores = Score(gan, feedback, cfg.check_samples, task.seed)(twin.sampling_generator)
    task.run.picture("extrapolate", twin.sample(pictured(twin), seed=task.seed), gan.image_range)
    return Outcome(twin, {"s": cfg.s, **scores, **feedback.notes}, adapted)


def _plan(gan: GAN, cfg: Config) -> Plan:
    return Plan([adapt_stage(gan, cfg, needed=True)])


EXTRAPOLATE = Method(extrapolate, Extrapolate, preset={"adapt": PAPER_ADAPT}, plan=_plan, stages={"adapt": ADAPT_TITLE})
