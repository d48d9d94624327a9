"""bias_act against scalar formulas of the math module in float64, and its gradients against finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from atu_ext import _native
from atu_ext.ops import activations, bias_act, filter2d, setup_filter

pytestmark = pytest.mark.skipif(_native._C is None, reason=str(_native.error))

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
FORMULAS = {
    "linear": lambda v: v,
    "relu": lambda v: max(v, 0.0),
    "lrelu": lambda v: v if v > 0 else 0.2 * v,
    "tanh": math.tanh,
    "sigmoid": lambda v: 1 / (1 + math.exp(-v)) if v > -700 else 0.0,
    "elu": lambda v: v if v > 0 else math.expm1(v),
    "selu": lambda v: SELU_SCALE * (v if v > 0 else SELU_ALPHA * math.expm1(v)),
    "softplus": lambda v: max(v, 0.0) + math.log1p(math.exp(-abs(v))),
    "swish": lambda v: v / (1 + math.exp(-v)) if v > -700 else 0.0,
}
GAINS = {"relu": math.sqrt(2), "lrelu": math.sqrt(2), "swish": math.sqrt(2)}


@pytest.fixture(params=_native._C.cpu_isas() if _native._C is not None else [])
def isa(request):
    before = _native._C.cpu_isa()
    _native._C.set_cpu_isa(request.param)
    yield request.param
    _native._C.set_cpu_isa(before)


def randn(*shape, dtype=torch.float64, seed=0, scale=1.0):
    return scale * torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("act", list(FORMULAS))
def test_values_to_rounding(isa, act, dtype):
    magnitudes = torch.cat([torch.logspace(-9, 2, 60, dtype=torch.float64), torch.linspace(0.01, 19, 61).double()])
    x = torch.cat([-magnitudes, magnitudes, torch.zeros(1, dtype=torch.float64)]).to(dtype)
    y = bias_act(x[None], act=act, impl="native")[0].double()
    expected = torch.tensor([FORMULAS[act](v) * GAINS.get(act, 1.0) for v in x.tolist()], dtype=torch.float64)
    if act == "softplus":  # torch's threshold, which the op follows: above 20 softplus(v) is v, 2e-9 off
        expected = torch.where(x > 20, x.double(), expected)
    # Four units in the last place: the kernels' series and gain, three roundings. Results below the smallest normal
    # number are not asked for.
    eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
    torch.testing.assert_close(y, expected, rtol=4 * eps, atol=100 * tiny)


@pytest.mark.parametrize("act", list(FORMULAS))
def test_infinities_and_nan(isa, act):
    x = torch.tensor([[math.inf, -math.inf, math.nan, 1e30, -1e30]])
    y = bias_act(x, act=act, impl="native")
    expected = bias_act(x, act=act, impl="reference")
    if act == "swish":  # -inf * 0
        y, expected = y[:, [0, 2, 3, 4]], expected[:, [0, 2, 3, 4]]
    torch.testing.assert_close(y, expected, equal_nan=True, atol=1e-20, rtol=1e-6)


LAYOUTS = {
    # shape, axis of the bias, memory format or stride trick
    "planar": ((2, 3, 9, 11), 1, None),
    "small planes": ((2, 5, 3, 3), 1, None),
    "channels_last": ((2, 20, 5, 7), 1, "channels_last"),
    "one channel": ((3, 1, 4, 4), 1, "channels_last"),
    "matrix": ((7, 300), 1, None),
    "first axis": ((4, 33), 0, None),
    "last axis": ((2, 3, 4, 65), -1, None),
    "slice": ((2, 4, 9, 10), 1, "slice"),
    "permuted": ((2, 3, 5, 6), 2, "permuted"),
    "empty": ((0, 3, 4, 4), 1, None),
}


def lay_out(shape, how, dtype):
    if how == "slice":
        return randn(shape[0], shape[1], shape[2], 2 * shape[3], dtype=dtype)[..., ::2]
    if how == "permuted":
        return randn(*reversed(shape), dtype=dtype).permute(3, 2, 1, 0)
    x = randn(*shape, dtype=dtype)
    return x.to(memory_format=torch.channels_last) if how == "channels_last" else x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_layouts_axes_and_first_gradient(isa, layout, dtype):
    shape, dim, how = LAYOUTS[layout]
    for act, clamp in (("lrelu", 0.9), ("swish", None), ("tanh", None), ("linear", None), ("linear", 0.5)):
        results = []
        for impl, kind in (("native", dtype), ("reference", torch.float64)):
            x = lay_out(shape, how, dtype).to(kind).requires_grad_()
            b = randn(shape[dim], seed=1, dtype=dtype).to(kind).requires_grad_()
            y = bias_act(x, b, dim, act, gain=1.1, clamp=clamp, impl=impl)
            dy = randn(*shape, seed=2, dtype=dtype).to(kind)
            results.append([t.double() for t in (y, *torch.autograd.grad(y, (x, b), dy))])
        # db sums up to 70 terms of size 1.
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(
                ours, expected, atol=40 * torch.finfo(dtype).eps, rtol=8 * torch.finfo(dtype).eps
            )


@pytest.mark.parametrize("how", [None, "channels_last"])
def test_bias_gradient_of_a_large_tensor_keeps_its_precision(how):
    x, b = lay_out((4, 4, 256, 260), how, torch.float32), torch.zeros(4, requires_grad=True)
    dy = 1 + 0.1 * randn(4, 4, 256, 260, dtype=torch.float32, seed=3)
    bias_act(x, b, act="lrelu", impl="native").backward(dy)
    slope = torch.where(x > 0, 1.0, 0.2).double() * math.sqrt(2)
    expected = (dy.double() * slope).sum([0, 2, 3])
    # 266,240 terms of one sign: a plain float32 sum is off by 1e-4 or so, sums flushed to double by 1e-6.
    torch.testing.assert_close(b.grad.double(), expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("clamp", [None, 0.7])
@pytest.mark.parametrize("act", list(FORMULAS))
def test_gradients(act, clamp):
    x, b = randn(2, 3, 4, 3).requires_grad_(), randn(3, seed=1).requires_grad_()

    def op(x, b):
        return bias_act(x, b, act=act, clamp=clamp, impl="native")

    assert torch.autograd.gradcheck(op, (x, b))
    assert torch.autograd.gradgradcheck(op, (x, b))


@pytest.mark.parametrize(
    ("act", "options"), [("lrelu", {"alpha": -0.5}), ("relu", {"gain": 0.0}), ("elu", {"gain": -2})]
)
def test_gradients_where_the_output_does_not_tell_the_input(act, options):
    x = randn(2, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: bias_act(t, act=act, impl="native", **options), x)
    assert torch.autograd.gradgradcheck(lambda t: bias_act(t, act=act, impl="native", **options), x)


@pytest.mark.parametrize("act", ["lrelu", "tanh"])
def test_gradients_of_a_vector(act):
    x, b = (randn(5, seed=seed).requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(lambda x, b: bias_act(x, b, dim=0, act=act, impl="native"), (x, b))
    assert torch.autograd.gradgradcheck(lambda x, b: bias_act(x, b, dim=0, act=act, impl="native"), (x, b))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_second_gradient_of_a_straight_activation_costs_the_layers_before_nothing(layout):
    """R1 through lrelu: x gets no zeros to send through the rest of the network, dy gets the slope."""
    x = randn(2, 3, 4, 5).to(memory_format=layout).requires_grad_()
    dy = randn(2, 3, 4, 5, seed=1).requires_grad_()
    before = filter2d(x, setup_filter([1, 2, 1]), impl="native")
    y = bias_act(before, act="lrelu", impl="native")
    (dx,) = torch.autograd.grad(y, before, dy, create_graph=True)
    arrived = []
    before.register_hook(arrived.append)
    found = torch.autograd.grad(dx.square().sum(), [x, dy], allow_unused=True)
    slope = torch.where(before > 0, 1.0, 0.2) * math.sqrt(2)
    assert found[0] is None
    assert all(gradient is None for gradient in arrived)
    torch.testing.assert_close(found[1], 2 * slope.square() * dy)


def test_third_order_is_refused_or_right():
    x = randn(2, 3).requires_grad_()
    y = bias_act(x, act="tanh", impl="native").sum()
    (first,) = torch.autograd.grad(y, x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="two orders of gradient"):
        torch.autograd.grad(second.sum(), x)


@pytest.mark.parametrize("act", ["linear", "lrelu", "swish", "tanh"])
def test_opcheck(act):
    x, b = randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_(), randn(3).requires_grad_()
    arguments = (1, activations[act].code, 0.2, 1.5, 0.8)
    torch.library.opcheck(torch.ops.atu_ext.bias_act.default, (x, b, *arguments))


def test_compiled_code_traces_through():
    torch._dynamo.reset()
    compiled = torch.compile(lambda t, c: bias_act(t, c, act="lrelu") * 2, fullgraph=True, backend="aot_eager")
    x, b = randn(2, 3, 4, 4).requires_grad_(), randn(3)
    y = compiled(x, b)
    y.sum().backward()
    expected = 2 * math.sqrt(2) * torch.where(x.detach() + b[:, None, None] > 0, 1.0, 0.2).double()
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"act": "gelu"}, ValueError, "act: expected one of linear"),
        ({"clamp": -1}, ValueError, "clamp: expected a number >= 0"),
        ({"b": torch.ones(4)}, ValueError, r"b: expected shape \(3,\)"),
        ({"dim": 4}, ValueError, "dim: expected an axis"),
        ({"b": torch.ones(3, dtype=torch.float64)}, TypeError, "b: expected torch.float32"),
        ({"x": torch.ones(2, 3, 4, 4, dtype=torch.int64)}, TypeError, "x: expected a floating-point"),
        ({"impl": "cuda"}, ValueError, "impl: expected"),
    ],
)
def test_bad_arguments(kwargs, error, message):
    arguments = {"x": torch.ones(2, 3, 4, 4), "b": torch.ones(3)} | kwargs
    with pytest.raises(error, match=message):
        bias_act(**arguments)
