"""Retraining from scratch on the positives: the row that other methods are compared with."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from ..config import OF_STEPS, STEPS, STRICT, Adversarial, Count, Fraction, PositiveCount
from ..data.samples import Samples
from ..gan import GAN
from ..judging.feedback import Feedback
from ..support.seeding import Stream, fork_rng, stream_seed
from .finetune import Finetune, finetune, finetune_plan
from .layers import reinitialise
from .registry import Method, Outcome, Task


@dataclass(config=STRICT)
class Retrain(Finetune):
    """From scratch on the positives."""

    steps: Annotated[Count, STEPS, Field(description="Training steps.")] = 10_000
    check_every: Annotated[PositiveCount, STEPS, Field(description="How often the generator is scored.")] = 500
    decay: Annotated[
        Fraction, OF_STEPS, Field(description="The last ones, over which the learning rates fall to 0.")
    ] = 0.25
    adversarial: Annotated[Adversarial, Field(description="The adversarial loss, on the positives.")] = field(
        default_factory=lambda: Adversarial(
            loss="relativistic", r1_gamma=0.5, r2_gamma=0.5, ema_half_life=10_000.0, ema_ramp=0.05
        )
    )


class Subset:
    """The samples at `index` [M] of others."""

    def __init__(self, samples: Samples, index: Tensor):
        self.samples, self.index = samples, index
        labels: Tensor | None = getattr(samples, "labels", None)
        self.labels = None if labels is None else labels[index]

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, index: Tensor) -> Tensor:
        return self.samples.batch(self.index[index])


def without_negatives(gan: GAN, feedback: Feedback) -> tuple[Samples, int]:
    """(positives that the user's oracle does not call negative, number of the others); all without an oracle.

    Raises:
        ValueError: fewer than two are left.
    """
    if not feedback.has_oracle:
        return feedback.positives, 0
    parts = torch.arange(len(feedback.positives)).split(100)
    flags = torch.cat([feedback.rule(feedback.positives.batch(part).to(gan.device)) for part in parts])
    kept = (~flags).nonzero().flatten()
    if len(kept) < 2:
        raise ValueError(f"positives: the oracle calls {int(flags.sum())} of {len(flags)} negative; nothing is left")
    if len(kept) == len(flags):
        return feedback.positives, 0
    return Subset(feedback.positives, kept), int(flags.sum())


def retrain(task: Task) -> Outcome:
    """Train networks of the same kind from new weights on the positives: the user's real samples if there are any."""
    gan = task.gan
    real, dropped = without_negatives(gan, task.feedback)
    twin = gan.copy()
    with fork_rng(gan.device, stream_seed(task.seed, Stream.REINITIALISED_NETWORKS)):
        assert twin.discriminator is not None
        drawn = reinitialise(twin.generator) + reinitialise(twin.discriminator)
    twin.generator_ema = None
    outcome = finetune(task, twin, real=real, decay=task.config.own.decay)
    outcome.decisions.update(trained_on=len(real), dropped_as_negative=dropped, drawn_without_a_rule=len(drawn))
    return outcome


# Real samples must not be mixed with generated ones.
RETRAIN = Method(retrain, Retrain, preset={"feedback": {"least_positives": 0}}, plan=finetune_plan())
