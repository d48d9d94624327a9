"""Thumbnails, and how much of a page they take."""

from __future__ import annotations

import pytest
import torch

from atu.data.images import THUMBNAIL, image_grid, thumbnails
from atu.report.plots import data_url


@pytest.mark.parametrize("size", [(129, 131), (1024, 512), (300, 7)])
def test_thumbnails_keep_proportions_and_brightness(size):
    x = torch.linspace(-1, 1, size[0] * size[1], dtype=torch.float64).reshape(1, 1, *size).expand(2, 3, *size)
    small = thumbnails(x)
    assert small.shape[:2] == (2, 3) and max(small.shape[2:]) == THUMBNAIL
    assert small.shape[2] / small.shape[3] == pytest.approx(size[0] / size[1], rel=0.2)
    torch.testing.assert_close(small.double().mean(), x.mean(), atol=2e-3, rtol=0)


def test_small_images_and_other_samples_stay_as_they_are():
    for x in (torch.rand(3, 1, 128, 97), torch.rand(5, 2), torch.zeros(0, 3, 500, 500)):
        assert thumbnails(x) is x


def test_a_page_of_grids_stays_under_five_mebibytes():
    """Three models with 64 and 24 images each, of noise: what compresses the least."""
    torch.manual_seed(0)
    sizes = [len(data_url(image_grid(torch.rand(n, 3, 128, 128), (0.0, 1.0), 8))) for n in (64, 24)]
    assert 3 * sum(sizes) < 5 * 2**20
    assert data_url(image_grid(torch.rand(64, 1, 32, 32), (0.0, 1.0), 8)).startswith("data:image/png")
