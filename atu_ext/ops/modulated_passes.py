"""The passes round the convolution of StyleGAN2's modulated layer, as ops.

csrc/kernels/modulated_conv2d.h has the math. Each is differentiable twice. A gradient that arrives may be None, and
none is given back then: nothing arrives at an output that nothing used.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _native
from .dispatch import DTYPE_CODES, address, launch, on_cuda
from .layout import empty_in_format_of, in_either_format, in_format, is_channels_last, is_in_memory, memory_format
from .pages import in_huge_pages
from .registration import keep_inputs, refuse_third_order, register

Gradients = tuple[Tensor | None, ...]


def _size(t: Tensor) -> tuple[int, int, int]:
    return t.shape[0], t.shape[1], t.shape[2] * t.shape[3]


def _pixel_block(t: Tensor, channels_last: bool) -> int:
    """Pixels whose sums are taken together: few enough to give the threads blocks to share (modulated_conv2d.h)."""
    n, _, pixels = _size(t)
    if channels_last:
        return 64
    if not on_cuda(t):
        return min(1024, max(64, -(-n * pixels // 16)))  # kMaxPixelBlock
    return min(256, max(64, -(-n * pixels // (16 * 8)) * 8))  # kCudaPixelBlock; whole vectors of 16 bytes


def _partials(t: Tensor, block: int, count: int) -> Tensor:
    n, c, pixels = _size(t)
    return torch.empty(count, n, -(-pixels // block), c, dtype=torch.float64, device=t.device)


# ---- q = sum_k w^2 --------------------------------------------------------------------------------------------------


def _weight_args(w: Tensor) -> tuple[int, int, int, int, bool]:
    return DTYPE_CODES[w.dtype], w.shape[0] * w.shape[1], w.shape[1], w.shape[2] * w.shape[3], is_channels_last(w)


def _square_sum(w: Tensor) -> Tensor:
    w = in_either_format(w)
    q = w.new_empty(w.shape[:2])
    launch(_native._C.square_sum, w, w.data_ptr(), q.data_ptr(), 0, 0, *_weight_args(w))
    return q


def _square_sum_grad(grad: Tensor, w: Tensor) -> Tensor:
    w, grad = in_either_format(w), grad.contiguous()
    out = empty_in_format_of(w)
    launch(_native._C.square_sum, w, w.data_ptr(), 0, grad.data_ptr(), out.data_ptr(), *_weight_args(w))
    return out


def _square_sum_backward(ctx: Any, grad: Tensor | None) -> Tensor | None:
    if grad is None:
        return None
    (w,) = ctx.saved_tensors
    dw: Tensor = square_sum_grad(grad, w)
    return dw


def _square_sum_grad_backward(ctx: Any, gg: Tensor | None) -> Gradients:
    if gg is None:
        return None, None
    grad, w = ctx.saved_tensors
    return 2 * (gg * w).sum([2, 3]), square_sum_grad(grad, gg)


square_sum = register(
    "square_sum",
    "(Tensor w) -> Tensor",
    _square_sum,
    lambda w: w.new_empty(w.shape[:2]),
    keep_inputs(1),
    _square_sum_backward,
)
square_sum_grad = register(
    "square_sum_grad",
    "(Tensor grad, Tensor w) -> Tensor",
    _square_sum_grad,
    lambda grad, w: empty_in_format_of(w),
    keep_inputs(2),
    _square_sum_grad_backward,
)


# ---- d = 1 / sqrt(sum_c s^2 q + eps), where no gradient is wanted ---------------------------------------------------


def _demodulate(w: Tensor, styles: Tensor) -> Tensor:
    w, styles = in_either_format(w), styles.contiguous()
    d = w.new_empty(styles.shape[0], w.shape[0])
    size = (styles.shape[0], w.shape[0], w.shape[1], w.shape[2] * w.shape[3])
    launch(
        _native._C.demodulate, w, w.data_ptr(), styles.data_ptr(), d.data_ptr(), DTYPE_CODES[w.dtype], size,
        is_channels_last(w),
    )  # fmt: skip
    return d


demodulate = register(
    "demodulate",
    "(Tensor w, Tensor styles) -> Tensor",
    _demodulate,
    lambda w, styles: w.new_empty(styles.shape[0], w.shape[0]),
)


# ---- out = s x ------------------------------------------------------------------------------------------------------


def _modulate(x: Tensor, styles: Tensor, channels_last: bool) -> Tensor:
    x, styles = in_either_format(x), styles.contiguous()
    out = in_huge_pages(_fake_modulate(x, styles, channels_last))
    launch(
        _native._C.modulate, x, x.data_ptr(), styles.data_ptr(), out.data_ptr(), DTYPE_CODES[x.dtype], _size(x),
        is_channels_last(x), is_channels_last(out),
    )  # fmt: skip
    return out


def _fake_modulate(x: Tensor, styles: Tensor, channels_last: bool) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format(channels_last))


def _modulate_grad(grad: Tensor, x: Tensor, styles: Tensor) -> tuple[Tensor, Tensor]:
    grad, styles = in_either_format(grad), styles.contiguous()
    channels_last = is_channels_last(grad)
    x = in_format(x, channels_last)
    grad_x, grad_styles = in_huge_pages(empty_in_format_of(grad)), torch.empty_like(styles)
    block = _pixel_block(grad, channels_last)
    partials = _partials(grad, block, 1)
    launch(
        _native._C.modulate_grad, x, grad.data_ptr(), x.data_ptr(), styles.data_ptr(), grad_x.data_ptr(),
        grad_styles.data_ptr(), DTYPE_CODES[x.dtype], _size(grad), channels_last, block, partials.data_ptr(),
    )  # fmt: skip
    return grad_x, grad_styles


def _modulate_backward(ctx: Any, grad: Tensor | None) -> Gradients:
    if grad is None:
        return None, None, None
    x, styles = ctx.saved_tensors
    if not ctx.needs_input_grad[1]:
        return modulate(grad, styles, is_channels_last(grad)), None, None
    return *modulate_grad(grad, x, styles), None


def _modulate_grad_backward(ctx: Any, g_x: Tensor | None, g_styles: Tensor | None) -> Gradients:
    # grad_x = s grad and grad_styles = sum_p x grad are bilinear.
    grad, x, styles = ctx.saved_tensors
    d_grad = d_x = d_styles = None
    if g_x is not None:
        d_grad, d_styles = modulate_grad(g_x, grad, styles)
    if g_styles is not None:
        scaled = g_styles[:, :, None, None]
        d_grad = x * scaled if d_grad is None else torch.addcmul(d_grad, x, scaled)
        d_x = modulate(grad, g_styles, is_channels_last(grad))
    return d_grad, d_x, d_styles


modulate = register(
    "modulate",
    "(Tensor x, Tensor styles, bool channels_last) -> Tensor",
    _modulate,
    _fake_modulate,
    keep_inputs(2),
    _modulate_backward,
)
modulate_grad = register(
    "modulate_grad",
    "(Tensor grad, Tensor x, Tensor styles) -> (Tensor, Tensor)",
    _modulate_grad,
    lambda grad, x, styles: (empty_in_format_of(grad), torch.empty_like(styles)),
    keep_inputs(3),
    _modulate_grad_backward,
)


# ---- y = clamp(gain act(d u + noise + b)) ---------------------------------------------------------------------------


class Epilogue(NamedTuple):
    """What follows the convolution, in the order of the ops' arguments, where it stands flat and is called `finish`."""

    d: Tensor | None  # demodulation [N, C]
    noise: Tensor | None  # [N or 1, 1, H, W]
    bias: Tensor | None  # [C]
    act: int
    alpha: float
    gain: float
    clamp: float  # negative: none


