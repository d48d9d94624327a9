"""Confidence intervals of shares and of paired ratios of shares."""

from __future__ import annotations

import math
from statistics import NormalDist


def _z(level: float) -> float:
    return NormalDist().inv_cdf(0.5 + level / 2)


def wilson(count: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a share count / n (Wilson, JASA 1927). (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    z2, p = _z(level) ** 2, count / n
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return (0.0 if count == 0 else max(centre - half, 0.0)), (1.0 if count == n else min(centre + half, 1.0))


def exact(count: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a share count / n (Clopper and Pearson, Biometrika 1934): never below its level, and wider than
    Wilson's. (0, 1) for n = 0."""

    def tail(p: float, first: int, last: int) -> float:
        """P(first <= X <= last), X binomial."""
        log = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(first, last + 1)]
        terms = (c + k * math.log(p) + (n - k) * math.log1p(-p) for k, c in enumerate(log, first))
        return math.fsum(map(math.exp, terms))

    def root(first: int, last: int, rising: bool) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            if (tail(middle, first, last) < (1 - level) / 2) == rising:
                low = middle
            else:
                high = middle
        return (low + high) / 2

    if n == 0:
        return 0.0, 1.0
    return (root(count, n, True) if count else 0.0), (root(0, count, False) if count < n else 1.0)


def phi(both: int, first: int, second: int, n: int) -> float:
    """Correlation of two paired yes/no answers; 0 where one of them never varies."""
    spread = first * (n - first) * second * (n - second)
    return (n * both - first * second) / math.sqrt(spread) if spread else 0.0


def paired_ratio(both: int, first: int, second: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of p1 / p2, two shares of the same n subjects.

    Recovers the variance from the two Wilson intervals and the correlation of the pairs (MOVER-R: Donner and Zou,
    Statistical Methods in Medical Research 21, 2012). It holds at first = 0, where the delta method gives nothing.

    Args:
        both, first, second: subjects positive in both, in the first, in the second (> 0). n: subjects.
    """
    if second < 1:
        raise ValueError(f"second: expected at least one positive, got {second}")
    p1, p2, r = first / n, second / n, phi(both, first, second, n)
    (l1, u1), (l2, u2) = wilson(first, n, level), wilson(second, n, level)
    low = p1 * p2 - r * (p1 - l1) * (u2 - p2)
    high = p1 * p2 - r * (u1 - p1) * (p2 - l2)
    low -= math.sqrt(max(low * low - l1 * u2 * (2 * p1 - l1) * (2 * p2 - u2), 0.0))
    high += math.sqrt(max(high * high - u1 * l2 * (2 * p1 - u1) * (2 * p2 - l2), 0.0))
    # Where the denominators reach zero (a share near 1 of few subjects), that side is unbounded.
    lower = low / (u2 * (2 * p2 - u2)) if 2 * p2 > u2 else 0.0
    upper = high / (l2 * (2 * p2 - l2)) if l2 > 0 else math.inf
    return max(lower, 0.0), upper


def unlearned_percentage(
    both: int, after: int, before: int, n: int, level: float = 0.95
) -> tuple[float, tuple[float, float]]:
    """PUL = 100 (before - after) / before, and its interval.

    Args:
        both, after, before: how many of the n fixed latents give a negative under both models, the unlearned one, the
            original one. before must be > 0.
    """
    low, high = paired_ratio(both, after, before, n, level)
    return 100 * (before - after) / before, (100 * (1 - high), 100 * (1 - low))


def difference(count: int, n: int, other: int, m: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of count / n - other / m, two shares of different subjects.

    From the two Wilson intervals (Newcombe, Statistics in Medicine 17, 1998, method 10).
    """
    (l1, u1), (l2, u2) = wilson(count, n, level), wilson(other, m, level)
    p1, p2 = count / max(n, 1), other / max(m, 1)
    return p1 - p2 - math.hypot(p1 - l1, u2 - p2), p1 - p2 + math.hypot(u1 - p1, p2 - l2)
