"""StyleGAN2's modulated convolution with a fused epilogue.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (arXiv 1912.04958), section 2.2.
Activations are scaled, not weights: y = d conv(s x, w), d = 1 / sqrt(sum_c s_c^2 sum_k w_ock^2 + 1e-8), so that one
convolution serves the whole batch. One function a path:

    _reference_layer   torch's operations alone
    _pixelwise_layer   1x1 to few channels (ToRGB): weights modulated after all, in one batched matrix product
    _fused_layer       torch's convolution (conv2d_resample.py) between the fused passes of modulated_passes.py
    _gemm_layer        CUDA: the whole layer as one kernel; modulated_gemm.py has the op, conv_engine.py tells when
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import modulated_passes as passes
from .activations import ActSettings, act_settings, activate
from .conv2d_resample import conv2d_resample, conv_input, conv_padding, prefers_channels_last
from .dispatch import autocast_dtype, autocast_to, on_cuda, use_native, wants_gradients
from .layout import is_channels_last
from .modulated_gemm import engine_of, modulated_gemm, out_size
from .modulated_passes import Epilogue
from .upfirdn2d import check_filter

_EPS = 1e-8


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

    Differentiable twice in x, weight, styles, noise and bias. x may be contiguous or channels-last. Under
    torch.autocast all tensors but the filter are taken in its dtype.

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
    if isinstance(x, Tensor) and (lower := autocast_dtype(x)) is not None:
        with torch.autocast(x.device.type, enabled=False):  # the demodulation's product stays in float32
            x, weight, styles, noise = autocast_to(lower, x, weight, styles, noise)
            bias, next_styles = autocast_to(lower, bias, next_styles)
            return modulated_conv2d(
                x, weight, styles, noise, up, down, padding, resample_filter, demodulate, flip_weight, bias=bias,
                act=act, alpha=alpha, gain=gain, clamp=clamp, modulated=modulated, next_styles=next_styles,
                engine=engine, impl=impl,
            )  # fmt: skip
    _check(x, weight, styles, noise, up, down, resample_filter, bias, next_styles)
    settings = act_settings(act, alpha, gain, clamp)
    also = "expected float32, float16 or bfloat16 on CUDA, got torch.float64"
    native = use_native("modulated_conv2d", impl, x, also if on_cuda(x) and x.dtype == torch.float64 else None)
    layer = _Layer(
        x, weight, styles, noise, up, down, padding, resample_filter, demodulate, flip_weight, bias, settings,
        modulated, next_styles, engine, impl,
    )  # fmt: skip
    if not native:
        return _reference_layer(layer)
    if (engine != "auto" or on_cuda(x)) and engine_of(x, weight, up, down, engine).engine == "gemm":
        return _gemm_layer(layer)
    return _pixelwise_layer(layer) if _is_pixelwise(layer) else _fused_layer(layer)


class _Layer(NamedTuple):
    """The arguments of `modulated_conv2d`, checked."""

    x: Tensor
    weight: Tensor
    styles: Tensor
    noise: Tensor | None
    up: int
    down: int
    padding: int | Sequence[int]
    resample_filter: Tensor | None
    demodulate: bool
    flip_weight: bool
    bias: Tensor | None
    settings: ActSettings
    modulated: bool
    next_styles: Tensor | None
    engine: str
    impl: str


def _check(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None,
    up: int,
    down: int,
    resample_filter: Tensor | None,
    bias: Tensor | None,
    next_styles: Tensor | None,
) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor [N, C_in, H, W], got {type(x).__name__}")
    if resample_filter is not None:
        check_filter("resample_filter", resample_filter)
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


def _check_noise(noise: Tensor | None, n: int, height: int, width: int) -> None:
    if noise is not None and (noise.ndim != 4 or noise.shape[0] not in (1, n) or noise.shape[1:] != (1, height, width)):
        raise ValueError(
            f"noise: expected [N or 1, 1, H', W'] = [{n} or 1, 1, {height}, {width}], got shape {tuple(noise.shape)}"
        )


# ---- the paths ------------------------------------------------------------------------------------------------------


def _reference_layer(p: _Layer) -> Tensor:
    if p.engine == "gemm":
        raise RuntimeError("engine: 'gemm' is impossible: the plain-torch reference was asked for, or runs")
    x = p.x if p.modulated else p.x * p.styles[:, :, None, None]
    y = conv2d_resample(x, p.weight, p.resample_filter, p.up, p.down, p.padding, p.flip_weight, "reference")
    _check_noise(p.noise, y.shape[0], *y.shape[2:])
    if p.demodulate:
        d = (p.styles.square() @ p.weight.square().sum([2, 3]).t() + _EPS).rsqrt()
        y = y * d[:, :, None, None]
    if p.noise is not None:
        y = y + p.noise
    y = activate(y if p.bias is None else y + p.bias.reshape(1, -1, 1, 1), p.settings)
    return y if p.next_styles is None else y * p.next_styles[:, :, None, None]


# Up to how many output channels `_pixelwise_layer` is the quicker one.
_PIXELWISE_CHANNELS = 8


def _is_pixelwise(p: _Layer) -> bool:
    """Whether it is a 1x1 convolution with a bias and nothing else, to few channels."""
    if p.weight.shape[0] > _PIXELWISE_CHANNELS or p.weight.shape[2:] != (1, 1):
        return False
    resampled = p.up != 1 or p.down != 1 or p.resample_filter is not None or p.padding != 0
    finished = p.demodulate or p.noise is not None or not p.settings.is_identity
    neighbours = p.modulated or p.next_styles is not None
    return not (resampled or finished or neighbours) and p.x.numel() > 0


def _pixelwise_layer(p: _Layer) -> Tensor:
    """With few output channels modulated weights cost less than a pass over x."""
    n, c, h, w = p.x.shape
    weights = p.weight[:, :, 0, 0] * p.styles[:, None, :]
    if is_channels_last(p.x):
        pixels = p.x.permute(0, 2, 3, 1).reshape(n, h * w, c).transpose(1, 2)
    else:
        pixels = p.x.reshape(n, c, h * w)
    y = torch.bmm(weights, pixels) if p.bias is None else torch.baddbmm(p.bias[:, None], weights, pixels)
    return y.view(n, p.weight.shape[0], h, w)


def _fused_layer(p: _Layer) -> Tensor:
    channels_last = is_channels_last(p.x)
    if p.x.is_cpu and not on_cuda(p.x) and p.weight.shape[2:] != (1, 1):
        channels_last = prefers_channels_last(p.x, p.weight)
    u = p.x if p.modulated else passes.modulate(p.x, p.styles, channels_last)
    u = conv2d_resample(u, p.weight, p.resample_filter, p.up, p.down, p.padding, p.flip_weight, p.impl)
    _check_noise(p.noise, u.shape[0], *u.shape[2:])
    finish = Epilogue(_demodulation(p), p.noise, p.bias, *p.settings)
    grads = wants_gradients(u, finish.d, finish.noise, finish.bias, p.next_styles)
    if p.next_styles is not None and on_cuda(u):
        scaled: Tensor = passes.epilogue_scaled(p.next_styles, u, *finish, grads)[0]
        return scaled
    if grads:
        u = passes.epilogue(u, *finish)
    else:
        passes.epilogue_(u, *finish)
    return u if p.next_styles is None else passes.modulate(u, p.next_styles, is_channels_last(u))


def _gemm_layer(p: _Layer) -> Tensor:
    pads = conv_padding(p.padding, p.resample_filter, p.up, p.down)
    x, stride, pad = conv_input(p.x, p.weight, p.resample_filter, p.down, pads, p.impl)
    w = p.weight if p.flip_weight else p.weight.flip([2, 3])
    styles = None if p.modulated else p.styles
    finish = Epilogue(_demodulation(p), p.noise, p.bias, *p.settings)
    _check_noise(p.noise, x.shape[0], *out_size(x, w, stride, *pad))
    grads = wants_gradients(x, w, styles, finish.d, finish.noise, finish.bias)
    tensors = x, w, styles, finish.d, finish.noise, finish.bias
    y: Tensor = modulated_gemm(*tensors, stride, *pad, *p.settings, grads, p.engine)[0]
    return y if p.next_styles is None else passes.modulate(y, p.next_styles, is_channels_last(y))


def _demodulation(p: _Layer) -> Tensor | None:
    return _coefficients(p.weight, p.styles) if p.demodulate else None


def _coefficients(weight: Tensor, styles: Tensor) -> Tensor:
    """d [N, C_out]: one kernel on CUDA where no gradient is wanted; differentiable else, in float32 or float64."""
    if on_cuda(weight) and not wants_gradients(weight, styles):
        d: Tensor = passes.demodulate(weight, styles)
        return d
    if weight.dtype in (torch.float16, torch.bfloat16):
        return _coefficients(weight.float(), styles.float()).to(weight.dtype)
    q: Tensor = passes.square_sum(weight)
    return (styles.square() @ q.t()).add_(_EPS).rsqrt_()
