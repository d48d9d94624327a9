"""Precision, recall, density and coverage against scipy's neighbours, and against sets whose overlap is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from atu.measures.manifold import manifold


def inside(points, manifold, k):
    """Share of points within the k-th neighbour's distance of some member of the manifold."""
    tree = cKDTree(manifold)
    radius = tree.query(manifold, k + 1)[0][:, -1]
    distance = np.linalg.norm(points[:, None] - manifold[None], axis=2)
    return float((distance < radius).any(1).mean())


@pytest.mark.parametrize("k", [3, 5])
def test_agrees_with_scipys_neighbours(k):
    rng = torch.Generator().manual_seed(k)
    a, b = torch.randn(150, 4, generator=rng).double(), torch.randn(120, 4, generator=rng).double() * 1.5 + 0.5
    found = manifold(a, b, k)
    expected = inside(b.numpy(), a.numpy(), k), inside(a.numpy(), b.numpy(), k)
    assert (found["precision"], found["recall"]) == pytest.approx(expected, abs=1e-12)


def test_lost_modes_cost_recall_and_invented_ones_precision(capsys):
    rng = torch.Generator().manual_seed(0)
    left, right = (torch.randn(400, 2, generator=rng) + torch.tensor([sign * 50.0, 0.0]) for sign in (-1, 1))
    both = torch.cat([left, right])
    more = torch.cat([left + 0.01, right + 0.01])
    found = manifold(both, left + 0.01)
    assert found["precision"] > 0.9
    assert found["recall"] == pytest.approx(0.5, abs=0.03)
    found = manifold(left, more)
    assert found["precision"] == pytest.approx(0.5, abs=0.03)
    assert found["recall"] > 0.9
    assert capsys.readouterr().out == ""


def balls(reference, generated, k):
    """(density, coverage) by the definitions."""
    radius = cKDTree(reference).query(reference, k + 1)[0][:, -1]
    within = np.linalg.norm(reference[:, None] - generated[None], axis=2) < radius[:, None]
    return within.sum() / (k * len(generated)), within.any(1).mean()


@pytest.mark.parametrize("k", [3, 5])
def test_density_and_coverage_agree_with_their_definitions(k):
    rng = torch.Generator().manual_seed(k + 1)
    a, b = torch.randn(131, 3, generator=rng).double(), torch.randn(97, 3, generator=rng).double() * 0.7
    found = manifold(a, b, k)
    assert (found["density"], found["coverage"]) == pytest.approx(balls(a.numpy(), b.numpy(), k), abs=1e-12)


def test_too_few_samples_have_no_manifold():
    assert set(manifold(torch.zeros(4, 2), torch.zeros(9, 2)).values()) == {None}
