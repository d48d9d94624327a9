"""Bias, activation, gain and clamp in one op.

y = clamp(gain * act(x + b)). The first gradient, with the bias's, and the second are kernels of their own
(csrc/kernels/bias_act.h has the formulas), so that R1 and path-length penalties stay fused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atu_ext._native import _C

from ._common import DTYPE_CODES, address, direct, launch, register, use_native


@dataclass(frozen=True)
class Activation:
    """One activation: its function of (x, alpha), default alpha and default gain, and what the kernels know of it."""

    func: Callable[[Tensor, float], Tensor]
    code: int
    def_alpha: float = 0.0
    def_gain: float = 1.0
    curved: bool = True  # act'' is not 0 everywhere
    from_value: bool = True  # act' and act'' are functions of act(x)


_SQRT2 = 2.0**0.5

activations = {
    "linear": Activation(lambda x, alpha: x, 0, curved=False),
    "relu": Activation(lambda x, alpha: F.relu(x), 1, def_gain=_SQRT2, curved=False),
    "lrelu": Activation(lambda x, alpha: F.leaky_relu(x, alpha), 2, def_alpha=0.2, def_gain=_SQRT2, curved=False),
    "tanh": Activation(lambda x, alpha: torch.tanh(x), 3),
    "sigmoid": Activation(lambda x, alpha: torch.sigmoid(x), 4),
    "elu": Activation(lambda x, alpha: F.elu(x), 5),
    "selu": Activation(lambda x, alpha: F.selu(x), 6),
    "softplus": Activation(lambda x, alpha: F.softplus(x), 7),
    "swish": Activation(lambda x, alpha: torch.sigmoid(x) * x, 8, def_gain=_SQRT2, from_value=False),
}
_BY_CODE = tuple(activations.values())


def _reference(
    x: Tensor, b: Tensor | None, dim: int, spec: Activation, alpha: float, gain: float, clamp: float
) -> Tensor:
    if b is not None:
        x = x + b.reshape([-1 if i == dim else 1 for i in range(x.ndim)])
    x = spec.func(x, alpha)
    if gain != 1:
        x = x * gain
    return x if clamp < 0 else x.clamp(-clamp, clamp)


def _check(x: Tensor, b: Tensor | None, dim: int) -> None:
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating-point tensor, got {x.dtype}")
    if b is None:
        return
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

    Args:
        x: any shape and any dense memory layout, which the result keeps; other layouts are copied first. float32 or
            float64, on CUDA also float16 and bfloat16.
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
    spec = activations.get(act)
    if spec is None:
        raise ValueError(f"act: expected one of {', '.join(activations)}, got {act!r}")
    if clamp is not None and not clamp >= 0:
        raise ValueError(f"clamp: expected a number >= 0 or None, got {clamp!r}")
    _check(x, b, dim)
    alpha = spec.def_alpha if alpha is None else float(alpha)
    gain = spec.def_gain if gain is None else float(gain)
    bound = -1.0 if clamp is None else float(clamp)
    dim = dim % x.ndim if x.ndim else 0
    if not use_native("bias_act", impl, x):
        return _reference(x, b, dim, spec, alpha, gain, bound)
    if b is None and spec.code == 0 and gain == 1 and bound < 0:
        return x
    return _call(x, b, dim, spec.code, alpha, gain, bound)


# ---- the kernels as torch operators ---------------------------------------------------------------------------------
# Gradients know x + b from the saved output y, or from the saved x and b where y does not tell. Curved activations
# save x beside y all the same: the second gradient flows back through it.


def _like(t: Tensor, layout: Tensor) -> Tensor:
    """t with the strides of `layout`, which is dense; copied where it has others."""
    return t if t.stride() == layout.stride() else torch.empty_like(layout).copy_(t)


def _axis(layout: Tensor, b: Tensor | None, dim: int) -> tuple[int, int, int]:
    """(numel, inner, channels) of a dense tensor, see csrc/kernels/bias_act.h."""
    if b is None:
        return layout.numel(), 1, 1
    return layout.numel(), max(layout.stride(dim), 1), b.shape[0]


def _kernel(x: Tensor, b: Tensor | None, dim: int, act: int, alpha: float, gain: float, clamp: float) -> Tensor:
    y = torch.empty_like(x)
    x = _like(x, y)
    b = None if b is None else b.contiguous()
    code = DTYPE_CODES[x.dtype]
    launch(_C.bias_act, x, x.data_ptr(), address(b), y.data_ptr(), code, act, alpha, gain, clamp, *_axis(y, b, dim))
    return y


def _kind(act: int, y: Tensor | None, clamp: float) -> int:
    """What the gradient kernels recover x + b from: 0 nothing (not needed), 1 x and b, 2 y."""
    if act == 0 and clamp < 0:
        return 0
    return 1 if y is None else 2


def _sums_bias(x: Tensor) -> bool:
    """Whether the gradient kernel makes db too; on CUDA torch's sum does."""
    return x.is_cpu


