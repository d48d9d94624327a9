"""The user's feedback: which samples are negative, and the positives built from that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import config
from ..data.samples import JoinedSamples, Samples, TensorSamples, as_tensors, behind, read
from ..gan import GAN
from ..support import progress
from ..support.seeding import Stream, stream_seed
from . import checks
from .oracles import IsNegative, Oracle
from .probe import Probe, fit_probe

POOL_BYTES = 2**30  # of a pool, on the CPU
CHEAP_BYTES = 2**28  # of one of more than 5,000 samples that nobody asked for


@dataclass
class Feedback:
    """What stage 2 needs to know.

    negatives, positives: samples. is_negative: samples [N, ...] -> bools [N]. is_oracle: whether it is the user's own.
    negative_share: of the pretrained GAN's samples, by is_negative. notes: what was built and dropped, for the report.
    negative_latents: (latents [n, ...], labels or None) of the pretrained GAN's samples that is_negative finds. given:
    how many of the positives, the first of them, the user gave; the rest are generated samples that is_negative passed.
    missed: share of the generated samples that a probe passed which may be negative: twice what the marks held out from
    it say.
    """

    negatives: Samples
    positives: Samples
    is_negative: IsNegative
    is_oracle: bool
    negative_share: float
    notes: dict[str, object]
    negative_latents: tuple[Tensor, Tensor | None] | None = None
    given: int = 0
    missed: float = 0.0


def check_distinct(negatives: Samples, positives: Samples) -> None:
    """Raise ValueError when the positives are the negatives."""
    n = min(len(negatives), 64)
    if len(negatives) == len(positives):
        index = torch.arange(n)
        if torch.equal(read(negatives, index), read(positives, index)):
            raise ValueError("positives: expected samples other than the negatives, got the same ones")


def pool_size(gan: GAN, wanted: int, budget_bytes: int = POOL_BYTES) -> int:
    """How many samples to keep in memory at once: `wanted`, unless they take more than a GiB; 64 at least."""
    bytes_each = 4 * int(np.prod(gan.sample_shape))
    return max(min(wanted, budget_bytes // bytes_each), 64)


def wanted_pool(gan: GAN, cfg: config.Feedback, has_oracle: bool) -> int:
    """How many samples to draw; where it is "auto", what is cheap and of use (docs/trials.md)."""
    if cfg.pool != "auto":
        return cfg.pool
    if not has_oracle or gan.is_stylegan or len(gan.sample_shape) != 3:
        return 5000
    return max(pool_size(gan, 20_000, CHEAP_BYTES), 5000)


def build_feedback(
    gan: GAN, negatives: Samples, positives: Samples | None, oracle: Oracle | None, cfg: config.Feedback, seed: int
) -> Feedback:
    """Positives, and who answers for samples, from what the user gave; tells what cannot be right of it.

    Raises:
        ValueError: nothing can come of it (see checks.py), or the oracle or the probe calls all of the generated
            samples negative.
    """
    pool, z = _draw_pool(gan, pool_size(gan, wanted_pool(gan, cfg, oracle is not None)), stream_seed(seed, Stream.POOL))
    is_negative, flags = _answers(gan, negatives, positives, pool.tensor, oracle, cfg.recall)
    share = float(flags.float().mean())
    judge = "probe" if oracle is None else "oracle"
    told = [] if cfg.pool == "auto" else checks.pool_remarks(cfg.pool, len(pool))
    told = checks.tell(told + checks.remarks(gan, negatives, pool.tensor, flags, oracle))
    if gan.range_remark is not None:
        told = [gan.range_remark, *told]
    notes: dict[str, object] = {"pool": len(pool), "judge": judge, "negative_share": share, "warnings": told}
    notes["marks"] = _count_of(negatives)
    missed = 0.0
    if isinstance(is_negative, Probe):
        notes["probe"] = is_negative.marks
        found, of = is_negative.marks["recognised"], is_negative.marks["of"]
        # Rule of succession; twice, as many of those that a guide finds are good ones on the boundary.
        missed = 2 * (of - found + 1) / (found + 1) * int(flags.sum()) / max(int((~flags).sum()), 1)
    progress.log.info("%s", notes["marks"])
    progress.log.info("The %s calls %.1f %% of %d generated samples negative", judge, 100 * share, len(pool))
    given, good = 0 if positives is None else len(positives), positives
    if good is None:
        good = _good_of_pool(pool, flags, judge, stream_seed(seed, Stream.LABELS_FILLED), notes)
    else:
        good = _with_generated(good, pool, flags, cfg.least_positives, notes)
    if oracle is not None:
        negatives = _with_found(negatives, pool, flags, notes)
    latents = z[flags.to(z.device)], None if pool.labels is None else pool.labels[flags].to(z.device)
    return Feedback(negatives, good, is_negative, oracle is not None, share, notes, latents, given, missed)


def _count_of(negatives: Samples) -> str:
    enough = "" if len(negatives) >= checks.ENOUGH else ": a dozen works, a hundred is better"
    return f"{len(negatives)} negatives{enough}"


def _draw_pool(gan: GAN, size: int, seed: int) -> tuple[TensorSamples, Tensor]:
    """Samples of the pretrained GAN on the CPU, with their labels where it has any; and their latents."""
    pool = torch.cat([part.cpu() for part in progress.track("pool", gan.batches(size, seed=seed), size)])
    z, labels = gan.inputs(size, seed)
    return TensorSamples(pool, None if labels is None else labels.cpu()), z


def _answers(
    gan: GAN, negatives: Samples, positives: Samples | None, pool: Tensor, oracle: Oracle | None, recall: float
) -> tuple[IsNegative, Tensor]:
    """Who says what is negative (a probe, where there is no oracle), and what it says of the pool: bools [N]."""
    if oracle is None:
        probe = fit_probe(gan, negatives, pool, recall, positives)
        return probe, probe(pool)
    return oracle, torch.cat([oracle(part.to(gan.device)) for part in pool.split(gan.fitting(100))])


def _good_of_pool(pool: TensorSamples, flags: Tensor, judge: str, seed: int, notes: dict[str, object]) -> TensorSamples:
    """What is left of the pool without the negatives, a label that lost all of its samples filled up."""
    dropped = int(flags.sum())
    if len(pool) - dropped < 2:
        raise ValueError(
            f"positives: the {judge} calls {dropped} of {len(pool)} generated samples negative, so none is left to "
            "learn from; give positives, or an is_negative that accepts some samples"
        )
    positives = _subset(pool, ~flags)
    notes["positives"] = f"{len(positives)} generated samples, {dropped} dropped as negative"
    if pool.labels is not None:
        positives, filled = fill_labels(positives, pool.labels, seed)
        if filled:
            notes["labels_filled"] = {str(label): count for label, count in filled.items()}
    return positives


def _with_generated(
    positives: Samples, pool: TensorSamples, flags: Tensor, least: int, notes: dict[str, object]
) -> Samples:
    """The positives that were given; joined by good ones of the pool where they are too few to train a GAN on."""
    notes["positives"] = f"{len(positives)} given"
    chosen = (~flags).nonzero().flatten()[: max(least - len(positives), 0)]
    if not len(chosen):
        return positives
    notes["positives"] = f"{len(positives)} given, joined by {len(chosen)} generated ones"
    return behind(_labelled(positives, pool), _subset(pool, chosen))


def _labelled(few: Samples, pool: TensorSamples) -> TensorSamples:
    """Samples as tensors; of a conditional GAN with the labels that were given, else with some that it draws."""
    own = as_tensors(few)
    if own.labels is None and pool.labels is not None:
        return TensorSamples(own.tensor, pool.labels[torch.arange(len(own)) % len(pool)])
    return own


def _with_found(negatives: Samples, pool: TensorSamples, flags: Tensor, notes: dict[str, object]) -> Samples:
    """The negatives and those that the oracle found in the pool; those of a Dataset are still read one by one."""
    found = _subset(pool, flags)
    if not len(found):
        return negatives
    notes["negatives_found"] = len(found)
    return behind(negatives, found) if isinstance(negatives, TensorSamples) else JoinedSamples(negatives, found)


def _subset(samples: TensorSamples, keep: Tensor) -> TensorSamples:
    labels = samples.labels
    return TensorSamples(samples.tensor[keep], None if labels is None else labels[keep])


def doubted(gan: GAN, feedback: Feedback, log_odds: Callable[[Tensor], Tensor]) -> tuple[Tensor, float]:
    """Which of the generated positives another one takes for negatives, who sees what the probe passes over: bools [N];
    and above which log-odds. Of those above 0 no more than the probe may have missed, the likeliest."""
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
    kept = _subset(positives, ~flags)
    if positives.labels is not None:
        kept, _ = fill_labels(kept, positives.labels, stream_seed(seed, Stream.LABELS_FILLED))
    return replace(feedback, positives=kept, notes={**feedback.notes, "positives_doubted": dropped})


def fill_labels(positives: TensorSamples, drawn: Tensor, seed: int) -> tuple[TensorSamples, dict[int, int]]:
    """Give labels that lost (nearly) all of their samples as negatives the samples of the other labels.

    Without positives of its own, nothing would tell the generator what to make of such a label.

    Args:
        positives: what was kept, with labels. drawn: labels [N, c_dim] of all samples, before any was dropped; nothing
            is done where they are not one-hot.

    Returns:
        The positives with the added ones, and how many were added by label. A label below a tenth of the samples drawn
        for it is filled up to their number.
    """
    assert positives.labels is not None
    if not ((drawn == 0) | (drawn == 1)).all() or not (drawn.sum(1) == 1).all():
        return positives, {}
    before, after = drawn.sum(0).long(), positives.labels.sum(0).long()
    lost = (after * 10 < before).nonzero().flatten().tolist()
    others = (positives.labels[:, lost].sum(1) == 0).nonzero().flatten()
    if not lost or len(others) == 0:
        return positives, {}
    rng = torch.Generator().manual_seed(seed)
    images, labels, added = [positives.tensor], [positives.labels], {}
    for label in lost:
        added[label] = count = int(before[label] - after[label])
        images.append(positives.tensor[others[torch.randint(len(others), (count,), generator=rng)]])
        labels.append(F.one_hot(torch.full((count,), label), drawn.shape[1]).to(drawn.dtype))
    return TensorSamples(torch.cat(images), torch.cat(labels)), added
