"""Checks of the feedback: warnings about what looks wrong, and errors where nothing can come of it."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ..data.samples import Samples, read
from ..gan import GAN
from ..measures.features import DiscriminatorFeatures, Whitening
from ..measures.logits import has_bounded_logits
from ..support.remarks import InputWarning
from ..support.seeding import fork_rng
from .rule import Rule

FEW_NEGATIVES, MANY_NEGATIVES = 12, 100  # fewer are a guess; more hardly help
MAX_CHECKED = 256  # negatives that are checked one by one
MAX_NEGATIVE_SHARE = 0.5  # of all samples, above which "negative" is hardly one thing
MAX_COMPARED = 1000  # generated samples that the negatives are compared with


class FeedbackWarning(InputWarning):
    """The marks or the oracle's answers are likely not what the user meant."""


def warn_of(sentences: list[str]) -> list[str]:
    """Warn with each sentence; returns them, for `Feedback.notes`."""
    for sentence in sentences:
        warnings.warn(sentence, FeedbackWarning, stacklevel=3)
    return sentences


def checked(negatives: Samples) -> Tensor:
    """Up to MAX_CHECKED of the negatives, evenly spread."""
    return read(negatives, torch.linspace(0, len(negatives) - 1, min(len(negatives), MAX_CHECKED)).long())


def pool_remarks(asked: int, used: int) -> list[str]:
    """Remarks on a pool of another size than asked for."""
    if used == asked:
        return []
    why = "fewer say too little" if used > asked else "more of this size would take over 1 GiB of memory"
    return [f"feedback.pool: {asked:,} generated samples were asked for, and {used:,} are used: {why}"]


def count_remarks(marks: Tensor, total: int) -> list[str]:
    """Remarks on copies among the negatives, and on too few. marks: those that are checked [n, ...], of `total`."""
    different = len(torch.unique(marks.flatten(1), dim=0))
    remarks = []
    if different < len(marks):
        remarks.append(
            f"negatives: only {different} of {len(marks)} differ from each other, and copies add nothing: mark other "
            "samples of the same kind"
        )
    if min(different, total) < FEW_NEGATIVES:
        remarks.append(
            f"negatives: {different} are few to tell what is meant. A dozen works, a hundred is better: mark more, or "
            "give an oracle (is_negative)"
        )
    return remarks


def oracle_remarks(oracle: Rule, marks: Tensor, flags: Tensor, device: torch.device) -> list[str]:
    """Remarks on an oracle that contradicts the negatives, or never says yes.

    flags: its answers for generated samples, bools.

    Raises:
        ValueError: it calls none of the negatives and none of the generated samples negative.
    """
    agreed = int(torch.cat([oracle(part.to(device)) for part in marks.split(100)]).sum())
    flagged = int(flags.sum())
    if agreed == 0 and flagged == 0:
        raise ValueError(
            f"is_negative: it calls none of {len(flags)} generated samples and none of {len(marks)} negatives "
            "negative, so there is nothing to unlearn; check its classes, and that it takes samples in gan.image_range"
        )
    remarks = []
    if agreed < MAX_NEGATIVE_SHARE * len(marks):
        remarks.append(
            f"is_negative: it calls {agreed} of {len(marks)} negatives negative, so it contradicts them; check its "
            "classes, that yes and no are not exchanged, and what was marked"
        )
    if flagged == 0:
        remarks.append(
            f"is_negative: it calls none of {len(flags)} generated samples negative: this GAN makes such samples "
            "rarely or never, and then nothing is there to unlearn"
        )
    return remarks