def _grad_kernel(
    dy: Tensor,
    x: Tensor | None,
    b: Tensor | None,
    y: Tensor | None,
    dim: int,
    act: int,
    alpha: float,
    gain: float,
    clamp: float,
    want_db: bool,
) -> tuple[Tensor, Tensor]:
    kind = _kind(act, y, clamp)
    reference = (None, x, y)[kind]
    dx = torch.empty_like(dy if reference is None else reference)
    dy = _like(dy, dx)
    reference = None if reference is None else _like(reference, dx)
    b = None if b is None else b.contiguous()
    db = dx.new_empty(b.shape if want_db and b is not None else (0,))
    fused_db = want_db and _sums_bias(dx)
    launch(
        _C.bias_act_grad,
        dx,
        dy.data_ptr(),
        address(reference),
        kind,
        address(b),
        dx.data_ptr(),
        db.data_ptr() if fused_db else 0,
        DTYPE_CODES[dx.dtype],
        act,
        alpha,
        gain,
        clamp,
        *_axis(dx, b, dim),
    )
    if want_db and not fused_db:
        db = dx.sum([i for i in range(dx.ndim) if i != dim])
    return dx, db


def _grad2_kernel(
    g: Tensor,
    dy: Tensor,
    x: Tensor | None,
    b: Tensor | None,
    y: Tensor | None,
    dim: int,
    act: int,
    alpha: float,
    gain: float,
    clamp: float,
) -> tuple[Tensor, Tensor]:
    kind = _kind(act, y, clamp)
    reference = (None, x, y)[kind]
    d_dy = torch.empty_like(dy if reference is None else reference)
    d_x = torch.empty_like(d_dy)
    g, dy = _like(g, d_dy), _like(dy, d_dy)
    reference = None if reference is None else _like(reference, d_dy)
    b = None if b is None else b.contiguous()
    launch(
        _C.bias_act_grad2,
        g,
        g.data_ptr(),
        dy.data_ptr(),
        address(reference),
        kind,
        address(b),
        d_dy.data_ptr(),
        d_x.data_ptr(),
        DTYPE_CODES[g.dtype],
        act,
        alpha,
        gain,
        clamp,
        *_axis(d_dy, b, dim),
    )
    return d_dy, d_x


def _fake(x, b, dim, act, alpha, gain, clamp):
    return torch.empty_like(x)


def _grad_fake(dy, x, b, y, dim, act, alpha, gain, clamp, want_db):
    reference = (None, x, y)[_kind(act, y, clamp)]
    dx = torch.empty_like(dy if reference is None else reference)
    return dx, dx.new_empty(b.shape if want_db else (0,))


