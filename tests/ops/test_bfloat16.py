"""The ops on bfloat16 tensors of the CPU, and under autocast.

Values: the formula in float64 of the same bfloat16 inputs. What the kernels compute in float32 and round once is within
one rounding (2^-8 of the value). Where rounded values are read again, in gradients, the bound is twice the error of
torch's own operators in bfloat16, or one rounding of the largest value.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from atu_ext import _native
from atu_ext.ops import ParamPenalty, activations, bias_act, modulated_conv2d, setup_filter, upfirdn2d
from atu_ext.ops import modulated_passes as passes

pytestmark = pytest.mark.skipif(_native._C is None, reason=str(_native.error))

ROUNDING = 2.0**-8
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
SHAPES = [(2, 3, 7, 11), (1, 37, 5, 5), (3, 16, 8, 8), (1, 300, 3, 2)]
FIR = setup_filter([1, 3, 3, 1])


@pytest.fixture(params=_native._C.cpu_isas() if _native._C is not None else [])
def isa(request):
    before = _native._C.cpu_isa()
    _native._C.set_cpu_isa(request.param)
    yield request.param
    _native._C.set_cpu_isa(before)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def rounded_once(ours: Tensor, exact: Tensor, slack: float = 2e-6) -> None:
    """slack: of the float32 arithmetic, in units of the largest value."""
    assert ours.dtype == torch.bfloat16
    largest = exact.abs().max().item() if exact.numel() else 0.0
    torch.testing.assert_close(ours.double(), exact, rtol=ROUNDING, atol=slack * largest)


def as_good_as_torch(ours: Tensor, torchs: Tensor, exact: Tensor) -> None:
    bound = max(2 * (torchs.double() - exact).abs().max(), ROUNDING * exact.abs().max())
    assert ours.dtype == torch.bfloat16
    assert (ours.double() - exact).abs().max() <= bound


def every_number() -> Tensor:
    """All bfloat16, NaNs and infinities included."""
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)


@pytest.mark.parametrize("factor", [1.0, 1.0078125, -1.3359375])  # the next number after 1, and one with more digits
def test_every_number_is_read_and_rounded_to_nearest_even(isa, factor):
    x = every_number().view(1, 1, 256, 256)
    styles = torch.full((1, 1), factor, dtype=torch.bfloat16)
    y, expected = passes.modulate(x, styles, False), (x.float() * styles.float()).bfloat16()
    # What lies below the smallest normal number may become 0.
    normal = x.isnan() | (expected.abs() > 2 * torch.finfo(torch.float32).tiny)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y[normal].nan_to_num(7), expected[normal].nan_to_num(7))
    assert (y - expected)[~normal].abs().max() <= 2 * torch.finfo(torch.float32).tiny


@pytest.mark.parametrize("act", activations)
def test_bias_act_of_every_number(isa, act):
    x = every_number().view(1, 256, 256)
    y = bias_act(x, act=act, gain=1, impl="native")
    exact = bias_act(x.double(), act=act, gain=1, impl="reference")
    finite = exact.bfloat16().isfinite()
    torch.testing.assert_close(y[finite].double(), exact[finite], rtol=ROUNDING, atol=1e-36)
    special = ~finite & ~(x.isneginf() if act == "swish" else torch.zeros_like(finite))  # -inf * 0
    assert torch.equal(y[special].nan_to_num(7), exact[special].bfloat16().nan_to_num(7))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_bias_act_values(isa, shape, layout):
    x, b = randn(*shape).to(memory_format=LAYOUTS[layout]), randn(shape[1], seed=1)
    for act in ("lrelu", "swish", "linear"):
        y = bias_act(x, b, act=act, clamp=0.9, impl="native")
        rounded_once(y, bias_act(x.double(), b.double(), act=act, clamp=0.9, impl="reference"))
        assert y.stride() == x.stride()


def gradients(f, leaves: list[Tensor], kind: torch.dtype, *, second: bool) -> list[Tensor]:
    """f's value, first gradients, and those of the first ones' squares; None where there is none."""
    leaves = [t.detach().to(kind).requires_grad_() for t in leaves]
    y = f(*leaves)
    dy = torch.linspace(-1, 1, y.numel()).bfloat16().view(y.shape).to(kind).requires_grad_()
    first = torch.autograd.grad(y, leaves, dy, create_graph=second)
    if not second:
        return [y, *first]
    loss = sum((g * g.detach().sign()).sum() for g in first)
    return [y, *first, *torch.autograd.grad(loss, [*leaves, dy], allow_unused=True)]


def check_gradients(f, leaves: list[Tensor], *, second: bool) -> None:
    """f(impl, *leaves)"""
    runs = ("native", torch.bfloat16), ("reference", torch.bfloat16), ("reference", torch.float64)
    for ours, torchs, exact in zip(
        *[gradients(lambda *t, impl=i: f(impl, *t), leaves, kind, second=second) for i, kind in runs], strict=True
    ):
        if ours is None:  # the kernels leave zeros out
            assert exact is None or not exact.any()
        else:
            as_good_as_torch(ours, torchs, exact)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("act", activations)
def test_bias_act_gradients(isa, act, layout):
    # x + b is exact and never 0, and no output within a rounding of the clamp: the slope is no matter of rounding.
    x = ((16 * randn(2, 19, 5, 7)).round() + 0.5).div(8).to(memory_format=LAYOUTS[layout])
    b = (4 * randn(19, seed=1)).round().div(8)

    def op(impl, x, b):
        return bias_act(x, b, act=act, clamp=1.3, impl=impl)

    check_gradients(op, [x, b], second=True)


@pytest.mark.parametrize("clamp", [0.9, 0.3])  # neither is a bfloat16: one is rounded down, the other up
def test_nothing_passes_back_where_the_rounded_output_is_at_the_clamp(clamp):
    x = torch.tensor([0.1, 0.8, 1.0, -2.0, 0.29], dtype=torch.bfloat16, requires_grad=True)
    bias_act(x, act="linear", clamp=clamp, impl="native").sum().backward()
    assert torch.equal(x.grad, (x.detach().abs() < clamp).bfloat16())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_upfirdn2d(isa, shape, layout, up, down):
    x = randn(*shape).to(memory_format=LAYOUTS[layout])
    for f in (FIR, setup_filter(torch.arange(12.0).reshape(3, 4) - 4)):
        args = dict(up=up, down=down, padding=[3, 2, 4, 1], gain=1.5)
        leaves = [t.requires_grad_() for t in (x.clone(), x.double())]
        y = upfirdn2d(leaves[0], f, **args, impl="native")
        exact = upfirdn2d(leaves[1], f.double(), **args, impl="reference")  # the kernels do not round the filter
        rounded_once(y.detach(), exact.detach())
        dy = randn(*y.shape, seed=1)
        ours, expected = torch.autograd.grad(y, leaves[0], dy), torch.autograd.grad(exact, leaves[1], dy.double())
        rounded_once(*ours, *expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_slices_that_begin_anywhere(isa, layout):
    whole = randn(2, 21, 9, 13).to(memory_format=LAYOUTS[layout])
    b = randn(22, seed=1)[1:]
    for x in (whole[:, :, 1:, 3:], whole[1:], whole[:, :, :, ::2]):
        rounded_once(upfirdn2d(x, FIR, 2, 1, 2), upfirdn2d(x.double(), FIR.double(), 2, 1, 2, impl="reference"))
        rounded_once(bias_act(x, b, act="tanh"), bias_act(x.double(), b.double(), act="tanh", impl="reference"))


def test_large_outputs_written_past_the_caches(isa):
    x, b = randn(1, 70, 256, 256), randn(70, seed=1)  # 9 MB
    rounded_once(bias_act(x, b, act="lrelu"), bias_act(x.double(), b.double(), act="lrelu", impl="reference"))
    for layout in LAYOUTS.values():
        small = randn(1, 80, 120, 128).to(memory_format=layout)
        y = upfirdn2d(small, FIR, 2, 1, [2, 1, 2, 1])
        assert y.numel() * 2 >= 8 << 20
        rounded_once(y, upfirdn2d(small.double(), FIR.double(), 2, 1, [2, 1, 2, 1], impl="reference"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("to", LAYOUTS)
def test_modulate(isa, layout, to):
    for shape in SHAPES:
        x, s = randn(*shape).to(memory_format=LAYOUTS[layout]), randn(*shape[:2], seed=1)
        rounded_once(passes.modulate(x, s, to == "channels_last"), x.double() * s.double()[:, :, None, None])
        dy = randn(*shape, seed=2).to(memory_format=LAYOUTS[layout])
        dx, ds = passes.modulate_grad(dy, x, s)
        rounded_once(dx, dy.double() * s.double()[:, :, None, None])
        rounded_once(ds, (dy.double() * x.double()).sum([2, 3]), slack=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("taps", [(3, 3), (1, 1), (2, 5)])
def test_square_sum(isa, layout, taps):
    w, dq = randn(5, 300, *taps).to(memory_format=LAYOUTS[layout]), randn(5, 300, seed=1)
    rounded_once(passes.square_sum(w), w.double().square().sum([2, 3]))
    rounded_once(passes.square_sum_grad(dq, w), 2 * w.double() * dq.double()[:, :, None, None])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("act", ["tanh", "swish"])  # smooth
def test_modulated_layer_with_both_gradients(isa, act, layout):
    tensors = [randn(2, 7, 5, 6).to(memory_format=LAYOUTS[layout]), *(randn(*s, seed=i) for i, s in enumerate(
        [(9, 7, 3, 3), (2, 7), (2, 1, 5, 6), (9,)], start=1
    ))]  # fmt: skip

    def op(impl, x, weight, styles, noise, bias):
        return modulated_conv2d(x, weight, styles, noise, padding=1, bias=bias, act=act, impl=impl)

    check_gradients(op, tensors, second=True)


def test_sums_over_many_pixels_are_not_rounded_on_the_way():
    """Of ones bfloat16 counts to 256 only."""
    ones = torch.ones(1, 2, 64, 64, dtype=torch.bfloat16)
    assert passes.modulate_grad(ones, ones, torch.ones(1, 2, dtype=torch.bfloat16))[1].tolist() == [[4096, 4096]]
    b = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    bias_act(ones, b, act="lrelu", gain=1, impl="native").sum().backward()
    assert b.grad.tolist() == [4096, 4096]


def test_nothing_there():
    for shape in ((0, 3, 4, 4), (2, 0, 4, 4)):
        x = torch.zeros(shape, dtype=torch.bfloat16, requires_grad=True)
        b = torch.zeros(shape[1], dtype=torch.bfloat16, requires_grad=True)
        y = bias_act(upfirdn2d(x, FIR, padding=2, impl="native"), b, act="swish", impl="native")
        y.sum().backward()
        assert y.dtype == torch.bfloat16
        assert x.grad.shape == shape and not b.grad.any()
    x, w, s = torch.zeros(0, 3, 4, 4).bfloat16(), randn(5, 3, 3, 3), torch.zeros(0, 3).bfloat16()
    assert modulated_conv2d(x, w, s, padding=1, impl="native").shape == (0, 5, 4, 4)


def test_param_penalty():
    params, anchor, fisher, repel = (
        [randn(*s, seed=10 * k + i) for i, s in enumerate([(37,), (3, 5)])] for k in range(4)
    )
    fisher = [f.abs() for f in fisher]
    ours = ParamPenalty(params, anchor, fisher, repel, impl="native")
    wide = [[t.double() for t in ts] for ts in (params, anchor, fisher, repel)]
    assert ours.value() == pytest.approx(ParamPenalty(*wide, impl="reference").value(), rel=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout):
    x, b = randn(2, 3, 4, 5).to(memory_format=LAYOUTS[layout]).requires_grad_(), randn(3, seed=1).requires_grad_()
    s, noise = randn(2, 3, seed=2).requires_grad_(), randn(1, 1, 4, 5, seed=3).requires_grad_()
    ops = torch.ops.atu_ext
    torch.library.opcheck(ops.bias_act.default, (x, b, 1, 8, 0.0, 1.5, 0.8))
    torch.library.opcheck(ops.upfirdn2d.default, (x, FIR, 2, 2, 1, 1, 2, 1, 2, 1, False, 4.0))
    torch.library.opcheck(ops.modulate.default, (x, s, True))
    torch.library.opcheck(ops.epilogue.default, (x, s, noise, b, 2, 0.2, math.sqrt(2), 1.0))


# ---- autocast -------------------------------------------------------------------------------------------------------

WEIGHT = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(5))
OPS = {
    "bias_act": lambda x, s, impl: bias_act(x, s[0], act="softplus", impl=impl),
    "upfirdn2d": lambda x, s, impl: upfirdn2d(x, FIR, up=2, padding=2, impl=impl),
    "modulated_conv2d": lambda x, s, impl: modulated_conv2d(x, WEIGHT.to(x), s, padding=1, act="lrelu", impl=impl),
}


@pytest.fixture(params=OPS)
def op(request):
    return OPS[request.param]


def wide_inputs() -> tuple[Tensor, Tensor]:
    return randn(2, 3, 6, 5).float().requires_grad_(), randn(2, 3, seed=1).float().requires_grad_()


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_autocast_takes_its_dtype_as_convolutions_do(op, impl):
    x, s = wide_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        y = op(x, s, impl)
        mixed = op(x.bfloat16(), s, impl)  # after a convolution, with the layer's own parameters
        with torch.autocast("cpu", enabled=False):
            assert op(x, s, impl).dtype == torch.float32
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, mixed)
    narrow = [t.detach().bfloat16().requires_grad_() for t in (x, s)]
    expected = op(*narrow, impl)
    assert torch.equal(y, expected)
    y.float().square().sum().backward()
    expected.float().square().sum().backward()
    assert x.grad.dtype == torch.float32
    assert torch.equal(x.grad, narrow[0].grad.float())


def test_autocast_leaves_float64_alone(op):
    x, s = (t.detach().double() for t in wide_inputs())
    with torch.autocast("cpu", torch.bfloat16):
        assert op(x, s, "native").dtype == torch.float64


def test_autocast_to_float16_runs_the_reference_on_the_cpu(op):
    with torch.autocast("cpu", torch.float16):
        assert op(*wide_inputs(), "auto").dtype == torch.float16
        with pytest.raises(RuntimeError, match=r"expected float32, float64 or bfloat16 on the CPU, got torch\.float16"):
            op(*wide_inputs(), "native")


def test_autocast_compiles_without_a_graph_break(op):
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, s: op(x, s, "auto"), fullgraph=True, backend="aot_eager")
    results = []
    for f in (compiled, lambda x, s: op(x, s, "auto")):
        x, s = wide_inputs()
        with torch.autocast("cpu", torch.bfloat16):
            y = f(x, s)
        y.float().square().sum().backward()
        assert y.dtype == torch.bfloat16
        results.append([y, x.grad])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=ROUNDING, atol=ROUNDING)
