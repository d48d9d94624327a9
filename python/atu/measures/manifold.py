"""Precision, recall, density and coverage of generated samples, by k nearest neighbours in a feature space.

Sources: Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models" (arXiv 1904.06991);
Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models" (arXiv 2002.09797); as computed by the
package prdc.
"""

from __future__ import annotations

import contextlib
import io

from torch import Tensor

NEIGHBOURS = 3
MOST = 2000  # features of each set; memory and time grow with the square
MEASURES = ("precision", "recall", "density", "coverage")


def manifold(reference: Tensor, generated: Tensor, k: int = NEIGHBOURS, most: int = MOST) -> dict[str, float | None]:
    """MEASURES of features [M, F] against a reference [N, F]; None each where a set has no k + 2 members.

    precision is the share of generated features inside the reference's manifold (within the distance of some reference
    feature to its k-th neighbour), recall the share of the reference inside the generated manifold. density counts in
    how many reference balls a generated feature lies, over k (1 where both come from one distribution, and above where
    they crowd); coverage is the share of reference balls that hold a generated feature. The first `most` of each set
    are taken. Compare sets of the same size: the values change with it.
    """
    from prdc import compute_prdc

    reference, generated = reference[:most], generated[:most]
    if min(len(reference), len(generated)) < k + 2:
        return dict.fromkeys(MEASURES)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the sizes
        found = compute_prdc(reference.double().numpy(), generated.double().numpy(), nearest_k=k)
    return {name: float(found[name]) for name in MEASURES}
