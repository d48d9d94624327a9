"""How a network sees the GAN's images: its size, channels and range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.images import map_range
from ..gan import GAN
from .spec import OPTIONS, Spec

Shape = tuple[int | None, int | None, int | None]
GREY = (0.299, 0.587, 0.114)  # of red, green and blue, as Pillow has it


@dataclass(frozen=True)
class View:
    """How a network sees the GAN's images: size (H, W) or None, channels, range, and mean and std in it."""

    source: tuple[float, float]
    size: tuple[int, int] | None
    channels: int | None
    target: tuple[float, float]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    mode: str = "bilinear"

    def __call__(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] in the GAN's range, as the network takes them; scaled with every pixel counting
        (antialiased)."""
        x = map_range(x, self.source, self.target)
        if x.ndim == 4 and self.channels is not None and x.shape[1] != self.channels:
            x = _with_channels(x, self.channels)
        if x.ndim == 4 and self.size is not None and tuple(x.shape[2:]) != self.size:
            x = F.interpolate(x.float(), self.size, mode=self.mode, antialias=True)
        if self.mean == (0.0,) and self.std == (1.0,):
            return x
        mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device)[:, None, None] for v in (self.mean, self.std))
        return (x - mean) / std


def _with_channels(x: Tensor, channels: int) -> Tensor:
    if x.shape[1] == 1:
        return x.expand(-1, channels, -1, -1)
    grey = (x[:, :3] * torch.tensor(GREY, dtype=x.dtype, device=x.device)[:, None, None]).sum(1, keepdim=True)
    return grey if channels == 1 else x[:, :channels]


def view_of(
    spec: Spec, shape: Shape, values: tuple[float, float] | None, gan: GAN, default: tuple[float, float]
) -> View:
    """The view by the spec, by the network's own file (shape, values) and by the GAN, in this order.

    Args:
        shape: (C, H, W) that the network takes. values: the range of its input, where its type says so. default: the
            range where nothing says it.

    Raises:
        ValueError: an option cannot be read, or the GAN's samples are no images.
    """
    made = gan.sample_shape
    if len(made) != 3:
        given = [name for name in ("size", "channels", "range", "mean", "std") if name in spec.options]
        if given:
            raise ValueError(f"{spec.source}: {given[0]} is for images, and this GAN's samples are {list(made)}")
        return View(gan.image_range, None, None, gan.image_range)
    size = _size_of(spec) or (shape[1] or made[1], shape[2] or made[2])
    channels = int((spec.numbers("channels", (1,), None) or (shape[0] or made[0],))[0])
    if channels not in (1, 3) and channels != made[0]:
        raise ValueError(f"{spec.source}: expected {OPTIONS['channels']}; got {channels}")
    mean, std = spec.numbers("mean", (1, channels), (0.0,)), spec.numbers("std", (1, channels), (1.0,))
    normalised = "mean" in spec.options or "std" in spec.options
    low, high = spec.numbers("range", (2,), (0.0, 1.0) if normalised else values or default) or default
    assert mean is not None and std is not None
    if not low < high or not all(value > 0 for value in std):
        raise ValueError(f"{spec.source}: expected a range whose low is below its high, and std above 0")
    return View(gan.image_range, size, channels, (low, high), mean, std)


def _size_of(spec: Spec) -> tuple[int, int] | None:
    text = spec.options.get("size")
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdigit() and 0 < int(side) <= 4096 for side in sides):
        raise ValueError(f"{spec.source}: expected {OPTIONS['size']} (1 to 4096); got size={text}")
    return int(sides[0]), int(sides[-1])


class Viewed(nn.Module):
    """A network with `features` and a `head` (networks/classifier.py), which sees the GAN's images through a view."""

    def __init__(self, module: Any, view: View):
        super().__init__()
        self.module, self.view, self.img_resolution = module, view, module.img_resolution

    def features(self, x: Tensor) -> Tensor:
        """Penultimate layer, [N, F]."""
        features: Tensor = self.module.features(self.view(x))
        return features

    def head(self, features: Tensor) -> Tensor:
        """Outputs [N, classes]."""
        outputs: Tensor = self.module.head(features)
        return outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
