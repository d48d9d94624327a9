"""Two small convolutional image classifiers: one that answers, and one of another kind that judges it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def _block(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]


def _channels_last(x: Tensor) -> Tensor:
    """A pixel's channels side by side: on a CPU these networks take half to three quarters of the time."""
    return x.contiguous(memory_format=torch.channels_last)


class ConvClassifier(nn.Module):
    """Images [N, img_channels, R, R] to logits [N, num_classes]; R is halved three times.

    Args:
        img_resolution: R, a multiple of 8. widths: channels of the five convolutions. num_features: of the
            penultimate layer.

    Raises:
        ValueError: on a resolution that is no multiple of 8.
    """

    def __init__(
        self,
        num_classes: int,
        img_resolution: int = 32,
        img_channels: int = 1,
        widths: Sequence[int] = (24, 48, 48, 96, 64),
        num_features: int = 64,
    ):
        super().__init__()
        if img_resolution < 8 or img_resolution % 8:
            raise ValueError(f"img_resolution: expected a multiple of 8, got {img_resolution}")
        self.init_kwargs = dict(
            num_classes=num_classes,
            img_resolution=img_resolution,
            img_channels=img_channels,
            widths=list(widths),
            num_features=num_features,
        )
        self.img_resolution, self.img_channels, self.num_features = img_resolution, img_channels, num_features
        strides = (1, 2, 1, 2, 2)
        layers: list[nn.Module] = []
        for before, after, stride in zip([img_channels, *widths[:-1]], widths, strides, strict=True):
            layers += _block(before, after, stride)
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.neck = nn.Sequential(
            nn.Linear(widths[-1] * (img_resolution // 8) ** 2, num_features, bias=False),
            nn.BatchNorm1d(num_features),
            nn.ReLU(),
        )
        self.head = nn.Linear(num_features, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Penultimate layer, [N, num_features]."""
        return self.neck(self.body(_channels_last(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class _Residual(nn.Module):
    """Two 3 x 3 convolutions beside a 1 x 1 one, group normalisation before each of the two."""

    def __init__(self, in_channels: int, out_channels: int, groups: int = 8):
        super().__init__()
        self.path = nn.Sequential(
            nn.GroupNorm(groups, in_channels),
            nn.GELU(),
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.GroupNorm(groups, out_channels),
            nn.GELU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        )
        self.skip = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.path(x)


class ResidualClassifier(nn.Module):
    """Images [N, img_channels, R, R] to logits [N, num_classes]: a 5 x 5 convolution, then residual blocks with max
    pooling before each, group normalisation and GELU; mean and maximum over space go into the penultimate layer.

    Args:
        img_resolution: R, halved once a block. widths: channels of the first convolution and of each block, multiples
            of 8. num_features: of the penultimate layer.

    Raises:
        ValueError: on a resolution that cannot be halved that often.
    """

    def __init__(
        self,
        num_classes: int,
        img_resolution: int = 32,
        img_channels: int = 1,
        widths: Sequence[int] = (24, 40, 56, 72),
        num_features: int = 64,
    ):
        super().__init__()
        least = 2 ** (len(widths) - 1)
        if img_resolution < least:
            raise ValueError(f"img_resolution: expected at least {least}, got {img_resolution}")
        self.init_kwargs = dict(
            num_classes=num_classes,
            img_resolution=img_resolution,
            img_channels=img_channels,
            widths=list(widths),
            num_features=num_features,
        )
        self.img_resolution, self.img_channels, self.num_features = img_resolution, img_channels, num_features
        layers: list[nn.Module] = [nn.Conv2d(img_channels, widths[0], 5, padding=2)]
        for before, after in pairwise(widths):
            layers += [nn.MaxPool2d(2), _Residual(before, after)]
        self.body = nn.Sequential(*layers, nn.GroupNorm(8, widths[-1]), nn.GELU())
        self.neck = nn.Sequential(nn.Linear(2 * widths[-1], num_features), nn.GELU())
        self.head = nn.Linear(num_features, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Penultimate layer, [N, num_features]."""
        maps = self.body(_channels_last(x))
        return self.neck(torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class _Strided(nn.Module):
    """Two convolutions with group norm at half the resolution, beside an average and a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.skip = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.body = nn.Sequential(
            nn.GroupNorm(4, in_channels),
            nn.SiLU(),
            nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False),
            nn.GroupNorm(4, out_channels),
            nn.SiLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(nn.functional.avg_pool2d(x, 2)) + self.body(x)


class StridedClassifier(nn.Module):
    """Images [N, img_channels, R, R] to logits [N, num_classes]: residual blocks, each of half the resolution before.

    Unlike `ResidualClassifier` it keeps where things are: the last maps go into the penultimate layer whole.

    Args:
        img_resolution: R, a multiple of 2^blocks. widths: channels of the first convolution and of each block,
            multiples of 4. num_features: of the penultimate layer.

    Raises:
        ValueError: on a resolution that cannot be halved so often.
    """

    def __init__(
        self,
        num_classes: int,
        img_resolution: int = 64,
        img_channels: int = 3,
        widths: Sequence[int] = (16, 32, 48, 40),
        num_features: int = 96,
    ):
        super().__init__()
        factor = 2 ** (len(widths) - 1)
        if img_resolution < factor or img_resolution % factor:
            raise ValueError(f"img_resolution: expected a multiple of {factor}, got {img_resolution}")
        self.init_kwargs = dict(
            num_classes=num_classes,
            img_resolution=img_resolution,
            img_channels=img_channels,
            widths=list(widths),
            num_features=num_features,
        )
        self.img_resolution, self.img_channels, self.num_features = img_resolution, img_channels, num_features
        self.body = nn.Sequential(
            nn.Conv2d(img_channels, widths[0], 3, padding=1),
            *(_Strided(before, after) for before, after in pairwise(widths)),
            nn.GroupNorm(4, widths[-1]),
            nn.SiLU(),
            nn.Flatten(),
        )
        self.neck = nn.Sequential(nn.Linear(widths[-1] * (img_resolution // factor) ** 2, num_features), nn.SiLU())
        self.head = nn.Linear(num_features, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Penultimate layer, [N, num_features]."""
        return self.neck(self.body(_channels_last(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
