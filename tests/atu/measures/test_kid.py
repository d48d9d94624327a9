"""The kernel distance against its sums written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atu.measures.kid import kid


def written_out(a, b):
    """Binkowski et al., the unbiased estimate, pair by pair."""
    n, m, size = len(a), len(b), a.shape[1]

    def k(x, y):
        return (np.dot(x, y) / size + 1) ** 3

    within_a = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_b = sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_a + within_b - 2 * sum(k(x, y) for x in a for y in b) / (n * m)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (13, 7), (5, 31)])
def test_agrees_with_the_sums(n, m):
    rng = torch.Generator().manual_seed(n)
    a, b = torch.randn(n, 3, generator=rng), torch.randn(m, 3, generator=rng) * 2 + 1
    assert kid(a, b) == pytest.approx(written_out(a.double().numpy(), b.double().numpy()), rel=1e-12)


def test_two_draws_of_one_distribution_are_at_zero_on_average():
    rng = torch.Generator().manual_seed(0)
    draws = [kid(torch.randn(40, 4, generator=rng), torch.randn(60, 4, generator=rng)) for _ in range(300)]
    spread = float(np.std(draws)) / len(draws) ** 0.5
    assert abs(float(np.mean(draws))) < 4 * spread
    assert min(draws) < 0
    assert kid(torch.randn(40, 4), torch.randn(60, 4) + 2) > 1


def test_of_too_few_is_none_and_of_many_the_first_are_taken():
    assert kid(torch.zeros(1, 2), torch.zeros(9, 2)) is None
    a, b = torch.randn(20, 2), torch.randn(30, 2)
    assert kid(a, b, most=11) == kid(a[:11], b[:11])
