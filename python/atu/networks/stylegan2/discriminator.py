"""StyleGAN2's discriminator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atu_ext.ops import downsample2d
from atu_ext.ops.dispatch import autocast_dtype

from .layers import (
    Conv2dLayer,
    FullyConnectedLayer,
    block_dtype,
    channels_at,
    filter_of,
    fp16_from,
    resolutions_to,
    without_autocast,
)
from .mapping import MappingNetwork


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
        self.register_buffer("resample_filter", filter_of(resample_filter))
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
        self.block_resolutions = [res for res in reversed(resolutions_to(img_resolution)) if res > 4]
        channels4 = channels_at(4, channel_base, channel_max)
        cmap_dim = 0 if c_dim == 0 else (channels4 if cmap_dim is None else cmap_dim)
        first_layer = 0
        for res in self.block_resolutions:
            channels = channels_at(res, channel_base, channel_max)
            block = DiscriminatorBlock(
                channels if res < img_resolution else 0,
                channels,
                channels_at(res // 2, channel_base, channel_max),
                use_fp16=num_fp16_res > 0 and res >= fp16_from(img_resolution, num_fp16_res),
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
