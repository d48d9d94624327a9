"""Upsample, FIR-filter and downsample batches of images: upfirdn2d and its filter helper.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (arXiv 1912.04958), appendix B.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def setup_filter(
    f: Tensor | Sequence | float | None,
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
        gain: overall magnification of a signal passed through the filter.
        separable: keep a 1-d filter 1-d; the default does so from 8 taps on, below it the outer product is taken.

    Returns:
        float32 tensor [kh, kw], or [taps] when separable.
    """
    taps = torch.as_tensor(1.0 if f is None else f, dtype=torch.float32)
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
        taps = taps / taps.sum()
    if flip_filter:
        taps = taps.flip(list(range(taps.ndim)))
    return (taps * gain ** (taps.ndim / 2)).to(device)


def _pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or any(not isinstance(v, int) or v < 1 for v in pair):
        raise ValueError(f"{name}: expected a positive int or [x, y] of them, got {value!r}")
    return pair


def _padding(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    pad = (padding,) * 4 if isinstance(padding, int) else tuple(padding)
    if len(pad) == 2:
        pad = (pad[0], pad[0], pad[1], pad[1])
    if len(pad) != 4 or any(not isinstance(v, int) for v in pad):
        raise ValueError(f"padding: expected int, [x, y] or [x0, x1, y0, y1], got {padding!r}")
    return pad


def _upfirdn2d_reference(x, f, up, down, padding, flip_filter, gain):
    (upx, upy), (downx, downy) = up, down
    n, c, h, w = x.shape
    if upx > 1 or upy > 1:
        stuffed = x.new_zeros(n, c, h, upy, w, upx)
        stuffed[:, :, :, 0, :, 0] = x
        x = stuffed.reshape(n, c, h * upy, w * upx)
    x = F.pad(x, padding)
    f = (f * gain ** (f.ndim / 2)).to(x.dtype)
    if not flip_filter:
        f = f.flip(list(range(f.ndim)))
    kernels = [f[None, None]] if f.ndim == 2 else [f[None, None, None, :], f[None, None, :, None]]
    for kernel in kernels:
        x = F.conv2d(x, kernel.expand(c, 1, *kernel.shape[2:]), groups=c)
    return x[:, :, ::downy, ::downx]


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

    Args:
        x: [N, C, H, W].
        f: filter of `setup_filter`, [kh, kw] or [taps] (separable); None is the identity.
        up, down: int or [x, y].
        padding: int, [x, y] or [x0, x1, y0, y1], relative to the zero-inserted image.
        flip_filter: False convolves, True correlates.
        gain: magnification.

    Returns:
        [N, C, H', W'] of x's dtype.
    """
    if f is None:
        f = torch.ones(1, 1, dtype=torch.float32, device=x.device)
    return _upfirdn2d_reference(x, f, _pair(up, "up"), _pair(down, "down"), _padding(padding), flip_filter, gain)
