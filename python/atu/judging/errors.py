"""Counts of what a classifier calls held-out images: how far to believe it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.images import to_range


def confusion(classifier: Any, images: Tensor, labels: Tensor, batch_size: int = 500) -> Tensor:
    """int64 [classes, classes]: images of class i (labels int64 [N]) that a `Classifier` calls j.

    images: [N, ...], uint8 or floats in the classifier's range.
    """
    parts = (to_range(part, classifier.image_range) for part in images.split(batch_size))
    calls = torch.cat([classifier.predict(x).cpu() for x in parts])
    return count_calls(labels.cpu(), calls, len(classifier.classes))


def count_calls(labels: Tensor, calls: Tensor, size: int) -> Tensor:
    """int64 [size, size]: how often class i (labels int64 [N]) was called j (calls int64 [N])."""
    return torch.bincount(labels * size + calls, minlength=size * size).reshape(size, size)


def counts_from(rows: Any, size: int) -> Tensor:
    """The counts [size, size] that lists hold.

    Raises:
        TypeError, ValueError, OverflowError: they hold something else.
    """
    counts = torch.tensor(rows, dtype=torch.long)
    if tuple(counts.shape) != (size, size) or bool((counts < 0).any()):
        raise ValueError(f"confusion: expected counts [{size}, {size}], got {list(counts.shape)}")
    return counts


def error_counts(confusion: Tensor, negative: Sequence[int]) -> tuple[int, int, int, int]:
    """(negatives that were called so, negatives, others that were not, others) where some classes are negative."""
    chosen = torch.zeros(len(confusion), dtype=torch.bool)
    chosen[list(negative)] = True
    inside, outside = confusion[chosen], confusion[~chosen]
    return int(inside[:, chosen].sum()), int(inside.sum()), int(outside[:, ~chosen].sum()), int(outside.sum())
