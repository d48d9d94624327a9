"""What became of the rest: of what was to be kept, and of the latents whose sample was negative.

What is kept is compared with the original's good samples of *other* latents: samples of the same latents lie close to
each other whatever the distribution does. Beside each figure stands what chance gives: the original's own good samples
in the place of the unlearned GAN's, as many of them. A GAN compared with itself reads as chance, exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ..measures.frechet import frechet
from ..measures.kid import kid
from ..measures.manifold import manifold
from ..measures.shares import Share, share_of, total_variation
from .figures import GoodChanged, Kept, Landing, SureChanged
from .judged import Judged, Look

SURE = 0.9  # confidence in a class
MOVED = 2000  # images that are moved by a pixel


def kept(reference: Tensor, before: Judged, after: Judged, negative: Sequence[int], classes: int) -> Kept:
    """Distances and overlap of the unlearned GAN's good samples with the original's, beside chance.

    Args:
        reference: features [N, F] of the original's good samples of other latents. negative: the negative classes.
        classes: how many the judge knows.
    """
    size = min(int((~before.negative).sum()), int((~after.negative).sum()))
    first, last = (judged.features[~judged.negative][:size] for judged in (before, after))
    overlap, chance = manifold(reference, last), manifold(reference, first)
    return Kept(
        frechet=frechet(reference, last),
        frechet_chance=frechet(reference, first),
        frechet_redistribution=frechet_redistribution(reference, before, after),
        kid=kid(reference, last),
        kid_chance=kid(reference, first),
        **overlap,
        **{f"{name}_chance": value for name, value in chance.items()},
        compared=size,
        reference=len(reference),
        tv=tv_kept(before, after, negative, classes),
        tv_redistribution=tv_redistribution(before, after, negative, classes),
    )


def landing(reference: Tensor, before: Judged, after: Judged, classes: Sequence[str]) -> Landing | None:
    """What the latents give now whose original sample was negative; None where there were none.

    Args:
        reference: features [N, F] of the original's good samples of other latents.
    """
    was = before.negative
    if not bool(was.any()):
        return None
    landed = was & ~after.negative
    size = min(int(landed.sum()), int((~was).sum()))
    moved = None
    if before.labels is not None and after.labels is not None:
        moved = transitions(before.labels[was], after.labels[was], classes)
    figures: dict[str, float | None] = {}
    for suffix, judged, these in (("", after, landed), ("_chance", before, ~was)):
        features = judged.features[these][:size]
        overlap = manifold(reference, features)
        figures[f"frechet{suffix}"] = frechet(reference, features)
        figures.update({f"{name}{suffix}": overlap[name] for name in ("precision", "density")})
        sure = judged.confidence is not None and len(classes) > 2 and size > 0
        figures[f"sure{suffix}"] = _share_of_sure(judged, these, size) if sure else None
    return Landing(
        latents=int(was.sum()),
        still_negative=int((was & after.negative).sum()),
        compared=size,
        transitions=moved,
        **figures,
    )


def _share_of_sure(judged: Judged, these: Tensor, size: int) -> float:
    assert judged.confidence is not None
    return float((judged.confidence[these][:size] >= SURE).float().mean())


def transitions(before: Tensor, after: Tensor, classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Class before -> class after -> count, of labels int64 [n] each; pairs that do not occur are left out."""
    size = len(classes)
    counts = torch.bincount(before * size + after, minlength=size * size).reshape(size, size).tolist()
    return {
        classes[i]: {classes[j]: count for j, count in enumerate(row) if count}
        for i, row in enumerate(counts)
        if any(row)
    }


def good_changed(before: Judged, after: Judged, by_a_pixel: Share | None = None) -> GoodChanged | None:
    """The good latents whose class is another one now; None without classes."""
    if before.labels is None or after.labels is None or before.confidence is None:
        return None
    good, changed = ~before.negative, before.labels != after.labels
    sure = good & (before.confidence >= SURE)
    of_sure = share_of(int((changed & sure).sum()), int(sure.sum()))
    of_all = share_of(int((changed & good).sum()), int(good.sum()))
    return GoodChanged(**vars(of_all), sure=SureChanged(**vars(of_sure), of=int(sure.sum())), by_a_pixel=by_a_pixel)


class MovedByAPixel:
    """How many good images are of another class when they are moved by one pixel to the right: a change that no one
    sees, so `good_changed` can hardly be told from less. They are judged as they pass by, so that none is made twice.

    look: of a judge that knows classes."""

    def __init__(self, look: Look):
        self.look, self.labels = look, list[Tensor]()

    def watch(self, images: Iterable[Tensor]) -> Iterator[Tensor]:
        """Batches [N, C, H, W] as they are; of the first ones, `MOVED` images or a few more, the moved are judged."""
        for x in images:
            if sum(map(len, self.labels)) < MOVED:
                labels = self.look(torch.cat([x[..., :1], x[..., :-1]], -1)).labels
                assert labels is not None
                self.labels.append(labels)
            yield x

    def changed(self, before: Judged) -> Share | None:
        """The good ones that changed, `before` being of the same images; None where none were watched."""
        if before.labels is None or not self.labels:
            return None
        moved = torch.cat(self.labels)
        good = ~before.negative[: len(moved)]
        return share_of(int(((moved != before.labels[: len(moved)]) & good).sum()), int(good.sum()))


def tv_kept(before: Judged, after: Judged, negative: Sequence[int], classes: int) -> float | None:
    """Total variation of the kept classes' shares among the good samples; None without classes."""
    if before.labels is None or after.labels is None:
        return None
    first, last = before.labels[~before.negative], after.labels[~after.negative]
    return total_variation(first, last, negative, classes)


def tv_redistribution(before: Judged, after: Judged, negative: Sequence[int], classes: int) -> float | None:
    """Total variation of the kept classes' shares that landing alone explains: good latents as they were, formerly
    negative ones as they are now. None without classes."""
    if before.labels is None or after.labels is None:
        return None
    labels = torch.where(before.negative, after.labels, before.labels)
    there = ~before.negative | ~after.negative
    return total_variation(before.labels[~before.negative], labels[there], negative, classes)


def frechet_redistribution(reference: Tensor, before: Judged, after: Judged) -> float | None:
    """The distance of `Kept` that landing alone explains. None without classes.

    Good latents as they were, formerly negative ones as good samples of the original of the class that they are of now,
    one after another.

    What lands on some classes only makes those more, however good its samples are.
    """
    if before.labels is None or after.labels is None:
        return None
    source = torch.arange(len(before.labels))
    there, landed = ~before.negative, before.negative & ~after.negative
    for label in after.labels[landed].unique():
        here = (landed & (after.labels == label)).nonzero().flatten()
        same = (~before.negative & (before.labels == label)).nonzero().flatten()
        if len(same):
            source[here] = same[torch.arange(len(here)) % len(same)]
            there[here] = True
    size = min(int((~before.negative).sum()), int((~after.negative).sum()))
    return frechet(reference, before.features[source[there]][:size])
