"""Preparation of stage 2: the guide is trained, doubtful positives are left out, and the bank of latents is filled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...data.samples import Samples
from ...judging.doubts import doubted, without_doubted
from ...judging.feedback import Feedback
from ...support.modules import still
from ...support.seeding import Stream, fork_rng, stream_seed
from ..registry import Task
from .defaults import resolved
from .distance import SampleDistance, variance
from .guide import MAX_ROUNDS, Guide, GuideTraining
from .nearby import MovedLatents, NegativeLatents
from .ways import WayLatents

SCALE_SAMPLES = 500  # positives whose variance is the unit of distances and of the guide's slope


@dataclass
class Bank:
    """Latents of which the pretrained GAN makes negatives, and the distance that samples are held by."""

    latents: NegativeLatents
    distance: SampleDistance


@dataclass
class Prepared:
    """The parts that stage 2's terms need.

    feedback: without the positives that the guide doubts. doubted: which these are, bools [N]. threshold: log-odds
    above which a sample that only the guide takes for negative joins the bank. bank: None where nothing is held.
    """

    guide: Guide
    feedback: Feedback
    doubted: Tensor
    threshold: float
    bank: Bank | None = None

    def state_dict(self) -> dict[str, Any]:
        """State from which a resumed run continues without training again."""
        bank = {} if self.bank is None else self.bank.latents.state_dict()
        return {"guide": self.guide.state_dict(), "doubted": self.doubted, "threshold": self.threshold, "bank": bank}


def prepare(task: Task, steps: int, saved: dict[str, Any] | None = None) -> Prepared:
    """Train the guide and fill the bank; or load what an interrupted run `saved` (`Prepared.state_dict`).

    steps: of stage 2. The guide trains for at most twice as many, the ways to good samples for at most as many.
    """
    positives = task.feedback.positives
    some = positives.batch(torch.arange(min(len(positives), SCALE_SAMPLES)))
    training = _guide_training(task, steps, float(variance(some).mean()))
    if saved is None:
        # Labels are drawn for a conditional GAN, and a resumed run draws none.
        with fork_rng(task.gan.device, training.seed):
            prepared = _trained(task, training)
    else:
        prepared = _loaded(task, training, saved)
    prepared.bank = _bank(task, steps, prepared.guide, some, saved)
    return prepared


def _guide_training(task: Task, steps: int, scale: float) -> GuideTraining:
    """scale: variance of the positives. With it the slope's weight means the same in any units of the samples."""
    cfg, at_once = task.config.repel, _at_once(task)
    return GuideTraining(
        steps=cfg.guide_steps,
        batch_size=64 if at_once is None else min(64, at_once),
        slope_weight=scale,
        # With more negatives, augmentation only blurs the boundary.
        policy="translation" if len(task.feedback.negatives) < 100 else "",
        seed=stream_seed(task.seed, Stream.GUIDE),
        at_once=at_once,
        rounds=min(MAX_ROUNDS, 1 + 2 * steps // max(cfg.guide_steps, 1)),
    )


def _at_once(task: Task) -> int | None:
    """Samples that pass at once. For big ones it is the training's batch, which the user has fitted to the memory."""
    return task.config.repel.adversarial.batch_size if task.gan.is_big else None


def _trained(task: Task, training: GuideTraining) -> Prepared:
    """A trained guide. Without an oracle, positives that a first guide takes for negatives are left out, and a second
    guide is trained without them. They are no more than the probe may have missed."""
    gan, feedback = task.gan, task.feedback

    def guide_on(positives: Samples) -> Guide:
        guide = Guide(gan, training)
        guide.learn_from(feedback.negatives, positives)
        return guide

    guide = guide_on(feedback.positives)
    if feedback.has_oracle:
        return Prepared(guide, feedback, torch.zeros(len(feedback.positives), dtype=torch.bool), 0.0)
    flags, threshold = doubted(gan, feedback, guide.log_odds)
    if not flags.any():
        return Prepared(guide, feedback, flags, threshold)
    cleared = without_doubted(feedback, flags, task.seed)
    guide = guide_on(cleared.positives)
    _, threshold = doubted(gan, feedback, guide.log_odds)
    return Prepared(guide, cleared, flags, threshold)


def _loaded(task: Task, training: GuideTraining, saved: dict[str, Any]) -> Prepared:
    """The guide of an interrupted run.

    Raises:
        ValueError: that run had other positives than there are now.
    """
    flags, count = saved["doubted"], len(task.feedback.positives)
    if len(flags) != count:
        raise ValueError(
            f"out: this run was prepared with {len(flags)} positives, and now there are {count}: the samples of a GAN "
            "depend on how many it makes at once (batch, or the free memory) and on the device. Use those of before, "
            "or give another folder"
        )
    guide = Guide(task.gan, training)
    guide.load_state_dict(saved["guide"])
    return Prepared(guide, without_doubted(task.feedback, flags, task.seed), flags, saved["threshold"])


def _bank(task: Task, steps: int, guide: Guide, some: Tensor, saved: dict[str, Any] | None) -> Bank | None:
    """The bank, or None if nothing is held. some: positives, whose variances are the units of distances."""
    gan, cfg, negatives = task.gan, resolved(task.gan, task.config.repel), task.feedback.negative_latents
    if not cfg.hold_weight or negatives is None or not len(negatives[0]):
        return None
    distance = SampleDistance(guide, some.to(gan.device))
    with fork_rng(gan.device, stream_seed(task.seed, Stream.NEARBY)):
        original = partial(gan.fake, generator=still(gan.sampling_generator))
        kind = MovedLatents if gan.is_stylegan else WayLatents
        latents = kind(gan, original, guide, distance, _at_once(task))
        if saved is None:
            latents.fill(*negatives, steps=min(cfg.guide_steps, steps))
        else:
            latents.load_state_dict(saved["bank"])
    return Bank(latents, distance)
