"""StyleGAN3 generator (configurations T and R) on the project's ops.

Source: Karras et al., "Alias-Free Generative Adversarial Networks" (arXiv 2106.12423). Parameter and buffer names
follow the public checkpoints (`synthesis.input.freqs`, `synthesis.L0_36_512.affine.weight`, `mapping.fc0.weight`).

Shapes: z [N, z_dim], c [N, c_dim], ws [N, num_ws, w_dim], images [N, img_channels, R, R].

Under torch.autocast the synthesis layers run in its dtype, mapping, Fourier features, styles and magnitudes in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atu_ext.ops import modulated_conv2d
from atu_ext.ops.dispatch import autocast_dtype

from .filtered_lrelu import filtered_lrelu, lowpass_filter
from .stylegan2 import NOISE_MODES, FullyConnectedLayer, MappingNetwork, block_dtype, without_autocast

MAX_TAPS = 256  # of a resampling filter; the published networks have 12 to 24


class SynthesisInput(nn.Module):
    """Fourier features of a translated and rotated grid, mixed by a learned matrix (section 3.1)."""

    transform: Tensor
    freqs: Tensor
    phases: Tensor

    def __init__(self, w_dim: int, channels: int, size: int, sampling_rate: float, bandwidth: float):
        super().__init__()
        self.w_dim, self.channels, self.size = w_dim, channels, size
        self.sampling_rate, self.bandwidth = sampling_rate, bandwidth
        freqs = torch.randn(channels, 2)
        radii = freqs.square().sum(dim=1, keepdim=True).sqrt()
        freqs = freqs / (radii * radii.square().exp().pow(0.25)) * bandwidth  # uniform on the disc
        self.weight = nn.Parameter(torch.randn(channels, channels))
        self.affine = FullyConnectedLayer(w_dim, 4)  # begins at no rotation and no translation
        self.affine.load_state_dict({"weight": torch.zeros(4, w_dim), "bias": torch.eye(4)[0]}, assign=True)
        self.register_buffer("transform", torch.eye(3))
        self.register_buffer("freqs", freqs)
        self.register_buffer("phases", torch.rand(channels) - 0.5)

    def forward(self, w: Tensor) -> Tensor:
        t = self.affine(w)  # cosine and sine of a rotation, then a translation
        t = t / t[:, :2].norm(dim=1, keepdim=True)
        cos, sin, tx, ty = t.unbind(dim=1)
        one, zero = torch.ones_like(cos), torch.zeros_like(cos)
        rotation = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], dim=1).reshape(-1, 3, 3)
        translation = torch.stack([one, zero, -tx, zero, one, -ty, zero, zero, one], dim=1).reshape(-1, 3, 3)
        transform = rotation @ translation @ self.transform.unsqueeze(0)
        phases = self.phases.unsqueeze(0) + (self.freqs.unsqueeze(0) @ transform[:, :2, 2:]).squeeze(2)
        freqs = self.freqs.unsqueeze(0) @ transform[:, :2, :2]  # [N, C, 2]
        # Frequencies that the transform moves past the band are faded out.
        fade = 1 - (freqs.norm(dim=2) - self.bandwidth) / (self.sampling_rate / 2 - self.bandwidth)
        x = self._grid(w.device) @ freqs.transpose(1, 2).unsqueeze(1)  # [1, H, W, 2] by [N, 1, 2, C]
        x = torch.sin((x + phases[:, None, None]) * (2 * math.pi)) * fade.clamp(0, 1)[:, None, None]
        return (x @ (self.weight / math.sqrt(self.channels)).t()).permute(0, 3, 1, 2)

    def _grid(self, device: torch.device) -> Tensor:
        """Sample positions [1, H, W, 2], x first, in units of the image."""
        position = (torch.arange(self.size, device=device) * 2 + 1) / self.size - 1
        position = position * (0.5 * self.size / self.sampling_rate)
        x, y = torch.meshgrid(position, position, indexing="xy")
        return torch.stack([x, y], dim=2).unsqueeze(0)


@dataclass(frozen=True)
class LayerRates:
    """What one end of a layer works at: size and sampling rate in pixels, cutoff and half transition width."""

    size: int
    sampling_rate: int
    cutoff: float
    half_width: float


class SynthesisLayer(nn.Module):
    """Modulated convolution with input-magnitude normalisation, then the filtered leaky ReLU (section 3.2)."""

    magnitude_ema: Tensor
    up_filter: Tensor | None
    down_filter: Tensor | None

    def __init__(
        self,
        w_dim: int,
        is_torgb: bool,
        is_critically_sampled: bool,
        use_fp16: bool,
        in_channels: int,
        out_channels: int,
        before: LayerRates,
        after: LayerRates,
        conv_kernel: int = 3,
        filter_size: int = 6,
        lrelu_upsampling: int = 2,
        use_radial_filters: bool = False,
        conv_clamp: float | None = 256,
        magnitude_ema_beta: float = 0.999,
    ):
        super().__init__()
        self.is_torgb, self.use_fp16, self.conv_clamp = is_torgb, use_fp16, conv_clamp
        self.in_channels, self.in_size, self.out_size = in_channels, before.size, after.size
        self.magnitude_ema_beta = magnitude_ema_beta
        self.kernel = kernel = 1 if is_torgb else conv_kernel
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("magnitude_ema", torch.ones([]))
        rate = max(before.sampling_rate, after.sampling_rate) * (1 if is_torgb else lrelu_upsampling)
        self.up, up_taps = _resampling(rate, before.sampling_rate, filter_size, is_torgb)
        self.down, down_taps = _resampling(rate, after.sampling_rate, filter_size, is_torgb)
        radial = use_radial_filters and not is_critically_sampled
        self.register_buffer("up_filter", lowpass_filter(up_taps, before.cutoff, before.half_width * 2, rate))
        self.register_buffer("down_filter", lowpass_filter(down_taps, after.cutoff, after.half_width * 2, rate, radial))
        # Padding that leaves the wanted size after the filters; samples sit at pixel centres (appendix C.3).
        total = (after.size - 1) * self.down + 1 - (before.size + kernel - 1) * self.up + up_taps + down_taps - 2
        low = (total + self.up) // 2
        self.padding = [low, total - low] * 2

    def forward(self, x: Tensor, w: Tensor, update_emas: bool = False, low: torch.dtype | None = None) -> Tensor:
        """low: as of `block_dtype`."""
        if update_emas:
            with torch.no_grad():
                magnitude = x.detach().to(torch.float32).square().mean()
                self.magnitude_ema.copy_(magnitude.lerp(self.magnitude_ema, self.magnitude_ema_beta))
        styles: Tensor = self.affine(w)
        weight: Tensor = self.weight
        if self.is_torgb:
            styles = styles / math.sqrt(self.in_channels * self.kernel**2)
        else:
            weight = weight * weight.square().mean([1, 2, 3], keepdim=True).rsqrt()
            styles = styles * styles.square().mean().rsqrt()
        dtype = block_dtype(low, self.use_fp16, x.is_cuda)
        # The input gain multiplies the image, not the styles, so that demodulation does not cancel it.
        x = (x * self.magnitude_ema.rsqrt()).to(dtype)
        x = modulated_conv2d(
            x,
            weight.to(dtype),
            styles.to(dtype),
            padding=self.kernel - 1,
            demodulate=not self.is_torgb,
            bias=self.bias.to(dtype),
        )
        return filtered_lrelu(
            x,
            self.up_filter,
            self.down_filter,
            None,
            up=self.up,
            down=self.down,
            padding=self.padding,
            gain=1 if self.is_torgb else math.sqrt(2),
            slope=1 if self.is_torgb else 0.2,
            clamp=self.conv_clamp,
        )


def _resampling(rate: int, at: int, filter_size: int, is_torgb: bool) -> tuple[int, int]:
    """Factor between two sampling rates, and the taps of the filter for it."""
    factor = int(np.rint(rate / at))
    if at * factor != rate:
        raise ValueError(f"sampling rates: expected multiples, got {rate} and {at}")
    taps = filter_size * factor if factor > 1 and not is_torgb else 1
    if taps > MAX_TAPS:  # a radial filter has their square
        raise ValueError(
            f"filter_size {filter_size} at {factor} times the rate: expected at most {MAX_TAPS} taps, got {taps}"
        )
    return factor, taps


class SynthesisNetwork(nn.Module):
    """ws to images: Fourier features, `num_layers` layers of rising bandwidth, and the image output."""

    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        channel_base: int = 32768,
        channel_max: int = 512,
        num_layers: int = 14,
        num_critical: int = 2,
        first_cutoff: float = 2,
        first_stopband: float = 2**2.1,
        last_stopband_rel: float = 2**0.3,
        margin_size: int = 10,
        output_scale: float = 0.25,
        num_fp16_res: int = 4,
        **layer_kwargs: Any,
    ):
        super().__init__()
        self.w_dim, self.num_ws = w_dim, num_layers + 2
        self.img_resolution, self.img_channels, self.output_scale = img_resolution, img_channels, output_scale
        # Geometric progressions of cutoffs and least stopbands, flat over the critically sampled layers (section 3.2).
        last_cutoff = img_resolution / 2
        exponents = np.minimum(np.arange(num_layers + 1) / (num_layers - num_critical), 1)
        cutoffs = first_cutoff * (last_cutoff / first_cutoff) ** exponents
        stopbands = first_stopband * (last_cutoff * last_stopband_rel / first_stopband) ** exponents
        rates = np.exp2(np.ceil(np.log2(np.minimum(stopbands * 2, img_resolution))))
        half_widths = np.maximum(stopbands, rates / 2) - cutoffs
        sizes = rates + margin_size * 2
        sizes[-2:] = img_resolution
        channels = np.rint(np.minimum((channel_base / 2) / cutoffs, channel_max))
        channels[-1] = img_channels
        ends = [
            LayerRates(int(size), int(rate), float(cutoff), float(width))
            for size, rate, cutoff, width in zip(sizes, rates, cutoffs, half_widths, strict=True)
        ]
        first = ends[0]
        self.input = SynthesisInput(w_dim, int(channels[0]), first.size, float(rates[0]), first.cutoff)
        self.layer_names = []
        for i, after in enumerate(ends):
            before = max(i - 1, 0)
            layer = SynthesisLayer(
                w_dim,
                is_torgb=i == num_layers,
                is_critically_sampled=i >= num_layers - num_critical,
                use_fp16=bool(rates[i] * 2**num_fp16_res > img_resolution),
                in_channels=int(channels[before]),
                out_channels=int(channels[i]),
                before=ends[before],
                after=after,
                **layer_kwargs,
            )
            name = f"L{i}_{after.size}_{int(channels[i])}"
            setattr(self, name, layer)
            self.layer_names.append(name)

    def forward(self, ws: Tensor, noise_mode: str = "random", update_emas: bool = False) -> Tensor:
        if noise_mode not in NOISE_MODES:
            raise ValueError(f"noise_mode: expected one of {', '.join(NOISE_MODES)}, got {noise_mode!r}")
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(f"ws: expected [N, {self.num_ws}, {self.w_dim}], got {list(ws.shape)}")
        low = autocast_dtype(ws)
        with without_autocast(ws):
            first, *rest = ws.to(torch.float32).unbind(dim=1)
            x = self.input(first)
            for name, w in zip(self.layer_names, rest, strict=True):
                x = getattr(self, name)(x, w, update_emas, low)
            return (x * self.output_scale).to(torch.float32)


class Generator(nn.Module):
    """StyleGAN3 generator.

    Args:
        z_dim, w_dim: latent sizes. c_dim: label size, 0 for an unconditional GAN.
        mapping_kwargs: num_layers (default 2), lr_multiplier, w_avg_beta.
        synthesis_kwargs: of `SynthesisNetwork` and `SynthesisLayer`. Configuration T is the default; R has
            conv_kernel=1, channel_base=65536, channel_max=1024 and use_radial_filters=True.

    It takes no noise; `noise_mode` is checked and has no effect, so that it can stand in for a StyleGAN2 generator.
    """

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        mapping_kwargs: dict[str, Any] | None = None,
        **synthesis_kwargs: Any,
    ):
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
            **synthesis_kwargs,
        )
        self.synthesis = SynthesisNetwork(w_dim, img_resolution, img_channels, **synthesis_kwargs)
        self.num_ws = self.synthesis.num_ws
        options = {"num_layers": 2, **(mapping_kwargs or {})}
        self.mapping = MappingNetwork(z_dim, c_dim, w_dim, self.num_ws, **options)

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        noise_mode: str = "random",
        update_emas: bool | None = None,
    ) -> Tensor:
        """Images [N, img_channels, R, R]; update_emas tracks w_avg and magnitudes (default: in training mode)."""
        update = self.training if update_emas is None else update_emas
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff, update_w_avg=update)
        return self.synthesis(ws, noise_mode, update)
