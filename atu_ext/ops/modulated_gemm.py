"""The modulated layer as one implicit GEMM on CUDA's tensor cores: modulation, convolution and epilogue in one kernel.

The contract is in csrc/kernels/modulated_conv2d_gemm.h. Images and weights are channels-last. Registered as an op with
gradients: the input's comes from the same kernel (stride 1), the weight's from torch's convolution. A backward pass
that is itself to be differentiated (create_graph=True) is made of torch's convolution and the fused passes, which have
gradients of their own; so every order is there that `modulated_conv2d` has.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _native
from .activations import LINEAR
from .conv_engine import Choice, Layer, choose
from .dispatch import DTYPE_CODES, address, constant_when_compiled, launch, on_cuda
from .modulated_passes import Epilogue, Gradients, epilogue_grad, modulate, modulate_grad, noise_grad, noise_stride
from .registration import register

_CHANNELS_LAST = torch.channels_last
_TILE_BY_SHAPE = 0
_INT_MAX = 2**31 - 1


@constant_when_compiled
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@constant_when_compiled
def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


def _tf32_allowed() -> bool:
    return torch.backends.cudnn.allow_tf32


def obstacle(x: Tensor, weight: Tensor, up: int) -> str | None:
    """Why the GEMM cannot compute this layer; None where it can."""
    if not on_cuda(x):
        return f"the implicit GEMM is a CUDA kernel, and x is on {x.device}"
    if x.dtype == torch.float64:
        return "the tensor cores take float16, bfloat16 and float32 (as tf32), and x is float64"
    if x.dtype == torch.float32 and not _tf32_allowed():
        return "float32 runs as tf32, which torch.backends.cudnn.allow_tf32 = False forbids"
    if up > 1:
        return f"up={up} makes a transposed convolution, which only the library has"
    if _capability(x.device) < (8, 0):
        return f"{_device_name(x.device)} has compute capability {_capability(x.device)}, and 8.0 is needed"
    if x.numel() == 0 or weight.numel() == 0:
        return "the tensors are empty"
    if max(*x.shape, *weight.shape) > _INT_MAX:
        return f"a size is past {_INT_MAX}"
    return None


def engine_of(x: Tensor, weight: Tensor, up: int = 1, down: int = 1, engine: str = "auto") -> Choice:
    """The engine of the layer's forward convolution, and why. Arguments as of `modulated_conv2d`."""
    blocked = obstacle(x, weight, up)
    return choose(_layer(x, weight, down, "forward"), "" if blocked else _device_name(x.device), blocked, engine)


def _layer(x: Tensor, weight: Tensor, stride: int, direction: str) -> Layer:
    dtype = str(x.dtype).removeprefix("torch.")
    out_c, in_c, kernel = weight.shape[0], weight.shape[1], weight.shape[2]
    layout = "channels_last" if x.is_contiguous(memory_format=_CHANNELS_LAST) else "contiguous"
    return Layer(dtype, layout, direction, kernel, stride, in_c, out_c, x.shape[2], x.shape[3], x.shape[0])


