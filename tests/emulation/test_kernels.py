"""The CUDA kernels of upfirdn2d, bias_act and param_penalty under emulation, called through their bindings.

References are plain torch in float64 on the inputs as rounded to the dtype. Tolerances: outputs are rounded once to the
dtype, 2^-11 for float16 and 2^-8 for bfloat16 relative; float32 sums of at most 64 terms of order 1 stay below 1e-5.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atu_ext.ops import activations
from atu_ext.ops.upfirdn2d import _reference

DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 2**-10, torch.bfloat16: 2**-7}
CPU, PLANAR, CHANNELS_LAST = -1, torch.contiguous_format, torch.channels_last


def randn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def check(actual: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


# ---- upfirdn2d ------------------------------------------------------------------------------------------


def run_upfirdn2d(module, x: Tensor, f: Tensor, up, down, pad, flip: bool, gain: float, layout) -> Tensor:
    n, c, h, w = x.shape
    fh, fw = f.shape[0], f.shape[-1]
    out_w = (w * up[0] + pad[0] + pad[1] - fw) // down[0] + 1
    out_h = (h * up[1] + pad[2] + pad[3] - fh) // down[1] + 1
    y = torch.empty(n, c, out_h, out_w, dtype=x.dtype, memory_format=layout)
    f = f.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    module.upfirdn2d(
        x.data_ptr(), f.data_ptr(), y.data_ptr(), DTYPES[x.dtype], layout is CHANNELS_LAST, tuple(x.shape), x.stride(),
        tuple(y.shape), y.stride(), tuple(f.shape), *up, *down, pad[0], pad[2], flip, gain, CPU,
    )  # fmt: skip
    return y


def check_upfirdn2d(module, x, f, up, down, pad, flip=False, gain=1.0, layout=PLANAR) -> None:
    y = run_upfirdn2d(module, x, f, up, down, pad, flip, gain, layout)
    check(y, _reference(x.double(), f.double(), up, down, pad, flip, gain))


FACTORS = [((1, 1), (1, 1)), ((2, 2), (1, 1)), ((1, 1), (2, 2))]


@pytest.mark.parametrize("layout", [PLANAR, CHANNELS_LAST], ids=["planar", "channels_last"])
@pytest.mark.parametrize(("up", "down"), FACTORS, ids=["filter", "up", "down"])
@pytest.mark.parametrize("taps", [(4, 4), (3, 5), (8, 1), (6,), (8,)], ids=str)
def test_upfirdn2d_specialised(emulated, layout, up, down, taps):
    x = randn(2, 4, 9, 11, dtype=torch.float32).to(memory_format=layout)
    check_upfirdn2d(
        emulated, x, randn(*taps, dtype=torch.float32, seed=1), up, down, [3, 4, 4, 3], layout=layout, gain=2.0
    )
    # An odd pad moves the phase of upsampling, a negative one crops.
    check_upfirdn2d(
        emulated, x, randn(*taps, dtype=torch.float32, seed=1), up, down, [4, 5, 5, -1], True, layout=layout
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [PLANAR, CHANNELS_LAST], ids=["planar", "channels_last"])
@pytest.mark.parametrize(("up", "down"), FACTORS, ids=["filter", "up", "down"])
def test_upfirdn2d_dtypes(emulated, dtype, layout, up, down):
    x = randn(1, 8, 5, 6, dtype=dtype).to(memory_format=layout)
    f = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64
    check_upfirdn2d(emulated, x, f, up, down, [2, 1, 2, 1], layout=layout, gain=4.0)


@pytest.mark.parametrize(
    ("up", "down", "taps"),
    [((3, 1), (1, 2), (5, 4)), ((1, 2), (3, 1), (7,)), ((1, 1), (1, 1), (12,)), ((2, 2), (2, 2), (4, 4))],
)
@pytest.mark.parametrize("layout", [PLANAR, CHANNELS_LAST], ids=["planar", "channels_last"])
def test_upfirdn2d_general(emulated, up, down, taps, layout):
    x = randn(2, 3, 7, 8, dtype=torch.float32).to(memory_format=layout)
    check_upfirdn2d(emulated, x, randn(*taps, dtype=torch.float32, seed=1), up, down, [6, 5, 6, 7], layout=layout)


@pytest.mark.parametrize(("up", "down"), FACTORS, ids=["filter", "up", "down"])
def test_upfirdn2d_many_tiles_and_planes(emulated, up, down):
    f = randn(4, 4, dtype=torch.float32, seed=1)
    check_upfirdn2d(emulated, randn(1, 1, 70, 75, dtype=torch.float32), f, up, down, [2, 1, 2, 1])
    check_upfirdn2d(emulated, randn(3, 13, 2, 3, dtype=torch.float32), f, up, down, [2, 1, 2, 1])
    check_upfirdn2d(emulated, randn(2, 3, 33, 33, dtype=torch.float16), f.half(), up, down, [2, 1, 2, 1])
    check_upfirdn2d(emulated, randn(1, 2, 17, 65, dtype=torch.bfloat16), f.bfloat16(), up, down, [1, 2, 3, 0])
    # Tiles cut down to what shared memory holds.
    many = randn(8, dtype=torch.float64, seed=2)
    check_upfirdn2d(emulated, randn(1, 1, 88, 128, dtype=torch.float64), many, up, down, [4, 3, 4, 3])
    strided = randn(2, 6, 9, 12, dtype=torch.float32)[:, ::2, 1:8, 2:11]
    check_upfirdn2d(emulated, strided, f, up, down, [2, 1, 2, 1])


# ---- bias_act -------------------------------------------------------------------------------------------

ACTS = list(activations)


def bias_act_case(act: str, dtype: torch.dtype, numel_shape, dim: int, offset: int):
    """x (offset elements into its storage), bias, inner size."""
    size = torch.Size(numel_shape).numel()
    x = randn(size + offset, dtype=dtype)[offset:].view(numel_shape)
    b = randn(numel_shape[dim], dtype=dtype, seed=1)
    return x, b, torch.Size(numel_shape[dim + 1 :]).numel()


def empty_at(offset: int, like: Tensor) -> Tensor:
    return (
        torch.empty(like.numel() + offset, dtype=like.dtype)[offset:].view(like.shape)
        if offset
        else torch.empty_like(like)
    )


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bias_act_and_gradients(emulated, act, dtype):
    """Forward, gradient and second gradient, against autograd in float64 of the same rounded inputs."""
    x, b, inner = bias_act_case(act, dtype, (2, 5, 21), 1, 0)
    alpha, gain, clamp = 0.3, 1.7, 0.9
    common = (DTYPES[dtype], ACTS.index(act), alpha, gain, clamp, x.numel(), inner, b.numel())
    y = torch.empty_like(x)
    emulated.bias_act(x.data_ptr(), b.data_ptr(), y.data_ptr(), *common, CPU)

    wide_x = x.double().requires_grad_()
    v = wide_x + b.double()[:, None]
    expected = (activations[act].func(v, alpha) * gain).clamp(-clamp, clamp)
    check(y, expected)

    dy, g = randn(*x.shape, dtype=dtype, seed=2), randn(*x.shape, dtype=dtype, seed=3)
    wide_dy = dy.double().requires_grad_()
    (dx_expected,) = torch.autograd.grad(expected, wide_x, wide_dy, create_graph=True)
    kind, reference = (1, x) if act == "swish" else (2, y)
    # Where the slope comes from y, y's rounding to the dtype is part of the contract; and at the very bound of the
    # clamp the two sides may differ.
    keep = ((expected.abs() - clamp).abs() > 4 * TOLERANCE[dtype]) | (expected.abs() == clamp)
    scale = 8 if act in ("softplus", "tanh", "sigmoid", "elu", "selu") else 1

    def compare(actual: Tensor, wanted: Tensor) -> None:
        tolerance = TOLERANCE[dtype] * scale
        torch.testing.assert_close(actual.double()[keep], wanted[keep], rtol=tolerance, atol=tolerance)

    dx = torch.empty_like(x)
    emulated.bias_act_grad(dy.data_ptr(), reference.data_ptr(), kind, b.data_ptr(), dx.data_ptr(), 0, *common, CPU)
    compare(dx, dx_expected)

    grads = torch.autograd.grad(dx_expected, (wide_dy, wide_x), g.double(), allow_unused=True)
    d_dy, d_x = torch.empty_like(x), torch.empty_like(x)
    emulated.bias_act_grad2(
        g.data_ptr(), dy.data_ptr(), reference.data_ptr(), kind, b.data_ptr(), d_dy.data_ptr(), d_x.data_ptr(), *common,
        CPU,
    )  # fmt: skip
    compare(d_dy, grads[0])
    compare(d_x, grads[1] if grads[1] is not None else torch.zeros_like(grads[0]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("offset_x", "offset_y"), [(0, 0), (1, 1), (1, 0), (3, 2)])
def test_bias_act_alignment_and_tails(emulated, dtype, offset_x, offset_y):
    """Vectors aligned together, misaligned alike or differently; inner sizes 1 and odd; sizes round a vector."""
    for shape in [(1,), (7,), (2, 3), (4, 5, 3), (1, 4, 130)]:
        x, b, inner = bias_act_case("lrelu", dtype, shape, min(1, len(shape) - 1), offset_x)
        y = empty_at(offset_y, x)
        emulated.bias_act(
            x.data_ptr(), b.data_ptr(), y.data_ptr(), DTYPES[dtype], ACTS.index("lrelu"), 0.2, 1.5, -1.0, x.numel(),
            inner, b.numel(), CPU,
        )  # fmt: skip
        wide = b.double().view(-1, *(1,) * (len(shape) - 1 - min(1, len(shape) - 1)))
        check(y, torch.nn.functional.leaky_relu(x.double() + wide, 0.2) * 1.5)


# ---- param_penalty --------------------------------------------------------------------------------------

CHUNK = 64
SIZES = (0, 1, 3, 64, 130, 0, 17, 500)


class Penalty:
    """Parameters, anchors and tables for the param_penalty bindings; `offset` makes the storage unaligned."""

    def __init__(self, dtype: torch.dtype, offset: int = 0, ewc: bool = True, distance: bool = True):
        self.dtype, self.ewc, self.distance = dtype, ewc, distance
        names = ("theta", "grad", "anchor", "fisher", "repel", "exp_avg", "exp_avg_sq")
        self.lists = {
            name: [
                (randn(n + offset, dtype=dtype, seed=10 * k + i)[offset:].abs_() if name in ("fisher", "exp_avg_sq")
                 else randn(n + offset, dtype=dtype, seed=10 * k + i)[offset:])
                for i, n in enumerate(SIZES)
            ]
            for k, name in enumerate(names)
        }  # fmt: skip
        chunks = [(t, begin) for t, n in enumerate(SIZES) for begin in range(0, n, CHUNK)]
        self.first = [sum(t < i for t, _ in chunks) for i in range(len(SIZES) + 1)]
        columns = (SIZES, [t for t, _ in chunks], [b for _, b in chunks], self.first)
        self.arrays = [torch.tensor(c, dtype=torch.int64) for c in columns]
        self.chunks = len(chunks)
        self.layout = (*(a.data_ptr() for a in self.arrays), len(SIZES), self.chunks, CHUNK)
        self.tables = {name: torch.tensor([t.data_ptr() for t in ts]) for name, ts in self.lists.items()}
        on = {"theta": True, "grad": True, "anchor": ewc, "fisher": ewc, "repel": distance}
        self.addresses = tuple(self.tables[name].data_ptr() if flag else 0 for name, flag in on.items())
        self.scale = randn(len(SIZES), dtype=torch.float64, seed=99).abs_()
        self.constant = randn(len(SIZES), dtype=torch.float64, seed=98).abs_()
        self.weights = torch.tensor([0.7, 0.3], dtype=torch.float64)

    def wide(self, name: str) -> list[Tensor]:
        return [t.double() for t in self.lists[name]]

    def penalty_gradient(self) -> list[Tensor]:
        theta, anchor, fisher, repel = (self.wide(n) for n in ("theta", "anchor", "fisher", "repel"))
        result = []
        for t in range(len(SIZES)):
            g = torch.zeros_like(theta[t])
            if self.ewc:
                g += 0.7 * fisher[t] * (theta[t] - anchor[t])
            if self.distance:
                g += 2 * 0.3 * self.scale[t] * (theta[t] - repel[t])
            result.append(g)
        return result


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("ewc", "distance", "offset"), [(True, True, 0), (True, False, 1), (False, True, 3)])
def test_param_penalty_value(emulated, dtype, ewc, distance, offset):
    p = Penalty(dtype, offset, ewc, distance)
    values = torch.empty(2, len(SIZES), dtype=torch.float64)
    total = torch.empty(2, dtype=torch.float64)
    partials = torch.empty(p.chunks, 2, dtype=torch.float64)
    emulated.param_penalty_value(
        DTYPES[dtype], p.layout, p.addresses, p.scale.data_ptr(), p.constant.data_ptr(), partials.data_ptr(),
        values.data_ptr(), total.data_ptr(), CPU,
    )  # fmt: skip
    theta, anchor, fisher, repel = (p.wide(n) for n in ("theta", "anchor", "fisher", "repel"))
    expected = torch.zeros(2, len(SIZES), dtype=torch.float64)
    for t in range(len(SIZES)):
        if ewc:
            expected[0, t] = 0.5 * (fisher[t] * (theta[t] - anchor[t]) ** 2).sum()
        expected[1, t] = ((theta[t] - repel[t]) ** 2).sum() * distance + p.constant[t]
    torch.testing.assert_close(values, expected, rtol=1e-13, atol=1e-13)  # double sums of exact differences
    torch.testing.assert_close(
        total, torch.stack([expected[0].sum(), (expected[1] * p.scale).sum()]), rtol=1e-13, atol=1e-13
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("ewc", "distance", "offset"), [(True, True, 0), (True, False, 1), (False, True, 3)])
def test_param_penalty_gradient(emulated, dtype, ewc, distance, offset):
    p = Penalty(dtype, offset, ewc, distance)
    expected = [g + d for g, d in zip(p.wide("grad"), p.penalty_gradient(), strict=True)]
    emulated.param_penalty_grad(DTYPES[dtype], p.layout, p.addresses, p.scale.data_ptr(), p.weights.data_ptr(), CPU)
    for actual, wanted in zip(p.lists["grad"], expected, strict=True):
        check(actual, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [0, 1])
def test_param_penalty_adam(emulated, dtype, offset):
    """Against torch.optim.Adam's formulas in float64."""
    p = Penalty(dtype, offset)
    lr, beta1, beta2, eps = 0.01, 0.8, 0.9, 1e-4
    steps = [torch.tensor(float(i)) for i in range(len(SIZES))]
    step_size = [lr / (1 - beta1 ** (i + 1)) for i in range(len(SIZES))]
    correction = [(1 - beta2 ** (i + 1)) ** 0.5 for i in range(len(SIZES))]
    g = [a + b for a, b in zip(p.wide("grad"), p.penalty_gradient(), strict=True)]
    m = [beta1 * a + (1 - beta1) * b for a, b in zip(p.wide("exp_avg"), g, strict=True)]
    v = [beta2 * a + (1 - beta2) * b * b for a, b in zip(p.wide("exp_avg_sq"), g, strict=True)]
    theta = [
        t - s * a / (b.sqrt() / c + eps)
        for t, a, b, s, c in zip(p.wide("theta"), m, v, step_size, correction, strict=True)
    ]
    step_table = torch.tensor([s.data_ptr() for s in steps])
    state = (p.tables["exp_avg"].data_ptr(), p.tables["exp_avg_sq"].data_ptr(), step_table.data_ptr())
    coefficients = torch.empty(2, len(SIZES), dtype=torch.float64)
    emulated.param_penalty_adam(
        DTYPES[dtype], p.layout, p.addresses, p.scale.data_ptr(), p.weights.data_ptr(), state, coefficients.data_ptr(),
        lr, beta1, beta2, eps, CPU,
    )  # fmt: skip
    assert [float(s) for s in steps] == [i + 1 for i in range(len(SIZES))]
    for name, wanted in (("theta", theta), ("exp_avg", m), ("exp_avg_sq", v)):
        for actual, expected in zip(p.lists[name], wanted, strict=True):
            check(actual, expected)


def test_param_penalty_of_empty_tensors_only(emulated):
    zero = torch.zeros(1, dtype=torch.int64)
    table = torch.zeros(1, dtype=torch.int64)
    first = torch.zeros(2, dtype=torch.int64)
    values, total = torch.empty(2, 1, dtype=torch.float64), torch.empty(2, dtype=torch.float64)
    layout = (zero.data_ptr(), 0, 0, first.data_ptr(), 1, 0, CHUNK)
    emulated.param_penalty_value(
        0, layout, (table.data_ptr(), 0, 0, 0, 0), 0, 0, 0, values.data_ptr(), total.data_ptr(), CPU
    )
    assert values.tolist() == [[0.0], [0.0]] and total.tolist() == [0.0, 0.0]
