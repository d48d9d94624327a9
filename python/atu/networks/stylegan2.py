"""StyleGAN2 generator and discriminator on the project's ops.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (arXiv 1912.04958) and "Training
Generative Adversarial Networks with Limited Data" (arXiv 2006.06676). Parameter and buffer names are those found in
the public checkpoints of those papers (`mapping.fc0.weight`, `synthesis.b8.conv0.affine.weight`, `b4.out.bias`), so
that such files map one to one.

Shapes: z [N, z_dim], c [N, c_dim], w [N, w_dim], ws [N, num_ws, w_dim], images [N, img_channels, R, R] in [-1, 1].

Under torch.autocast the blocks from 8 x 8 on run in its dtype, and all else in float32, as those papers train: mapping,
styles, 4 x 4, the sum of the images, the discriminator's last layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from atu_ext.ops import (
    activations,
    bias_act,
    conv2d_resample,
    downsample2d,
    modulated_conv2d,
    setup_filter,
    upsample2d,
)
from atu_ext.ops.dispatch import autocast_dtype

NOISE_MODES = ("random", "const", "none")
# Ends of the names of tensors that are no parameters, in both StyleGAN2 and 3.
BUFFERS = ("w_avg", "noise_const", "_filter", "magnitude_ema", "transform", "freqs", "phases")


def normalize_2nd_moment(x: Tensor) -> Tensor:
    """Scale each row of [N, C] to unit mean square."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


def _filter(taps: Sequence[float]) -> Tensor:
    """Resampling filter, with its values even where a network is built on the meta device."""
    with torch.device("cpu"):
        return setup_filter(list(taps))


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
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
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
        self.register_buffer("resample_filter", _filter(resample_filter))
        weight = torch.randn(out_channels, in_channels, kernel_size, kernel_size)
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


class MappingNetwork(nn.Module):
    """z (and label embedding) to w, with the running mean w_avg that truncation needs.

    num_ws None returns w itself (the discriminator's label mapping); z_dim 0 takes no latent.
    """

    w_avg: Tensor

    def __init__(
        self,
        z_dim,
        c_dim,
        w_dim,
        num_ws,
        num_layers=8,
        embed_features=None,
        layer_features=None,
        activation="lrelu",
        lr_multiplier=0.01,
        w_avg_beta: float | None = 0.998,
    ):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.num_ws = z_dim, c_dim, w_dim, num_ws
        self.num_layers, self.w_avg_beta = num_layers, w_avg_beta
        embed_features = (w_dim if embed_features is None else embed_features) if c_dim > 0 else 0
        layer_features = w_dim if layer_features is None else layer_features
        sizes = [z_dim + embed_features] + [layer_features] * (num_layers - 1) + [w_dim]
        if c_dim > 0:
            self.embed = FullyConnectedLayer(c_dim, embed_features)
        for i in range(num_layers):
            layer = FullyConnectedLayer(sizes[i], sizes[i + 1], activation=activation, lr_multiplier=lr_multiplier)
            setattr(self, f"fc{i}", layer)
        if num_ws is not None and w_avg_beta is not None:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(self, z, c=None, truncation_psi=1.0, truncation_cutoff=None, update_w_avg=None) -> Tensor:
        given = c if z is None else z
        with nullcontext() if given is None else without_autocast(given):
            return self._forward(z, c, truncation_psi, truncation_cutoff, update_w_avg)

    def _forward(self, z, c, truncation_psi, truncation_cutoff, update_w_avg) -> Tensor:
        parts = []
        if self.z_dim > 0:
            parts.append(normalize_2nd_moment(z.to(torch.float32)))
        if self.c_dim > 0:
            if c is None:
                raise ValueError(f"c: this GAN is conditional, expected labels [N, {self.c_dim}], got None")
            parts.append(normalize_2nd_moment(self.embed(c.to(torch.float32))))
        x = torch.cat(parts, dim=1)
        for i in range(self.num_layers):
            x = getattr(self, f"fc{i}")(x)
        update = self.training if update_w_avg is None else update_w_avg
        if self.w_avg_beta is not None and update and self.num_ws is not None:
            with torch.no_grad():
                self.w_avg.copy_(x.detach().mean(dim=0).lerp(self.w_avg, self.w_avg_beta))
        if self.num_ws is None:
            return x
        x = x.unsqueeze(1).repeat(1, self.num_ws, 1)
        if truncation_psi != 1:
            if self.w_avg_beta is None:
                raise ValueError(f"truncation_psi: this network keeps no w_avg to truncate to, got {truncation_psi}")
            cut = self.num_ws if truncation_cutoff is None else truncation_cutoff
            x = torch.cat([self.w_avg.lerp(x[:, :cut], truncation_psi), x[:, cut:]], dim=1)
        return x


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
        self.register_buffer("resample_filter", _filter(resample_filter))
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        if use_noise:
            self.register_buffer("noise_const", torch.randn(resolution, resolution))
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
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
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
        self.register_buffer("resample_filter", _filter(resample_filter))
        self.num_conv = 1 if in_channels == 0 else 2
        self.num_torgb = int(is_last or architecture == "skip")
        common = dict(w_dim=w_dim, resolution=resolution, conv_clamp=conv_clamp, **layer_kwargs)
        if in_channels == 0:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
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


