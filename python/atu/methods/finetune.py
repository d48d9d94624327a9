"""Training on the positives alone, from the pretrained weights: the common part of most published baselines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from functools import partial
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..config import SAMPLES, STEPS, STRICT, Adversarial, Config, Count, NonNegative, PositiveCount
from ..data.samples import Samples
from ..gan import GAN
from ..support import progress
from ..support.seeding import Stream, fork_rng, stream_seed
from ..training.loop import run_stage
from ..training.score import CheckpointKeeper, Score, ScoredStage
from ..training.step import AdversarialStep, Objective
from .registry import Outcome, Plan, Stage, Task


@dataclass(config=STRICT)
class Finetune:
    """Settings of the methods that train on the positives alone, without stage 1."""

    steps: Annotated[Count, STEPS, Field(description="Training steps.")] = 600
    check_every: Annotated[PositiveCount, STEPS, Field(description="How often the generator is scored.")] = 50
    check_samples: Annotated[PositiveCount, SAMPLES, Field(description="On how many it is scored.")] = 1000
    drift_weight: Annotated[
        NonNegative, Field(description="Weight of the drift of the kept samples beside the negatives in the score.")
    ] = 1.0
    keep: Annotated[
        Literal["final", "best"], Field(description="Which generator is kept: the final one, or the best by its score.")
    ] = "final"
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
    """Train `twin` in place on the positives (or `real`); the outcome has the kept EMA generator.

    Args:
        objective: what is minimised; the plain GAN loss when not given.
        decay: share of the steps, the last ones, over which the learning rates fall to 0.
    """
    cfg, stage, feedback = task.config.own, task.config.method, task.feedback
    with fork_rng(task.gan.device, stream_seed(task.seed, Stream.FINETUNE)):
        samples = feedback.positives if real is None else real
        step = AdversarialStep(twin, samples, objective or Objective(), cfg.adversarial)
        score = Score(task.gan, feedback, cfg.check_samples, cfg.drift_weight, task.seed)
        keeper = CheckpointKeeper(stage, step, score, task.run, cfg.keep)
        run_stage(task.run, stage, step, cfg.steps, ScoredStage(keeper, cfg.steps, cfg.check_every, decay))
    keeper.restore()
    decisions = {**keeper.decisions(), "stopped": "all steps done", "kept": f"the {cfg.keep} generator"}
    progress.log.info("%s: kept step %s", stage, decisions["kept_step"])
    return Outcome(twin, {**decisions, **feedback.notes})
