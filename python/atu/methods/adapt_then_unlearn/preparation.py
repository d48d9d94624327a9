"""What is learnt before the first step of stage 2: the guide, which positives it doubts, and the bank of latents."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...data.samples import Samples
from ...gan import GAN
from ...judging.doubts import doubted, without_doubted
from ...judging.feedback import Feedback
from ...support.modules import still
from ...support.seeding import Stream, fork_rng, stream_seed
from ..registry import Task
from .defaults import hold_weight
from .distance import SampleDistance, variance
from .guide import ROUNDS, Guide, GuideTraining
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
    """What stage 2's terms are made with.

    feedback: without the positives that the guide doubts. doubted: which these are, bools [N]. threshold: log-odds
    above which a sample that only the guide takes for negative joins the bank. bank: None where nothing is held.
    """

    guide: Guide
    feedback: Feedback
    doubted: Tensor
    threshold: float
    bank: Bank | None = None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run need not learn again."""
        bank = {} if self.bank is None else self.bank.latents.state_dict()
        return {"guide": self.guide.state_dict(), "doubts": self.doubted, "bar": self.threshold, "bank": bank}


def prepare(task: Task, steps: int, saved: dict[str, Any] | None = None) -> Prepared:
    """Teach the guide and fill the bank, or go on from what an interrupted run `saved` (`Prepared.state_dict`).

    steps: of stage 2. The guide learns on for no more than twice as many, the ways to good samples for no more.
    """
    gan, cfg, feedback = task.gan, task.config.repel, task.feedback
    some = feedback.positives.batch(torch.arange(min(len(feedback.positives), SCALE_SAMPLES)))
    # Of big samples no more at once than the training takes, whose batch the user has fitted to the memory.
    at_once = cfg.adversarial.batch_size if gan.is_big else None
    training = GuideTraining(
        steps=cfg.guide_steps,
        batch_size=64 if at_once is None else min(64, at_once),
        slope_weight=cfg.guide_r1 * float(variance(some).mean()),
        # With more negatives, augmentation only blurs the boundary.
        policy="translation" if len(feedback.negatives) < 100 else "",
        seed=stream_seed(task.seed, Stream.GUIDE),
        at_once=at_once,
        rounds=min(ROUNDS, 1 + 2 * steps // max(cfg.guide_steps, 1)),
    )
    if saved is None:
        with fork_rng(gan.device, stream_seed(task.seed, Stream.GUIDE)):  # labels are drawn; a resumed run draws none
            prepared = _taught(gan, feedback, training, task.seed)
    else:
        prepared = _loaded(gan, feedback, training, task.seed, saved)
    known = feedback.negative_latents
    if hold_weight(gan, cfg) and known is not None and len(known[0]):
        distance = SampleDistance(prepared.guide, some.to(gan.device), cfg.hold_features)
        with fork_rng(gan.device, stream_seed(task.seed, Stream.NEARBY)):
            original = partial(gan.fake, generator=still(gan.sampling_generator))
            kind = MovedLatents if gan.is_stylegan else WayLatents
            latents = kind(gan, original, prepared.guide, distance, at_once)
            if saved is None:
                latents.fill(*known, steps=min(cfg.guide_steps, steps))
            else:
                latents.load_state_dict(saved["bank"])
        prepared.bank = Bank(latents, distance)
    return prepared


def _taught(gan: GAN, feedback: Feedback, training: GuideTraining, seed: int) -> Prepared:
    """A guide that has learnt. Without an oracle, the positives that a first guide takes for negatives are left out (no
    more than the probe may have missed), and a second guide learns without them."""

    def learn(positives: Samples) -> Guide:
        guide = Guide(gan, training)
        guide.learn_from(feedback.negatives, positives)
        return guide

    guide = learn(feedback.positives)
    if feedback.has_oracle:
        return Prepared(guide, feedback, torch.zeros(len(feedback.positives), dtype=torch.bool), 0.0)
    doubts, threshold = doubted(gan, feedback, guide.log_odds)
    if not doubts.any():
        return Prepared(guide, feedback, doubts, threshold)
    cleared = without_doubted(feedback, doubts, seed)
    guide = learn(cleared.positives)
    _, threshold = doubted(gan, feedback, guide.log_odds)
    return Prepared(guide, cleared, doubts, threshold)


def _loaded(gan: GAN, feedback: Feedback, training: GuideTraining, seed: int, saved: dict[str, Any]) -> Prepared:
    """What an interrupted run had taught.

    Raises:
        ValueError: it had other positives than there are now.
    """
    doubts = saved["doubts"]
    if len(doubts) != len(feedback.positives):
        raise ValueError(
            f"out: this run was prepared with {len(doubts)} positives, and now there are {len(feedback.positives)}: "
            "the samples that a GAN makes depend on how many it makes at once (batch, or the memory that is free), and "
            "on the device. Go on with those of before, or give another folder"
        )
    guide = Guide(gan, training)
    guide.load_state_dict(saved["guide"])
    return Prepared(guide, without_doubted(feedback, doubts, seed), doubts, saved["bar"])
