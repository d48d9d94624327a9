"""Training on the positives alone, from the pretrained weights: the common part of most published baselines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from functools import partial
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..config import SAMPLES, STEPS, STRICT, Adversarial, Config, Count, PositiveCount
from ..data.samples import Samples
from ..gan import GAN
from ..support.seeding import Stream, fork_rng, stream_seed
from ..training.loop import run_stage
from ..training.score import Score, ScoredStage
from ..training.step import AdversarialStep, Objective
from .registry import Outcome, Plan, Stage, Task


@dataclass(config=STRICT)
class Finetune:
    """Settings of the methods that train on the positives alone, without stage 1."""

    steps: Annotated[Count, STEPS, Field(description="Training steps.")] = 600
    check_every: Annotated[PositiveCount, STEPS, Field(description="How often the generator is scored.")] = 50
    check_samples: Annotated[PositiveCount, SAMPLES, Field(description="On how many it is scored.")] = 1000
    adversarial: Annotated[Adversarial, Field(description="The adversarial loss, on the positives.")] = field(
        default_factory=lambda: Adversarial(ema_half_life=5000.0)
    )


def finetune_plan(check: Callable[[GAN, Config], object] = lambda gan, cfg: None) -> Callable[[GAN, Config], Plan]:
    """The plan of a method that fine-tunes: one stage, named after the method. check: raises ValueError if GAN and
    settings do not fit."""

    def plan(gan: GAN, cfg: Config) -> Plan:
        settings, fits = cfg.own, partial(check, gan, cfg)
        return Plan([Stage.of(cfg.method, cfg.method, settings.steps, settings.adversarial, check=fits)])

    return plan


def pretrained_copy(gan: GAN) -> GAN:
    """A copy whose generator starts at theta_G, the weights that make the samples."""
    twin = gan.copy()
    if twin.generator_ema is not None:
        twin.generator.load_state_dict(twin.generator_ema.state_dict())
    return twin


def finetune(
    task: Task, twin: GAN, objective: Objective | None = None, real: Samples | None = None, decay: float = 0.0
) -> Outcome:
    """Train `twin` in place on the positives (or `real`); the outcome has the EMA generator.

    Args:
        objective: what is minimised; the plain GAN loss when not given.
        decay: share of the steps, the last ones, over which the learning rates fall to 0.
    """
    cfg, stage, feedback = task.config.own, task.config.method, task.feedback
    with fork_rng(task.gan.device, stream_seed(task.seed, Stream.FINETUNE)):
        samples = feedback.positives if real is None else real
        step = AdversarialStep(twin, samples, objective or Objective(), cfg.adversarial)
        score = Score(task.gan, feedback, cfg.check_samples, task.seed)
        hooks = ScoredStage(stage, step, score, task.run, cfg.steps, cfg.check_every, decay)
        run_stage(task.run, stage, step, cfg.steps, hooks)
    return Outcome(twin, {**hooks.decisions(), **feedback.notes})
