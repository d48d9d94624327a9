"""Positives in doubt: generated ones that a probe passed, and a second classifier takes for negatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..data.samples import TensorSamples
from ..gan import GAN
from ..support.seeding import Stream, stream_seed
from .feedback import Feedback
from .pool import subset
from .positives import fill_labels


def doubted(gan: GAN, feedback: Feedback, log_odds: Callable[[Tensor], Tensor]) -> tuple[Tensor, float]:
    """The generated positives to doubt, bools [N], and the log odds above which they lie.

    log_odds: of a second classifier, which sees what the probe passes over. Of the samples above 0 no more are doubted
    than the probe may have missed, the likeliest.
    """
    positives, given = feedback.positives, feedback.given
    flags = torch.zeros(len(positives), dtype=torch.bool)
    if given == len(positives) or not isinstance(positives, TensorSamples):
        return flags, float("inf")
    with torch.no_grad():
        parts = [log_odds(part.to(gan.device)).cpu() for part in positives.tensor[given:].split(gan.fitting(100))]
    scores = torch.cat(parts).float()
    most = min(round(feedback.missed * len(scores)), 3 * len(scores) // 4)
    above = max(float(scores.sort(descending=True).values[most]), 0.0)
    flags[given:] = scores > above
    return flags, above


def without_doubted(feedback: Feedback, flags: Tensor, seed: int) -> Feedback:
    """The feedback without these positives, bools [N]; a label that lost (nearly) all of its own is filled up."""
    positives, dropped = feedback.positives, int(flags.sum())
    if not dropped or not isinstance(positives, TensorSamples):
        return feedback
    kept = subset(positives, ~flags)
    if positives.labels is not None:
        kept, _ = fill_labels(kept, positives.labels, stream_seed(seed, Stream.LABELS_FILLED))
    return replace(feedback, positives=kept, notes={**feedback.notes, "positives_doubted": dropped})
