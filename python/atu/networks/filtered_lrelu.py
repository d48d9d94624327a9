"""StyleGAN3's filtered leaky ReLU, and the low-pass filters it runs with.

Source: Karras et al., "Alias-Free Generative Adversarial Networks" (arXiv 2106.12423), sections 2 and 3, appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from atu_ext.ops import bias_act, upfirdn2d


def filtered_lrelu(
    x: Tensor,
    fu: Tensor | None = None,
    fd: Tensor | None = None,
    b: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    gain: float = math.sqrt(2),
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
) -> Tensor:
    """Leaky ReLU at a higher sampling rate, between two low-pass filters.

    In order: add the bias, upsample by `up` with filter `fu` (padding is with respect to the upsampled image), leaky
    ReLU of the given slope times `gain`, clamp, filter with `fd`, keep every `down`-th sample. It is composed of
    upfirdn2d and bias_act, whose gradients of first and second order it has.

    Args:
        x: [N, C, H, W].
        fu, fd: [taps] (separable) or [kh, kw]; None is the identity.
        b: [C] or None.

    Returns:
        [N, C, H', W'] of x's dtype, H' = (up H + pads - (taps_u - 1) - (taps_d - 1) + down - 1) // down.
    """
    if b is not None:
        x = bias_act(x, b)
    x = upfirdn2d(x, fu, up=up, padding=padding, gain=float(up**2), flip_filter=flip_filter)
    x = bias_act(x, None, act="lrelu", alpha=slope, gain=gain, clamp=clamp)
    return upfirdn2d(x, fd, down=down, flip_filter=flip_filter)


def lowpass_filter(taps: int, cutoff: float, width: float, fs: float, radial: bool = False) -> Tensor | None:
    """Kaiser-windowed low-pass filter of unit gain at zero frequency.

    Args:
        taps: length; 1 gives None, the identity.
        cutoff: in the unit of fs (cycles). width: of the transition band, same unit. fs: sampling rate.
        radial: a rotationally symmetric [taps, taps] filter (jinc) instead of a separable [taps] one.

    Returns:
        float32 tensor, or None.
    """
    if taps == 1:
        return None
    beta = kaiser_beta(taps, width / (fs / 2))
    window = np.kaiser(taps, beta)
    x = np.arange(taps) - (taps - 1) / 2
    if not radial:
        f = np.sinc(2 * cutoff / fs * x) * window
        return torch.as_tensor(f / f.sum(), dtype=torch.float32, device="cpu")
    r = torch.as_tensor(np.hypot(*np.meshgrid(x / fs, x / fs)), dtype=torch.float64, device="cpu")
    # An odd length has a sample at the origin, where J1(2 pi f r) / (pi r) tends to f.
    jinc = torch.where(r == 0, cutoff, torch.special.bessel_j1(2 * math.pi * cutoff * r) / (math.pi * r))
    f2 = jinc.numpy() * np.outer(window, window)
    return torch.as_tensor(f2 / f2.sum(), dtype=torch.float32, device="cpu")


def kaiser_beta(taps: int, width: float) -> float:
    """Kaiser's window parameter for a transition band of `width`, relative to the Nyquist rate.

    Source: Oppenheim and Schafer, "Discrete-Time Signal Processing", section 7.5.3.
    """
    attenuation = 2.285 * (taps - 1) * math.pi * width + 7.95
    if attenuation > 50:
        return 0.1102 * (attenuation - 8.7)
    if attenuation > 21:
        return 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    return 0.0
