"""Bias, activation, gain and clamp in one op.

y = clamp(gain * act(x + b)). The first gradient, with the bias's, and the second are kernels of their own
(csrc/kernels/bias_act.h has the formulas), so that R1 and path-length penalties stay fused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _native
from .activations import BY_CODE, ActSettings, act_settings, activate
from .dispatch import DTYPE_CODES, address, autocast_dtype, autocast_to, launch, use_native
from .layout import laid_out_as
from .pages import in_huge_pages
from .registration import keep_inputs, refuse_third_order, register


def _reference(x: Tensor, b: Tensor | None, dim: int, settings: ActSettings) -> Tensor:
    return activate(x if b is None else x + _spread(b, dim, x.ndim), settings)


def _spread(b: Tensor, dim: int, ndim: int) -> Tensor:
    """b [C] as a view that broadcasts along the other axes than `dim` of `ndim`."""
    return b.reshape([-1 if i == dim else 1 for i in range(ndim)])


def _check(x: Tensor, b: Tensor | None, dim: int) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating-point tensor, got {x.dtype}")
    if b is None:
        return
    if not isinstance(b, Tensor):
        raise TypeError(f"b: expected a tensor or None, got {type(b).__name__}")
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"dim: expected an axis of x with {x.ndim} dimensions, got {dim}")
    if b.ndim != 1 or b.shape[0] != x.shape[dim]:
        raise ValueError(f"b: expected shape ({x.shape[dim]},) for axis {dim} of x, got {tuple(b.shape)}")
    if b.dtype != x.dtype or b.device != x.device:
        raise TypeError(f"b: expected {x.dtype} on {x.device} as x, got {b.dtype} on {b.device}")


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """clamp(gain * act(x + b)), with b along axis `dim` of x.

    Differentiable twice (any number of times with the activations linear, relu and lrelu, or with impl="reference").
    Under torch.autocast x and b are taken in its dtype.

    Args:
        x: any shape and any dense memory layout, which the result keeps; other layouts are copied first. float32,
            float64 or bfloat16, on CUDA also float16; 16 bits are computed in float32.
        b: [x.shape[dim]] of x's dtype, or None.
        dim: axis of x that b runs along.
        act: linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus or swish.
        alpha: slope of lrelu for negative arguments (default 0.2).
        gain: output gain; the default keeps the variance (sqrt 2 for relu, lrelu, swish; 1 otherwise).
        clamp: clamp the output to [-clamp, clamp]; None for none.
        impl: auto, native (the kernel or an error) or reference (plain torch).

    Returns:
        Tensor of x's shape, dtype and layout.

    Raises:
        ValueError, TypeError: an argument is not as above.
        RuntimeError: impl is "native" and the kernel cannot run on x.
    """
    settings = act_settings(act, alpha, gain, clamp)
    if isinstance(x, Tensor) and (lower := autocast_dtype(x)) is not None:
        x, b = autocast_to(lower, x, b)
    _check(x, b, dim)
    dim = dim % x.ndim if x.ndim else 0
    if not use_native("bias_act", impl, x):
        return _reference(x, b, dim, settings).to(x.dtype)  # some activations are float32 under autocast
    if b is None and settings.is_identity:
        return x
    y: Tensor = _bias_act(x, b, dim, *settings)
    return y


# ---- the kernels as torch operators ---------------------------------------------------------------------------------
# Gradients know x + b from the saved output y, or from the saved x and b where y does not tell. Curved activations
# save x beside y all the same: the second gradient flows back through it.
# `settings` are ActSettings, laid out flat among the op's arguments.


def _axis(layout: Tensor, b: Tensor | None, dim: int) -> tuple[int, int, int]:
    """(numel, inner, channels) of a dense tensor, see csrc/kernels/bias_act.h."""
    if b is None:
        return layout.numel(), 1, 1
    return layout.numel(), max(layout.stride(dim), 1), b.shape[0]


def _kernel(x: Tensor, b: Tensor | None, dim: int, *settings: Any) -> Tensor:
    y = in_huge_pages(torch.empty_like(x))
    x = laid_out_as(x, y)
    b = None if b is None else b.contiguous()
    launch(
        _native._C.bias_act, x, x.data_ptr(), address(b), y.data_ptr(), DTYPE_CODES[x.dtype], *settings,
        *_axis(y, b, dim),
    )  # fmt: skip
    return y


def _read_from(
    x: Tensor | None, y: Tensor | None, act: int, alpha: float, gain: float, clamp: float
) -> tuple[int, Tensor | None]:
    """What the gradient kernels recover x + b from: (0, nothing) as they need not, (1, x) with b, or (2, y)."""
    if act == 0 and clamp < 0:
        return 0, None
    return (1, x) if y is None else (2, y)


def _sums_bias(x: Tensor) -> bool:
    """Whether the gradient kernel makes db too; on CUDA torch's sum does."""
    return x.is_cpu


def _sum_but(t: Tensor, dim: int) -> Tensor:
    # An op's results share no memory; and torch takes an empty list of axes for all of them.
    return t.sum([i for i in range(t.ndim) if i != dim]) if t.ndim > 1 else t.clone()


