"""The modulated layer's passes on CUDA, under emulation, against float64 autograd of the formulas.

Inputs are rounded to the dtype first, arithmetic is float32 and outputs are rounded once: a relative error of
eps(dtype) for images, and eps(dtype) plus a float32 sum's error, scaled with the sum of magnitudes, for sums.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

CODES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 3}
EPS = {torch.float32: 2**-21, torch.float16: 2**-11, torch.bfloat16: 2**-8}
CPU = -1
ACTIVATIONS = {
    "linear": lambda v: v,
    "relu": torch.relu,
    "lrelu": lambda v: torch.where(v > 0, v, 0.2 * v),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": torch.nn.functional.elu,
    "selu": torch.nn.functional.selu,
    "softplus": lambda v: torch.logaddexp(v, torch.zeros_like(v)),
    "swish": lambda v: v * torch.sigmoid(v),
}
ACTS = list(ACTIVATIONS)  # in the order of the kernels' codes
# (N, C, P, pixel block): vectors and tails, one and several blocks, fewer and more channels than a warp takes.
SHAPES = [(2, 8, 16, 64), (1, 5, 21, 8), (2, 67, 9, 4), (1, 3, 130, 64), (3, 1, 1, 256)]
LAYOUTS = [False, True]
IDS = ["planar", "channels_last"]


def randn(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def image(shape, dtype, seed, channels_last) -> Tensor:
    """[N, C, P] with memory [N, P, C] where channels-last."""
    n, c, p = shape
    if channels_last:
        return randn(n, p, c, dtype=dtype, seed=seed).transpose(1, 2)
    return randn(n, c, p, dtype=dtype, seed=seed)


def empty(like: Tensor, channels_last: bool) -> Tensor:
    n, c, p = like.shape
    return (
        torch.empty(n, p, c, dtype=like.dtype).transpose(1, 2)
        if channels_last
        else torch.empty(n, c, p, dtype=like.dtype)
    )


def addresses(*tensors: Tensor | None) -> tuple[int, ...]:
    return tuple(0 if t is None else t.data_ptr() for t in tensors)


def close(actual: Tensor, expected: Tensor, magnitude: Tensor | None = None) -> None:
    """Within two roundings to the dtype, and 2^-20 of the terms' magnitude."""
    scale = expected.abs() if magnitude is None else magnitude
    bound = (
        2 * EPS[actual.dtype] * expected.abs()
        + 2**-20 * scale
        + 1e-6
        + (2**-24 if actual.dtype == torch.float16 else 0)
    )
    error = (actual.double() - expected).abs()
    assert (error <= bound).all(), f"error {error.max():.3g}, worst ratio {(error / bound).max():.3g}"


def layer(u, d, noise, bias, act, gain, clamp):
    """bias is [C] or [N, C]."""
    y = gain * ACTIVATIONS[act](d[:, :, None] * u + noise + bias[..., None])
    return y if clamp < 0 else y.clamp(-clamp, clamp)


class Inputs:
    def __init__(self, shape, dtype, channels_last, noise_n=None):
        n, c, p = shape
        self.u = image(shape, dtype, 1, channels_last)
        self.dy = image(shape, dtype, 2, channels_last)
        self.d, self.bias = randn(n, c, dtype=dtype, seed=3), randn(c, dtype=dtype, seed=4)
        self.noise = randn(n if noise_n is None else noise_n, 1, p, dtype=dtype, seed=5)
        self.stride = 0 if self.noise.shape[0] == 1 else p

    def exact(self) -> list[Tensor]:
        return [t.double().requires_grad_() for t in (self.u, self.d, self.noise, self.bias)]

    def pointers(self) -> tuple[int, ...]:
        return addresses(self.u, self.d, self.noise, self.bias)


def finish(act: str, gain: float, clamp: float):
    return ACTS.index(act), 0.2, gain, clamp


