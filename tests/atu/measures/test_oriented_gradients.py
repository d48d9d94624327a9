"""Histograms of oriented gradients against loops over pixels in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atu.measures.oriented_gradients import FAINT, FEATURES, oriented_gradients


def cells(size, n):
    """Where adaptive pooling's cells begin and end."""
    return [(math.floor(i * size / n), math.ceil((i + 1) * size / n)) for i in range(n)]


def by_loops(image, low, high):
    channels, height, width = image.shape
    x = (image - low) / (high - low)
    votes = np.zeros((8, height, width))
    for row in range(height):
        for column in range(width):
            above, below = max(row - 1, 0), min(row + 1, height - 1)
            left, right = max(column - 1, 0), min(column + 1, width - 1)
            slopes = [
                (x[c, row, right] - x[c, row, left], x[c, below, column] - x[c, above, column]) for c in range(channels)
            ]
            across, down = max(slopes, key=lambda slope: math.hypot(*slope))
            for direction in range(8):
                away = math.atan2(down, across) - direction * math.pi / 4
                votes[direction, row, column] = math.hypot(across, down) * max(math.cos(away), 0) ** 3
    found = []
    for side in (7, 3):
        grid = np.zeros((8, side, side))
        for i, (top, bottom) in enumerate(cells(height, side)):
            for j, (start, end) in enumerate(cells(width, side)):
                mean = votes[:, top:bottom, start:end].mean((1, 2))
                grid[:, i, j] = mean / math.sqrt((mean**2).sum() + FAINT**2)
        found.append(grid.ravel())
    return np.concatenate(found)


@settings(max_examples=12, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.sampled_from([1, 3, 4]), st.integers(1, 17), st.integers(1, 13)),
    seed=st.integers(0, 99),
    ends=st.sampled_from([(-1.0, 1.0), (0.0, 255.0)]),
)
def test_as_by_loops_over_pixels(shape, seed, ends):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = ends[0] + (ends[1] - ends[0]) * x
    expected = np.stack([by_loops(image.numpy(), *ends) for image in x])
    found = oriented_gradients(x, ends)
    assert found.dtype == torch.float32 and found.shape == (shape[0], FEATURES)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)


def test_brightness_and_contrast_hardly_matter_and_turning_does():
    x = torch.rand(3, 1, 21, 21, generator=torch.Generator().manual_seed(1)).round()
    own = oriented_gradients(x, (0.0, 1.0))
    torch.testing.assert_close(oriented_gradients(x - 0.7, (0.0, 1.0)), own, atol=1e-4, rtol=0)
    torch.testing.assert_close(oriented_gradients(0.6 * x, (0.0, 1.0)), own, atol=0.1, rtol=0)
    turned = oriented_gradients(x.rot90(1, (2, 3)), (0.0, 1.0))
    fine, coarse = own[:, : 8 * 49].view(3, 8, 7, 7), own[:, 8 * 49 :].view(3, 8, 3, 3)
    expected = [grid.rot90(1, (2, 3)).roll(-2, 1).flatten(1) for grid in (fine, coarse)]  # two directions further
    torch.testing.assert_close(turned, torch.cat(expected, 1), atol=1e-4, rtol=0)
    assert (turned - own).norm() > 0.3 * own.norm()


def test_large_images_are_made_smaller_first():
    x = torch.rand(2, 3, 64, 31)
    large = x.repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(
        oriented_gradients(large, (0.0, 1.0)), oriented_gradients(x, (0.0, 1.0)), atol=1e-4, rtol=0
    )
    assert oriented_gradients(torch.rand(1, 1, 1, 300), (0.0, 1.0)).shape == (1, FEATURES)


@pytest.mark.parametrize("flat", [False, True])
def test_slopes_are_those_of_differences(flat):
    rng = torch.Generator().manual_seed(3)
    x = torch.full((1, 1, 9, 11), 0.5) if flat else torch.rand(1, 1, 9, 11, generator=rng)
    weight, way = (torch.randn(size, generator=rng) for size in (FEATURES, x.shape))
    x.requires_grad_(True)
    (slope,) = torch.autograd.grad(oriented_gradients(x, (0.0, 1.0)) @ weight, x, torch.ones(1))
    assert slope.isfinite().all()
    if not flat:
        with torch.no_grad():
            step = 1e-3
            ends = [
                (oriented_gradients(x + sign * step * way, (0.0, 1.0)).double() @ weight.double()) for sign in (1, -1)
            ]
        measured = float((ends[0] - ends[1]) / (2 * step))
        assert float((slope * way).sum()) == pytest.approx(measured, rel=0.02)
