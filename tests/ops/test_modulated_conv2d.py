"""modulated_conv2d against StyleGAN2's own formulation: weights modulated for each sample, one grouped convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from atu_ext import _native
from atu_ext.ops import activations, conv2d_resample, modulated_conv2d, setup_filter

pytestmark = pytest.mark.skipif(_native._C is None, reason=str(_native.error))

# Without the (slow) tracing of forward and backward, which one op of each kind goes through in full.
QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")
FIR = setup_filter([1, 3, 3, 1])
ACTIVATIONS = {
    "linear": lambda v: v,
    "relu": torch.relu,
    "lrelu": lambda v: torch.where(v > 0, v, 0.2 * v),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": F.elu,
    "selu": F.selu,
    "softplus": lambda v: torch.logaddexp(v, torch.zeros_like(v)),
    "swish": lambda v: v * torch.sigmoid(v),
}


def zero_insert_conv(x: Tensor, w: Tensor, up: int, down: int, pad: int, groups: int) -> Tensor:
    """Literally: zero-insert, pad, filter with FIR, convolve, drop pixels. x [N, C, H, W], w in torch's convention."""
    n, c, h, width = x.shape
    stuffed = x.new_zeros(n, c, h * up, width * up)
    stuffed[:, :, ::up, ::up] = x
    if up == down == 1:
        return F.conv2d(F.pad(stuffed, [pad] * 4), w, groups=groups)
    fir = FIR.to(x.dtype).expand(c, 1, 4, 4)  # symmetric: correlation is convolution
    before, after = (
        (pad + (4 + up - 1) // 2, pad + (4 - up) // 2) if up > 1 else (pad + (4 - down + 1) // 2, pad + (4 - down) // 2)
    )
    filtered = F.conv2d(F.pad(stuffed, [before, after, before, after]), fir * up**2, groups=c)
    return F.conv2d(filtered, w, groups=groups)[:, :, ::down, ::down]


def by_weights(
    x, w, s, noise, bias, *, up=1, down=1, pad=0, demodulate=True, flip=True, act="linear", gain=1.0, clamp=None
):
    """The layer with one set of weights a sample."""
    n, c, h, width = x.shape
    weights = w[None] * s[:, None, :, None, None]
    if demodulate:
        weights = weights / (weights.square().sum([2, 3, 4], keepdim=True) + 1e-8).sqrt()
    if not flip:
        weights = weights.flip([3, 4])
    y = zero_insert_conv(x.reshape(1, n * c, h, width), weights.flatten(0, 1), up, down, pad, groups=n)
    y = y.reshape(n, w.shape[0], *y.shape[2:])
    y = y if noise is None else y + noise
    y = gain * ACTIVATIONS[act](y if bias is None else y + bias[:, None, None])
    return y if clamp is None else y.clamp(-clamp, clamp)


def inputs(n=2, c_in=5, c_out=6, h=7, w=9, k=3, dtype=torch.float64, noise_n=None, out=None, channels_last=False):
    """x, weight, styles, noise, bias; `out` is the output's (H', W')."""
    gen = torch.Generator().manual_seed(n * 1000 + c_in * 100 + h * 10 + k)
    make = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=gen).to(dtype)  # noqa: E731
    x = make(n, c_in, h, w)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    out = (h, w) if out is None else out
    return x, make(c_out, c_in, k, k), make(n, c_in), make(n if noise_n is None else noise_n, 1, *out), make(c_out)


@pytest.fixture(params=_native._C.cpu_isas() if _native._C else ["none"])
def isa(request):
    before = _native._C.cpu_isa()
    _native._C.set_cpu_isa(request.param)
    yield request.param
    _native._C.set_cpu_isa(before)