def _grad2_fake(g, dy, x, b, y, dim, act, alpha, gain, clamp):
    reference = (None, x, y)[_kind(act, y, clamp)]
    d_dy = torch.empty_like(dy if reference is None else reference)
    return d_dy, torch.empty_like(d_dy)


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, b, dim, act, alpha, gain, clamp = inputs
    spec = _BY_CODE[act]
    if act == 0 and clamp < 0:
        y, x = None, None
    else:
        # A gain of 0 or a negative slope leaves nothing in y to read the argument's sign or value from.
        y = output if spec.from_value and gain != 0 and alpha >= 0 else None
        x = x if spec.curved or y is None else None
    ctx.save_for_backward(x, b, y)
    ctx.args = (dim, act, alpha, gain, clamp)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None) -> tuple:
    # The second gradient of a straight activation has nothing for x: zeros would cost the layers before a whole pass.
    if dy is None:
        return (None,) * 7
    x, b, y = ctx.saved_tensors
    want_db = b is not None and ctx.needs_input_grad[1]
    dx, db = _call_grad(dy, x, b, y, *ctx.args, want_db)
    return dx if ctx.needs_input_grad[0] else None, db if want_db else None, None, None, None, None, None


def _grad_setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    dy, x, b, y, *args, want_db = inputs
    ctx.save_for_backward(dy, x, b, y)
    ctx.args = tuple(args)
    ctx.want_db = want_db
    ctx.set_materialize_grads(False)


def _grad_backward(ctx: Any, g: Tensor | None, g_db: Tensor | None) -> tuple:
    dy, x, b, y = ctx.saved_tensors
    dim, act = ctx.args[:2]
    nothing = (None,) * 10
    if ctx.want_db and g_db is not None:  # db = sum of dx: its gradient arrives at every element of dx
        spread = g_db.reshape([-1 if i == dim else 1 for i in range(dy.ndim)]).expand(dy.shape)
        g = spread if g is None else g + spread
    if g is None:
        return nothing
    if not _BY_CODE[act].curved:
        d_dy, _ = _call_grad(g, x, b, y, *ctx.args, False)
        return d_dy, *nothing[1:]
    d_dy, d_x = _call_grad2(g, dy, x, b, y, *ctx.args)
    d_b = None
    if b is not None and ctx.needs_input_grad[2]:
        d_b = d_x.sum([i for i in range(d_x.ndim) if i != dim])
    return d_dy, d_x, d_b, *nothing[3:]


def _grad2_backward(ctx: Any, *grads: Tensor) -> tuple:
    raise RuntimeError(
        "bias_act: the kernels give two orders of gradient of a curved activation; use impl='reference' for more"
    )


_COMMON = "int dim, int act, float alpha, float gain, float clamp"
register("bias_act", f"(Tensor x, Tensor? b, {_COMMON}) -> Tensor", _kernel, _fake)
register(
    "bias_act_grad",
    f"(Tensor dy, Tensor? x, Tensor? b, Tensor? y, {_COMMON}, bool want_db) -> (Tensor, Tensor)",
    _grad_kernel,
    _grad_fake,
)
register(
    "bias_act_grad2",
    f"(Tensor g, Tensor dy, Tensor? x, Tensor? b, Tensor? y, {_COMMON}) -> (Tensor, Tensor)",
    _grad2_kernel,
    _grad2_fake,
)
torch.library.register_autograd("atu::bias_act", _backward, setup_context=_setup)
torch.library.register_autograd("atu::bias_act_grad", _grad_backward, setup_context=_grad_setup)
torch.library.register_autograd("atu::bias_act_grad2", _grad2_backward)

_call = direct(torch.ops.atu.bias_act.default, _kernel, 2, _setup, _backward)
_call_grad = direct(torch.ops.atu.bias_act_grad.default, _grad_kernel, 4, _grad_setup, _grad_backward)
_call_grad2 = direct(torch.ops.atu.bias_act_grad2.default, _grad2_kernel, 5, None, _grad2_backward)
