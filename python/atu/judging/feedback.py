"""The feedback of a run: its negatives, its positives, and the rule that answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import config
from ..data.samples import JoinedSamples, Samples, TensorSamples, behind
from ..gan import GAN
from ..support import progress
from ..support.seeding import Stream, stream_seed
from . import checks
from .pool import draw_pool, pool_size, subset, wanted_pool
from .positives import good_of_pool, with_generated
from .probe import Probe, fit_probe
from .recognition import recognition_remarks, told
from .rule import Rule


@dataclass
class Feedback:
    """The samples that a run learns from, and the rule that answers.

    Attributes:
        negatives, positives: samples.
        rule: says during the run which samples are negative: the user's oracle, or a probe.
        has_oracle: True if the rule is the user's.
        negative_share: of the pretrained GAN's samples, by the rule.
        notes: what was built and dropped, for the report.
        negative_latents: (latents [n, ...], labels or None) of the pretrained GAN's samples that the rule flags.
        given: how many of the positives, the first of them, the user gave; the rest are generated samples that the rule
            passed.
        missed: share of the generated samples that a probe passed which may be negative: twice what the marks held out
            from it say.
    """

    negatives: Samples
    positives: Samples
    rule: Rule
    has_oracle: bool
    negative_share: float
    notes: dict[str, object]
    negative_latents: tuple[Tensor, Tensor | None] | None = None
    given: int = 0
    missed: float = 0.0


def build_feedback(
    gan: GAN, negatives: Samples, positives: Samples | None, oracle: Rule | None, cfg: config.Feedback, seed: int
) -> Feedback:
    """Choose the rule that answers and the positives from what the user gave; warn of what looks wrong in it.

    Raises:
        ValueError: nothing can come of it (see checks.py), or the oracle or the probe calls all of the generated
            samples negative.
    """
    size = pool_size(gan, wanted_pool(gan, cfg, oracle is not None))
    pool, z = draw_pool(gan, size, stream_seed(seed, Stream.POOL))
    rule, flags = _answers(gan, negatives, positives, pool.tensor, oracle, cfg.recall)
    share = float(flags.float().mean())
    answers = "probe" if oracle is None else "oracle"
    remarks = [] if cfg.pool == "auto" else checks.pool_remarks(cfg.pool, len(pool))
    remarks += checks.remarks(gan, negatives, pool.tensor, flags, oracle)
    remarks += recognition_remarks(rule.marks, share) if isinstance(rule, Probe) else []
    checks.warn_of(remarks)
    if gan.range_remark is not None:
        remarks = [gan.range_remark, *remarks]
    notes: dict[str, object] = {"pool": len(pool), "answered_by": answers, "negative_share": share, "warnings": remarks}
    notes["marks"] = _count_of(negatives)
    missed = 0.0
    if isinstance(rule, Probe):
        notes["probe"], notes["recognition"] = dict(rule.marks), told(rule.marks, share)
        recognised, of = rule.marks["recognised"], rule.marks["of"]
        # Rule of succession; twice, as many of those that a guide flags are good ones on the boundary.
        missed = 2 * (of - recognised + 1) / (recognised + 1) * int(flags.sum()) / max(int((~flags).sum()), 1)
    progress.log.info("%s", notes["marks"])
    progress.log.info("The %s calls %.1f %% of %d generated samples negative", answers, 100 * share, len(pool))
    if "recognition" in notes:
        progress.log.info("%s", notes["recognition"])
    given = 0 if positives is None else len(positives)
    if positives is None:
        good: Samples = good_of_pool(pool, flags, answers, stream_seed(seed, Stream.LABELS_FILLED), notes)
    else:
        good = with_generated(positives, pool, flags, cfg.least_positives, notes)
    if oracle is not None:
        negatives = _with_flagged(negatives, pool, flags, notes)
    latents = z[flags.to(z.device)], None if pool.labels is None else pool.labels[flags].to(z.device)
    return Feedback(negatives, good, rule, oracle is not None, share, notes, latents, given, missed)


def _count_of(negatives: Samples) -> str:
    enough = "" if len(negatives) >= checks.MANY_NEGATIVES else ": a dozen works, a hundred is better"
    return f"{len(negatives)} negatives{enough}"


def _answers(
    gan: GAN, negatives: Samples, positives: Samples | None, pool: Tensor, oracle: Rule | None, recall: float
) -> tuple[Rule, Tensor]:
    """The rule that answers (a probe, where there is no oracle), and its answers for the pool: bools [N]."""
    if oracle is None:
        probe = fit_probe(gan, negatives, pool, recall, positives)
        return probe, probe(pool)
    return oracle, torch.cat([oracle(part.to(gan.device)) for part in pool.split(gan.fitting(100))])


def _with_flagged(negatives: Samples, pool: TensorSamples, flags: Tensor, notes: dict[str, object]) -> Samples:
    """The negatives and those that the oracle flags in the pool; those of a Dataset are still read one by one."""
    flagged = subset(pool, flags)
    if not len(flagged):
        return negatives
    notes["negatives_found"] = len(flagged)
    return behind(negatives, flagged) if isinstance(negatives, TensorSamples) else JoinedSamples(negatives, flagged)
