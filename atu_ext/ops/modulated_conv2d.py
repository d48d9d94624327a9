"""StyleGAN2's modulated convolution with a fused epilogue.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (arXiv 1912.04958), section 2.2.
Activations are scaled, not weights: y = d conv(s x, w), d = 1 / sqrt(sum_c s_c^2 sum_k w_ock^2 + 1e-8), so that one
convolution serves the whole batch. The convolution is torch's; what surrounds it are the passes of
csrc/kernels/modulated_conv2d.h, here registered as ops with first and second gradients. On CUDA the whole layer may
run as one kernel instead: see conv_engine.py for which, modulated_gemm.py for the op.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _native
from ._common import DTYPE_CODES as _DTYPES
from ._common import address as _address
from ._common import direct, launch, on_cuda, use_native, wants_reference
from .bias_act import activations, bias_act
from .modulated_gemm import engine_of, out_size
from .upfirdn2d import _padding, upfirdn2d

_ACTS = {
    name: i for i, name in enumerate(("linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish"))
}
_EPS = 1e-8


# ---- what the kernels need to know of a tensor ----------------------------------------------------------------------


def _is_channels_last(t: Tensor) -> bool:
    return not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last)


def _packed(t: Tensor, channels_last: bool) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _either(t: Tensor) -> Tensor:
    """t, contiguous or channels-last."""
    return t if t.is_contiguous() or t.is_contiguous(memory_format=torch.channels_last) else t.contiguous()


def _like(t: Tensor) -> Tensor:
    """An empty tensor of t's shape, laid out as `_either(t)` is."""
    return torch.empty_like(t, memory_format=torch.channels_last if _is_channels_last(t) else torch.contiguous_format)


def _size(t: Tensor) -> tuple[int, int, int]:
    return t.shape[0], t.shape[1], t.shape[2] * t.shape[3]


