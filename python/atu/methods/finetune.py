"""Training on the positives alone, from the pretrained weights: what most of the published baselines share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field
from torch import Tensor, nn

from ..config import SAMPLES, STEPS, STRICT, Adversarial, Count, NonNegative, PositiveCount
from ..data.samples import Samples
from ..feedback.feedback import Feedback
from ..gan import GAN
from ..support import progress
from ..support.seeding import Stream, fork_rng, stream_seed
from ..training.run_folder import RunFolder
from ..training.score import CheckpointKeeper, Score
from ..training.stage import StageHooks, run_stage
from ..training.trainer import AdversarialTrainer

AddGrad = Callable[[], dict[str, float]]


@pydantic.dataclasses.dataclass(config=STRICT)
class Finetune:
    """What the methods share that train on the positives alone, without stage 1."""

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


@dataclass
class Outcome:
    """What a method gives: the unlearned GAN, what it decided, and the adapted generators' state dicts, if any."""

    gan: GAN
    decisions: dict[str, Any]
    adapted: list[dict[str, Tensor]] = field(default_factory=list)


class ScoringHooks(StageHooks):
    """Has the EMA generator scored every so often.

    on_step: called with the trainer's step count at the start, after each step, and when a run is resumed.
    """

    def __init__(self, keeper: CheckpointKeeper, cfg: Finetune, on_step: Callable[[int], None]):
        self.keeper, self.cfg, self.on_step = keeper, cfg, on_step
        self.on_step(0)

    def after_step(self, step: int, metrics: dict[str, float]) -> bool:
        self.on_step(step)
        if step % self.cfg.check_every == 0 or step == self.cfg.steps:
            self.keeper.check(step, metrics)
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"keeper": self.keeper.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.keeper.load_state_dict(state["keeper"])
        self.on_step(self.keeper.trainer.step_count)


def pretrained_copy(gan: GAN) -> GAN:
    """A copy whose generator starts at theta_G, the weights that samples are made with."""
    twin = gan.copy()
    if twin.generator_ema is not None:
        twin.generator.load_state_dict(twin.generator_ema.state_dict())
    return twin


def finetune(
    twin: GAN,
    stage: str,
    gan: GAN,
    feedback: Feedback,
    cfg: Finetune,
    run: RunFolder,
    seed: int,
    add_grad: AddGrad | None = None,
    real: Samples | None = None,
    on_step: Callable[[int], None] | None = None,
    schedule_lr: Callable[[float], float] | None = None,
    prepare: Callable[[nn.Module], None] | None = None,
) -> Outcome:
    """Train `twin` in place on the positives (or `real`); the outcome holds it, with the kept EMA generator.

    Args:
        stage: its name in the history and the run folder. gan: the pretrained pair, which features are taken from.
        add_grad: as `AdversarialTrainer`'s add_penalty_grad.
        on_step: called with the steps done: at the start, after each step, and when a run is resumed.
        schedule_lr: share of the steps done -> factor of the learning rates.
        prepare: called with the generator once it is in training mode.
    """
    with fork_rng(gan.device, stream_seed(seed, Stream.FINETUNE)):
        trainer = AdversarialTrainer(
            twin, feedback.positives if real is None else real, cfg.adversarial, add_penalty_grad=add_grad
        )
        if prepare is not None:
            prepare(twin.generator)

        def follow(step: int) -> None:
            if on_step is not None:
                on_step(step)
            if schedule_lr is not None:
                trainer.set_lr_factor(schedule_lr(step / max(cfg.steps, 1)))

        score = Score(gan, feedback, cfg.check_samples, cfg.drift_weight, seed)
        keeper = CheckpointKeeper(stage, trainer, score, run, cfg.keep)
        run_stage(run, stage, trainer, cfg.steps, ScoringHooks(keeper, cfg, follow))
    keeper.restore()
    decisions = {**keeper.decisions(), "stopped": "all steps done", "kept": f"the {cfg.keep} generator"}
    progress.log.info("%s: kept step %s", stage, decisions["kept_step"])
    return Outcome(twin, {**decisions, **feedback.notes})