_EPILOGUE = "Tensor? d, Tensor? noise, Tensor? bias, int act, float alpha, float gain, float clamp"


def _epilogue_args(
    u: Tensor, finish: tuple[Any, ...]
) -> tuple[tuple[int, ...], list[Tensor | None], int, tuple[Any, ...]]:
    """Addresses (u, d, noise, bias), what they point to, the noise's stride over samples, (act, alpha, gain, clamp)."""
    d, noise, bias = finish[:3]
    kept = [t if t is None or t.is_contiguous() else t.contiguous() for t in (d, noise, bias)]
    return (u.data_ptr(), *(address(t) for t in kept)), kept, noise_stride(noise), finish[3:]


def noise_stride(noise: Tensor | None) -> int:
    """Elements from one sample's noise to the next one's; 0 where they share it."""
    return 0 if noise is None or noise.shape[0] == 1 else noise.shape[2] * noise.shape[3]


def _run_epilogue(u: Tensor, y: Tensor, finish: tuple[Any, ...]) -> None:
    inputs, kept, stride, settings = _epilogue_args(u, finish)
    launch(
        _native._C.epilogue, u, inputs, settings, y.data_ptr(), DTYPE_CODES[u.dtype], _size(u), is_channels_last(u),
        stride,
    )  # fmt: skip
    del kept


def _epilogue(u: Tensor, *finish: Any) -> Tensor:
    u = in_either_format(u)
    y = in_huge_pages(empty_in_format_of(u))
    _run_epilogue(u, y, finish)
    return y


