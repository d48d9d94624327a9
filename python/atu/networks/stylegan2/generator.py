"""StyleGAN2's synthesis network, and the generator."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from atu_ext.ops import activations, modulated_conv2d, upsample2d
from atu_ext.ops.dispatch import autocast_dtype

from .layers import (
    Conv2dLayer,
    FullyConnectedLayer,
    block_dtype,
    channels_at,
    filter_of,
    fp16_from,
    normal,
    resolutions_to,
    without_autocast,
)
from .mapping import MappingNetwork

NOISE_MODES = ("random", "const", "none")


class SynthesisLayer(nn.Module):
    """Modulated convolution, noise, bias and activation.

    given_noise: maps [N, 1, R, R] to take in place of drawn ones.
    """

    given_noise: Tensor | None = None

    resample_filter: Tensor
    noise_const: Tensor

    def __init__(
        self,
        in_channels,
        out_channels,
        w_dim,
        resolution,
        kernel_size=3,
        up=1,
        use_noise=True,
        activation="lrelu",
        resample_filter: Sequence[float] = (1, 3, 3, 1),
        conv_clamp=None,
    ):
        super().__init__()
        self.resolution, self.up, self.use_noise = resolution, up, use_noise
        self.activation, self.conv_clamp = activation, conv_clamp
        self.act_gain = activations[activation].def_gain
        self.padding = kernel_size // 2
        self.register_buffer("resample_filter", filter_of(resample_filter))
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(normal(out_channels, in_channels, kernel_size, kernel_size))
        if use_noise:
            self.register_buffer("noise_const", normal(resolution, resolution))
            self.noise_strength = nn.Parameter(torch.zeros([]))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def _noise(self, x: Tensor, noise_mode: str) -> Tensor | None:
        if not self.use_noise or noise_mode == "none":
            return None
        if self.given_noise is not None:
            return (self.given_noise * self.noise_strength).to(x.dtype)
        if noise_mode == "const":
            noise = self.noise_const * self.noise_strength
            return noise[None, None].to(x.dtype)
        shape = [x.shape[0], 1, self.resolution, self.resolution]
        return (torch.randn(shape, device=x.device) * self.noise_strength).to(x.dtype)

    def styles(self, w: Tensor, dtype: torch.dtype) -> Tensor:
        """[N, C_in] by which the layer's input is multiplied."""
        styles: Tensor = self.affine(w)
        if dtype == torch.float16:
            # Demodulation cancels this scale and the weight's; without them the products overflow half precision.
            styles = styles / styles.abs().amax(dim=1, keepdim=True)
        return styles.to(dtype)

    def forward(
        self,
        x: Tensor,
        w: Tensor,
        noise_mode: str = "random",
        gain: float = 1.0,
        modulated_by: Tensor | None = None,
        next_styles: Tensor | None = None,
    ) -> Tensor:
        """modulated_by: this layer's `styles`, where x is multiplied by them already; next_styles: those of the next
        layer, to multiply the output by."""
        weight: Tensor = self.weight
        if x.dtype == torch.float16:
            peak = weight.abs().amax(dim=[1, 2, 3], keepdim=True)
            weight = weight / (peak * math.sqrt(weight[0].numel()))
        return modulated_conv2d(
            x,
            weight.to(x.dtype),
            self.styles(w, x.dtype) if modulated_by is None else modulated_by,
            noise=self._noise(x, noise_mode),
            up=self.up,
            padding=self.padding,
            resample_filter=self.resample_filter if self.up > 1 else None,
            flip_weight=self.up == 1,
            bias=self.bias.to(x.dtype),
            act=self.activation,
            gain=self.act_gain * gain,
            clamp=None if self.conv_clamp is None else self.conv_clamp * gain,
            modulated=modulated_by is not None,
            next_styles=next_styles,
        )