def _grad_kernel(
    dy: Tensor, x: Tensor | None, b: Tensor | None, y: Tensor | None, dim: int, *args: Any
) -> tuple[Tensor, Tensor]:
    *settings, want_db = args
    kind, known = _read_from(x, y, *settings)
    dx = in_huge_pages(torch.empty_like(dy if known is None else known))
    dy = laid_out_as(dy, dx)
    known = None if known is None else laid_out_as(known, dx)
    b = None if b is None else b.contiguous()
    db = dx.new_empty(b.shape if want_db and b is not None else (0,))
    fused_db = want_db and _sums_bias(dx)
    launch(
        _native._C.bias_act_grad, dx, dy.data_ptr(), address(known), kind, address(b), dx.data_ptr(),
        db.data_ptr() if fused_db else 0, DTYPE_CODES[dx.dtype], *settings, *_axis(dx, b, dim),
    )  # fmt: skip
    return dx, _sum_but(dx, dim) if want_db and not fused_db else db


def _grad2_kernel(
    g: Tensor, dy: Tensor, x: Tensor | None, b: Tensor | None, y: Tensor | None, dim: int, *settings: Any
) -> tuple[Tensor, Tensor]:
    kind, known = _read_from(x, y, *settings)
    d_dy = in_huge_pages(torch.empty_like(dy if known is None else known))
    d_x = in_huge_pages(torch.empty_like(d_dy))
    g, dy = laid_out_as(g, d_dy), laid_out_as(dy, d_dy)
    known = None if known is None else laid_out_as(known, d_dy)
    b = None if b is None else b.contiguous()
    launch(
        _native._C.bias_act_grad2, g, g.data_ptr(), dy.data_ptr(), address(known), kind, address(b), d_dy.data_ptr(),
        d_x.data_ptr(), DTYPE_CODES[g.dtype], *settings, *_axis(d_dy, b, dim),
    )  # fmt: skip
    return d_dy, d_x


def _fake(x: Tensor, b: Tensor | None, *args: Any) -> Tensor:
    return torch.empty_like(x)


def _fake_grad(
    dy: Tensor, x: Tensor | None, b: Tensor | None, y: Tensor | None, dim: int, *args: Any
) -> tuple[Tensor, Tensor]:
    *settings, want_db = args
    _, known = _read_from(x, y, *settings)
    dx = torch.empty_like(dy if known is None else known)
    return dx, dx.new_empty(b.shape if want_db and b is not None else (0,))


def _fake_grad2(
    g: Tensor, dy: Tensor, x: Tensor | None, b: Tensor | None, y: Tensor | None, dim: int, *settings: Any
) -> tuple[Tensor, Tensor]:
    _, known = _read_from(x, y, *settings)
    d_dy = torch.empty_like(dy if known is None else known)
    return d_dy, torch.empty_like(d_dy)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, b, *ctx.args = inputs
    _, act, alpha, gain, clamp = ctx.args
    spec = BY_CODE[act]
    if act == 0 and clamp < 0:
        y, x = None, None
    else:
        # A gain of 0 or a negative slope leaves nothing in y to read the argument's sign or value from.
        y = output if spec.from_value and gain != 0 and alpha >= 0 else None
        x = x if spec.curved or y is None else None
    ctx.save_for_backward(x, b, y)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
    # The second gradient of a straight activation has nothing for x: zeros would cost the layers before a whole pass.
    if dy is None:
        return (None,) * 7
    x, b, y = ctx.saved_tensors
    want_db = b is not None and ctx.needs_input_grad[1]
    dx, db = _bias_act_grad(dy, x, b, y, *ctx.args, want_db)
    return dx if ctx.needs_input_grad[0] else None, db if want_db else None, *(None,) * 5


def _setup_grad(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    dy, x, b, y, *ctx.args, ctx.want_db = inputs
    ctx.save_for_backward(dy, x, b, y)
    ctx.set_materialize_grads(False)


def _backward_grad(ctx: Any, g: Tensor | None, g_db: Tensor | None) -> tuple[Tensor | None, ...]:
    dy, x, b, y = ctx.saved_tensors
    dim, act = ctx.args[:2]
    if ctx.want_db and g_db is not None:  # db = sum of dx: its gradient arrives at every element of dx
        spread = _spread(g_db, dim, dy.ndim).expand(dy.shape)
        g = spread if g is None else g + spread
    if g is None:
        return (None,) * 10
    if not BY_CODE[act].curved:
        d_dy, _ = _bias_act_grad(g, x, b, y, *ctx.args, False)
        return d_dy, *(None,) * 9
    d_dy, d_x = _bias_act_grad2(g, dy, x, b, y, *ctx.args)
    d_b = _sum_but(d_x, dim) if b is not None and ctx.needs_input_grad[2] else None
    return d_dy, d_x, d_b, *(None,) * 7


_ARGS = "int dim, int act, float alpha, float gain, float clamp"
_KNOWN = "Tensor? x, Tensor? b, Tensor? y"
_bias_act = register("bias_act", f"(Tensor x, Tensor? b, {_ARGS}) -> Tensor", _kernel, _fake, _setup, _backward)
_bias_act_grad = register(
    "bias_act_grad",
    f"(Tensor dy, {_KNOWN}, {_ARGS}, bool want_db) -> (Tensor, Tensor)",
    _grad_kernel,
    _fake_grad,
    _setup_grad,
    _backward_grad,
)
_bias_act_grad2 = register(
    "bias_act_grad2",
    f"(Tensor g, Tensor dy, {_KNOWN}, {_ARGS}) -> (Tensor, Tensor)",
    _grad2_kernel,
    _fake_grad2,
    keep_inputs(0),
    refuse_third_order("bias_act"),
)
