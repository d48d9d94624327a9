"""Shares of classes and of negatives, with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .intervals import unlearned_percentage, wilson


@dataclass(frozen=True, kw_only=True)
class Share:
    """A count, its share of all, and the share's 95 % interval (Wilson)."""

    count: int
    share: float
    ci95: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Unlearning:
    """Negatives of the same latents before and after; pul, the percentage unlearned, with its paired interval, is None
    where there were none before."""

    negatives_before: int
    negatives_after: int
    pul: float | None
    pul_ci95: tuple[float, float] | None


def histogram(labels: Tensor, classes: Sequence[str]) -> dict[str, Share]:
    """Count, share and its 95 % interval (Wilson) of each class."""
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    return {name: share_of(count, len(labels)) for name, count in zip(classes, counts, strict=True)}


def share_of(count: int, n: int) -> Share:
    """Count, share and its 95 % interval (Wilson)."""
    return Share(count=count, share=count / max(n, 1), ci95=wilson(count, n))


def total_variation(before: Tensor, after: Tensor, negative: Sequence[int], classes: int) -> float | None:
    """Total-variation distance of the kept classes' shares, renormalised to one; None where there are none."""
    kept = [index for index in range(classes) if index not in set(negative)]
    shares = [torch.bincount(labels, minlength=classes)[kept].double() for labels in (before, after)]
    if not all(float(share.sum()) > 0 for share in shares):
        return None
    p, q = (share / share.sum() for share in shares)
    return float((p - q).abs().sum() / 2)


def unlearning(before: Tensor, after: Tensor) -> Unlearning:
    """PUL and its interval from the negatives among the same latents, bool [n] each."""
    n, first, second = len(before), int(before.sum()), int(after.sum())
    pul, interval = unlearned_percentage(int((before & after).sum()), second, first, n) if first else (None, None)
    return Unlearning(negatives_before=first, negatives_after=second, pul=pul, pul_ci95=interval)
