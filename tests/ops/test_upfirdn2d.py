"""upfirdn2d against its definition written as loops over output samples, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch

from atu_ext import _native
from atu_ext.ops import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

pytestmark = pytest.mark.skipif(_native._C is None, reason=str(_native.error))

LAYOUTS = ["contiguous", "channels_last", "slice", "transposed"]


def make(shape, dtype=torch.float64, layout="contiguous", seed=0):
    generator = torch.Generator().manual_seed(seed)
    n, c, h, w = shape
    if layout == "slice":
        return torch.randn(n, c + 1, h + 2, w + 3, dtype=dtype, generator=generator)[:, 1:, 1:-1, 2:-1]
    if layout == "transposed":
        return torch.randn(n, c, w, h, dtype=dtype, generator=generator).transpose(2, 3)
    x = torch.randn(shape, dtype=dtype, generator=generator)
    return x.to(memory_format=torch.channels_last) if layout == "channels_last" else x


def naive(x, f, up, down, padding, flip_filter, gain):
    """The sum in the head of csrc/kernels/upfirdn2d.h, tap by tap."""
    x = x.double()
    f = f.double()
    g = f.outer(f) if f.ndim == 1 else f
    if not flip_filter:
        g = g.flip([0, 1])
    (ux, uy), (dx, dy), (px0, px1, py0, py1) = up, down, padding
    n, c, h, w = x.shape
    oh, ow = (h * uy + py0 + py1 - g.shape[0]) // dy + 1, (w * ux + px0 + px1 - g.shape[1]) // dx + 1
    y = torch.zeros(n, c, oh, ow, dtype=torch.float64)
    for oy, ox in itertools.product(range(oh), range(ow)):
        for ky, kx in itertools.product(range(g.shape[0]), range(g.shape[1])):
            iy, ry = divmod(oy * dy + ky - py0, uy)
            ix, rx = divmod(ox * dx + kx - px0, ux)
            if ry == 0 and rx == 0 and 0 <= iy < h and 0 <= ix < w:
                y[:, :, oy, ox] += gain * g[ky, kx] * x[:, :, iy, ix]
    return y


CASES = [
    # f, up, down, padding
    ("sep4", (2, 2), (1, 1), (2, 1, 2, 1)),
    ("sep4", (1, 1), (2, 2), (1, 1, 1, 1)),
    ("full", (1, 1), (1, 1), (1, 2, 2, 0)),
    ("full", (2, 1), (1, 2), (3, 2, -1, 4)),
    ("sep8", (3, 2), (2, 3), (4, 5, 6, 3)),
    ("one", (4, 1), (1, 1), (0, 0, 0, 0)),
    ("one", (1, 1), (3, 2), (0, 0, 0, 0)),
    ("full", (3, 4), (5, 1), (-1, 6, 3, -2)),
]
FILTERS = {
    "sep4": setup_filter([1, 3, 3, 1], separable=True),
    "sep8": setup_filter([1, 2, 5, 9, 7, 3, 2, 1]),
    "full": torch.tensor([[1.0, 2, -3], [0.5, 4, 1], [2, 1, 1], [-1, 0, 3]]) / 8,
    "one": torch.full((1, 1), 1.5),
}


def tolerance(dtype):
    # Up to 64 products of size about 1 are summed: 64 roundings of half a unit in the last place, and some room.
    return 100 * torch.finfo(dtype).eps


@pytest.fixture(params=_native._C.cpu_isas() if _native._C is not None else [])
def isa(request):
    before = _native._C.cpu_isa()
    _native._C.set_cpu_isa(request.param)
    yield request.param
    _native._C.set_cpu_isa(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "up", "down", "padding"), CASES)
def test_against_definition(isa, name, up, down, padding, layout, dtype):
    x = make((2, 3, 5, 7), dtype, layout)
    for flip in (False, True):
        expected = naive(x, FILTERS[name], up, down, padding, flip, 1.7)
        for impl in ("native", "reference"):
            y = upfirdn2d(x, FILTERS[name], up, down, padding, flip, 1.7, impl=impl)
            torch.testing.assert_close(y.double(), expected, atol=tolerance(dtype), rtol=0)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 2, 3, 37), (1, 20, 4, 5), (1, 1, 2, 2100), (2, 150, 3, 3)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("name", ["sep4", "full"])
def test_sizes_around_vectors_and_chunks(isa, shape, layout, up, down, name):
    x = make(shape, torch.float32, layout)
    kw = {"up": up, "down": down, "padding": [2, 3, 3, 2], "gain": 0.5}
    expected = upfirdn2d(x.double().contiguous(), FILTERS[name], **kw, impl="reference")
    y = upfirdn2d(x, FILTERS[name], **kw, impl="native")
    torch.testing.assert_close(y.double(), expected, atol=tolerance(torch.float32), rtol=0)


# Planes too small to fill vectors are filtered in groups, as many as a vector has lanes; the last group is not full.
@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (3, 7, 5, 6), (1, 33, 4, 4), (5, 13, 1, 9), (2, 40, 13, 11)])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), ([3, 1], [2, 4])])
@pytest.mark.parametrize("name", ["sep4", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_planes(isa, shape, up, down, name, dtype):
    x = make(shape, dtype)
    kw = {"up": up, "down": down, "padding": [2, 3, 4, -1], "gain": 1.5}
    expected = upfirdn2d(x.double(), FILTERS[name], **kw, impl="reference")
    for skip in (0, 1):  # without the first channel the planes are not one block of memory
        y = upfirdn2d(x[:, skip:], FILTERS[name], **kw, impl="native")
        torch.testing.assert_close(y.double(), expected[:, skip:], atol=tolerance(dtype), rtol=0)


@pytest.mark.parametrize("shape", [(2, 8, 64, 64), (2, 75, 16, 16)])
def test_threads_do_not_change_a_bit(shape):
    x = make(shape, torch.float32)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(upfirdn2d(x, FILTERS["full"], up=2, padding=[2, 1, 2, 1], impl="native"))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("shape", [(1, 40, 256, 256), (24, 445, 16, 16)])  # 10 MB each
def test_large_output_written_past_the_caches(isa, shape):
    x = make(shape, torch.float32)
    y = upfirdn2d(x, FILTERS["sep4"], padding=[2, 1, 2, 1], impl="native")
    expected = upfirdn2d(x, FILTERS["sep4"], padding=[2, 1, 2, 1], impl="reference")
    torch.testing.assert_close(y, expected, atol=tolerance(torch.float32), rtol=0)


@pytest.mark.parametrize(("up", "height"), [(1, 1366), (2, 683)])  # 8 MB, in strips of about 4096 / 3 steps
def test_large_output_in_several_strips(isa, up, height):
    x = make((1, 1, height, 4608), torch.float32)
    args = dict(up=[up, 1], down=[3, 1], padding=[1, 1, 2, 1])
    y, expected = (upfirdn2d(x, FILTERS["sep4"], **args, impl=impl) for impl in ("native", "reference"))
    assert y.numel() * y.element_size() >= 8 << 20 and y.shape[3] % 16 == 0
    torch.testing.assert_close(y, expected, atol=tolerance(torch.float32), rtol=0)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
@pytest.mark.parametrize("impl", ["native", "reference"])
def test_empty(shape, impl):
    x = torch.ones(shape, requires_grad=True)
    y = upfirdn2d(x, setup_filter([1, 3, 3, 1]), up=2, padding=[4, 4, 4, 4], impl=impl)
    assert y.shape == (shape[0], shape[1], shape[2] * 2 + 5, shape[3] * 2 + 5)
    assert y.abs().sum() == 0
    y.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize(("name", "up", "down", "padding"), CASES[:5])
def test_gradients(name, up, down, padding, layout):
    x = make((1, 2, 4, 5), layout=layout).requires_grad_()

    def op(t):
        return upfirdn2d(t, FILTERS[name], up, down, padding, gain=1.3, impl="native")

    assert torch.autograd.gradcheck(op, x)
    assert torch.autograd.gradgradcheck(op, x)


def test_gradient_of_a_learned_filter_comes_from_the_reference():
    x, f = make((1, 2, 4, 5)), torch.rand(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: upfirdn2d(x, t, up=2, padding=2), f)
    with pytest.raises(RuntimeError, match="gradient with respect to f"):
        upfirdn2d(x, f, impl="native")


def test_opcheck():
    for layout in ("contiguous", "channels_last"):
        x = make((1, 2, 4, 5), layout=layout).requires_grad_()
        torch.library.opcheck(
            torch.ops.atu_ext.upfirdn2d.default, (x, FILTERS["full"], 2, 1, 1, 2, 1, 2, 1, 2, False, 2.0)
        )


def test_layout_is_kept():
    x = make((2, 3, 4, 5), layout="channels_last")
    y = upfirdn2d(x, FILTERS["full"], padding=2, impl="native")
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert upfirdn2d(x.contiguous(), FILTERS["full"], padding=2, impl="native").is_contiguous()


def test_constant_images_stay_constant_through_the_helpers():
    x, f = torch.ones(1, 2, 16, 16, dtype=torch.float64), setup_filter([1, 3, 3, 1])
    for y, size in ((upsample2d(x, f), 32), (downsample2d(x, f), 8), (filter2d(x, setup_filter([1, 2, 1])), 16)):
        assert y.shape[2:] == (size, size)
        inner = y[:, :, 3:-3, 3:-3]
        torch.testing.assert_close(inner, torch.ones_like(inner))


def border(taps, factor, up):
    """The samples of a filter before and after a pixel: between the `up` zero-inserted ones, or of the kept ones."""
    before = taps + factor - 1 if up else taps - factor + 1
    return before // 2, (taps - factor) // 2


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize(("fx", "fy"), [(2, 2), (3, 1)])
@pytest.mark.parametrize(("padding", "sides"), [(0, (0,) * 4), ([2, 5], (2, 2, 5, 5)), ([3, 1, 4, 6], (3, 1, 4, 6))])
def test_up_and_downsampling_against_definition(name, fx, fy, padding, sides):
    x, f = make((1, 2, 5, 7)), FILTERS[name]

    def around(factor_x, factor_y, up):
        (x0, x1), (y0, y1) = border(f.shape[-1], factor_x, up), border(f.shape[0], factor_y, up)
        return tuple(a + b for a, b in zip((x0, x1, y0, y1), sides, strict=True))

    expected = {
        upsample2d: naive(x, f, (fx, fy), (1, 1), around(fx, fy, True), True, 0.7 * fx * fy),
        downsample2d: naive(x, f, (1, 1), (fx, fy), around(fx, fy, False), True, 0.7),
        filter2d: naive(x, f, (1, 1), (1, 1), around(1, 1, False), True, 0.7),
    }
    for helper, y in expected.items():
        factors = [] if helper is filter2d else [[fx, fy]]
        for impl in ("native", "reference"):
            found = helper(x, f, *factors, padding=padding, flip_filter=True, gain=0.7, impl=impl)
            torch.testing.assert_close(found, y, rtol=0, atol=fx * fy * tolerance(torch.float64))
    x0, x1, y0, y1 = sides
    assert expected[upsample2d].shape[2:] == (5 * fy + y0 + y1, 7 * fx + x0 + x1)
    assert expected[filter2d].shape[2:] == (5 + y0 + y1, 7 + x0 + x1)
    if padding == 0:
        assert expected[downsample2d].shape[2:] == (5 // fy, 7 // fx)


@pytest.mark.parametrize("helper", [upsample2d, downsample2d, filter2d])
@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_gradients_of_the_helpers(helper, layout):
    x = make((1, 2, 5, 4), layout=layout).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: helper(t, FILTERS["full"]), x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda t: helper(t, FILTERS["full"]), x, fast_mode=True)
    torch.testing.assert_close(helper(x, None).sum(), helper(x, torch.ones(1, 1)).sum())


@pytest.mark.parametrize("op", [upfirdn2d, upsample2d, downsample2d, filter2d])
def test_a_list_is_no_filter(op):
    with pytest.raises(TypeError, match="f: expected a tensor, as setup_filter makes of taps, or None; got list"):
        op(torch.ones(1, 2, 4, 4), [1, 3, 3, 1])
    with pytest.raises(TypeError, match=r"x: expected a tensor \[N, C, H, W\], got list"):
        op([[1.0]], torch.ones(2, 2))


@pytest.mark.parametrize("taps", ["binomial", [[1, 2], [3]], {"taps": 1}, torch.ones(2, 2, 2), []])
def test_setup_filter_says_what_it_expects(taps):
    with pytest.raises(ValueError, match="f: expected a "):
        setup_filter(taps)


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize("gain", [-1.5, 2.0])
@pytest.mark.parametrize("name", ["sep8", "full"])
def test_gain_of_either_sign(name, gain, impl):
    x, up, padding = make((1, 2, 4, 5)), (2, 1), (4, 5, 6, 3)
    y = upfirdn2d(x, FILTERS[name], up, padding=padding, gain=gain, impl=impl)
    torch.testing.assert_close(y, naive(x, FILTERS[name], up, (1, 1), padding, False, gain), atol=1e-12, rtol=0)


def test_setup_filter_refuses_a_negative_gain_that_would_be_applied_twice():
    assert torch.equal(setup_filter([1, 3, 3, 1], gain=-1), -setup_filter([1, 3, 3, 1]))
    with pytest.raises(ValueError, match="gain: expected 0 or more for a 1-d filter"):
        setup_filter([1.0] * 8, gain=-1)


def test_taps_that_sum_to_zero_cannot_be_normalized():
    with pytest.raises(ValueError, match=r"normalize: expected taps with a sum other than 0, got \[1, 0, -1\]"):
        setup_filter([1, 0, -1])
    assert setup_filter([1, 0, -1], normalize=False, separable=True).tolist() == [1, 0, -1]


def test_setup_filter():
    assert setup_filter([1, 3, 3, 1]).shape == (4, 4)
    assert setup_filter(range(1, 9)).shape == (8,)
    assert setup_filter([1, 3, 3, 1], gain=4).sum() == pytest.approx(4)
    assert setup_filter(None).tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"up": 0}, "up: expected a positive int"),
        ({"down": [1, 2, 3]}, "down: expected"),
        ({"padding": [1, 2, 3]}, "padding: expected int"),
        ({"padding": -3}, "smaller than the filter"),
        ({"padding": [2**60, -(2**60), 0, 0]}, "padding: expected at most 16,777,216"),
        ({"down": 2**60}, "down: expected at most"),
        ({"up": [1, 2**60]}, "up: expected at most"),
        ({"f": torch.ones(2, 2, 2)}, "f: expected a non-empty filter"),
        ({"x": torch.ones(3, 4, 5)}, r"x: expected \[N, C, H, W\]"),
        ({"impl": "fast"}, "impl: expected"),
    ],
)
def test_bad_arguments(kwargs, message):
    arguments = {"x": torch.ones(1, 2, 4, 4), "f": torch.ones(2, 2)} | kwargs
    with pytest.raises(ValueError, match=message):
        upfirdn2d(**arguments)


def test_native_says_why_it_cannot():
    with pytest.raises(RuntimeError, match=r"expected float32, float64 or bfloat16 on the CPU, got torch\.float16"):
        upfirdn2d(torch.ones(1, 1, 4, 4, dtype=torch.float16), torch.ones(2, 2), impl="native")
