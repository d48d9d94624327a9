"""Precision and recall against scipy's neighbours, and against sets whose overlap is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from atu.measures.manifold import kept_manifold, precision_recall


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
    found = precision_recall(a, b, k)
    assert found == pytest.approx((inside(b.numpy(), a.numpy(), k), inside(a.numpy(), b.numpy(), k)), abs=1e-12)


def test_lost_modes_cost_recall_and_invented_ones_precision(capsys):
    rng = torch.Generator().manual_seed(0)
    left, right = (torch.randn(400, 2, generator=rng) + torch.tensor([sign * 50.0, 0.0]) for sign in (-1, 1))
    both = torch.cat([left, right])
    more = torch.cat([left + 0.01, right + 0.01])
    precision, recall = precision_recall(both, left + 0.01)
    assert precision > 0.9
    assert recall == pytest.approx(0.5, abs=0.03)
    precision, recall = precision_recall(left, more)
    assert precision == pytest.approx(0.5, abs=0.03)
    assert recall > 0.9
    assert capsys.readouterr().out == ""


def test_kept_manifold_says_what_chance_allows():
    rng = torch.Generator().manual_seed(1)
    kept, same = torch.randn(1000, 3, generator=rng), torch.randn(500, 3, generator=rng)
    numbers = kept_manifold(kept, same)
    for what in ("precision", "recall"):
        assert numbers[f"{what}_kept_after"] == pytest.approx(numbers[f"{what}_kept_before"], abs=0.06)
    far = kept_manifold(kept, same + 100)
    assert (far["precision_kept_after"], far["recall_kept_after"]) == (0.0, 0.0)
    assert far["precision_kept_before"] == numbers["precision_kept_before"]


def test_too_few_samples_have_no_manifold():
    assert precision_recall(torch.zeros(4, 2), torch.zeros(9, 2)) is None
    assert kept_manifold(torch.zeros(3, 2), torch.zeros(9, 2))["recall_kept_after"] is None
