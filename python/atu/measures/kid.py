"""The kernel distance between two sets of features (KID)."""

from __future__ import annotations

from torch import Tensor

MOST = 2000  # features of each set


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.t() / x.shape[1] + 1) ** 3


def kid(a: Tensor, b: Tensor, most: int = MOST) -> float | None:
    """Squared maximum mean discrepancy of features [N, F], [M, F] under the kernel (x . y / F + 1)^3, in float64.

    The estimate has no bias, so it is 0 on average for two draws of one distribution, and often below. The first `most`
    of each set are taken. None below two samples. Source: Binkowski et al., "Demystifying MMD GANs" (arXiv 1801.01401).
    """
    a, b = a[:most].double(), b[:most].double()
    n, m = len(a), len(b)
    if min(n, m) < 2:
        return None
    within_a, within_b = _kernel(a, a), _kernel(b, b)
    same_a = (within_a.sum() - within_a.trace()) / (n * (n - 1))
    same_b = (within_b.sum() - within_b.trace()) / (m * (m - 1))
    return float(same_a + same_b - 2 * _kernel(a, b).mean())
