"""Filtered leaky ReLU: against an explicit sum, its gradients, and its filters."""

import math

import numpy as np
import pytest
import torch

from atu.networks.filtered_lrelu import filtered_lrelu, lowpass_filter


def explicit(x, fu, fd, b, up, down, pad, gain, slope, clamp):
    """The definition with NumPy loops over output pixels, one channel at a time."""

    def convolve(image, f):
        f = np.outer(f, f)[::-1, ::-1]
        h, w = (n - len(f) + 1 for n in image.shape)
        return np.array([[(image[i : i + len(f), j : j + len(f)] * f).sum() for j in range(w)] for i in range(h)])

    out = []
    for image, bias in zip(x[0].numpy(), b.numpy(), strict=True):
        stuffed = np.zeros([n * up for n in image.shape])
        stuffed[::up, ::up] = image + bias
        y = convolve(np.pad(stuffed, pad), fu.numpy()) * up**2
        y = np.clip(np.where(y < 0, slope * y, y) * gain, -clamp, clamp)
        out.append(convolve(y, fd.numpy())[::down, ::down])
    return torch.from_numpy(np.stack(out))[None]


def case():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    b = torch.randn(2, dtype=torch.float64)
    return x, torch.rand(4), torch.rand(4), b


def test_against_the_definition():
    x, fu, fd, b = case()
    y = filtered_lrelu(x, fu, fd, b, up=2, down=2, padding=3, gain=1.3, slope=0.1, clamp=0.8)
    expected = explicit(x, fu.double(), fd.double(), b, 2, 2, 3, 1.3, 0.1, 0.8)
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


def test_first_and_second_gradients():
    x, fu, fd, b = case()
    x.requires_grad_()
    b.requires_grad_()

    def call(x, b):
        return filtered_lrelu(x, fu, fd, b, up=2, down=2, padding=2)

    assert torch.autograd.gradcheck(call, (x, b))
    assert torch.autograd.gradgradcheck(call, (x, b))


@pytest.mark.parametrize(("taps", "width"), [(12, 8.0), (24, 2.0), (5, 20.0)])
def test_separable_filter_is_scipys(taps, width):
    signal = pytest.importorskip("scipy.signal")
    expected = signal.firwin(numtaps=taps, cutoff=5.0, width=width, fs=64.0)
    np.testing.assert_allclose(lowpass_filter(taps, 5.0, width, 64.0).numpy(), expected, rtol=0, atol=1e-7)


def test_radial_filter():
    f = lowpass_filter(12, 5.0, 8.0, 64.0, radial=True)
    assert f.shape == (12, 12)
    assert float(f.sum()) == pytest.approx(1, abs=1e-6)
    assert torch.equal(f, f.t()) and torch.allclose(f, f.flip(0), atol=1e-8)
    odd = lowpass_filter(13, 5.0, 8.0, 64.0, radial=True)
    assert torch.isfinite(odd).all() and odd.argmax() == 13 * 6 + 6
    assert lowpass_filter(1, 5.0, 8.0, 64.0) is None
    assert math.isclose(float(lowpass_filter(12, 5.0, 8.0, 64.0).sum()), 1, abs_tol=1e-6)
