"""StyleGAN2's modulated convolution with a fused epilogue.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (arXiv 1912.04958), section 2.2.
Activations are scaled, not weights: y = d * conv(s * x, w), d = rsqrt(sum_i s_i^2 sum_k w_oik^2 + 1e-8).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .bias_act import bias_act
from .upfirdn2d import _padding, upfirdn2d


def conv2d_resample(x, w, f=None, up=1, down=1, padding=0, flip_weight=True, impl="auto"):
    """Convolution of x [N, C, H, W] with w [O, C, kh, kw], with FIR up- or downsampling round it.

    flip_weight True is torch's convention (correlation). padding is with respect to the upsampled image.
    """
    kh, kw = w.shape[2:]
    fw, fh = (1, 1) if f is None else (f.shape[-1], f.shape[0])
    px0, px1, py0, py1 = _padding(padding)
    if up > 1:
        px0, px1 = px0 + (fw + up - 1) // 2, px1 + (fw - up) // 2
        py0, py1 = py0 + (fh + up - 1) // 2, py1 + (fh - up) // 2
    if down > 1:
        px0, px1 = px0 + (fw - down + 1) // 2, px1 + (fw - down) // 2
        py0, py1 = py0 + (fh - down + 1) // 2, py1 + (fh - down) // 2
    if not flip_weight:
        w = w.flip([2, 3])
    if up > 1:
        # Transposed convolution writes the zero-inserted product directly; its own border is kw - 1, so the pads move.
        x = F.conv_transpose2d(x, w.flip([2, 3]).transpose(0, 1), stride=up)
        pad = [px0 - (kw - 1), px1 - (kw - up), py0 - (kh - 1), py1 - (kh - up)]
        x = upfirdn2d(x, f, padding=pad, gain=up**2, impl=impl)
        return x if down == 1 else upfirdn2d(x, None, down=down, impl=impl)
    if down > 1:
        x = upfirdn2d(x, f, padding=[px0, px1, py0, py1], impl=impl)
        return F.conv2d(x, w, stride=down)
    if f is not None and f.numel() > 1:
        x = upfirdn2d(x, f, padding=[px0, px1, py0, py1], impl=impl)
        return F.conv2d(x, w)
    if px0 == px1 and py0 == py1 and px0 >= 0 and py0 >= 0:
        return F.conv2d(x, w, padding=[py0, px0])
    return F.conv2d(F.pad(x, [px0, px1, py0, py1]), w)


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
    impl: str = "auto",
) -> Tensor:
    """Modulate, convolve, demodulate, add noise, then bias, activation, gain and clamp.

    Args:
        x: [N, C_in, H, W].
        weight: [C_out, C_in, kh, kw].
        styles: [N, C_in].
        noise: [N or 1, 1, H', W'], added after demodulation.
        bias: [C_out].

    Returns:
        [N, C_out, H', W'].
    """
    y = conv2d_resample(x * styles[:, :, None, None], weight, resample_filter, up, down, padding, flip_weight, impl)
    if demodulate:
        d = (styles.square() @ weight.square().sum([2, 3]).t() + 1e-8).rsqrt()
        y = y * d[:, :, None, None]
    if noise is not None:
        y = y + noise
    return bias_act(y, bias, 1, act, alpha, gain, clamp, impl)