class ToRGBLayer(nn.Module):
    """1x1 modulated convolution to image channels, without demodulation."""

    def __init__(self, in_channels, out_channels, w_dim, kernel_size=1, conv_clamp=None):
        super().__init__()
        self.conv_clamp = conv_clamp
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(normal(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        styles = (self.affine(w) * self.weight_gain).to(x.dtype)
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return modulated_conv2d(x, weight, styles, demodulate=False, bias=bias, clamp=self.conv_clamp)


class SynthesisBlock(nn.Module):
    """One resolution: constant or upsampling layer, a second layer, and the image output."""

    resample_filter: Tensor

    def __init__(
        self,
        in_channels,
        out_channels,
        w_dim,
        resolution,
        img_channels,
        is_last,
        architecture="skip",
        resample_filter: Sequence[float] = (1, 3, 3, 1),
        conv_clamp=None,
        use_fp16=False,
        **layer_kwargs,
    ):
        super().__init__()
        self.architecture, self.is_last, self.use_fp16 = architecture, is_last, use_fp16
        self.register_buffer("resample_filter", filter_of(resample_filter))
        self.num_conv = 1 if in_channels == 0 else 2
        self.num_torgb = int(is_last or architecture == "skip")
        common = dict(w_dim=w_dim, resolution=resolution, conv_clamp=conv_clamp, **layer_kwargs)
        if in_channels == 0:
            self.const = nn.Parameter(normal(out_channels, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(in_channels, out_channels, up=2, resample_filter=resample_filter, **common)
        self.conv1 = SynthesisLayer(out_channels, out_channels, **common)  # does not resample
        if self.num_torgb:
            self.torgb = ToRGBLayer(out_channels, img_channels, w_dim, conv_clamp=conv_clamp)
        if in_channels != 0 and architecture == "resnet":
            self.skip = Conv2dLayer(
                in_channels, out_channels, kernel_size=1, bias=False, up=2, resample_filter=resample_filter
            )

    def _layers(self, x: Tensor, w0: Tensor, w1: Tensor, noise_mode: str, gain: float = 1.0) -> Tensor:
        """Both layers. Nothing else reads what is between them, so on CUDA, where that saves a pass over it, the first
        multiplies it by the second's styles."""
        styles = self.conv1.styles(w1, x.dtype) if x.is_cuda else None
        x = self.conv0(x, w0, noise_mode, next_styles=styles)
        return self.conv1(x, w1, noise_mode, gain, modulated_by=styles)

    def forward(
        self,
        x: Tensor | None,
        img: Tensor | None,
        ws: Tensor,
        noise_mode: str = "random",
        low: torch.dtype | None = None,
    ):
        """low: as of `block_dtype`."""
        w = iter(ws.unbind(dim=1))
        dtype = block_dtype(low, self.use_fp16, ws.is_cuda)
        if x is None:
            x = self.const.to(dtype).unsqueeze(0).repeat(ws.shape[0], 1, 1, 1)
            x = self.conv1(x, next(w), noise_mode)
        elif self.architecture == "resnet":
            x = x.to(dtype)
            y = self.skip(x, gain=math.sqrt(0.5))
            x = y + self._layers(x, next(w), next(w), noise_mode, gain=math.sqrt(0.5))
        else:
            x = self._layers(x.to(dtype), next(w), next(w), noise_mode)
        if img is not None:
            img = upsample2d(img, self.resample_filter)
        if self.num_torgb:
            y = self.torgb(x, next(w)).to(torch.float32)
            img = y if img is None else img + y
        return x, img


class SynthesisNetwork(nn.Module):
    """ws to images, from a learned constant at 4 x 4."""

    def __init__(
        self,
        w_dim,
        img_resolution,
        img_channels,
        channel_base=32768,
        channel_max=512,
        num_fp16_res=0,
        **block_kwargs,
    ):
        super().__init__()
        self.w_dim, self.img_resolution, self.img_channels = w_dim, img_resolution, img_channels
        self.block_resolutions = resolutions_to(img_resolution)
        self.num_ws = 0
        for res in self.block_resolutions:
            block = SynthesisBlock(
                channels_at(res // 2, channel_base, channel_max) if res > 4 else 0,
                channels_at(res, channel_base, channel_max),
                w_dim=w_dim,
                resolution=res,
                img_channels=img_channels,
                is_last=res == img_resolution,
                use_fp16=num_fp16_res > 0 and res >= fp16_from(img_resolution, num_fp16_res),
                **block_kwargs,
            )
            self.num_ws += block.num_conv + (block.num_torgb if block.is_last else 0)
            setattr(self, f"b{res}", block)

    def forward(self, ws: Tensor, noise_mode: str = "random") -> Tensor:
        if noise_mode not in NOISE_MODES:
            raise ValueError(f"noise_mode: expected one of {', '.join(NOISE_MODES)}, got {noise_mode!r}")
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(f"ws: expected [N, {self.num_ws}, {self.w_dim}], got {list(ws.shape)}")
        low = autocast_dtype(ws)
        with without_autocast(ws):
            return self._forward(ws.to(torch.float32), noise_mode, low)

    def _forward(self, ws: Tensor, noise_mode: str, low: torch.dtype | None) -> Tensor:
        x: Tensor | None = None
        img: Tensor | None = None
        first = 0
        for res in self.block_resolutions:
            block = getattr(self, f"b{res}")
            part = ws.narrow(1, first, block.num_conv + block.num_torgb)
            x, img = block(x, img, part, noise_mode, low if res >= 8 else None)
            first += block.num_conv
        assert img is not None
        return img


class Generator(nn.Module):
    """StyleGAN2 generator.

    Args:
        z_dim, w_dim: latent sizes. c_dim: label size, 0 for an unconditional GAN.
        img_resolution: power of two from 4. img_channels: 1, 3, ...
        mapping_kwargs: of `MappingNetwork`; synthesis_kwargs: of `SynthesisNetwork` and `SynthesisBlock`
            (channel_base, channel_max, num_fp16_res, architecture "skip"|"resnet"|"orig", conv_clamp,
            resample_filter, use_noise, activation).

    Raises:
        ValueError: on a resolution that is no power of two, or an unknown noise mode.
    """

    def __init__(self, z_dim, c_dim, w_dim, img_resolution, img_channels, mapping_kwargs=None, synthesis_kwargs=None):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim = z_dim, c_dim, w_dim
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.init_kwargs = dict(
            z_dim=z_dim,
            c_dim=c_dim,
            w_dim=w_dim,
            img_resolution=img_resolution,
            img_channels=img_channels,
            mapping_kwargs=dict(mapping_kwargs or {}),
            synthesis_kwargs=dict(synthesis_kwargs or {}),
        )
        self.synthesis = SynthesisNetwork(w_dim, img_resolution, img_channels, **(synthesis_kwargs or {}))
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(z_dim, c_dim, w_dim, self.num_ws, **(mapping_kwargs or {}))

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        noise_mode: str = "random",
    ) -> Tensor:
        return self.synthesis(self.mapping(z, c, truncation_psi, truncation_cutoff), noise_mode)
