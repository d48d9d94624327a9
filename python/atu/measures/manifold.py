"""Precision and recall of generated samples, by k nearest neighbours in a feature space.

Source: Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models" (arXiv 1904.06991),
as computed by the package prdc.
"""

from __future__ import annotations

import contextlib
import io

from torch import Tensor

NEIGHBOURS = 3
MOST = 2000  # features of each set; memory and time grow with the square


def precision_recall(reference: Tensor, generated: Tensor, k: int = NEIGHBOURS, most: int = MOST):
    """(precision, recall) of features [M, F] against a reference [N, F]; None where a set has no k + 2 members.

    precision is the share of generated features inside the reference's manifold (within the distance of some reference
    feature to its k-th neighbour), recall the share of the reference inside the generated manifold. The first `most`
    of each set are taken. Sets of the same size compare; the values fall with their size.
    """
    from prdc import compute_prdc

    reference, generated = reference[:most], generated[:most]
    if min(len(reference), len(generated)) < k + 2:
        return None
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the sizes
        found = compute_prdc(reference.double().numpy(), generated.double().numpy(), nearest_k=k)
    return float(found["precision"]), float(found["recall"])


def kept_manifold(kept: Tensor, after: Tensor) -> dict[str, float | None]:
    """How the unlearned GAN's samples and the original's good ones overlap, beside what chance allows.

    The first half of the kept features [N, F] is the reference; the second half plays the generator that lost nothing
    (`*_kept_before`); `after` [M, F] is the unlearned one, cut to the same size.
    """
    size = min(len(kept) // 2, len(after), MOST)
    numbers: dict[str, float | None] = {}
    for name, features in (("before", kept[len(kept) // 2 :]), ("after", after)):
        found = precision_recall(kept[:size], features[:size])
        for index, what in enumerate(("precision", "recall")):
            numbers[f"{what}_kept_{name}"] = None if found is None else found[index]
    return numbers