def _epilogue_in_place(u: Tensor, *finish: Any) -> None:
    in_memory = all(t is None or is_in_memory(t) for t in (u, *finish[:3]))
    if not in_memory or (not u.is_contiguous() and not is_channels_last(u)):
        u.copy_(epilogue(u, *finish))
    else:
        _run_epilogue(u, u, finish)


def _epilogue_scaled(next_styles: Tensor, u: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    finish, keep_y = args[:-1], args[-1]
    if not on_cuda(u):
        y = _epilogue(u, *finish)
        return _modulate(y, next_styles, is_channels_last(y)), y if keep_y else u.new_empty(0)
    u, next_styles = in_either_format(u), next_styles.contiguous()
    scaled = empty_in_format_of(u)
    y = empty_in_format_of(u) if keep_y else u.new_empty(0)
    inputs, kept, stride, settings = _epilogue_args(u, finish)
    launch(
        _native._C.epilogue_scaled, u, (*inputs, next_styles.data_ptr()), settings, y.data_ptr() if keep_y else 0,
        scaled.data_ptr(), DTYPE_CODES[u.dtype], _size(u), is_channels_last(u), stride,
    )  # fmt: skip
    del kept
    return scaled, y


def _fake_epilogue_scaled(next_styles: Tensor, u: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return empty_in_format_of(u), empty_in_format_of(u) if args[-1] else u.new_empty(0)


def _epilogue_grad(dy: Tensor, u: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    finish, (sums, noise_sum) = args[:-2], args[-2:]
    u = in_either_format(u)
    channels_last = is_channels_last(u)
    dy = in_format(dy, channels_last)
    du, dd, db, dnoise = grads = _fake_epilogue_grad(dy, u, *args)
    in_huge_pages(du)
    block = _pixel_block(u, channels_last)
    partials = _partials(u, block, 2) if sums else None
    inputs, kept, stride, settings = _epilogue_args(u, finish)
    pointers = (du.data_ptr(), *((dd.data_ptr(), db.data_ptr()) if sums else (0, 0)))
    launch(
        _native._C.epilogue_grad, u, inputs, settings, dy.data_ptr(),
        (*pointers, dnoise.data_ptr() if noise_sum else 0), DTYPE_CODES[u.dtype], _size(u), channels_last, stride,
        block, address(partials),
    )  # fmt: skip
    del kept
    return grads


def _fake_epilogue_grad(dy: Tensor, u: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sums, noise_sum = args[-2:]
    shape = u.shape[:2] if sums else (0,)
    noise = (u.shape[0], 1, *u.shape[2:]) if noise_sum else (0,)
    return empty_in_format_of(u), u.new_empty(shape), u.new_empty(shape), u.new_empty(noise)


def _epilogue_grad2(
    gu: Tensor | None, gd: Tensor | None, gb: Tensor | None, gn: Tensor | None, dy: Tensor, u: Tensor, *finish: Any
) -> tuple[Tensor, ...]:
    u = in_either_format(u)
    channels_last = is_channels_last(u)
    dy = in_format(dy, channels_last)
    gu = None if gu is None else in_format(gu, channels_last)
    gd, gb, gn = (None if t is None else t.contiguous() for t in (gd, gb, gn))
    grads = _fake_epilogue_grad2(gu, gd, gb, gn, dy, u)
    for t in grads:
        in_huge_pages(t)
    block = _pixel_block(u, channels_last)
    partials = _partials(u, block, 2)
    inputs, kept, stride, settings = _epilogue_args(u, finish)
    launch(
        _native._C.epilogue_grad2, u, inputs, settings, dy.data_ptr(), tuple(address(t) for t in (gu, gd, gb, gn)),
        tuple(t.data_ptr() for t in grads), DTYPE_CODES[u.dtype], _size(u), channels_last, stride, block,
        partials.data_ptr(),
    )  # fmt: skip
    del kept
    return grads


def _fake_epilogue_grad2(
    gu: Tensor | None, gd: Tensor | None, gb: Tensor | None, gn: Tensor | None, dy: Tensor, u: Tensor, *finish: Any
) -> tuple[Tensor, ...]:
    n, c = u.shape[:2]
    sums = u.new_empty(n, c), u.new_empty(n, c)
    return empty_in_format_of(u), empty_in_format_of(u), *sums, u.new_empty(n, 1, *u.shape[2:])


def noise_grad(total: Tensor, noise: Tensor) -> Tensor:
    """[N, 1, H, W] summed to the noise's shape."""
    return total.sum(0, keepdim=True) if noise.shape[0] != total.shape[0] else total


def _keep_epilogue(ctx: Any, tensors: tuple[Any, ...], settings: tuple[Any, ...]) -> None:
    ctx.save_for_backward(*tensors)
    ctx.settings = settings
    ctx.set_materialize_grads(False)


def _setup_epilogue(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _keep_epilogue(ctx, inputs[:4], inputs[4:])


def _gradients_of_finish(
    ctx: Any, dy: Tensor | None, tensors: tuple[Tensor | None, ...], needs: tuple[bool, ...]
) -> Gradients:
    """For the inputs of epilogue, of which `tensors` are the first four and `needs` tells the wanted."""
    if dy is None:
        return (None,) * 8
    u, d, noise, bias = tensors
    _, needs_d, needs_noise, needs_bias = needs
    du, dd, db, dnoise = epilogue_grad(dy, u, d, noise, bias, *ctx.settings, needs_d or needs_bias, needs_noise)
    return (
        du,
        dd if needs_d else None,
        noise_grad(dnoise, noise) if needs_noise and noise is not None else None,
        db.sum(0) if needs_bias else None,
        *(None,) * 4,
    )


def _epilogue_backward(ctx: Any, dy: Tensor | None) -> Gradients:
    return _gradients_of_finish(ctx, dy, ctx.saved_tensors, ctx.needs_input_grad[:4])


def _setup_epilogue_scaled(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    next_styles, u, d, noise, bias, *settings, keep_y = inputs
    if not keep_y:
        raise RuntimeError("atu_ext::epilogue_scaled: expected keep_y=True where gradients are wanted, got False")
    _keep_epilogue(ctx, (next_styles, output[1], u, d, noise, bias), tuple(settings))


def _epilogue_scaled_backward(ctx: Any, d_scaled: Tensor | None, dy: Tensor | None) -> Gradients:
    next_styles, y, *rest = ctx.saved_tensors
    d_next = None
    if d_scaled is not None:
        scaled, d_next = modulate_grad(d_scaled, y, next_styles)
        dy = scaled if dy is None else dy + scaled
    needs = ctx.needs_input_grad
    return d_next if needs[0] else None, *_gradients_of_finish(ctx, dy, tuple(rest), needs[1:5]), None


def _setup_epilogue_grad(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _keep_epilogue(ctx, inputs[:5], inputs[5:9])
    ctx.sums = inputs[9:]


def _epilogue_grad_backward(
    ctx: Any, gu: Tensor | None, gd: Tensor | None, gb: Tensor | None, gn: Tensor | None
) -> Gradients:
    dy, u, d, noise, bias = ctx.saved_tensors
    has_sums, has_noise = ctx.sums
    gd, gb = (gd, gb) if has_sums else (None, None)
    d_dy, d_u, d_d, d_b, d_noise = epilogue_grad2(
        gu, gd, gb, gn if has_noise else None, dy, u, d, noise, bias, *ctx.settings
    )
    return (
        d_dy,
        d_u,
        None if d is None else d_d,
        None if noise is None else noise_grad(d_noise, noise),
        None if bias is None else d_b.sum(0),
        *(None,) * 6,
    )


epilogue = register(
    "epilogue",
    f"(Tensor u, {_EPILOGUE}) -> Tensor",
    _epilogue,
    lambda u, *finish: empty_in_format_of(u),
    _setup_epilogue,
    _epilogue_backward,
)
# In place, for where no gradient is wanted.
epilogue_ = register("epilogue_", f"(Tensor(a!) u, {_EPILOGUE}) -> ()", _epilogue_in_place, lambda u, *finish: None)
# (next_styles y, y): the next layer's modulated input; y is empty where keep_y is False.
epilogue_scaled = register(
    "epilogue_scaled",
    f"(Tensor next_styles, Tensor u, {_EPILOGUE}, bool keep_y) -> (Tensor, Tensor)",
    _epilogue_scaled,
    _fake_epilogue_scaled,
    _setup_epilogue_scaled,
    _epilogue_scaled_backward,
)
# du, and where asked for dd [N, C], db [N, C] (to be summed over N) and dnoise [N, 1, H, W]; else empty.
epilogue_grad = register(
    "epilogue_grad",
    f"(Tensor dy, Tensor u, {_EPILOGUE}, bool sums, bool noise_sum) -> (Tensor, Tensor, Tensor, Tensor)",
    _epilogue_grad,
    _fake_epilogue_grad,
    _setup_epilogue_grad,
    _epilogue_grad_backward,
)
# d_dy, d_u, d_d [N, C], d_b [N, C] (to be summed over N), d_noise [N, 1, H, W].
epilogue_grad2 = register(
    "epilogue_grad2",
    f"(Tensor? gu, Tensor? gd, Tensor? gb, Tensor? gn, Tensor dy, Tensor u, {_EPILOGUE}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _epilogue_grad2,
    _fake_epilogue_grad2,
    keep_inputs(0),
    refuse_third_order("modulated_conv2d"),
)