def _pixel_block(t: Tensor, channels_last: bool) -> int:
    """Pixels whose sums are taken together: few enough to give the threads blocks to share (modulated_conv2d.h)."""
    n, _, pixels = _size(t)
    if channels_last:
        return 64
    most = 256 if on_cuda(t) else 1024  # kCudaPixelBlock, kMaxPixelBlock
    return min(most, max(64, -(-n * pixels // 16)))


def _partials(t: Tensor, block: int, count: int) -> Tensor:
    n, c, pixels = _size(t)
    return torch.empty(count, n, -(-pixels // block), c, dtype=torch.float64, device=t.device)


# ---- q = sum_k w^2 --------------------------------------------------------------------------------------------------

torch.library.define("atu_ext::square_sum", "(Tensor w) -> Tensor")
torch.library.define("atu_ext::square_sum_grad", "(Tensor grad, Tensor w) -> Tensor")


def _square_sum_args(w: Tensor) -> tuple:
    channels_last = _is_channels_last(w)
    return _DTYPES[w.dtype], w.shape[0] * w.shape[1], w.shape[1], w.shape[2] * w.shape[3], channels_last


def _square_sum(w):
    w = _either(w)
    q = w.new_empty(w.shape[:2])
    launch(_native._C.square_sum, w, w.data_ptr(), q.data_ptr(), 0, 0, *_square_sum_args(w))
    return q


def _square_sum_grad(grad, w):
    w, grad = _either(w), grad.contiguous()
    out = _like(w)
    launch(_native._C.square_sum, w, w.data_ptr(), 0, grad.data_ptr(), out.data_ptr(), *_square_sum_args(w))
    return out


# The gradients below may be None: no gradient arrives at an output that nothing used.


def _square_sum_backward(ctx, grad):
    if grad is None:
        return None
    (w,) = ctx.saved_tensors
    return _ops.square_sum_grad(grad, w)


def _square_sum_grad_backward(ctx, gg):
    if gg is None:
        return None, None
    grad, w = ctx.saved_tensors
    return 2 * (gg * w).sum([2, 3]), _ops.square_sum_grad(grad, gg)


# ---- d = 1 / sqrt(sum_c s^2 q + eps) --------------------------------------------------------------------------------

torch.library.define("atu_ext::demodulate", "(Tensor w, Tensor styles) -> Tensor")


def _demodulate(w, styles):
    w, styles = _either(w), styles.contiguous()
    d = w.new_empty(styles.shape[0], w.shape[0])
    size = (styles.shape[0], w.shape[0], w.shape[1], w.shape[2] * w.shape[3])
    launch(
        _native._C.demodulate, w, w.data_ptr(), styles.data_ptr(), d.data_ptr(), _DTYPES[w.dtype], size,
        _is_channels_last(w),
    )  # fmt: skip
    return d


def _coefficients(weight: Tensor, styles: Tensor) -> Tensor:
    """d [N, C_out]: one kernel on CUDA where no gradient is wanted; differentiable else, in float32 or float64."""
    wanted = torch.is_grad_enabled() and (weight.requires_grad or styles.requires_grad)
    if on_cuda(weight) and not wanted:
        return _ops.demodulate(weight, styles)
    if weight.dtype in (torch.float16, torch.bfloat16):
        return _coefficients(weight.float(), styles.float()).to(weight.dtype)
    return (styles.square() @ _ops.square_sum(weight).t()).add_(_EPS).rsqrt_()


# ---- out = s x ------------------------------------------------------------------------------------------------------

torch.library.define("atu_ext::modulate", "(Tensor x, Tensor styles, bool channels_last) -> Tensor")
torch.library.define("atu_ext::modulate_grad", "(Tensor grad, Tensor x, Tensor styles) -> (Tensor, Tensor)")


def _modulate(x, styles, channels_last):
    x, styles = _either(x), styles.contiguous()
    out = torch.empty_like(x, memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    launch(
        _native._C.modulate, x, x.data_ptr(), styles.data_ptr(), out.data_ptr(), _DTYPES[x.dtype], _size(x),
        _is_channels_last(x), _is_channels_last(out),
    )  # fmt: skip
    return out


def _modulate_grad(grad, x, styles):
    grad, styles = _either(grad), styles.contiguous()
    channels_last = _is_channels_last(grad)
    x = _packed(x, channels_last)
    grad_x, grad_styles = _like(grad), torch.empty_like(styles)
    block = _pixel_block(grad, channels_last)
    partials = _partials(grad, block, 1)
    launch(
        _native._C.modulate_grad, x, grad.data_ptr(), x.data_ptr(), styles.data_ptr(), grad_x.data_ptr(),
        grad_styles.data_ptr(), _DTYPES[x.dtype], _size(grad), channels_last, block, partials.data_ptr(),
    )  # fmt: skip
    return grad_x, grad_styles


def _modulate_backward(ctx, grad):
    if grad is None:
        return None, None, None
    x, styles = ctx.saved_tensors
    if not ctx.needs_input_grad[1]:
        return _ops.modulate(grad, styles, _is_channels_last(grad)), None, None
    return *_ops.modulate_grad(grad, x, styles), None


def _modulate_grad_backward(ctx, g_x, g_styles):
    # grad_x = s grad and grad_styles = sum_p x grad are bilinear.
    grad, x, styles = ctx.saved_tensors
    d_grad = d_x = d_styles = None
    if g_x is not None:
        d_grad, d_styles = _ops.modulate_grad(g_x, grad, styles)
    if g_styles is not None:
        scaled = g_styles[:, :, None, None]
        d_grad = x * scaled if d_grad is None else torch.addcmul(d_grad, x, scaled)
        d_x = _ops.modulate(grad, g_styles, _is_channels_last(grad))
    return d_grad, d_x, d_styles


# ---- epilogue: y = clamp(gain act(d u + noise + b)) -----------------------------------------------------------------

_INPUTS = "Tensor u, Tensor? d, Tensor? noise, Tensor? bias, int act, float alpha, float gain, float clamp"
torch.library.define("atu_ext::epilogue", f"({_INPUTS}) -> Tensor")
torch.library.define("atu_ext::epilogue_", f"({_INPUTS.replace('Tensor u', 'Tensor(a!) u')}) -> ()")
# (next y, y): the next layer's modulated input; y is empty where keep_y is False.
torch.library.define("atu_ext::epilogue_scaled", f"(Tensor next, {_INPUTS}, bool keep_y) -> (Tensor, Tensor)")
# du, and where asked for dd [N, C], db [N, C] (to be summed over N) and dnoise [N, 1, H, W]; else empty.
torch.library.define(
    "atu_ext::epilogue_grad", f"(Tensor dy, {_INPUTS}, bool sums, bool noise_sum) -> (Tensor, Tensor, Tensor, Tensor)"
)
# d_dy, d_u, d_d [N, C], d_b [N, C] (to be summed over N), d_noise [N, 1, H, W].
torch.library.define(
    "atu_ext::epilogue_grad2",
    f"(Tensor? gu, Tensor? gd, Tensor? gb, Tensor? gn, Tensor dy, {_INPUTS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def _epilogue_args(u, d, noise, bias) -> tuple[tuple[int, ...], list[Tensor], int]:
    """Addresses (u, d, noise, bias), what they point to, and the noise's stride over samples."""
    kept = [t if t is None or t.is_contiguous() else t.contiguous() for t in (d, noise, bias)]
    stride = 0 if noise is None or noise.shape[0] == 1 else noise.shape[2] * noise.shape[3]
    return (u.data_ptr(), *(_address(t) for t in kept)), kept, stride


def _run_epilogue(u, y, d, noise, bias, output):
    inputs, kept, stride = _epilogue_args(u, d, noise, bias)
    launch(
        _native._C.epilogue, u, inputs, output, y.data_ptr(), _DTYPES[u.dtype], _size(u), _is_channels_last(u), stride
    )
    del kept


def _epilogue(u, d, noise, bias, act, alpha, gain, clamp):
    u = _either(u)
    y = _like(u)
    _run_epilogue(u, y, d, noise, bias, (act, alpha, gain, clamp))
    return y


def _epilogue_(u, d, noise, bias, act, alpha, gain, clamp):
    if not u.is_contiguous() and not _is_channels_last(u):
        u.copy_(_epilogue(u, d, noise, bias, act, alpha, gain, clamp))
    else:
        _run_epilogue(u, u, d, noise, bias, (act, alpha, gain, clamp))


def _epilogue_scaled(next, u, d, noise, bias, act, alpha, gain, clamp, keep_y):
    output = (act, alpha, gain, clamp)
    if not on_cuda(u):
        y = _epilogue(u, d, noise, bias, *output)
        return _modulate(y, next, _is_channels_last(y)), y if keep_y else u.new_empty(0)
    u, next = _either(u), next.contiguous()
    scaled = _like(u)
    y = _like(u) if keep_y else u.new_empty(0)
    inputs, kept, stride = _epilogue_args(u, d, noise, bias)
    launch(
        _native._C.epilogue_scaled, u, (*inputs, next.data_ptr()), output, y.data_ptr() if keep_y else 0,
        scaled.data_ptr(), _DTYPES[u.dtype], _size(u), _is_channels_last(u), stride,
    )  # fmt: skip
    del kept
    return scaled, y


def _epilogue_grad(dy, u, d, noise, bias, act, alpha, gain, clamp, sums, noise_sum):
    u = _either(u)
    channels_last = _is_channels_last(u)
    dy = _packed(dy, channels_last)
    du = _like(u)
    n, c = u.shape[:2]
    shape = (n, c) if sums else (0,)
    dd, db = u.new_empty(shape), u.new_empty(shape)
    dnoise = u.new_empty((n, 1, *u.shape[2:]) if noise_sum else (0,))
    block = _pixel_block(u, channels_last)
    partials = _partials(u, block, 2) if sums else None
    inputs, kept, stride = _epilogue_args(u, d, noise, bias)
    pointers = (du.data_ptr(), *((dd.data_ptr(), db.data_ptr()) if sums else (0, 0)))
    launch(
        _native._C.epilogue_grad, u, inputs, (act, alpha, gain, clamp), dy.data_ptr(),
        (*pointers, dnoise.data_ptr() if noise_sum else 0), _DTYPES[u.dtype], _size(u), channels_last, stride, block,
        _address(partials),
    )  # fmt: skip
    del kept
    return du, dd, db, dnoise


def _epilogue_grad2(gu, gd, gb, gn, dy, u, d, noise, bias, act, alpha, gain, clamp):
    u = _either(u)
    channels_last = _is_channels_last(u)
    dy = _packed(dy, channels_last)
    gu = None if gu is None else _packed(gu, channels_last)
    gd, gb, gn = (None if t is None else t.contiguous() for t in (gd, gb, gn))
    n, c = u.shape[:2]
    d_dy, d_u = _like(u), _like(u)
    d_d, d_b, d_noise = u.new_empty(n, c), u.new_empty(n, c), u.new_empty(n, 1, *u.shape[2:])
    block = _pixel_block(u, channels_last)
    partials = _partials(u, block, 2)
    inputs, kept, stride = _epilogue_args(u, d, noise, bias)
    launch(
        _native._C.epilogue_grad2, u, inputs, (act, alpha, gain, clamp), dy.data_ptr(),
        tuple(_address(t) for t in (gu, gd, gb, gn)), tuple(t.data_ptr() for t in (d_dy, d_u, d_d, d_b, d_noise)),
        _DTYPES[u.dtype], _size(u), channels_last, stride, block, partials.data_ptr(),
    )  # fmt: skip
    del kept
    return d_dy, d_u, d_d, d_b, d_noise


def _save_epilogue(ctx, tensors, output):
    ctx.save_for_backward(*tensors)
    ctx.output = output
    ctx.set_materialize_grads(False)


def _noise_grad(total: Tensor, noise: Tensor) -> Tensor:
    """[N, 1, H, W] summed to the noise's shape."""
    return total.sum(0, keepdim=True) if noise.shape[0] != total.shape[0] else total


def _epilogue_backward(ctx, dy):
    if dy is None:
        return (None,) * 8
    return _epilogue_grads(ctx, dy, ctx.saved_tensors, ctx.needs_input_grad[:4])


def _epilogue_grads(ctx, dy, tensors, needs):
    """For the inputs of epilogue, of which `tensors` are the first four and `needs` tells the wanted."""
    if dy is None:
        return (None,) * 8
    u, d, noise, bias = tensors
    _, needs_d, needs_noise, needs_bias = needs
    du, dd, db, dnoise = _ops.epilogue_grad(dy, u, d, noise, bias, *ctx.output, needs_d or needs_bias, needs_noise)
    return (
        du,
        dd if needs_d else None,
        _noise_grad(dnoise, noise) if needs_noise else None,
        db.sum(0) if needs_bias else None,
        *(None,) * 4,
    )


def _epilogue_scaled_backward(ctx, d_scaled, dy):
    next, y, *rest = ctx.saved_tensors
    d_next = None
    if d_scaled is not None:
        scaled, d_next = _ops.modulate_grad(d_scaled, y, next)
        dy = scaled if dy is None else dy + scaled
    needs = ctx.needs_input_grad
    return d_next if needs[0] else None, *_epilogue_grads(ctx, dy, rest, needs[1:5]), None


def _epilogue_grad_backward(ctx, gu, gd, gb, gn):
    dy, u, d, noise, bias = ctx.saved_tensors
    has_sums, has_noise = ctx.sums
    gd, gb = (gd, gb) if has_sums else (None, None)
    d_dy, d_u, d_d, d_b, d_noise = _ops.epilogue_grad2(
        gu, gd, gb, gn if has_noise else None, dy, u, d, noise, bias, *ctx.output
    )
    return (
        d_dy,
        d_u,
        None if d is None else d_d,
        None if noise is None else _noise_grad(d_noise, noise),
        None if bias is None else d_b.sum(0),
        *(None,) * 6,
    )


_KERNELS: dict[str, Callable[..., Any]] = {
    "square_sum": _square_sum,
    "square_sum_grad": _square_sum_grad,
    "demodulate": _demodulate,
    "modulate": _modulate,
    "modulate_grad": _modulate_grad,
    "epilogue": _epilogue,
    "epilogue_": _epilogue_,
    "epilogue_scaled": _epilogue_scaled,
    "epilogue_grad": _epilogue_grad,
    "epilogue_grad2": _epilogue_grad2,
}
# How many of an op's first arguments are tensors.
_TENSORS = {"square_sum": 1, "square_sum_grad": 2, "demodulate": 2, "modulate": 2, "modulate_grad": 3, "epilogue": 4,
            "epilogue_": 4, "epilogue_scaled": 5, "epilogue_grad": 5, "epilogue_grad2": 9}  # fmt: skip


def _register() -> None:
    for name, kernel in _KERNELS.items():
        for device in ("cpu", "cuda"):
            torch.library.impl(f"atu_ext::{name}", device, kernel)

    def same(w):
        return w.new_empty(w.shape[:2])

    def image_sums(u, dtype_of):
        return dtype_of.new_empty(u.shape[:2])

    fakes: dict[str, Callable[..., Any]] = {
        "square_sum": same,
        "square_sum_grad": lambda grad, w: _like(w),
        "demodulate": lambda w, styles: w.new_empty(styles.shape[0], w.shape[0]),
        "modulate": lambda x, styles, channels_last: torch.empty_like(
            x, memory_format=torch.channels_last if channels_last else torch.contiguous_format
        ),
        "modulate_grad": lambda grad, x, styles: (_like(grad), torch.empty_like(styles)),
        "epilogue": lambda u, *rest: _like(u),
        "epilogue_": lambda u, *rest: None,
        "epilogue_scaled": lambda next, u, *rest: (_like(u), _like(u) if rest[-1] else u.new_empty(0)),
        "epilogue_grad": _fake_epilogue_grad,
        "epilogue_grad2": lambda gu, gd, gb, gn, dy, u, *rest: (
            _like(u), _like(u), image_sums(u, u), image_sums(u, u), u.new_empty(u.shape[0], 1, *u.shape[2:])
        ),
    }  # fmt: skip
    for name, fake in fakes.items():
        torch.library.register_fake(f"atu_ext::{name}", fake)


def _fake_epilogue_grad(dy, u, d, noise, bias, act, alpha, gain, clamp, sums, noise_sum):
    shape = u.shape[:2] if sums else (0,)
    return (
        _like(u),
        u.new_empty(shape),
        u.new_empty(shape),
        u.new_empty((u.shape[0], 1, *u.shape[2:]) if noise_sum else (0,)),
    )


def _register_gradients() -> None:
    gradients: dict[str, tuple[Callable[..., None], Callable[..., Any]]] = {}

    def save_inputs(count):
        def setup(ctx, inputs, output):
            ctx.save_for_backward(*inputs[:count])
            ctx.set_materialize_grads(False)

        return setup

    def save_epilogue(ctx, inputs, output):
        _save_epilogue(ctx, inputs[:4], inputs[4:8])

    def save_epilogue_scaled(ctx, inputs, output):
        next, u, d, noise, bias, *settings, keep_y = inputs
        if not keep_y:
            raise RuntimeError("atu_ext::epilogue_scaled: expected keep_y=True where gradients are wanted, got False")
        _save_epilogue(ctx, (next, output[1], u, d, noise, bias), settings)

    def save_epilogue_grad(ctx, inputs, output):
        _save_epilogue(ctx, inputs[:5], inputs[5:9])
        ctx.sums = inputs[9:]

    for name, backward, setup in (
        ("square_sum", _square_sum_backward, save_inputs(1)),
        ("square_sum_grad", _square_sum_grad_backward, save_inputs(2)),
        ("modulate", _modulate_backward, save_inputs(2)),
        ("modulate_grad", _modulate_grad_backward, save_inputs(3)),
        ("epilogue", _epilogue_backward, save_epilogue),
        ("epilogue_scaled", _epilogue_scaled_backward, save_epilogue_scaled),
        ("epilogue_grad", _epilogue_grad_backward, save_epilogue_grad),
    ):
        torch.library.register_autograd(f"atu_ext::{name}", backward, setup_context=setup)
        gradients[name] = (setup, backward)
    for name, kernel in _KERNELS.items():
        op = getattr(torch.ops.atu_ext, name).default
        setattr(_ops, name, direct(op, kernel, _TENSORS[name], *gradients.get(name, ())))


_ops: Any = SimpleNamespace()  # the ops as functions, see `direct`
_register()
_register_gradients()


# ---- the layer ------------------------------------------------------------------------------------------------------


def _prefers_channels_last(x: Tensor, w: Tensor) -> bool:
    """Whether torch's convolution on the CPU is quicker channels-last, which it is given by its input's layout.

    Up to twice with few channels; but it reorders the weight at every call, and where that is much larger than the
    image its gradient takes up to three times as long (measured: benchmarks/NOTES.md).
    """
    return w.numel() <= 2 * x.numel()


def _upsample_conv(x, w, f, up, padding, flip_weight, impl):
    """FIR-filtered zero-insertion by `up`, then convolution, as one transposed convolution and one FIR filter."""
    kh, kw = w.shape[2:]
    px0, px1, py0, py1 = padding
    if kh == kw == 1:
        return upfirdn2d(F.conv2d(x, w), f, up=up, padding=padding, gain=up**2, impl=impl)
    # A transposed convolution convolves; correlation asks for a flipped kernel. It brings a border of kernel - 1 along.
    w = w.flip([2, 3]) if flip_weight else w
    x = F.conv_transpose2d(x, w.transpose(0, 1), stride=up)
    padding = [px0 - (kw - 1), px1 - (kw - up), py0 - (kh - 1), py1 - (kh - up)]
    return upfirdn2d(x, f, padding=padding, gain=up**2, impl=impl)


def _conv_of_nothing(x, w, filter_size, up, down, padding):
    """What a convolution of images without pixels gives, which torch's refuses: zeros, or nothing."""
    px0, px1, py0, py1 = padding
    (fh, fw), (kh, kw) = filter_size, w.shape[2:]
    height = x.shape[2] * up + py0 + py1 - (fh - 1) - (kh - 1)
    width = x.shape[3] * up + px0 + px1 - (fw - 1) - (kw - 1)
    zeros = x.new_zeros(x.shape[0], w.shape[0], max(0, -(-height // down)), max(0, -(-width // down)))
    return zeros + 0 * (x.sum() + w.sum())


def conv2d_resample(
    x: Tensor,
    w: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    flip_weight: bool = True,
    impl: str = "auto",
) -> Tensor:
    """Convolution with FIR up- or downsampling round it: zero-insert, filter, convolve, keep every `down`-th pixel.

    Args:
        x: [N, C_in, H, W].
        w: [C_out, C_in, kh, kw].
        f: filter of `setup_filter` for the resampling; None is the identity.
        up, down: factors.
        padding: int, [x, y] or [x0, x1, y0, y1], with respect to the upsampled image; the filter's own border is added.
        flip_weight: True is torch's convention (correlation), False convolves.
        impl: of the resampling.

    Returns:
        [N, C_out, H', W'].
    """
    kh, kw = w.shape[2:]
    pads = _resampling_pads(padding, f, up, down)
    if x.is_cpu and not on_cuda(x) and not wants_reference(impl):
        layout = torch.channels_last if _prefers_channels_last(x, w) else torch.contiguous_format
        x, w = x.to(memory_format=layout), w.to(memory_format=layout)
    if x.shape[2] == 0 or x.shape[3] == 0:
        fh, fw = (1, 1) if f is None else (f.shape[0], f.shape[-1])
        return _conv_of_nothing(x, w, (fh, fw), up, down, pads)
    if up > 1:
        x = _upsample_conv(x, w, f, up, pads, flip_weight, impl)
        return x if down == 1 else upfirdn2d(x, None, down=down, impl=impl)
    x, stride, padding = _conv_input(x, (kh, kw), f, down, pads, impl)
    return F.conv2d(x, w if flip_weight else w.flip([2, 3]), stride=stride, padding=padding)


def _conv_input(x, kernel, f, down, pads, impl) -> tuple[Tensor, int, list[int]]:
    """x filtered, padded and cropped as far as a convolution cannot do it, and that one's stride and padding [y, x]."""
    px0, px1, py0, py1 = pads
    if down > 1 and kernel == (1, 1):
        return upfirdn2d(x, f, down=down, padding=pads, impl=impl), 1, [0, 0]
    if down > 1 or (f is not None and f.numel() > 1):
        return upfirdn2d(x, f, padding=pads, impl=impl), down, [0, 0]
    if px0 == px1 and py0 == py1 and px0 >= 0 and py0 >= 0:
        return x, 1, [py0, px0]
    return F.pad(x, pads), 1, [0, 0]


def _resampling_pads(padding, f, up, down) -> list[int]:
    """[x0, x1, y0, y1] with the filter's own border."""
    fh, fw = (1, 1) if f is None else (f.shape[0], f.shape[-1])
    px0, px1, py0, py1 = _padding(padding)
    if up > 1:
        px0, px1 = px0 + (fw + up - 1) // 2, px1 + (fw - up) // 2
        py0, py1 = py0 + (fh + up - 1) // 2, py1 + (fh - up) // 2
    if down > 1:
        px0, px1 = px0 + (fw - down + 1) // 2, px1 + (fw - down) // 2
        py0, py1 = py0 + (fh - down + 1) // 2, py1 + (fh - down) // 2
    return [px0, px1, py0, py1]


def _check(x, weight, styles, noise, up, down, bias, act, clamp, next_styles) -> None:
    if x.ndim != 4:
        raise ValueError(f"x: expected [N, C_in, H, W], got shape {tuple(x.shape)}")
    if weight.ndim != 4 or weight.shape[1] != x.shape[1]:
        raise ValueError(f"weight: expected [C_out, {x.shape[1]}, kh, kw], got shape {tuple(weight.shape)}")
    if styles.shape != x.shape[:2]:
        raise ValueError(f"styles: expected [N, C_in] = {tuple(x.shape[:2])}, got shape {tuple(styles.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: expected [C_out] = ({weight.shape[0]},), got shape {tuple(bias.shape)}")
    if next_styles is not None and next_styles.shape != (x.shape[0], weight.shape[0]):
        expected = (x.shape[0], weight.shape[0])
        raise ValueError(f"next_styles: expected [N, C_out] = {expected}, got shape {tuple(next_styles.shape)}")
    others = dict(weight=weight, styles=styles, noise=noise, bias=bias, next_styles=next_styles)
    for name, t in others.items():
        if t is not None and (t.dtype != x.dtype or t.device != x.device):
            raise ValueError(f"{name}: expected {x.dtype} on {x.device} as x, got {t.dtype} on {t.device}")
    for name, factor in (("up", up), ("down", down)):
        if not isinstance(factor, int) or factor < 1:
            raise ValueError(f"{name}: expected a positive int, got {factor!r}")
    if act not in _ACTS:
        raise ValueError(f"act: expected one of {', '.join(_ACTS)}, got {act!r}")
    if clamp is not None and not clamp >= 0:
        raise ValueError(f"clamp: expected None or a number >= 0, got {clamp!r}")


def _check_noise(noise: Tensor | None, n: int, height: int, width: int) -> None:
    if noise is not None and (noise.ndim != 4 or noise.shape[0] not in (1, n) or noise.shape[1:] != (1, height, width)):
        raise ValueError(
            f"noise: expected [N or 1, 1, H', W'] = [{n} or 1, 1, {height}, {width}], got shape {tuple(noise.shape)}"
        )


def _pixelwise(x: Tensor, weight: Tensor, styles: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 layer without demodulation. With few output channels modulated weights cost less than a pass over x."""
    n, c, h, w = x.shape
    weights = weight[:, :, 0, 0] * styles[:, None, :]
    if _is_channels_last(x):
        pixels = x.permute(0, 2, 3, 1).reshape(n, h * w, c).transpose(1, 2)
    else:
        pixels = x.reshape(n, c, h * w)
    y = torch.bmm(weights, pixels) if bias is None else torch.baddbmm(bias[:, None], weights, pixels)
    return y.view(n, weight.shape[0], h, w)


# Up to how many output channels `_pixelwise` is the quicker one.
_PIXELWISE_CHANNELS = 8


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    *,
    bias: Tensor | None = None,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    modulated: bool = False,
    next_styles: Tensor | None = None,
    engine: str = "auto",
    impl: str = "auto",
) -> Tensor:
    """Modulate, convolve, demodulate, add noise, then bias, activation, gain and clamp.

    Differentiable twice in x, weight, styles, noise and bias. x may be contiguous or channels-last.

    Args:
        x: [N, C_in, H, W].
        weight: [C_out, C_in, kh, kw].
        styles: [N, C_in].
        noise: [N or 1, 1, H', W'], scaled by its strength; added after demodulation.
        up, down: resampling factors.
        padding: int, [x, y] or [x0, x1, y0, y1], with respect to the upsampled image.
        resample_filter: filter of `setup_filter` for up- or downsampling; None is the identity.
        demodulate: divide each output channel by its expected standard deviation, sqrt(sum s^2 w^2 + 1e-8).
        flip_weight: True is torch's convention (correlation), False convolves.
        bias: [C_out].
        act, alpha, gain, clamp: as in `bias_act`.
        modulated: x is multiplied by `styles` already, by the layer before (its `next_styles`); styles then serve the
            demodulation alone.
        next_styles: [N, C_out], the styles of the layer that reads this one's output: the output is multiplied by them,
            on CUDA in the same pass. For where no other layer reads it.
        engine: "library" (torch's convolution between fused passes), "gemm" (CUDA: one kernel, see modulated_gemm.py)
            or "auto": ATU_CONV_ENGINE, or else by measurements (see conv_engine.py).
        impl: "auto", "native" (the fused passes) or "reference" (torch operations alone).

    Returns:
        [N, C_out, H', W'] of x's dtype; on the CPU, or with the engine "gemm", possibly channels-last.

    Raises:
        ValueError: an argument that does not fit is named, with what was expected and what came.
        RuntimeError: impl "native" where there is no kernel for x's device and dtype; engine "gemm" where it cannot
            run.
    """
    _check(x, weight, styles, noise, up, down, bias, act, clamp, next_styles)
    also = "expected float32, float16 or bfloat16 on CUDA, got torch.float64"
    native = use_native("modulated_conv2d", impl, x, also if on_cuda(x) and x.dtype == torch.float64 else None)
    spec = activations[act]
    alpha = spec.def_alpha if alpha is None else alpha
    gain = spec.def_gain if gain is None else gain
    if not native:
        if engine == "gemm":
            raise RuntimeError("engine: 'gemm' is impossible: the plain-torch reference was asked for, or runs")
        xs = x if modulated else x * styles[:, :, None, None]
        y = conv2d_resample(xs, weight, resample_filter, up, down, padding, flip_weight, "reference")
        y = _reference_epilogue(y, weight, styles, noise, demodulate, bias, act, alpha, gain, clamp)
        return y if next_styles is None else y * next_styles[:, :, None, None]

    def d():
        return _coefficients(weight, styles) if demodulate else None

    settings = (_ACTS[act], float(alpha), float(gain), -1.0 if clamp is None else float(clamp))
    if (engine != "auto" or on_cuda(x)) and engine_of(x, weight, up, down, engine).engine == "gemm":
        pads = _resampling_pads(padding, resample_filter, up, down)
        xs, *window = _conv_input(x, tuple(weight.shape[2:]), resample_filter, down, pads, impl)
        w = weight if flip_weight else weight.flip([2, 3])
        y = _gemm_layer((xs, w, None if modulated else styles, d(), noise, bias), window, settings, engine)
        return y if next_styles is None else _ops.modulate(y, next_styles, _is_channels_last(y))
    plain = act == "linear" and gain == 1 and clamp is None and noise is None and not demodulate
    pointwise = weight.shape[2:] == (1, 1) and up == down == 1 and resample_filter is None and padding == 0
    plain = plain and not modulated and next_styles is None
    if plain and pointwise and weight.shape[0] <= _PIXELWISE_CHANNELS and x.numel() > 0:
        return _pixelwise(x, weight, styles, bias)
    channels_last = _is_channels_last(x)
    if x.is_cpu and not on_cuda(x) and weight.shape[2:] != (1, 1):
        channels_last = _prefers_channels_last(x, weight)
    u = x if modulated else _ops.modulate(x, styles, channels_last)
    u = conv2d_resample(u, weight, resample_filter, up, down, padding, flip_weight, impl)
    _check_noise(noise, u.shape[0], *u.shape[2:])
    tensors = (u, d(), noise, bias)
    args = (*tensors, *settings)
    grads = _wants_gradients(*tensors, next_styles)
    if next_styles is not None and on_cuda(u):
        return _ops.epilogue_scaled(next_styles, *args, grads)[0]
    if grads:
        u = _ops.epilogue(*args)
    else:
        _ops.epilogue_(*args)
    return u if next_styles is None else _ops.modulate(u, next_styles, _is_channels_last(u))


def _wants_gradients(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _gemm_layer(tensors, window, settings, engine) -> Tensor:
    """The layer on the implicit GEMM. tensors: x, w, styles, d, noise, bias; window: stride, [pad_y, pad_x]."""
    (x, w, _, _, noise, _), (stride, pad) = tensors, window
    _check_noise(noise, x.shape[0], *out_size(x, w, stride, *pad))
    return torch.ops.atu_ext.modulated_gemm(*tensors, stride, *pad, *settings, _wants_gradients(*tensors), engine)[0]


def _reference_epilogue(y, weight, styles, noise, demodulate, bias, act, alpha, gain, clamp):
    _check_noise(noise, y.shape[0], *y.shape[2:])
    if demodulate:
        d = (styles.square() @ weight.square().sum([2, 3]).t() + _EPS).rsqrt()
        y = y * d[:, :, None, None]
    if noise is not None:
        y = y + noise
    return bias_act(y, bias, 1, act, alpha, gain, clamp, impl="reference")
