"""Augmentation: random but reproducible, differentiable, and only what it says it is."""

import pytest
import torch

from atu.data.augment import POLICIES, augment, check_policy


def seeded(x, policy, seed=3):
    torch.manual_seed(seed)
    return augment(x, policy)


@pytest.mark.parametrize("policy", [*POLICIES, "color,translation,cutout"])
@pytest.mark.parametrize("shape", [(4, 1, 8, 8), (3, 3, 7, 9), (1, 2, 1, 1), (0, 3, 4, 4)])
def test_shape_dtype_and_determinism(policy, shape):
    x = torch.rand(shape, dtype=torch.float64)
    kept = x.clone()
    y = seeded(x, policy)
    assert y.shape == x.shape and y.dtype == x.dtype
    assert torch.equal(x, kept), "the input was written to"
    assert torch.equal(y, seeded(x, policy))
    if x.numel() > 50:
        assert not torch.equal(y, seeded(x, policy, seed=4))


@pytest.mark.parametrize("policy", POLICIES)
def test_gradients(policy):
    x = torch.rand(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: seeded(v, policy), (x,))


def test_what_is_no_image_passes():
    x = torch.randn(5, 2)
    assert augment(x, "color,translation,cutout") is x
    image = torch.rand(2, 1, 4, 4)
    assert augment(image, "") is image


def test_translation_shifts_by_at_most_an_eighth_and_repeats_the_border():
    n, h, w = 200, 16, 24
    rows = torch.arange(h, dtype=torch.float64)[:, None].expand(h, w)
    cols = torch.arange(w, dtype=torch.float64)[None, :].expand(h, w)
    y = seeded(torch.stack([rows, cols]).expand(n, 2, h, w), "translation")
    down, right = y[:, 0, h // 2, 0] - h // 2, y[:, 1, 0, w // 2] - w // 2
    assert set(down.tolist()) == set(range(-2, 3)) and set(right.tolist()) == set(range(-3, 4))
    expected_rows = (rows + down[:, None, None]).clamp(0, h - 1)
    expected_cols = (cols + right[:, None, None]).clamp(0, w - 1)
    assert torch.equal(y, torch.stack([expected_rows, expected_cols], 1))


def test_cutout_blanks_one_square_of_half_the_size():
    y = seeded(torch.ones(300, 2, 8, 8), "cutout")
    assert torch.equal(y[:, 0], y[:, 1]) and set(y.unique().tolist()) == {0.0, 1.0}
    hole = y[:, 0] == 0
    heights, widths = hole.any(2).sum(1), hole.any(1).sum(1)
    assert torch.equal(hole.sum([1, 2]), heights * widths), "the hole is not a rectangle"
    assert heights.max() == widths.max() == 4
    assert (hole.float().mean(0) > 0).all(), "some place is never blanked"


def test_color_keeps_what_it_must():
    flat = torch.full((50, 3, 4, 4), 0.25, dtype=torch.float64)
    y = seeded(flat, "color")  # saturation and contrast act on differences alone
    shift = y - flat
    torch.testing.assert_close(shift, shift[:, :1, :1, :1].expand_as(shift), rtol=0, atol=1e-12)
    assert shift.abs().max() <= 0.5 and shift.std() > 0.2
    grey = torch.rand(50, 1, 4, 4, dtype=torch.float64)  # one channel: brightness and contrast, an affine map
    z = seeded(grey, "color")
    centred, before = z - z.mean([1, 2, 3], keepdim=True), grey - grey.mean([1, 2, 3], keepdim=True)
    slope = (centred / before).flatten(1)
    torch.testing.assert_close(slope, slope[:, :1].expand_as(slope), rtol=1e-9, atol=1e-9)
    assert slope.min() >= 0.5 and slope.max() <= 1.5


def test_unknown_policy_is_named():
    assert check_policy("color,cutout") == "color,cutout"
    with pytest.raises(ValueError, match="colour"):
        check_policy("color,colour")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("low, high", [(0.0, 1.0), (0.0, 255.0), (-3.0, 2.0)])
def test_images_of_another_range_are_augmented_as_those_of_the_published_one(policy, low, high):
    x = torch.rand(5, 3, 8, 8, dtype=torch.float64) * 2 - 1
    torch.manual_seed(7)
    found = augment((x + 1) / 2 * (high - low) + low, policy, (low, high))
    torch.testing.assert_close((found - low) / (high - low) * 2 - 1, seeded(x, policy, 7))
