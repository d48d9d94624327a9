"""Every op under torch.func's transforms and torch.compile, against the plain-torch reference under the same, in
float64. Tolerance: sums of a few hundred terms of size 1 to 100."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacrev, jvp, vjp, vmap

from atu_ext import _native
from atu_ext.ops import (
    bias_act,
    conv2d_resample,
    downsample2d,
    filter2d,
    modulated_conv2d,
    param_penalty,
    setup_filter,
    upfirdn2d,
    upsample2d,
)

pytestmark = pytest.mark.skipif(_native._C is None, reason=str(_native.error))

FIR = setup_filter([1, 3, 3, 1])


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WEIGHT, POINTWISE = randn(5, 3, 3, 3, seed=2), randn(3, 3, 1, 1, seed=2)
NOISE, BIAS, FOLLOWING = randn(2, 1, 5, 7, seed=3), randn(5, seed=4), randn(2, 5, seed=5)
FACTORS = randn(3, seed=6)


def penalty(x: Tensor, impl: str) -> Tensor:
    """1/2 sum (x - 0.5)^2 + sum (x - 2)^2"""
    ones = torch.ones_like(x)
    return sum(param_penalty([x], [0.5 * ones], [ones], [2 * ones], impl=impl))


# Of x [2, 3, 5, 7] and s [2, 3] a tensor; the sum of its squares is differentiated.
OPS = {
    "upfirdn2d": lambda x, s, impl: upfirdn2d(x, FIR, up=2, down=3, padding=[3, 1, 2, 2], impl=impl),
    "upsample2d": lambda x, s, impl: upsample2d(x, FIR, impl=impl),
    "downsample2d": lambda x, s, impl: downsample2d(x, FIR, impl=impl),
    "filter2d": lambda x, s, impl: filter2d(x, FIR, impl=impl),
    "bias_act": lambda x, s, impl: bias_act(x, s[0], act="swish", clamp=1.1, impl=impl),
    "conv2d_resample": lambda x, s, impl: conv2d_resample(x, WEIGHT, FIR, up=2, padding=1, impl=impl),
    "modulated_conv2d": lambda x, s, impl: modulated_conv2d(
        x, WEIGHT, s, NOISE, padding=1, bias=BIAS, act="swish", next_styles=FOLLOWING, impl=impl
    ),
    "modulated_conv2d up": lambda x, s, impl: modulated_conv2d(
        x, WEIGHT, s, up=2, padding=1, resample_filter=FIR, act="lrelu", impl=impl
    ),
    "modulated_conv2d to RGB": lambda x, s, impl: modulated_conv2d(
        x, POINTWISE, s, demodulate=False, impl=impl
    ),
    "param_penalty": lambda x, s, impl: penalty(x, impl),
}  # fmt: skip


def close(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-8)


@pytest.fixture(params=OPS)
def op(request):
    """(name, op as a function of (x, s, impl), x, s)."""
    return request.param, OPS[request.param], randn(2, 3, 5, 7), randn(2, 3, seed=1)


def loss(op, impl):
    return lambda x, s: op(x, s, impl).square().sum()


TRANSFORMS = {
    "grad": lambda f, x, s: grad(f, (0, 1))(x, s),
    "grad of grad": lambda f, x, s: grad(lambda x, s: sum(g.square().sum() for g in grad(f, (0, 1))(x, s)), (0, 1))(
        x, s
    ),
    "vjp": lambda f, x, s: vjp(f, x, s)[1](torch.tensor(2.0, dtype=x.dtype)),
    "jacrev": lambda f, x, s: jacrev(lambda x: torch.stack([f(x, s), f(x.sin(), s)]))(x),
    "jvp": lambda f, x, s: jvp(f, (x, s), (s.sum() * x.cos(), s.sin())),
    "hessian": lambda f, x, s: hessian(lambda k: f(k * x, s))(torch.tensor(0.7, dtype=x.dtype)),
    "vmap": lambda f, x, s: vmap(lambda k: f(k * x, s))(FACTORS),
    "gradients of each": lambda f, x, s: vmap(lambda k: grad(f, (0, 1))(k * x, s))(FACTORS),
    "grad of vmap": lambda f, x, s: grad(lambda x: vmap(lambda k: f(k * x, s))(FACTORS).prod())(x),
}
# The kernels serve these; the others get the reference, and impl="native" says why.
GRADIENTS = ("grad", "grad of grad", "vjp", "jacrev")


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_torch_func(op, transform):
    name, function, x, s = op
    run = TRANSFORMS[transform]
    close(run(loss(function, "auto"), x, s), run(loss(function, "reference"), x, s))
    if name == "modulated_conv2d to RGB" or name == "conv2d_resample":
        return  # may do without a kernel
    if transform in GRADIENTS and name != "param_penalty":
        close(run(loss(function, "native"), x, s), run(loss(function, "reference"), x, s))
    else:
        with pytest.raises(RuntimeError, match=r"impl='native' is impossible: .*torch\.(func|vmap)"):
            run(loss(function, "native"), x, s)


def test_torch_func_runs_the_kernels_for_gradients(monkeypatch):
    """Not the reference in their place."""
    calls = []
    for name in ("bias_act", "bias_act_grad", "bias_act_grad2"):
        kernel = getattr(_native._C, name)
        monkeypatch.setattr(
            _native._C, name, lambda *args, name=name, kernel=kernel: (calls.append(name), kernel(*args))
        )
    run = TRANSFORMS["grad of grad"]
    run(loss(OPS["bias_act"], "auto"), randn(2, 3, 5, 7), randn(2, 3, seed=1))
    assert {"bias_act", "bias_act_grad", "bias_act_grad2"} == set(calls)


def test_autograd_outside_of_a_transform(op):
    _, function, x, s = op
    results = []
    for impl in ("auto", "reference"):
        leaves = [t.clone().requires_grad_() for t in (x, s)]
        inner = grad(loss(function, impl), (0, 1))(*leaves)
        total = sum(g.square().sum() for g in inner)
        results.append(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))
    close(*results)


def test_forward_mode(op):
    _, function, x, s = op
    tangents = []
    for impl in ("auto", "reference"):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, x.cos())
            tangents.append(forward_ad.unpack_dual(loss(function, impl)(dual, s)).tangent)
    close(*tangents)


LAYOUTS = dict.fromkeys(OPS, torch.contiguous_format) | {"modulated_conv2d": torch.channels_last}


def test_compiled_without_a_graph_break(op):
    name, function, x, s = op
    torch._dynamo.reset()
    results = []
    for compiled in (False, True):
        f = loss(function, "auto")
        f = torch.compile(f, backend="aot_eager", fullgraph=True) if compiled else f
        leaves = [t.clone().requires_grad_() for t in (x.to(memory_format=LAYOUTS[name]), s)]
        y = f(*leaves)
        results.append([y, *torch.autograd.grad(y, leaves, allow_unused=True, materialize_grads=True)])
    close(*results)


@pytest.mark.parametrize(
    ("name", "transform"), [("bias_act", "vmap"), ("modulated_conv2d up", "grad"), ("param_penalty", "grad")]
)
def test_compiled_around_a_transform(name, transform):
    torch._dynamo.reset()
    x, s = randn(2, 3, 5, 7), randn(2, 3, seed=1)
    f, run = loss(OPS[name], "auto"), TRANSFORMS[transform]
    close(torch.compile(lambda x, s: run(f, x, s), backend="aot_eager", fullgraph=True)(x, s), run(f, x, s))


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_second_gradient_of_param_penalty(impl):
    x = randn(2, 3).requires_grad_()
    (first,) = torch.autograd.grad(penalty(x, impl), x, create_graph=True)
    close(torch.autograd.grad(first.square().sum(), x)[0], 2 * 3 * first.detach())  # gradient (x - 0.5) + 2 (x - 2)


@pytest.mark.filterwarnings("ignore")  # tracing is deprecated, and takes what Python asks of sizes for constants
@pytest.mark.parametrize("impl", ["native", "reference"])
def test_traced_by_torchscript(op, impl):
    _, function, *inputs = op
    traced = torch.jit.trace(lambda x, s: function(x, s, impl), tuple(inputs))
    others = randn(2, 3, 5, 7, seed=8), randn(2, 3, seed=9)
    close(traced(*others), function(*others, "reference"))


class Upsampling(torch.nn.Module):
    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        x = upsample2d(x, FIR, impl="reference")
        return modulated_conv2d(x, WEIGHT.float(), s, up=2, padding=1, resample_filter=FIR, impl="reference")


@pytest.mark.filterwarnings("ignore")
def test_exported_to_onnx_by_tracing():
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    inputs = randn(2, 3, 5, 7).float(), randn(2, 3, seed=1).float()
    file = io.BytesIO()
    torch.onnx.export(Upsampling(), inputs, file, dynamo=False, input_names=["x", "s"])
    session = runtime.InferenceSession(file.getvalue())
    (y,) = session.run(None, {name: t.numpy() for name, t in zip("xs", inputs, strict=True)})
    torch.testing.assert_close(torch.from_numpy(y), Upsampling()(*inputs), rtol=1e-4, atol=1e-4)


def test_third_order_of_the_modulated_layer_is_refused():
    x, w, s = randn(1, 2, 3, 3).requires_grad_(), randn(2, 2, 3, 3, seed=1), randn(1, 2, seed=2)
    y = modulated_conv2d(x, w, s, padding=1, act="tanh", impl="native").sum()
    (first,) = torch.autograd.grad(y, x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="modulated_conv2d: the kernels give two orders of gradient"):
        torch.autograd.grad(second.sum(), x)
