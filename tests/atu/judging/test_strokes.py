"""Measures of strokes, against drawings whose thickness, lean and width follow from how they were drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from atu.gan import GAN
from atu.judging import strokes
from atu.networks.mlp import MLPGenerator


def drawn(points, stroke, size=64, scale=8):
    """Ink [1, size, size] of a line through points, drawn large and averaged down."""
    image = Image.new("L", (size * scale, size * scale))
    ImageDraw.Draw(image).line([(x * scale, y * scale) for x, y in points], fill=255, width=round(stroke * scale))
    fine = torch.from_numpy(np.asarray(image, dtype=np.float64)) / 255
    return fine.reshape(size, scale, size, scale).mean((1, 3))[None]


def leaning(degrees, stroke=3.0):
    """A long line whose top leans to the left by an angle."""
    t = math.tan(math.radians(degrees)) * 20
    return drawn([(32 - t, 12), (32 + t, 52)], stroke)


def test_thickness_of_a_rectangle_is_the_closed_form():
    for height, wide in [(20, 3), (40, 7), (5, 5)]:
        a = torch.zeros(1, 64, 64, dtype=torch.float64)
        a[:, 10 : 10 + height, 20 : 20 + wide] = 1
        # Each side counts its length; each corner is cut by a diagonal of half a pixel.
        perimeter = 2 * (height + wide) - 4 * (1 - math.sqrt(0.5))
        assert float(strokes.thickness(a)) == pytest.approx(2 * height * wide / perimeter, rel=1e-12)


@pytest.mark.parametrize("stroke", [2.0, 3.0, 5.0])
def test_thickness_is_that_of_the_pen(stroke):
    for points in ([(32, 8), (32, 56)], [(12, 12), (50, 45)], [(12, 20), (30, 50), (52, 14)]):
        # The ends of the stroke belong to its outline; all else is exact but for what the pixels average.
        assert float(strokes.thickness(drawn(points, stroke))) == pytest.approx(stroke, rel=0.12)


@pytest.mark.parametrize("degrees", [-35, -10, 0, 20, 40])
def test_lean_is_the_angle_drawn(degrees):
    # A line of finite width adds w^2 / 12 to the spread, little beside 40^2 / 12.
    assert float(strokes.lean(leaning(degrees))) == pytest.approx(degrees, abs=0.6)


def test_width_is_the_standard_deviation():
    a = torch.zeros(1, 32, 32, dtype=torch.float64)
    a[:, 5:9, 10:22] = 0.5
    assert float(strokes.width(a)) == pytest.approx(math.sqrt((12**2 - 1) / 12), rel=1e-12)


def test_moments_agree_with_numpys_weighted_covariance():
    a = torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for image, lean, width in zip(a, strokes.lean(a), strokes.width(a), strict=True):
        y, x = np.mgrid[:9, :7].reshape(2, -1)
        cov = np.cov(np.stack([x, y]), aweights=image.numpy().ravel(), ddof=0)
        assert float(width) == pytest.approx(math.sqrt(cov[0, 0]), rel=1e-10)
        assert float(lean) == pytest.approx(math.degrees(math.atan(cov[0, 1] / cov[1, 1])), rel=1e-8)


def test_measures_do_not_depend_on_the_place():
    a = leaning(15)
    moved = torch.roll(a, (5, -7), (1, 2))
    for measure in (strokes.thickness, strokes.lean, strokes.width):
        assert float(measure(moved)) == pytest.approx(float(measure(a)), rel=1e-9)


def test_images_without_ink_measure_nothing():
    black = torch.full((2, 1, 16, 16), -1.0)
    for name in strokes.FEATURES:
        one = strokes.feature_rule(name, 0.0, (-1.0, 1.0))
        assert one.slope(black).tolist() == [0.0, 0.0]
        assert one(black).tolist() == [False, False]


def test_ink_is_mapped_and_clamped():
    x = torch.tensor([-3.0, 0.0, 1.0, 2.0]).reshape(1, 1, 1, 4)
    assert strokes.ink(x, (-1.0, 1.0)).flatten().tolist() == [0.0, 0.5, 1.0, 1.0]
    assert strokes.ink(x, (0.0, 2.0)).flatten().tolist() == [0.0, 0.0, 0.5, 1.0]


def test_threshold_is_the_quantile_of_what_the_gan_makes():
    gan = GAN(MLPGenerator(4, [1, 12, 12], (16,), "sigmoid"), image_range=(0.0, 1.0))
    found = strokes.feature_rules(gan, n=1000, share=0.3, seed=2)
    assert list(found) == ["thick", "left", "wide"]
    x = gan.sample(1000, 2, batch_size=250)
    for one in found.values():
        assert float(one(x).float().mean()) == pytest.approx(0.3, abs=0.002)
        assert torch.equal(one(x), one.slope(x) > one.threshold)


def test_errors_name_the_argument():
    gan = GAN(MLPGenerator(4, [1, 12, 12], (16,)))
    with pytest.raises(ValueError, match="feature: expected one of thick, left, wide, got 'red'"):
        strokes.feature_rules(gan, ("red",), n=10)
    with pytest.raises(ValueError, match="share: expected"):
        strokes.feature_rules(gan, share=1.0, n=10)
    with pytest.raises(ValueError, match=r"expected \[N, C, H, W\], got \[10, 2\]"):
        strokes.feature_rules(GAN(MLPGenerator(4, [2], (4,))), n=10)
    with torch.no_grad():
        for p in gan.generator.parameters():
            p.zero_()
    with pytest.raises(ValueError, match="thick is the same in all 20 samples"):
        strokes.feature_rules(gan, ("thick",), n=20)
