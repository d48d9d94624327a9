"""Corrections for a judge's errors, against exact algebra and against simulated judges whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atu.measures import prevalence
from atu.measures.intervals import difference
from atu.measures.prevalence import Errors, corrected_share, corrected_unlearning


@given(st.floats(0, 1), st.integers(51, 97), st.integers(1010, 1999))
def test_the_share_that_a_judge_sees_gives_back_the_true_one(share, hits, passed):
    errors = Errors(hits, 97, passed, 1999)
    seen = share * errors.sensitivity + (1 - share) * (1 - errors.specificity)
    assert corrected_share(seen, errors) == pytest.approx(share, abs=1e-9)


def test_pul_of_the_corrected_shares_is_what_is_reported():
    errors = Errors(180, 200, 970, 1000)
    found = corrected_unlearning(31, 500, 103, 2003, errors)
    first, last = (corrected_share(count / 2003, errors) for count in (500, 103))
    assert found.pul == pytest.approx(100 * (first - last) / first, rel=1e-12)
    assert (found.share_before, found.share_after) == (first, last)
    assert found.pul_ci95[0] < found.pul < found.pul_ci95[1] <= 100
    assert found.unreliable is None


def test_with_a_judge_that_hardly_errs_it_is_the_plain_percentage():
    errors = Errors(10**7, 10**7, 10**7, 10**7)
    found = corrected_unlearning(40, 800, 40, 10_000, errors)
    assert found.pul == 95.0
    # The delta method of 1 - p2 / p1 for nested pairs: p (1 - p) / n1 with p = 40 / 800.
    half = 1.96 * 100 * (0.05 * 0.95 / 800) ** 0.5
    assert found.pul_ci95 == pytest.approx([95 - half, 95 + half], abs=0.35)


def test_fewer_than_the_false_alarms_are_all_gone():
    found = corrected_unlearning(1, 800, 5, 10_000, Errors(400, 400, 3597, 3600))
    assert (found.pul, found.share_after, found.unreliable) == (100.0, 0.0, None)
    assert found.pul_ci95[0] < 100 == found.pul_ci95[1]
    far = corrected_unlearning(1, 800, 5, 10_000, Errors(400, 400, 3580, 3600))
    assert far.pul_ci95 == (100, 100)
    assert "it errs otherwise on generated ones" in far.unreliable


@pytest.mark.parametrize(
    ("before", "errors", "words"),
    [
        (300, Errors(60, 100, 60, 100), "too badly (sensitivity + specificity - 1 is 0.20)"),
        (21, Errors(100, 100, 980, 1000), "hardly more than its false alarms"),
        (10, Errors(100, 100, 950, 1000), "hardly more than its false alarms"),
    ],
)
def test_what_is_not_to_be_relied_on_is_said(before, errors, words):
    found = corrected_unlearning(0, before, 0, 1000, errors)
    assert words in found.unreliable
    assert (found.pul is None) == (before / 1000 <= 1 - errors.specificity)


def test_a_judge_that_tells_nothing_corrects_nothing():
    found = corrected_unlearning(0, 50, 20, 100, Errors(50, 100, 50, 100))
    assert (found.pul, found.share_before, found.share_before_ci95) == (None, None, None)
    with pytest.raises(ValueError, match="hits of at least one sample, got 3 of 2"):
        Errors(3, 2, 1, 1)
    with pytest.raises(ValueError, match="passed of at least one sample, got 0 of 0"):
        Errors(1, 2, 0, 0)


@pytest.mark.parametrize(
    ("share", "stay", "come", "sensitivity", "specificity", "n", "negatives", "others"),
    [(0.08, 0.05, 0.0, 0.985, 0.998, 4001, 401, 3607), (0.3, 0.2, 0.01, 0.9, 0.95, 1009, 83, 211)],
)
def test_coverage(monkeypatch, share, stay, come, sensitivity, specificity, n, negatives, others):
    monkeypatch.setattr(prevalence, "DRAWS", 1500)
    rng = np.random.default_rng(3)
    truth = 100 * (1 - (share * stay + (1 - share) * come) / share)
    covered, runs = 0, 300
    for run in range(runs):
        first = rng.random(n) < share
        last = np.where(first, rng.random(n) < stay, rng.random(n) < come)
        seen = [np.where(is_so, rng.random(n) < sensitivity, rng.random(n) >= specificity) for is_so in (first, last)]
        errors = Errors(rng.binomial(negatives, sensitivity), negatives, rng.binomial(others, specificity), others)
        counts = (int((seen[0] & seen[1]).sum()), int(seen[0].sum()), int(seen[1].sum()))
        low, high = corrected_unlearning(*counts, n, errors, seed=run).pul_ci95
        covered += low <= truth <= high
    # Of 300 runs at 95 %, 3 standard deviations are 3.8 points.
    assert covered / runs > 0.912


def test_difference_of_two_shares():
    # Newcombe's worked case, method 10: 56 of 70 against 48 of 80.
    assert difference(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    low, high = difference(0, 100, 5, 100)
    assert low < -0.05 < 0
    assert difference(5, 100, 0, 100) == pytest.approx((-high, -low))
