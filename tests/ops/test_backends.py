"""The public ops over every backend: values against float64 references, gradients by gradcheck, dtypes, layouts.

Tolerances: the reference runs in float64 on the inputs as rounded to the dtype; outputs are rounded to it once, and a
gradient twice (2^-11 a rounding for float16, 2^-8 for bfloat16, of values of order 1).
"""

from __future__ import annotations

import pytest
import torch

from atu_ext.ops import ParamPenalty, activations, bias_act, modulated_conv2d, setup_filter, upfirdn2d
from tests.backends import BACKENDS

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12, torch.float16: 2**-9, torch.bfloat16: 2**-6}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def randn(*shape: int, backend, dtype=torch.float64, seed: int = 0) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(backend.device, dtype)


def check(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


def test_every_kernel_of_these_ops_ran(emulated_module):
    """The emulated backend runs the CUDA kernels, and nothing else in their place."""
    from tests.backends import run_emulated

    emulated_module.calls.clear()
    backend = BACKENDS["emulated"]
    with run_emulated(emulated_module):
        x = randn(1, 2, 4, 4, backend=backend, dtype=torch.float32).requires_grad_()
        y = upfirdn2d(bias_act(x, act="swish", impl="native"), setup_filter([1, 3, 3, 1]), padding=2, impl="native")
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        dx.square().sum().backward()
        penalty = ParamPenalty([x], fisher=[torch.ones_like(x)], repel_from=[torch.zeros_like(x)], impl="native")
        penalty.value()
        penalty.add_grad_(1.0, 1.0)
        weight, styles = randn(3, 2, 3, 3, backend=backend, dtype=torch.float32).requires_grad_(), torch.ones(1, 2)
        args = dict(styles=styles, padding=1, act="swish", impl="native")
        out = modulated_conv2d(x, weight, next_styles=torch.ones(1, 3), **args)
        (first,) = torch.autograd.grad(out.square().sum(), weight, create_graph=True)
        first.square().sum().backward()
        modulated_conv2d(x.detach(), weight.detach(), **args)
    assert emulated_module.module.cuda_obstacle() == ""
    expected = {"upfirdn2d", "bias_act", "bias_act_grad", "bias_act_grad2", "param_penalty_value", "param_penalty_grad"}
    expected |= {"modulate", "modulate_grad", "square_sum", "epilogue", "epilogue_grad", "epilogue_grad2"}
    expected |= {"epilogue_scaled", "demodulate"}
    assert set(emulated_module.calls) == expected


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("up", "down", "padding"), [(1, 1, 2), (2, 1, [2, 1, 2, 1]), (1, 2, [1, 1, 1, 1])])
def test_upfirdn2d(backend, up, down, padding, layout):
    f = setup_filter([1, 3, 3, 1], device=backend.device)
    for dtype in backend.dtypes:
        x = randn(2, 4, 8, 6, backend=backend, dtype=dtype).to(memory_format=LAYOUTS[layout]).requires_grad_()
        y = upfirdn2d(x, f, up, down, padding, gain=up**2, impl="native")
        wide = x.detach().double().requires_grad_()
        expected = upfirdn2d(wide, f.double(), up, down, padding, gain=up**2, impl="reference")
        check(y, expected)
        assert y.is_contiguous(memory_format=LAYOUTS[layout])
        weight = randn(*y.shape, backend=backend, dtype=dtype, seed=1)
        y.backward(weight)
        expected.backward(weight.double())
        check(x.grad, wide.grad)