VARIANTS = [
    dict(k=3),
    dict(k=1),
    dict(k=5),
    dict(k=3, flip=False),
    dict(k=3, demodulate=False),
    dict(k=3, up=2),
    dict(k=3, up=2, flip=False),
    dict(k=1, up=2),
    dict(k=3, down=2),
    dict(k=1, down=2),
    dict(k=5, up=2),
]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_matches_per_sample_weights(variant, channels_last):
    k, up, down = variant["k"], variant.get("up", 1), variant.get("down", 1)
    out = (7 * up, 9 * up) if down == 1 else (3, 4)
    args = inputs(k=k, out=out, channels_last=channels_last)
    flip, demodulate = variant.get("flip", True), variant.get("demodulate", True)
    resample = dict(up=up, down=down, padding=k // 2, resample_filter=FIR if up * down > 1 else None)
    for impl in ("native", "reference"):
        got = modulated_conv2d(
            *args[:4],
            **resample,
            demodulate=demodulate,
            flip_weight=flip,
            bias=args[4],
            act="lrelu",
            clamp=1.5,
            impl=impl,
        )
        want = by_weights(
            *args, up=up, down=down, pad=k // 2, demodulate=demodulate, flip=flip, act="lrelu", gain=2**0.5, clamp=1.5
        )
        # float64: about a hundred terms of size 1 in each sum.
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("act", list(activations))
def test_activations(act, isa):
    args = inputs(noise_n=1, w=19)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        cast = [t.to(dtype) for t in args]
        got = modulated_conv2d(*cast[:4], padding=1, bias=cast[4], act=act, gain=0.7, clamp=2.0, impl="native")
        want = by_weights(*args, pad=1, act=act, gain=0.7, clamp=2.0)
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("channels_last", [False, True])
def test_softplus_is_its_argument_above_torchs_threshold(isa, channels_last):
    """As in bias_act and in torch: value, slope and curvature, on both sides of 20."""
    x = torch.tensor([19.0, 19.999, 20.001, 25.0, 700.0, -3.0, 0.0], dtype=torch.float64).reshape(1, 1, 1, 7)
    x = x.expand(2, 3, 1, 7).contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    styles, weight = torch.ones(2, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[:, :, None, None]

    def run(impl):
        leaf = x.clone().requires_grad_()
        if impl == "torch":
            y = F.softplus(leaf)
        else:
            y = modulated_conv2d(leaf, weight, styles, demodulate=False, act="softplus", impl=impl)
        (first,) = torch.autograd.grad(y.sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), leaf)
        return y.detach(), first.detach(), second

    for ours, torchs in zip(run("native"), run("torch"), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(2, 33, 17, 5, 3), (1, 300, 5, 3, 3), (3, 1, 1, 37, 31), (2, 16, 16, 1, 1)])
def test_float32_error_is_torchs_own(shape, channels_last, isa):
    """Forward and gradients: at most twice the error of the same formulas in torch's float32, plus one rounding."""
    n, c_in, c_out, h, w = shape
    exact = inputs(n, c_in, c_out, h, w, channels_last=channels_last)
    grad = torch.randn(n, c_out, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def run(dtype, impl):
        leaves = [t.detach().to(dtype).requires_grad_() for t in exact]
        y = modulated_conv2d(*leaves[:4], padding=1, bias=leaves[4], act="lrelu", impl=impl)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(dtype))]

    want = run(torch.float64, "reference")
    ours = [(y.double() - w).abs().max() for y, w in zip(run(torch.float32, "native"), want, strict=True)]
    # torch's sums, and so its errors, depend on the number of threads: some by a factor of 2.4.
    threads, errors = torch.get_num_threads(), []
    for count in {1, threads}:
        torch.set_num_threads(count)
        errors.append(
            [(y.double() - w).abs().max() for y, w in zip(run(torch.float32, "reference"), want, strict=True)]
        )
    torch.set_num_threads(threads)
    for error, w, *torchs in zip(ours, want, *errors, strict=True):
        assert error <= 2 * max(torchs) + 2**-23 * w.abs().max()


@pytest.mark.parametrize("act", ["linear", "lrelu", "swish", "softplus"])
@pytest.mark.parametrize("variant", [dict(), dict(up=2), dict(down=2), dict(demodulate=False, noise_n=1)], ids=str)
def test_gradients(variant, act):
    up, down = variant.get("up", 1), variant.get("down", 1)
    out = (3 * up, 2 * up) if down == 1 else (1, 1)
    leaves = [t.requires_grad_() for t in inputs(2, 2, 2, 3, 2, noise_n=variant.get("noise_n"), out=out)]

    def layer(x, w, s, noise, bias):
        return modulated_conv2d(
            x, w, s, noise, up=up, down=down, padding=1, resample_filter=FIR if up * down > 1 else None,
            demodulate=variant.get("demodulate", True), bias=bias, act=act, clamp=5.0, impl="native",
        )  # fmt: skip

    assert gradcheck(layer, leaves, fast_mode=True)
    assert gradgradcheck(layer, leaves, fast_mode=True)


