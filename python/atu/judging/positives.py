"""The positives: good samples that were given, or what is left of the pool without the negatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.samples import Samples, TensorSamples, as_tensors, behind, read
from .pool import subset


def check_distinct(negatives: Samples, positives: Samples) -> None:
    """Raise ValueError when the positives are the negatives."""
    n = min(len(negatives), 64)
    if len(negatives) == len(positives):
        index = torch.arange(n)
        if torch.equal(read(negatives, index), read(positives, index)):
            raise ValueError("positives: expected samples other than the negatives, got the same ones")


def good_of_pool(
    pool: TensorSamples, flags: Tensor, answers: str, seed: int, notes: dict[str, object]
) -> TensorSamples:
    """The pool without its negatives (flags, bools [N]); a label that lost all of its samples is filled up.

    answers: "probe" or "oracle".

    Raises:
        ValueError: nothing is left.
    """
    dropped = int(flags.sum())
    if len(pool) - dropped < 2:
        raise ValueError(
            f"positives: the {answers} calls {dropped} of {len(pool)} generated samples negative, so none is left to "
            "learn from; give positives, or an is_negative that accepts some samples"
        )
    positives = subset(pool, ~flags)
    notes["positives"] = f"{len(positives)} generated samples, {dropped} dropped as negative"
    if pool.labels is not None:
        positives, filled = fill_labels(positives, pool.labels, seed)
        if filled:
            notes["labels_filled"] = {str(label): count for label, count in filled.items()}
    return positives


def with_generated(
    positives: Samples, pool: TensorSamples, flags: Tensor, least: int, notes: dict[str, object]
) -> Samples:
    """The positives that were given, joined by good samples of the pool where they are fewer than `least`."""
    notes["positives"] = f"{len(positives)} given"
    chosen = (~flags).nonzero().flatten()[: max(least - len(positives), 0)]
    if not len(chosen):
        return positives
    notes["positives"] = f"{len(positives)} given, joined by {len(chosen)} generated ones"
    return behind(_labelled(positives, pool), subset(pool, chosen))


def _labelled(few: Samples, pool: TensorSamples) -> TensorSamples:
    """Samples as tensors; of a conditional GAN with the labels that were given, else with some that it draws."""
    tensors = as_tensors(few)
    if tensors.labels is None and pool.labels is not None:
        return TensorSamples(tensors.tensor, pool.labels[torch.arange(len(tensors)) % len(pool)])
    return tensors


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