def share_remarks(answers: str, flags: Tensor) -> list[str]:
    """Remarks on a share of negatives that is too large, or none.

    answers: "probe" or "oracle", which gave the flags, bools [N], for generated samples.
    """
    share = float(flags.float().mean())
    observed = f"the {answers} calls {100 * share:.1f} % of {len(flags)} generated samples negative"
    if share > MAX_NEGATIVE_SHARE and answers == "probe":
        return [
            f"negatives: {observed}, so they do not seem to show one thing that others lack; mark samples of one kind, "
            "more of them, or give an oracle (is_negative)"
        ]
    if share > MAX_NEGATIVE_SHARE:
        return [
            f"is_negative: {observed}: check that yes and no are not exchanged; what is kept would be the smaller part"
        ]
    if answers == "probe" and share == 0:
        return [f"negatives: {observed}: this GAN does not seem to make what they show; mark samples that it made"]
    return []


def discriminator_remarks(gan: GAN, x: Tensor) -> list[str]:
    """Remarks on a discriminator whose logits for samples x [N, ...] lie between two bounds.

    Of a CIFAR-10 GAN whose discriminator ends in a difference of two sigmoids both logits of stage 2 are -1 within ten
    steps, and its losses stay where they are. The guide, which has a head of its own, still removes half of the frogs.
    """
    if not has_bounded_logits(gan, x[: gan.fitting(4)]):
        return []
    return [
        "gan: its discriminator ends in a sigmoid or tanh, so its logits lie between two bounds, and training against "
        "it stands still; give it without that layer"
    ]


def unlike_remarks(gan: GAN, marks: Tensor, pool: Tensor) -> list[str]:
    """Remarks on negatives that lie farther out, in the discriminator's features, than all samples of the GAN."""
    at_once = gan.fitting(100)
    of = DiscriminatorFeatures(gan)
    features = of.penultimate(pool[:MAX_COMPARED].split(at_once))
    half = len(features) // 2
    whiten = Whitening(features[:half])
    usual = whiten(features[half:]).norm(dim=1)
    marked = whiten(of.penultimate(marks.split(at_once))).norm(dim=1)
    if not float(marked.median()) > 1.5 * float(usual.max()):
        return []
    return [
        "negatives: they are unlike anything that this GAN makes (in its discriminator's features, "
        f"{float(marked.median() / usual.median()):.0f} times as far from the middle as its samples); mark samples "
        "that it made, and check image_range"
    ]


def label_remarks(gan: GAN, negatives: Samples) -> list[str]:
    """Remarks on negatives whose label the GAN does not draw.

    Raises:
        ValueError: none of their labels is drawn.
    """
    labels: Tensor | None = getattr(negatives, "labels", None)
    if labels is None:
        return []
    with fork_rng(gan.device):
        drawn = gan.labels(4096, torch.Generator().manual_seed(0))
    if drawn is None or not ((drawn == 0) | (drawn == 1)).all():
        return []
    in_use = drawn.sum(0).cpu() > 0
    never = (labels.sum(0) > 0) & ~in_use
    if not never.any():
        return []
    names = ", ".join(str(k) for k in never.nonzero().flatten().tolist())
    problem = f"negatives: label {names} of theirs is never drawn (among 4,096 labels of the GAN's)"
    remedy = "give them the label that is drawn, or have label_sampler (--label) draw theirs"
    if not (labels.sum(0) > 0)[in_use].any():
        raise ValueError(f"{problem}, so nothing would be unlearned; {remedy}")
    return [f"{problem}; {remedy}"]


def remarks(gan: GAN, negatives: Samples, pool: Tensor, flags: Tensor, oracle: Rule | None) -> list[str]:
    """All remarks on the feedback. flags: answers of the oracle or the probe for the generated samples `pool`.

    Raises:
        ValueError: nothing can come of it.
    """
    marks = checked(negatives)
    with fork_rng(gan.device):
        sentences = count_remarks(marks, len(negatives)) + label_remarks(gan, negatives)
        if oracle is not None:
            sentences += oracle_remarks(oracle, marks, flags, gan.device)
        sentences += share_remarks("probe" if oracle is None else "oracle", flags)
        sentences += unlike_remarks(gan, marks, pool)
        sentences += discriminator_remarks(gan, pool)
    return sentences
