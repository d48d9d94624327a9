"""Layers that StyleGAN2's generator and discriminator share, and how their sizes follow from the resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from atu_ext.ops import activations, bias_act, conv2d_resample, setup_filter

# Ends of the names of tensors that are no parameters, in both StyleGAN2 and 3.
BUFFERS = ("w_avg", "noise_const", "_filter", "magnitude_ema", "transform", "freqs", "phases")


def filter_of(taps: Sequence[float]) -> Tensor:
    """Resampling filter, with its values even where a network is built on the meta device."""
    with torch.device("cpu"):
        return setup_filter(list(taps))


def normal(*shape: int, over: float = 1.0) -> Tensor:
    """Values of unit variance, over a number. On the meta device, where a network is built to be filled, just their
    shape: there torch would load its compiler for them, which takes longer than all else of loading."""
    if torch.get_default_device().type == "meta":
        return torch.empty(shape)
    return torch.randn(shape) / over


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Where torch.autocast is on for x: a block without it."""
    device = "cpu" if x.is_cpu else "cuda"
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def block_dtype(low: torch.dtype | None, use_fp16: bool, is_cuda: bool) -> torch.dtype:
    """What a block runs in: `low`, where torch.autocast asks for it, else as the network was built."""
    if low is not None:
        return low
    return torch.float16 if use_fp16 and is_cuda else torch.float32


class FullyConnectedLayer(nn.Module):
    """Equalised linear layer: weights of unit variance, scaled at run time."""

    def __init__(self, in_features, out_features, bias=True, activation="linear", lr_multiplier=1.0, bias_init=0.0):
        super().__init__()
        self.activation = activation
        self.weight = nn.Parameter(normal(out_features, in_features, over=lr_multiplier))
        self.bias = nn.Parameter(torch.full([out_features], float(bias_init) / lr_multiplier)) if bias else None
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight.to(x.dtype) * self.weight_gain
        b = None if self.bias is None else self.bias.to(x.dtype)
        if b is not None and self.bias_gain != 1:
            b = b * self.bias_gain
        if self.activation == "linear":
            return torch.nn.functional.linear(x, w, b)
        return bias_act(x @ w.t(), b, act=self.activation)


class Conv2dLayer(nn.Module):
    """Equalised convolution with FIR resampling, bias, activation and clamp."""

    weight: Tensor
    bias: Tensor | None
    resample_filter: Tensor

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        bias=True,
        activation="linear",
        up=1,
        down=1,
        resample_filter: Sequence[float] = (1, 3, 3, 1),
        conv_clamp=None,
        trainable=True,
    ):
        super().__init__()
        self.activation, self.up, self.down, self.conv_clamp = activation, up, down, conv_clamp
        self.padding = kernel_size // 2
        self.register_buffer("resample_filter", filter_of(resample_filter))
        weight = normal(out_channels, in_channels, kernel_size, kernel_size)
        for name, value in (("weight", weight), ("bias", torch.zeros(out_channels) if bias else None)):
            if trainable:
                self.register_parameter(name, None if value is None else nn.Parameter(value))
            else:
                self.register_buffer(name, value)  # frozen for good: no optimiser sees it
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.act_gain = activations[activation].def_gain

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        w = (self.weight * self.weight_gain).to(x.dtype)
        b = None if self.bias is None else self.bias.to(x.dtype)
        f = self.resample_filter if self.up > 1 or self.down > 1 else None
        x = conv2d_resample(x, w, f, self.up, self.down, self.padding, flip_weight=self.up == 1)
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return bias_act(x, b, act=self.activation, gain=self.act_gain * gain, clamp=clamp)


def channels_at(resolution: int, channel_base: int, channel_max: int) -> int:
    """Feature maps at a resolution: channel_base / resolution, at most channel_max."""
    return min(channel_base // resolution, channel_max)


def resolutions_to(img_resolution: int) -> list[int]:
    log2 = int(math.log2(img_resolution)) if img_resolution > 0 else 0
    if img_resolution < 4 or 2**log2 != img_resolution:
        raise ValueError(f"img_resolution: expected a power of two >= 4, got {img_resolution}")
    return [2**i for i in range(2, log2 + 1)]


def fp16_from(img_resolution: int, num_fp16_res: int) -> int:
    """Lowest resolution that runs in half precision (never below 8)."""
    return max(2 ** (int(math.log2(img_resolution)) + 1 - num_fp16_res), 8)