def test_gradients_channels_last_and_pixelwise():
    x, w, s, _, bias = inputs(2, 3, 2, 2, 3, k=1)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    leaves = [x, w.requires_grad_(), s.requires_grad_(), bias.requires_grad_()]
    to_rgb = lambda x, w, s, b: modulated_conv2d(x, w, s, demodulate=False, bias=b, impl="native")  # noqa: E731
    assert gradcheck(to_rgb, leaves) and gradgradcheck(to_rgb, leaves)
    torch.testing.assert_close(to_rgb(*leaves), by_weights(*leaves[:3], None, bias, demodulate=False))


def test_path_length_second_order_matches():
    """The gradient of ||J^T y||^2 with respect to every input, as path length regularisation takes it."""
    grads = {}
    for impl in ("native", "reference"):
        x, w, s, noise, bias = (t.requires_grad_() for t in inputs(out=(14, 18)))
        y = modulated_conv2d(x, w, s, noise, up=2, padding=1, resample_filter=FIR, bias=bias, act="lrelu", impl=impl)
        (to_styles,) = torch.autograd.grad(
            (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum(), s, create_graph=True
        )
        grads[impl] = torch.autograd.grad(to_styles.square().sum(), [x, w, s])
    for ours, want in zip(grads["native"], grads["reference"], strict=True):
        torch.testing.assert_close(ours, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n,h,w", [(0, 4, 4), (2, 0, 5), (0, 0, 0)])
def test_empty(n, h, w):
    x, weight, s = torch.zeros(n, 3, h, w, requires_grad=True), torch.randn(4, 3, 1, 1), torch.randn(n, 3)
    noise = torch.zeros(1, 1, h, w)
    y = modulated_conv2d(x, weight, s, noise, bias=torch.zeros(4), act="lrelu", impl="native")
    assert y.shape == (n, 4, h, w)
    y.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("resample", [{}, {"up": 2}, {"down": 2}, {"resample_filter": FIR, "up": 3, "down": 2}])
def test_no_input_channels_are_as_one_of_zeros(resample, size, impl):
    """An empty sum is zero: only noise and bias are left. torch's convolution gives no output channels either."""

    def layer(channels):
        x = torch.zeros(2, channels, 5, 7, requires_grad=True)
        args = dict(padding=2, bias=torch.randn(3, generator=torch.Generator().manual_seed(1)), impl=impl, **resample)
        return modulated_conv2d(x, torch.zeros(3, channels, size, size), torch.zeros(2, channels), **args)

    torch.testing.assert_close(layer(0), layer(1), rtol=0, atol=0)
    layer(0).sum().backward()


def test_threads_and_repeats_agree_bitwise():
    args = [t.float().requires_grad_() for t in inputs(2, 32, 48, 40, 40)]
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            u, d = args[0].detach(), args[2].detach()
            y = torch.ops.atu_ext.epilogue(u, d, args[3].detach(), None, 2, 0.2, 1.4, -1.0)
            grads = torch.ops.atu_ext.epilogue_grad(y, u, d, args[3].detach(), None, 2, 0.2, 1.4, -1.0, True, True)
            scaled = torch.ops.atu_ext.modulate_grad(y, u, d)
            results.append([y, *grads, *scaled, torch.ops.atu_ext.square_sum(args[1].detach())])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_non_contiguous_inputs():
    x, w, s, noise, bias = inputs()
    strided = torch.randn(2, 9, 7, 10, dtype=x.dtype)[:, :5, :, 1:]
    strided.copy_(x)
    got = modulated_conv2d(strided, w, s.t().contiguous().t(), noise, padding=1, bias=bias, act="lrelu", impl="native")
    torch.testing.assert_close(got, by_weights(x, w, s, noise, bias, pad=1, act="lrelu", gain=2**0.5))


def test_opcheck():
    x, w, s, noise, bias = (t.float().requires_grad_() for t in inputs(2, 3, 3, 4, 5))
    ops, output = torch.ops.atu_ext, (2, 0.2, 1.4, 2.0)
    d, dy = s.detach(), x.detach()
    torch.library.opcheck(ops.square_sum, (w,))
    torch.library.opcheck(ops.square_sum_grad, (w[:, :, 0, 0].detach(), w), test_utils=QUICK)
    torch.library.opcheck(ops.modulate, (x, s, True))
    torch.library.opcheck(ops.modulate_grad, (dy, x, s), test_utils=QUICK)
    torch.library.opcheck(ops.epilogue, (x, s, noise, bias, *output))
    torch.library.opcheck(ops.epilogue, (x, None, None, None, *output), test_utils=QUICK)
    torch.library.opcheck(
        ops.epilogue_, (x.detach().clone(), d, noise.detach(), bias.detach(), *output), test_utils=QUICK
    )
    torch.library.opcheck(ops.epilogue_grad, (dy, x, s, noise, bias, *output, True, True), test_utils=QUICK)
    torch.library.opcheck(
        ops.epilogue_grad2, (dy, None, None, None, dy, x.detach(), d, noise.detach(), None, *output), test_utils=QUICK
    )


def test_traced_by_torch_compile():
    args = [t.float().requires_grad_() for t in inputs(out=(14, 18))]

    def layer(x, w, s, noise, bias):
        return modulated_conv2d(
            x, w, s, noise, up=2, padding=1, resample_filter=FIR, bias=bias, act="lrelu", impl="native"
        )

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    y, want = compiled(*args), layer(*args)
    torch.testing.assert_close(y, want)
    grads, wanted = (torch.autograd.grad(t.square().sum(), args) for t in (y, want))
    torch.testing.assert_close(grads, wanted)


def test_conv2d_resample_up_then_down():
    x, w, *_ = inputs()
    got = conv2d_resample(x, w, FIR, up=2, down=2, padding=1)
    before, after = 1 + 2 + 1, 1 + 1 + 1
    stuffed = x.new_zeros(2, 5, 14, 18)
    stuffed[:, :, ::2, ::2] = x
    fir = 4 * FIR.to(x.dtype).expand(5, 1, 4, 4)
    want = F.conv2d(F.conv2d(F.pad(stuffed, [before, after] * 2), fir, groups=5), w)[:, :, ::2, ::2]
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x=torch.zeros(2, 5, 7)), "x: expected"),
        (dict(weight=torch.zeros(6, 4, 3, 3).double()), "weight: expected"),
        (dict(styles=torch.zeros(2, 4).double()), "styles: expected"),
        (dict(styles=torch.zeros(2, 5)), "styles: expected torch.float64"),
        (dict(noise=torch.zeros(3, 1, 7, 9).double()), "noise: expected"),
        (dict(bias=torch.zeros(5).double()), "bias: expected"),
        (dict(up=0), "up: expected"),
        (dict(act="gelu"), "act: expected"),
        (dict(clamp=-1.0), "clamp: expected"),
        (dict(impl="fast"), "impl: expected"),
    ],
)
def test_errors_name_the_argument(change, message):
    x, w, s, noise, bias = inputs()
    arguments = dict(x=x, weight=w, styles=s, noise=noise, bias=bias, padding=1) | change
    with pytest.raises(ValueError, match=message):
        modulated_conv2d(**arguments)


def test_a_list_is_no_filter():
    x, w, s, *_ = inputs()
    with pytest.raises(TypeError, match="resample_filter: expected a tensor, as setup_filter makes of taps"):
        modulated_conv2d(x, w, s, up=2, resample_filter=[1, 3, 3, 1])
    with pytest.raises(TypeError, match="f: expected a tensor, as setup_filter makes of taps"):
        conv2d_resample(x, w, [1, 3, 3, 1], up=2)


def test_native_refused_where_there_is_none():
    x, w, s, *_ = (t.half() for t in inputs())
    with pytest.raises(RuntimeError, match="impl='native' is impossible: expected float32, float64 or bfloat16"):
        modulated_conv2d(x, w, s, impl="native")
