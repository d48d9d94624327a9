"""What became of the rest: of what was to be kept, and of the latents whose sample was negative.

What is kept is compared with the original's good samples of *other* latents: samples of the same latents lie close to
each other whatever the distribution does. Beside each figure stands what chance gives: the original's own good samples
in the place of the unlearned GAN's, as many of them. A GAN compared with itself reads as chance, exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..measures.frechet import frechet
from ..measures.kid import kid
from ..measures.manifold import MEASURES, manifold
from ..measures.shares import share_of, total_variation
from .judged import Judged, Look

SURE = 0.9  # confidence in a class
MOVED = 2000  # images that are moved by a pixel


def kept_numbers(reference: Tensor, before: Tensor, after: Tensor) -> dict[str, Any]:
    """Distances and overlap of the unlearned GAN's good samples with the original's, beside chance.

    Args:
        reference: features [N, F] of the original's good samples of other latents. before, after: of both models' good
            samples of the latents compared; the same number of each is taken.
    """
    size = min(len(before), len(after))
    before, after = before[:size], after[:size]
    numbers: dict[str, Any] = dict(
        frechet_kept=frechet(reference, after),
        frechet_kept_chance=frechet(reference, before),
        kid_kept=kid(reference, after),
        kid_kept_chance=kid(reference, before),
    )
    for name, features in (("before", before), ("after", after)):
        found = manifold(reference, features)
        numbers.update({f"{what}_kept_{name}": found[what] for what in MEASURES})
    numbers.update(kept_compared=size, kept_reference=len(reference))
    return numbers


def landing(reference: Tensor, before: Judged, after: Judged, classes: Sequence[str]) -> dict[str, Any] | None:
    """What the latents give now whose original sample was negative; None where there were none.

    Returns:
        latents: how many. still_negative: of them. transitions: class before -> class after -> count, of all of them
        (None without classes). frechet, precision, density: of those no longer negative against `reference` (features
        [N, F] of the original's good samples of other latents). sure: share of them of whose class the judge is `SURE`
        (absent with two classes or none); what lies between two, or is half of one, precision passes. `_chance`: of
        as many good samples of the original. Even a perfect outcome has a Frechet distance above chance, as it lands
        on some classes only.
    """
    was = before.negative
    if not bool(was.any()):
        return None
    landed = was & ~after.negative
    size = min(int(landed.sum()), int((~was).sum()))
    numbers: dict[str, Any] = dict(
        latents=int(was.sum()), still_negative=int((was & after.negative).sum()), compared=size, transitions=None
    )
    if before.labels is not None and after.labels is not None:
        numbers["transitions"] = transitions(before.labels[was], after.labels[was], classes)
    for suffix, judged, these in (("", after, landed), ("_chance", before, ~was)):
        features = judged.features[these][:size]
        found = manifold(reference, features)
        numbers[f"frechet{suffix}"] = frechet(reference, features)
        numbers.update({f"{what}{suffix}": found[what] for what in ("precision", "density")})
        if judged.confidence is not None and len(classes) > 2 and size:
            numbers[f"sure{suffix}"] = float((judged.confidence[these][:size] >= SURE).float().mean())
    return numbers


def transitions(before: Tensor, after: Tensor, classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Class before -> class after -> count, of labels int64 [n] each; pairs that do not occur are left out."""
    size = len(classes)
    counts = torch.bincount(before * size + after, minlength=size * size).reshape(size, size).tolist()
    return {
        classes[i]: {classes[j]: count for j, count in enumerate(row) if count}
        for i, row in enumerate(counts)
        if any(row)
    }


def good_changed(before: Judged, after: Judged) -> dict[str, Any] | None:
    """Count, share and interval of the good latents whose class is another one now; None without classes.

    sure: the same of those of whose class before the judge was `SURE`, as a class on its boundary changes easily.
    """
    if before.labels is None or after.labels is None or before.confidence is None:
        return None
    good, changed = ~before.negative, before.labels != after.labels
    sure = good & (before.confidence >= SURE)
    of_sure = {**share_of(int((changed & sure).sum()), int(sure.sum())), "of": int(sure.sum())}
    return {**share_of(int((changed & good).sum()), int(good.sum())), "sure": of_sure}


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

    def changed(self, before: Judged) -> dict[str, Any] | None:
        """Count, share and interval of the good ones that changed, `before` being of the same images; None where none
        were watched."""
        if before.labels is None or not self.labels:
            return None
        found = torch.cat(self.labels)
        good = ~before.negative[: len(found)]
        return share_of(int(((found != before.labels[: len(found)]) & good).sum()), int(good.sum()))


def tv_redistribution(before: Judged, after: Judged, negative: Sequence[int], classes: int) -> float | None:
    """Total variation of the kept classes' shares that landing alone explains: good latents as they were, formerly
    negative ones as they are now. None without classes."""
    if before.labels is None or after.labels is None:
        return None
    labels = torch.where(before.negative, after.labels, before.labels)
    there = ~before.negative | ~after.negative
    return total_variation(before.labels[~before.negative], labels[there], negative, classes)


def frechet_redistribution(reference: Tensor, before: Judged, after: Judged) -> float | None:
    """The `frechet_kept` that landing alone explains: good latents as they were, formerly negative ones as good samples
    of the original of the class that they are of now, one after another. None without classes.

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
