"""Intervals against scipy, against closed forms, and by the coverage they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from atu.measures.intervals import exact, paired_ratio, phi, unlearned_percentage, wilson

Z2 = 1.959963984540054**2


@pytest.mark.parametrize(("count", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (37, 10_000), (9_990, 10_000)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_equals_scipy(count, n, level):
    expected = binomtest(count, n).proportion_ci(level, method="wilson")
    assert wilson(count, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("count", "n"), [(0, 1), (0, 200), (1, 200), (7, 7), (50, 101), (1999, 2003)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_exact_equals_scipy(count, n, level):
    expected = binomtest(count, n).proportion_ci(level, method="exact")
    assert exact(count, n, level) == pytest.approx((expected.low, expected.high), abs=1e-10)


def test_exact_of_nothing():
    assert exact(0, 0) == (0.0, 1.0)


def test_wilson_of_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def test_phi_equals_the_correlation_of_the_pairs():
    rng = np.random.default_rng(0)
    a = rng.random(500) < 0.3
    b = np.where(rng.random(500) < 0.6, a, rng.random(500) < 0.3)
    expected = np.corrcoef(a, b)[0, 1]
    assert phi(int((a & b).sum()), int(a.sum()), int(b.sum()), 500) == pytest.approx(expected)
    assert phi(0, 0, 10, 500) == 0.0


def test_ratio_with_no_positives_left():
    # With first = 0 the limits reduce to 0 and u1 / sqrt(l2 (2 p2 - l2)); u1 = z^2 / (n + z^2).
    n, second = 10_000, 1000
    low, high = paired_ratio(0, 0, second, n)
    u1, l2 = Z2 / (n + Z2), wilson(second, n)[0]
    assert low == 0.0
    assert high == pytest.approx(u1 / math.sqrt(l2 * (2 * second / n - l2)))


def test_pairing_narrows_the_interval():
    # The same 300 of 5,000 positive in both: nothing but the asymmetry of Wilson's limits (1 %) is left.
    low, high = paired_ratio(300, 300, 300, 5000)
    assert low <= 1.0 <= high
    assert high - low < 0.025
    unpaired = paired_ratio(18, 300, 300, 5000)  # 18: what chance alone makes common
    assert unpaired[1] - unpaired[0] > 0.25


def test_ratio_agrees_with_the_delta_method_for_large_counts():
    both, first, second, n = 3_000, 10_000, 40_000, 200_000
    # var log(p1/p2) of paired shares: (first + second - 2 both) / (first second)
    sd = math.sqrt((first + second - 2 * both) / (first * second))
    expected = [first / second * math.exp(sign * math.sqrt(Z2) * sd) for sign in (-1, 1)]
    assert paired_ratio(both, first, second, n) == pytest.approx(expected, rel=5e-4)


@pytest.mark.parametrize(("p_after", "overlap"), [(0.003, 0.5), (0.02, 0.9), (0.1, 1.0)])
def test_ratio_covers_the_truth_as_often_as_it_says(p_after, overlap):
    rng = np.random.default_rng(1)
    n, p_before, hits, runs = 2000, 0.1, 0, 600
    for _ in range(runs):
        before = rng.random(n) < p_before
        kept = before & (rng.random(n) < p_after * overlap / p_before)
        fresh = ~before & (rng.random(n) < p_after * (1 - overlap) / (1 - p_before))
        after = kept | fresh
        low, high = paired_ratio(int((before & after).sum()), int(after.sum()), int(before.sum()), n)
        hits += low <= p_after / p_before <= high
    # 600 runs at 95 % have a standard deviation of 0.9 %; small shares make every such interval a little conservative.
    assert 0.925 <= hits / runs <= 1.0


def test_unlearned_percentage():
    pul, (low, high) = unlearned_percentage(both=5, after=10, before=1000, n=10_000)
    assert pul == pytest.approx(99.0)
    assert low < 99.0 < high <= 100.0
    assert unlearned_percentage(both=0, after=200, before=100, n=1000)[0] == pytest.approx(-100.0)
    with pytest.raises(ValueError, match="second"):
        unlearned_percentage(both=0, after=1, before=0, n=10)