def out_size(x: Tensor, w: Tensor, stride: int, pad_y: int, pad_x: int) -> tuple[int, int]:
    pads = zip(x.shape[2:], w.shape[2:], (pad_y, pad_x), strict=True)
    height, width = ((size + 2 * pad - k) // stride + 1 for size, k, pad in pads)
    return height, width


def _image(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=_CHANNELS_LAST)


class _Window(NamedTuple):
    stride: int
    pad_y: int
    pad_x: int


class _Arguments(NamedTuple):
    """The op's arguments after x, w and styles."""

    d: Tensor | None
    noise: Tensor | None
    bias: Tensor | None
    stride: int
    pad_y: int
    pad_x: int
    act: int
    alpha: float
    gain: float
    clamp: float
    keep_u: bool
    engine: str

    @property
    def window(self) -> _Window:
        return _Window(self.stride, self.pad_y, self.pad_x)

    @property
    def epilogue(self) -> Epilogue:
        return Epilogue(self.d, self.noise, self.bias, self.act, self.alpha, self.gain, self.clamp)


def _run(
    x: Tensor, w: Tensor, styles: Tensor | None, e: Epilogue, window: _Window, u: Tensor | None, y: Tensor
) -> None:
    """y, and u = conv(styles x, w) where there is one, both allocated."""
    vectors = [None if t is None else t.contiguous() for t in (styles, e.d, e.noise, e.bias)]
    launch(
        _native._C.modulated_conv2d_gemm, x, tuple(address(t) for t in (x, w, *vectors, u, y)), DTYPE_CODES[x.dtype],
        _TILE_BY_SHAPE, tuple(x.shape), (w.shape[0], *y.shape[2:]), (*w.shape[2:], *window), noise_stride(e.noise),
        e[3:],
    )  # fmt: skip


def _modulated_gemm(x: Tensor, w: Tensor, styles: Tensor | None, *args: Any) -> tuple[Tensor, Tensor]:
    a = _Arguments(*args)
    x, w = (t.contiguous(memory_format=_CHANNELS_LAST) for t in (x, w))
    y, u = _fake(x, w, styles, *args)
    _run(x, w, styles, a.epilogue, a.window, u if a.keep_u else None, y)
    return y, u


def _fake(x: Tensor, w: Tensor, styles: Tensor | None, *args: Any) -> tuple[Tensor, Tensor]:
    a = _Arguments(*args)
    y = _image(x, x.shape[0], w.shape[0], *out_size(x, w, *a.window))
    return y, torch.empty_like(y) if a.keep_u else x.new_empty(0)


def _modulated_gemm_input_grad(
    du: Tensor, w: Tensor, styles: Tensor | None, pad_y: int, pad_x: int, want_scaled: bool
) -> tuple[Tensor, Tensor]:
    kh, kw = w.shape[2:]
    du = du.contiguous(memory_format=_CHANNELS_LAST)
    back = w.flip([2, 3]).transpose(0, 1).contiguous(memory_format=_CHANNELS_LAST)
    dx, scaled = _fake_input_grad(du, w, styles, pad_y, pad_x, want_scaled)
    window = _Window(1, kh - 1 - pad_y, kw - 1 - pad_x)
    _run(du, back, None, Epilogue(styles, None, None, *LINEAR), window, scaled if want_scaled else None, dx)
    return dx, scaled


def _fake_input_grad(
    du: Tensor, w: Tensor, styles: Tensor | None, pad_y: int, pad_x: int, want_scaled: bool
) -> tuple[Tensor, Tensor]:
    size = (du.shape[2] + w.shape[2] - 1 - 2 * pad_y, du.shape[3] + w.shape[3] - 1 - 2 * pad_x)
    dx = _image(du, du.shape[0], w.shape[1], *size)
    return dx, torch.empty_like(dx) if want_scaled else du.new_empty(0)


def _pixel_dot(a: Tensor, b: Tensor) -> Tensor:
    a, b = (t.contiguous(memory_format=_CHANNELS_LAST) for t in (a, b))
    n, c, pixels = a.shape[0], a.shape[1], a.shape[2] * a.shape[3]
    block = 64
    out = a.new_empty(n, c)
    partials = torch.empty(n, -(-pixels // block), c, dtype=torch.float64, device=a.device)
    launch(
        _native._C.modulate_grad, a, a.data_ptr(), b.data_ptr(), 0, 0, out.data_ptr(),
        DTYPE_CODES[a.dtype], (n, c, pixels), True, block, partials.data_ptr(),
    )  # fmt: skip
    return out


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, w, styles, *args = inputs
    a = _Arguments(*args)
    ctx.window, ctx.settings, ctx.keep_u, ctx.engine = a.window, tuple(a.epilogue[3:]), a.keep_u, a.engine
    ctx.save_for_backward(x, w, styles, a.d, a.noise, a.bias, output[1])
    ctx.set_materialize_grads(False)


def _gradient_at_u(ctx: Any, dy: Tensor | None, gu: Tensor | None) -> Gradients:
    """du from the gradients at y and at u (which a second backward pass brings), and those of d, noise and bias."""
    *_, d, noise, bias, u = ctx.saved_tensors
    needs_d, needs_noise, needs_bias = ctx.needs_input_grad[3:6]
    if dy is None:
        return gu, None, None, None
    du, dd, db, dnoise = epilogue_grad(dy, u, d, noise, bias, *ctx.settings, needs_d or needs_bias, needs_noise)
    return (
        du if gu is None else du + gu,
        dd if needs_d else None,
        noise_grad(dnoise, noise) if needs_noise else None,
        db.sum(0) if needs_bias else None,
    )


def _backward(ctx: Any, dy: Tensor | None, gu: Tensor | None) -> Gradients:
    if not ctx.keep_u:
        raise RuntimeError("atu_ext::modulated_gemm: expected keep_u=True where gradients are wanted, got False")
    x, w, styles, *_ = ctx.saved_tensors
    needs_x, needs_w, needs_styles = ctx.needs_input_grad[:3]
    du, *of_epilogue = _gradient_at_u(ctx, dy, gu)
    rest = (*of_epilogue, *(None,) * 9)
    if du is None:
        return None, None, None, *rest
    stride, pad_y, pad_x = ctx.window
    own = (needs_x or needs_styles) and not torch.is_grad_enabled() and stride == 1
    own = own and _input_gradient_engine(x, w, ctx.engine).engine == "gemm"
    dx = dw = ds = None
    if own:
        dx, scaled = modulated_gemm_input_grad(du, w, styles, pad_y, pad_x, needs_styles)
        ds = pixel_dot(scaled, x) if needs_styles else None
    if needs_w or not own:
        xs = x if styles is None else modulate(x, styles, True)
        wanted = [not own and (needs_x or needs_styles), needs_w, False]
        scaled, dw, _ = torch.ops.aten.convolution_backward(
            du, xs, w, None, [stride] * 2, [pad_y, pad_x], [1, 1], False, [0, 0], 1, wanted
        )
        if wanted[0] and styles is None:
            dx = scaled
        elif wanted[0]:
            dx, ds = modulate_grad(scaled, x, styles)
    return dx if needs_x else None, dw if needs_w else None, ds if needs_styles else None, *rest


def _input_gradient_engine(x: Tensor, w: Tensor, engine: str) -> Choice:
    return choose(_layer(x, w, 1, "input_gradient"), _device_name(x.device), None, engine)


modulated_gemm = register(
    "modulated_gemm",
    "(Tensor x, Tensor w, Tensor? styles, Tensor? d, Tensor? noise, Tensor? bias, int stride, int pad_y, int pad_x, "
    "int act, float alpha, float gain, float clamp, bool keep_u, str engine) -> (Tensor, Tensor)",
    _modulated_gemm,
    _fake,
    _setup,
    _backward,
)
# The gradients at x [N, C, H, W] and at styles x (empty where want_scaled is False) from that at u.
modulated_gemm_input_grad = register(
    "modulated_gemm_input_grad",
    "(Tensor du, Tensor w, Tensor? styles, int pad_y, int pad_x, bool want_scaled) -> (Tensor, Tensor)",
    _modulated_gemm_input_grad,
    _fake_input_grad,
)
# sum_p a b of images [N, C, H, W]: [N, C]
pixel_dot = register("pixel_dot", "(Tensor a, Tensor b) -> Tensor", _pixel_dot, lambda a, b: a.new_empty(a.shape[:2]))