def test_upfirdn2d_gradients(backend):
    x = randn(1, 2, 4, 5, backend=backend).requires_grad_()
    f = randn(3, 4, backend=backend, seed=1)

    def op(t):
        return upfirdn2d(t, f, up=2, down=1, padding=[2, 1, 1, 2], impl="native")

    assert torch.autograd.gradcheck(op, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(op, x, fast_mode=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("act", activations)
def test_bias_act(backend, act, layout):
    for dtype in backend.dtypes:
        x = randn(2, 5, 3, 7, backend=backend, dtype=dtype).to(memory_format=LAYOUTS[layout])
        b = randn(5, backend=backend, dtype=dtype, seed=1)
        y = bias_act(x, b, act=act, clamp=1.25, impl="native")
        check(y, bias_act(x.double(), b.double(), act=act, clamp=1.25, impl="reference"))


@pytest.mark.parametrize("act", activations)
def test_bias_act_gradients(backend, act):
    x = randn(2, 3, 5, backend=backend).requires_grad_()
    b = randn(3, backend=backend, seed=1).requires_grad_()

    def op(t, bias):
        return bias_act(t, bias, act=act, gain=1.3, clamp=1.5, impl="native")

    assert torch.autograd.gradcheck(op, (x, b), fast_mode=True)
    assert torch.autograd.gradgradcheck(op, (x, b), fast_mode=True)


def test_bias_act_gradients_of_a_vector(backend):
    x, b = (randn(5, backend=backend, seed=seed).requires_grad_() for seed in (0, 1))
    for act in ("lrelu", "tanh"):
        results = []
        for impl in ("native", "reference"):
            first = torch.autograd.grad(
                bias_act(x, b, dim=0, act=act, impl=impl).square().sum(), (x, b), create_graph=True
            )
            results.append((*first, *torch.autograd.grad(sum(g.square().sum() for g in first), (x, b))))
        for ours, want in zip(*results, strict=True):
            check(ours, want)


def modulated_layer(tensors, impl, **options):
    x, weight, styles, noise, bias, following = tensors
    options = dict(padding=1, act="lrelu", clamp=3.0) | options
    return modulated_conv2d(
        x, weight, styles, noise, bias=bias, next_styles=following, engine="library" if impl == "native" else "auto",
        impl=impl, **options,
    )  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", ["plain", "next layer", "modulated already", "up", "no demodulation"])
def test_modulated_conv2d(backend, variant, layout):
    """Values and first gradients; 16-bit floats within twice torch's own error at that dtype, plus a rounding."""
    options = {
        "up": dict(up=2, resample_filter=setup_filter([1, 3, 3, 1], device=backend.device)),
        "modulated already": dict(modulated=True),
        "no demodulation": dict(demodulate=False),
    }.get(variant, {})
    size = (10, 12) if variant == "up" else (5, 6)
    for dtype in backend.dtypes:
        if dtype == torch.float64 and backend.name != "native-cpu":
            continue  # not on CUDA
        x = randn(2, 6, 5, 6, backend=backend, dtype=dtype).to(memory_format=LAYOUTS[layout])
        shapes = ((8, 6, 3, 3), (2, 6), (1, 1, *size), (8,), (2, 8))
        tensors = [x, *(randn(*s, backend=backend, dtype=dtype, seed=i) for i, s in enumerate(shapes, start=1))]
        tensors[5] = tensors[5] if variant == "next layer" else None
        narrow = dtype if dtype.itemsize == 2 else torch.float64
        results = []
        for kind, impl in ((torch.float64, "reference"), (narrow, "reference"), (dtype, "native")):
            leaves = [None if t is None else t.detach().to(kind).requires_grad_() for t in tensors]
            y = modulated_layer(leaves, impl, **options)
            dy = torch.linspace(-1, 1, y.numel(), dtype=torch.float64, device=backend.device).view_as(y).to(kind)
            used = [t for t in leaves if t is not None]
            results.append([y, *torch.autograd.grad(y, used, dy, allow_unused=True)])
            with torch.no_grad():  # another path where no gradient is wanted
                torch.testing.assert_close(modulated_layer(leaves, impl, **options), y, rtol=2e-2, atol=2e-2)
        for exact, torchs, ours in zip(*results, strict=True):
            if exact is None:
                assert ours is None
                continue
            bound = 2 * (torchs.double() - exact).abs().max() + 4 * TOLERANCE[dtype] * exact.abs().max()
            assert (ours.double() - exact).abs().max() <= bound


def test_modulated_conv2d_second_gradients(backend):
    """Of the library engine, with the next layer's styles folded in."""
    shapes = ((1, 3, 3, 4), (4, 3, 3, 3), (1, 3), (1, 1, 3, 4), (4,), (1, 4))
    dtype = torch.float64 if backend.name == "native-cpu" else torch.float32
    results = []
    for kind, impl in ((torch.float64, "reference"), (dtype, "native")):
        leaves = [randn(*s, backend=backend, dtype=dtype, seed=i).to(kind) for i, s in enumerate(shapes)]
        leaves = [t.requires_grad_() for t in leaves]
        y = modulated_layer(leaves, impl, act="swish", clamp=None)
        first = torch.autograd.grad((y * y).sum(), leaves[:3], create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for exact, ours in zip(*results, strict=True):
        # float32: sums of a few hundred products that were themselves such sums
        tolerance = 1e-10 if dtype == torch.float64 else 1e-4
        assert (ours.double() - exact).abs().max() <= tolerance * exact.abs().max()


def test_param_penalty(backend):
    sizes = [(3, 4), (0,), (), (2, 3, 5), (37,)]
    for dtype in backend.dtypes:
        lists = [
            [randn(*s, backend=backend, dtype=dtype, seed=10 * k + i) for i, s in enumerate(sizes)] for k in range(4)
        ]
        params, anchor, fisher, repel = lists
        fisher = [f.abs() for f in fisher]
        kernel = ParamPenalty(params, anchor, fisher, repel, reduction="tensor_mean", impl="native")
        wide = [[t.double() for t in ts] for ts in (params, anchor, fisher, repel)]
        reference = ParamPenalty(*wide, reduction="tensor_mean", impl="reference")
        assert kernel.value() == pytest.approx(reference.value(), rel=1e-12)
        for p, w in zip(params, wide[0], strict=True):
            p.grad, w.grad = torch.ones_like(p), torch.ones_like(w)
        kernel.add_grad_(0.5, 3.0)
        reference.add_grad_(0.5, 3.0)
        for p, w in zip(params, wide[0], strict=True):
            check(p.grad, w.grad)


@pytest.mark.parametrize("terms", ["both", "ewc", "distance", "none"])
def test_adam_step_takes_the_penalty_along(backend, terms):
    """Several steps against torch.optim.Adam and the penalty's formula, both in float64."""
    sizes = [(3, 4), (0,), (), (2, 3, 4, 5), (37,)]
    for dtype in (d for d in backend.dtypes if d.itemsize > 2):
        theta, anchor, fisher, repel = (
            [randn(*s, backend=backend, dtype=dtype, seed=10 * k + i) for i, s in enumerate(sizes)] for k in range(4)
        )
        theta = [t.to(memory_format=torch.channels_last) if t.ndim == 4 else t for t in theta]
        lists = dict(anchor=anchor, fisher=[f.abs() for f in fisher], repel_from=repel)
        settings = dict(lr=0.01, betas=(0.5, 0.9), eps=1e-6)
        params = [t.clone().requires_grad_() for t in theta]
        penalty = ParamPenalty(params, **lists, impl="native")
        optimizer = torch.optim.Adam(params, **settings, fused=backend.device == "cuda" or None)
        wide = [t.double().requires_grad_() for t in theta]
        exact = torch.optim.Adam(wide, **settings, foreach=False)
        weights = {"both": (0.5, 3.0), "ewc": (0.5, 0.0), "distance": (0.0, 3.0), "none": (0.0, 0.0)}[terms]
        for step in range(4):
            served = []
            for ts in (params, wide):
                for i, t in enumerate(ts):
                    t.grad = randn(*sizes[i], backend=backend, dtype=dtype, seed=100 * step + i).to(t)
                    t.grad = t.grad.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t.grad
            before = [p.grad.clone() for p in params]
            served.append(penalty.adam_step_(optimizer, *weights))
            with torch.no_grad():
                for t, a, f, r in zip(wide, anchor, lists["fisher"], repel, strict=True):
                    t.grad += weights[0] * f.double() * (t - a.double()) + 2 * weights[1] * (t - r.double())
            exact.step()
            assert served == [step > 0]  # the first step sets up the optimizer's state
            if step > 0:
                assert all(torch.equal(p.grad, b) for p, b in zip(params, before, strict=True))
        for p, w in zip(params, wide, strict=True):
            # A step moves a weight by about lr, whatever the gradient's rounding.
            torch.testing.assert_close(p.double(), w, rtol=4 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps * 10)
            for name in ("exp_avg", "exp_avg_sq", "step"):
                ours, want = optimizer.state[p][name].double(), exact.state[w][name].double()
                torch.testing.assert_close(ours, want, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-6)


def test_empty_tensors(backend):
    f = setup_filter([1, 2, 1], device=backend.device)
    for dtype in backend.dtypes:
        x = torch.zeros(0, 3, 4, 4, device=backend.device, dtype=dtype)
        assert upfirdn2d(x, f, padding=1, impl="native").shape == (0, 3, 4, 4)
        assert (
            bias_act(x, torch.zeros(3, device=backend.device, dtype=dtype), act="tanh", impl="native").shape == x.shape
        )