@pytest.mark.parametrize("channels_last", LAYOUTS, ids=IDS)
@pytest.mark.parametrize("dtype", CODES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_epilogue(emulated, shape, dtype, channels_last):
    i = Inputs(shape[:3], dtype, channels_last, noise_n=1)
    y = empty(i.u, channels_last)
    emulated.epilogue(
        i.pointers(), finish("lrelu", 1.4, 1.0), y.data_ptr(), CODES[dtype], shape[:3], channels_last, i.stride, CPU
    )
    close(y, layer(*(t.double() for t in (i.u, i.d, i.noise, i.bias)), "lrelu", 1.4, 1.0))


@pytest.mark.parametrize("channels_last", LAYOUTS, ids=IDS)
@pytest.mark.parametrize("act", ACTS)
def test_activations_and_their_gradients(emulated, act, channels_last):
    check_gradients(emulated, (2, 8, 9, 64), torch.float32, channels_last, act, gain=0.7, clamp=0.9)


def check_gradients(emulated, shape, dtype, channels_last, act, gain, clamp) -> None:
    n, c, p, block = shape
    i = Inputs(shape[:3], dtype, channels_last)
    du, dd, db = empty(i.u, channels_last), torch.empty(n, c, dtype=dtype), torch.empty(n, c, dtype=dtype)
    dnoise = torch.empty(n, 1, p, dtype=dtype)
    blocks = -(-p // block)
    partials = torch.empty(2, n, blocks, c, dtype=torch.float64)
    emulated.epilogue_grad(
        i.pointers(), finish(act, gain, clamp), i.dy.data_ptr(), addresses(du, dd, db, dnoise), CODES[dtype],
        shape[:3], channels_last, i.stride, block, partials.data_ptr(), CPU,
    )  # fmt: skip
    u, d, noise, bias = i.exact()
    each_bias = bias.expand(n, c).clone().requires_grad_()
    y = layer(u, d, noise, each_bias, act, gain, clamp)
    expected = torch.autograd.grad(y, (u, d, noise, each_bias), i.dy.double())
    close(du, expected[0])
    size = i.dy.double().abs() * max(gain, 1) * 2
    close(dd, expected[1], (size * i.u.double().abs()).sum(2))
    close(dnoise, expected[2], size.sum(1, keepdim=True))
    close(db, expected[3], size.sum(2))


@pytest.mark.parametrize("channels_last", LAYOUTS, ids=IDS)
@pytest.mark.parametrize("dtype", CODES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_epilogue_grad(emulated, shape, dtype, channels_last):
    check_gradients(emulated, shape, dtype, channels_last, "lrelu", 1.4, -1.0)


@pytest.mark.parametrize("channels_last", LAYOUTS, ids=IDS)
def test_epilogue_grad_without_sums_and_in_place(emulated, channels_last):
    i = Inputs((1, 8, 24), torch.float16, channels_last)
    expected = empty(i.u, channels_last)
    args = (CODES[torch.float16], (1, 8, 24), channels_last, i.stride, 64, 0, CPU)
    emulated.epilogue_grad(
        i.pointers(), finish("swish", 1.0, -1.0), i.dy.data_ptr(), addresses(expected, None, None, None), *args
    )
    emulated.epilogue_grad(
        i.pointers(), finish("swish", 1.0, -1.0), i.dy.data_ptr(), addresses(i.dy, None, None, None), *args
    )
    assert torch.equal(i.dy, expected)


@pytest.mark.parametrize("channels_last", LAYOUTS, ids=IDS)
@pytest.mark.parametrize(
    ("shape", "dtype", "act"),
    [(SHAPES[0], torch.float32, "swish"), (SHAPES[1], torch.bfloat16, "softplus"), (SHAPES[2], torch.float16, "tanh"),
     (SHAPES[3], torch.float32, "elu")],
    ids=str,
)  # fmt: skip
def test_epilogue_grad2(emulated, shape, dtype, act, channels_last):
    n, c, p, block = shape
    i = Inputs(shape[:3], dtype, channels_last)
    gu = image(shape[:3], dtype, 6, channels_last)
    gd, gb = randn(n, c, dtype=dtype, seed=7), randn(n, c, dtype=dtype, seed=8)
    gn = randn(n, 1, p, dtype=dtype, seed=9)
    d_dy, d_u = empty(i.u, channels_last), empty(i.u, channels_last)
    d_d, d_b = torch.empty(n, c, dtype=dtype), torch.empty(n, c, dtype=dtype)
    d_noise = torch.empty(n, 1, p, dtype=dtype)
    partials = torch.empty(2, n, -(-p // block), c, dtype=torch.float64)
    emulated.epilogue_grad2(
        i.pointers(), finish(act, 1.3, -1.0), i.dy.data_ptr(), addresses(gu, gd, gb, gn),
        addresses(d_dy, d_u, d_d, d_b, d_noise), CODES[dtype], shape[:3], channels_last, i.stride, block,
        partials.data_ptr(), CPU,
    )  # fmt: skip
    u, d, noise, bias = i.exact()
    each_bias = bias.detach().expand(n, c).clone().requires_grad_()
    dy = i.dy.double().requires_grad_()
    y = layer(u, d, noise, each_bias, act, 1.3, -1.0)
    first = torch.autograd.grad(y, (u, d, noise, each_bias), dy, create_graph=True)
    incoming = [t.double() for t in (gu, gd, gn, gb)]
    expected = torch.autograd.grad(first, (dy, u, d, noise, each_bias), incoming)
    # Terms of every sum are products of at most four standard normal numbers.
    size = torch.full((n, c, p), 40.0, dtype=torch.float64)
    close(d_dy, expected[0], size)
    close(d_u, expected[1], size)
    close(d_d, expected[2], size.sum(2))
    close(d_noise, expected[3], size.sum(1, keepdim=True))
    close(d_b, expected[4], size.sum(2))


@pytest.mark.parametrize("channels_last", LAYOUTS, ids=IDS)
@pytest.mark.parametrize("out_channels_last", LAYOUTS, ids=["to_planar", "to_channels_last"])
@pytest.mark.parametrize("dtype", CODES, ids=str)
def test_modulate(emulated, dtype, channels_last, out_channels_last):
    for shape in [(2, 8, 16), (1, 35, 41), (1, 3, 5)]:
        x, s = image(shape, dtype, 1, channels_last), randn(*shape[:2], dtype=dtype, seed=2)
        out = empty(x, out_channels_last)
        emulated.modulate(*addresses(x, s, out), CODES[dtype], shape, channels_last, out_channels_last, CPU)
        assert torch.equal(out, x * s[:, :, None])  # one rounding, as torch's


@pytest.mark.parametrize("channels_last", LAYOUTS, ids=IDS)
@pytest.mark.parametrize("dtype", CODES, ids=str)
def test_modulate_grad(emulated, dtype, channels_last):
    for n, c, p, block in SHAPES:
        x, g = image((n, c, p), dtype, 1, channels_last), image((n, c, p), dtype, 2, channels_last)
        s = randn(n, c, dtype=dtype, seed=3)
        dx, ds = empty(x, channels_last), torch.empty(n, c, dtype=dtype)
        partials = torch.empty(n, -(-p // block), c, dtype=torch.float64)
        args = CODES[dtype], (n, c, p), channels_last, block
        emulated.modulate_grad(*addresses(g, x, s, dx, ds), *args, partials.data_ptr(), CPU)
        assert torch.equal(dx, g * s[:, :, None])
        products = g.double() * x.double()
        close(ds, products.sum(2), products.abs().sum(2))
        only = empty(x, channels_last)
        emulated.modulate_grad(*addresses(g, None, s, only, None), *args, 0, CPU)
        assert torch.equal(only, dx)


@pytest.mark.parametrize("channels_last", LAYOUTS, ids=IDS)
@pytest.mark.parametrize("dtype", CODES, ids=str)
def test_weight_passes(emulated, dtype, channels_last):
    for o, c, k in [(3, 5, 9), (2, 300, 1), (9, 1, 4)]:
        w = image((o, c, k), dtype, 1, channels_last)
        args = CODES[dtype], o * c, c, k, channels_last, CPU
        q = torch.empty(o, c, dtype=dtype)
        emulated.square_sum(*addresses(w, q, None, None), *args)
        close(q, w.double().square().sum(2))
        dq, dw = randn(o, c, dtype=dtype, seed=2), empty(w, channels_last)
        emulated.square_sum(*addresses(w, None, dq, dw), *args)
        close(dw, 2 * dq.double()[:, :, None] * w.double())


@pytest.mark.parametrize("dtype", CODES, ids=str)
@pytest.mark.parametrize(("n", "o", "c", "k"), [(2, 3, 5, 9), (37, 2, 40, 1), (1, 2, 1100, 1)], ids=str)
def test_demodulate(emulated, dtype, n, o, c, k):
    w, s = image((o, c, k), dtype, 1, k == 9), randn(n, c, dtype=dtype, seed=2)
    d = torch.empty(n, o, dtype=dtype)
    emulated.demodulate(*addresses(w, s, d), CODES[dtype], (n, o, c, k), k == 9, CPU)
    close(d, (s.double().square() @ w.double().square().sum(2).t() + 1e-8).rsqrt())


def test_large_styles_do_not_overflow_half(emulated):
    """s^2 alone is past float16's range."""
    w, s = torch.full((1, 2, 1), 4.0, dtype=torch.float16), torch.full((1, 2), 1000.0, dtype=torch.float16)
    d = torch.empty(1, 1, dtype=torch.float16)
    emulated.demodulate(*addresses(w, s, d), CODES[torch.float16], (1, 1, 2, 1), False, CPU)
    close(d, torch.tensor([[(2 * 16e6) ** -0.5]], dtype=torch.float64))


@pytest.mark.parametrize("channels_last", LAYOUTS, ids=IDS)
def test_no_pixels(emulated, channels_last):
    """Sums over no pixels are zero."""
    ds, s = torch.empty(2, 3), torch.ones(2, 3)
    emulated.modulate_grad(0, 0, s.data_ptr(), 0, ds.data_ptr(), 0, (2, 3, 0), channels_last, 64, 0, CPU)
    assert (ds == 0).all()


@pytest.mark.parametrize("channels_last", LAYOUTS, ids=IDS)
@pytest.mark.parametrize("dtype", CODES, ids=str)
def test_no_channels(emulated, dtype, channels_last):
    """Sums over no channels are zero: every pixel's is written."""
    noise = randn(2, 1, 70, dtype=dtype, seed=1)
    where = CODES[dtype], (2, 0, 70), channels_last, 70, 64, 0, CPU
    first, second = (torch.empty(2, 1, 70, dtype=dtype) for _ in range(2))
    inputs = addresses(None, None, noise, None), finish("tanh", 1.0, -1.0), 0
    emulated.epilogue_grad(*inputs, addresses(None, None, None, first), *where)
    emulated.epilogue_grad2(*inputs, (0, 0, 0, 0), addresses(None, None, None, None, second), *where)
    assert (first == 0).all()
    assert (second == 0).all()
    emulated.epilogue_grad(*inputs, (0, 0, 0, 0), *where)  # nothing to write, nothing launched


def test_too_large_a_block_is_refused(emulated):
    ds, s = torch.empty(2, 3), torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"pixel_block must be 1\.\.256, got 1024"):
        emulated.modulate_grad(0, 0, s.data_ptr(), 0, ds.data_ptr(), 0, (2, 3, 4), False, 1024, 0, CPU)
