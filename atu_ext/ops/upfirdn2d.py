"""Upsample, FIR-filter and downsample batches of images: upfirdn2d, its filter helper and its common uses.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (arXiv 1912.04958), appendix B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _native
from .dispatch import DTYPE_CODES, autocast_dtype, launch, use_native
from .layout import Padding, Pair, around_filter, factor_pair, filter_size, fixed, four_sides, memory_format
from .pages import in_huge_pages
from .registration import register

MAX_SIZE = 2**24  # of a factor or of padding: their products with sizes stay in 64 bits


def setup_filter(
    f: Tensor | Sequence[float] | Sequence[Sequence[float]] | float | None,
    device: torch.device | str = "cpu",
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> Tensor:
    """Make an FIR filter for `upfirdn2d`.

    Args:
        f: scalar, 1-d taps (separable), 2-d taps, or None for the identity.
        normalize: divide by the sum, so that the filter keeps the mean.
        flip_filter: store it flipped.
        gain: overall magnification of a signal passed through the filter; not negative where the filter is 1-d, which
            is applied twice.
        separable: keep a 1-d filter 1-d; the default does so from 8 taps on, below it the outer product is taken.

    Returns:
        float32 tensor [kh, kw], or [taps] when separable.

    Raises:
        ValueError: f is none of these, or sums to 0 with normalize; separable is set for 2-d taps; gain is negative for
            a 1-d filter.
    """
    try:
        taps = torch.as_tensor(1.0 if f is None else f, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as fault:
        raise ValueError(f"f: expected a number, 1-d or 2-d taps, or None, got {f!r}") from fault
    if taps.ndim > 2 or taps.numel() == 0:
        raise ValueError(f"f: expected a scalar or a non-empty 1-d or 2-d filter, got shape {tuple(taps.shape)}")
    if taps.ndim == 0:
        taps = taps[None]
    if separable is None:
        separable = taps.ndim == 1 and taps.numel() >= 8
    if separable and taps.ndim == 2:
        raise ValueError("separable: expected a 1-d filter, got a 2-d one")
    if taps.ndim == 1 and not separable:
        taps = taps.outer(taps)
    if normalize:
        total = taps.sum()
        if total == 0:
            raise ValueError(f"normalize: expected taps with a sum other than 0, got {f}")
        taps = taps / total
    if flip_filter:
        taps = taps.flip(list(range(taps.ndim)))
    if gain < 0 and taps.ndim == 1:
        raise ValueError(f"gain: expected 0 or more for a 1-d filter, which is applied along both axes, got {gain}")
    magnification: float = gain ** (taps.ndim / 2)
    return (taps * magnification).to(device)


def _out_size(x: Tensor, f: Tensor, up: Pair, down: Pair, padding: Padding) -> tuple[int, int]:
    fh, fw = filter_size(f)
    h = x.shape[2] * up[1] + padding[2] + padding[3] - fh
    w = x.shape[3] * up[0] + padding[0] + padding[1] - fw
    return h // down[1] + 1, w // down[0] + 1


def _reference(x: Tensor, f: Tensor, up: Pair, down: Pair, padding: Padding, flip_filter: bool, gain: float) -> Tensor:
    (upx, upy), (downx, downy) = up, down
    n, c, h, w = x.shape
    if x.numel() == 0:
        return x.new_zeros(n, c, *_out_size(x, f, up, down, padding)) + x.sum()
    if upx > 1 or upy > 1:
        stuffed = x.new_zeros(n, c, h, upy, w, upx)
        stuffed[:, :, :, 0, :, 0] = x
        x = stuffed.reshape(n, c, h * upy, w * upx)
    x = F.pad(x, padding)
    f = f.to(x.dtype)
    if not flip_filter:
        f = f.flip(list(range(f.ndim)))
    gained = f * gain
    kernels = [gained[None, None]] if f.ndim == 2 else [f[None, None, None, :], gained[None, None, :, None]]
    c = fixed(c)
    for kernel in kernels:
        x = F.conv2d(x, kernel.expand(c, 1, *map(fixed, kernel.shape[2:])), groups=c)
    return x[:, :, ::downy, ::downx]


def check_filter(name: str, f: Tensor | None) -> None:
    """Raises TypeError where f is neither a tensor nor None."""
    if f is not None and not isinstance(f, Tensor):
        raise TypeError(f"{name}: expected a tensor, as setup_filter makes of taps, or None; got {type(f).__name__}")


def _check(x: Tensor, f: Tensor, up: Pair, down: Pair, padding: Padding) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor [N, C, H, W], got {type(x).__name__}")
    if x.ndim != 4:
        raise ValueError(f"x: expected [N, C, H, W], got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating-point tensor, got {x.dtype}")
    if f.ndim not in (1, 2) or f.numel() == 0:
        raise ValueError(f"f: expected a non-empty filter [kh, kw] or [taps], got shape {tuple(f.shape)}")
    if not f.is_floating_point() or f.device != x.device:
        raise TypeError(f"f: expected a floating-point tensor on {x.device} as x, got {f.dtype} on {f.device}")
    for name, values in (("up", up), ("down", down), ("padding", padding)):
        if any(isinstance(v, int) and abs(v) > MAX_SIZE for v in values):
            raise ValueError(f"{name}: expected at most {MAX_SIZE:,}, got {values}")
    oh, ow = _out_size(x, f, up, down, padding)
    if oh < 1 or ow < 1:
        raise ValueError(
            f"padding: the image {x.shape[3]} x {x.shape[2]}, upsampled by {up} and padded by {padding}, is smaller "
            f"than the filter {f.shape[-1]} x {f.shape[0]}"
        )


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "auto",
) -> Tensor:
    """Zero-insert by `up`, pad (or crop, where negative), convolve with `f`, keep every `down`-th sample.

    Differentiable in x any number of times. Gradients with respect to f exist in the reference only, which
    impl="auto" takes when f requires them. Under torch.autocast x is taken in its dtype.

    Args:
        x: [N, C, H, W], contiguous or channels_last, which the result keeps; slices that keep either axis dense are
            read in place and anything else is copied first. float32, float64 or bfloat16, on CUDA also float16; 16
            bits are computed in float32.
        f: filter of `setup_filter`, [kh, kw] or [taps] (separable); None is the identity.
        up, down: int or [x, y], at most 2^24.
        padding: int (of at most 2^24 either way), [x, y] or [x0, x1, y0, y1], relative to the zero-inserted image.
        flip_filter: False convolves, True correlates.
        gain: magnification.
        impl: auto, native (the kernel or an error) or reference (plain torch).

    Returns:
        [N, C, H', W'] of x's dtype, H' = (H * up_y + pad_y0 + pad_y1 - kh) // down_y + 1.

    Raises:
        ValueError, TypeError: an argument is not as above, or the padded image is smaller than the filter.
        RuntimeError: impl is "native" and the kernel cannot run on x.
    """
    if f is None:
        f = torch.ones(1, 1, dtype=torch.float32, device=x.device)
    check_filter("f", f)
    if isinstance(x, Tensor) and (lower := autocast_dtype(x)) is not None:
        x = x.to(lower)
    up, down, padding = factor_pair(up, "up"), factor_pair(down, "down"), four_sides(padding)
    _check(x, f, up, down, padding)
    also = "the kernels have no gradient with respect to f" if f.requires_grad else None
    if not use_native("upfirdn2d", impl, x, also):
        return _reference(x, f, up, down, padding, flip_filter, gain)
    y: Tensor = _upfirdn2d(x, f, *up, *down, *padding, flip_filter, gain)
    return y


def filter2d(
    x: Tensor,
    f: Tensor | None,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "auto",
) -> Tensor:
    """Filter a batch of images, keeping its size.

    Args:
        padding: added to what keeps the size: int, [x, y] or [x0, x1, y0, y1].
        x, f, flip_filter, gain, impl: as in `upfirdn2d`, whose gradients and errors it has.

    Returns:
        [N, C, H + pad_y0 + pad_y1, W + pad_x0 + pad_x1]. Of an even number of taps the first half lies before a pixel.
    """
    check_filter("f", f)
    pad = around_filter(four_sides(padding), f)
    return upfirdn2d(x, f, padding=pad, flip_filter=flip_filter, gain=gain, impl=impl)


def upsample2d(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "auto",
) -> Tensor:
    """Upsample a batch of images with an FIR filter: zeros are inserted between pixels and filtered.

    Args:
        up: factor, int or [x, y].
        padding: added to the output's size: int, [x, y] or [x0, x1, y0, y1].
        gain: magnification; with 1 and a filter that sums to 1 the mean is kept (the zeros are made up for).
        x, f, flip_filter, impl: as in `upfirdn2d`, whose gradients and errors it has.

    Returns:
        [N, C, H * up_y + pad_y0 + pad_y1, W * up_x + pad_x0 + pad_x1].
    """
    check_filter("f", f)
    ux, uy = factor_pair(up, "up")
    pad = around_filter(four_sides(padding), f, up=(ux, uy))
    return upfirdn2d(x, f, up=(ux, uy), padding=pad, flip_filter=flip_filter, gain=gain * ux * uy, impl=impl)


def downsample2d(
    x: Tensor,
    f: Tensor | None,
    down: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "auto",
) -> Tensor:
    """Downsample a batch of images with an FIR filter: it is filtered, and every `down`-th pixel kept.

    Args:
        down: factor, int or [x, y].
        padding: added to the input: int, [x, y] or [x0, x1, y0, y1].
        x, f, flip_filter, gain, impl: as in `upfirdn2d`, whose gradients and errors it has.

    Returns:
        [N, C, H / down_y, W / down_x], rounded down where padding is 0.
    """
    check_filter("f", f)
    factors = factor_pair(down, "down")
    pad = around_filter(four_sides(padding), f, down=factors)
    return upfirdn2d(x, f, down=factors, padding=pad, flip_filter=flip_filter, gain=gain, impl=impl)


# ---- the kernel as a torch operator ---------------------------------------------------------------------------------


def _by_channels(x: Tensor) -> bool:
    """Whether x, which may be a slice, is read along its channels, and the output laid out so."""
    return x.stride(1) == 1 and x.stride(3) != 1 and x.shape[1] > 1


# `args` are the op's arguments after x and f.


def _fake(x: Tensor, f: Tensor, *args: Any) -> Tensor:
    size = (x.shape[0], x.shape[1], *_out_size(x, f, args[0:2], args[2:4], args[4:8]))
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format(_by_channels(x)))


def _kernel(x: Tensor, f: Tensor, *args: Any) -> Tensor:
    upx, upy, downx, downy, padx0, _, pady0, _, flip_filter, gain = args
    y = in_huge_pages(_fake(x, f, *args))
    channels_last = _by_channels(x)
    if not channels_last and x.stride(3) != 1 and x.shape[3] > 1:
        x = x.contiguous()
    # The filter comes in the type that is accumulated in.
    f = f.to(torch.float64 if x.dtype == torch.float64 else torch.float32).contiguous()
    launch(
        _native._C.upfirdn2d, x, x.data_ptr(), f.data_ptr(), y.data_ptr(), DTYPE_CODES[x.dtype], channels_last,
        x.shape, x.stride(), y.shape, y.stride(), f.shape, upx, upy, downx, downy, padx0, pady0, flip_filter, gain,
    )  # fmt: skip
    return y


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, f, *ctx.args = inputs
    ctx.sizes = (x.shape[2], x.shape[3], output.shape[2], output.shape[3])
    ctx.save_for_backward(f)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
    """The adjoint is the same operation with up and down exchanged and the filter flipped."""
    if dy is None:  # in second gradients, see bias_act
        return (None,) * 12
    (f,) = ctx.saved_tensors
    h, w, out_h, out_w = ctx.sizes
    upx, upy, downx, downy, padx0, _, pady0, _, flip_filter, gain = ctx.args
    fh, fw = filter_size(f)
    padding = (
        fw - padx0 - 1,
        w * upx - out_w * downx + padx0 - upx + 1,
        fh - pady0 - 1,
        h * upy - out_h * downy + pady0 - upy + 1,
    )
    dx = _upfirdn2d(dy, f, downx, downy, upx, upy, *padding, not flip_filter, gain)
    return dx, *(None,) * 11


_upfirdn2d = register(
    "upfirdn2d",
    "(Tensor x, Tensor f, int upx, int upy, int downx, int downy, SymInt padx0, SymInt padx1, SymInt pady0, "
    "SymInt pady1, bool flip_filter, float gain) -> Tensor",
    _kernel,
    _fake,
    _setup,
    _backward,
)