def channels_at(resolution: int, channel_base: int, channel_max: int) -> int:
    """Feature maps at a resolution: channel_base / resolution, at most channel_max."""
    return min(channel_base // resolution, channel_max)


def _resolutions(img_resolution: int) -> list[int]:
    log2 = int(math.log2(img_resolution)) if img_resolution > 0 else 0
    if img_resolution < 4 or 2**log2 != img_resolution:
        raise ValueError(f"img_resolution: expected a power of two >= 4, got {img_resolution}")
    return [2**i for i in range(2, log2 + 1)]


def _fp16_from(img_resolution: int, num_fp16_res: int) -> int:
    """Lowest resolution that runs in half precision (never below 8)."""
    return max(2 ** (int(math.log2(img_resolution)) + 1 - num_fp16_res), 8)


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
        self.block_resolutions = _resolutions(img_resolution)
        self.num_ws = 0
        for res in self.block_resolutions:
            block = SynthesisBlock(
                channels_at(res // 2, channel_base, channel_max) if res > 4 else 0,
                channels_at(res, channel_base, channel_max),
                w_dim=w_dim,
                resolution=res,
                img_channels=img_channels,
                is_last=res == img_resolution,
                use_fp16=num_fp16_res > 0 and res >= _fp16_from(img_resolution, num_fp16_res),
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


class MinibatchStdLayer(nn.Module):
    """Append the standard deviation over groups of samples as constant channels.

    A batch that the group size does not divide takes the largest divisor below it.
    """

    def __init__(self, group_size, num_channels=1):
        super().__init__()
        self.group_size, self.num_channels = group_size, num_channels

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        group = n if self.group_size is None else min(self.group_size, n)
        while group > 1 and n % group:
            group -= 1
        y = x.reshape(group, -1, self.num_channels, c // self.num_channels, h, w)
        y = y - y.mean(dim=0)
        y = (y.square().mean(dim=0) + 1e-8).sqrt().mean(dim=[2, 3, 4])
        y = y.reshape(-1, self.num_channels, 1, 1).repeat(group, 1, h, w)
        return torch.cat([x, y], dim=1)


class DiscriminatorBlock(nn.Module):
    """One resolution of the discriminator, halving it."""

    resample_filter: Tensor

    def __init__(
        self,
        in_channels,
        tmp_channels,
        out_channels,
        img_channels,
        architecture="resnet",
        activation="lrelu",
        resample_filter: Sequence[float] = (1, 3, 3, 1),
        conv_clamp=None,
        use_fp16=False,
        first_layer=0,
        freeze_layers=0,
    ):
        super().__init__()
        self.architecture, self.use_fp16 = architecture, use_fp16
        self.register_buffer("resample_filter", _filter(resample_filter))
        common = dict(activation=activation, conv_clamp=conv_clamp)
        self.has_fromrgb = in_channels == 0 or architecture == "skip"
        self.num_layers = 2 + int(self.has_fromrgb) + int(architecture == "resnet")
        trainable = iter([first_layer + i >= freeze_layers for i in range(self.num_layers)])
        if self.has_fromrgb:
            self.fromrgb = Conv2dLayer(img_channels, tmp_channels, 1, trainable=next(trainable), **common)
        self.conv0 = Conv2dLayer(tmp_channels, tmp_channels, 3, trainable=next(trainable), **common)
        resampling: dict[str, Any] = dict(down=2, resample_filter=resample_filter)
        self.conv1 = Conv2dLayer(tmp_channels, out_channels, 3, trainable=next(trainable), **resampling, **common)
        if architecture == "resnet":
            self.skip = Conv2dLayer(tmp_channels, out_channels, 1, bias=False, trainable=next(trainable), **resampling)

    def forward(self, x: Tensor | None, img: Tensor | None, low: torch.dtype | None = None):
        """low: as of `block_dtype`."""
        dtype = block_dtype(low, self.use_fp16, self.conv0.weight.is_cuda)
        x = None if x is None else x.to(dtype)
        if self.has_fromrgb:
            assert img is not None
            y = self.fromrgb(img.to(dtype))
            x = y if x is None else x + y
            img = downsample2d(img, self.resample_filter) if self.architecture == "skip" else None
        if self.architecture == "resnet":
            y = self.skip(x, gain=math.sqrt(0.5))
            x = y + self.conv1(self.conv0(x), gain=math.sqrt(0.5))
        else:
            x = self.conv1(self.conv0(x))
        return x, img


class DiscriminatorEpilogue(nn.Module):
    """4 x 4 features to logits: minibatch deviation, convolution, two linear layers, label projection."""

    def __init__(
        self,
        in_channels,
        cmap_dim,
        resolution,
        img_channels,
        architecture="resnet",
        mbstd_group_size=4,
        mbstd_num_channels=1,
        activation="lrelu",
        conv_clamp=None,
    ):
        super().__init__()
        self.cmap_dim, self.architecture = cmap_dim, architecture
        if architecture == "skip":
            self.fromrgb = Conv2dLayer(img_channels, in_channels, 1, activation=activation)
        self.mbstd = MinibatchStdLayer(mbstd_group_size, mbstd_num_channels) if mbstd_num_channels > 0 else None
        self.conv = Conv2dLayer(
            in_channels + mbstd_num_channels, in_channels, 3, activation=activation, conv_clamp=conv_clamp
        )
        self.fc = FullyConnectedLayer(in_channels * resolution**2, in_channels, activation=activation)
        self.out = FullyConnectedLayer(in_channels, 1 if cmap_dim == 0 else cmap_dim)

    def forward(self, x: Tensor, img: Tensor | None, cmap: Tensor | None) -> Tensor:
        x = x.to(torch.float32)
        if self.architecture == "skip":
            assert img is not None
            x = x + self.fromrgb(img.to(torch.float32))
        if self.mbstd is not None:
            x = self.mbstd(x)
        x = self.out(self.fc(self.conv(x).flatten(1)))
        if self.cmap_dim > 0:
            assert cmap is not None
            x = (x * cmap).sum(dim=1, keepdim=True) / math.sqrt(self.cmap_dim)
        return x


class Discriminator(nn.Module):
    """StyleGAN2 discriminator: images [N, img_channels, R, R] (and labels) to logits [N, 1].

    Args:
        block_kwargs, mapping_kwargs, epilogue_kwargs: of `DiscriminatorBlock` (resample_filter, freeze_layers),
            `MappingNetwork` and `DiscriminatorEpilogue` (mbstd_group_size, mbstd_num_channels). freeze_layers: so many
            layers, from the image on, are buffers and never train (Mo et al., "Freeze the Discriminator").
    """

    def __init__(
        self,
        c_dim,
        img_resolution,
        img_channels,
        architecture="resnet",
        channel_base=32768,
        channel_max=512,
        num_fp16_res=0,
        conv_clamp=None,
        cmap_dim=None,
        activation="lrelu",
        block_kwargs=None,
        mapping_kwargs=None,
        epilogue_kwargs=None,
    ):
        super().__init__()
        self.c_dim, self.img_resolution, self.img_channels = c_dim, img_resolution, img_channels
        self.init_kwargs = dict(
            c_dim=c_dim,
            img_resolution=img_resolution,
            img_channels=img_channels,
            architecture=architecture,
            channel_base=channel_base,
            channel_max=channel_max,
            num_fp16_res=num_fp16_res,
            conv_clamp=conv_clamp,
            cmap_dim=cmap_dim,
            activation=activation,
            block_kwargs=dict(block_kwargs or {}),
            mapping_kwargs=dict(mapping_kwargs or {}),
            epilogue_kwargs=dict(epilogue_kwargs or {}),
        )
        common = dict(
            img_channels=img_channels, architecture=architecture, activation=activation, conv_clamp=conv_clamp
        )
        self.block_resolutions = [res for res in reversed(_resolutions(img_resolution)) if res > 4]
        channels4 = channels_at(4, channel_base, channel_max)
        cmap_dim = 0 if c_dim == 0 else (channels4 if cmap_dim is None else cmap_dim)
        first_layer = 0
        for res in self.block_resolutions:
            channels = channels_at(res, channel_base, channel_max)
            block = DiscriminatorBlock(
                channels if res < img_resolution else 0,
                channels,
                channels_at(res // 2, channel_base, channel_max),
                use_fp16=num_fp16_res > 0 and res >= _fp16_from(img_resolution, num_fp16_res),
                first_layer=first_layer,
                **{**common, **(block_kwargs or {})},
            )
            setattr(self, f"b{res}", block)
            first_layer += block.num_layers
        if c_dim > 0:
            self.mapping = MappingNetwork(0, c_dim, cmap_dim, None, w_avg_beta=None, **(mapping_kwargs or {}))
        self.b4 = DiscriminatorEpilogue(channels4, cmap_dim, 4, **{**common, **(epilogue_kwargs or {})})

    def forward(self, img: Tensor, c: Tensor | None = None) -> Tensor:
        shape = (self.img_channels, self.img_resolution, self.img_resolution)
        if img.ndim != 4 or tuple(img.shape[1:]) != shape:
            raise ValueError(f"img: expected [N, {shape[0]}, {shape[1]}, {shape[2]}], got {list(img.shape)}")
        low = autocast_dtype(img)
        with without_autocast(img):
            return self._forward(img, c, low)

    def _forward(self, img: Tensor, c: Tensor | None, low: torch.dtype | None) -> Tensor:
        x: Tensor | None = None
        rest: Tensor | None = img
        for res in self.block_resolutions:
            x, rest = getattr(self, f"b{res}")(x, rest, low)
        cmap = self.mapping(None, c) if self.c_dim > 0 else None
        if x is None:
            raise ValueError(f"img_resolution: the discriminator needs at least 8, got {self.img_resolution}")
        return self.b4(x, rest, cmap)
