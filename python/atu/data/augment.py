"""Differentiable augmentation against few images.

Source: Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training" (arXiv 2006.10738): the same random
transformations on real and generated images, in front of the discriminator, with gradients through them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _color(x: Tensor) -> Tensor:
    """Random brightness, saturation and contrast."""
    n = x.shape[0]
    draw = [torch.rand(n, 1, 1, 1, device=x.device, dtype=x.dtype) for _ in range(3)]
    x = x + (draw[0] - 0.5)
    if x.shape[1] > 1:
        mean = x.mean(dim=1, keepdim=True)
        x = (x - mean) * (2 * draw[1]) + mean
    mean = x.mean(dim=[1, 2, 3], keepdim=True)
    return (x - mean) * (draw[2] + 0.5) + mean


def _translation(x: Tensor, ratio: float = 0.125) -> Tensor:
    """Shift by up to an eighth of the size; what comes in is the border's value."""
    n, _, h, w = x.shape
    dy, dx = int(h * ratio + 0.5), int(w * ratio + 0.5)
    shift_y = torch.randint(-dy, dy + 1, (n, 1), device=x.device)
    shift_x = torch.randint(-dx, dx + 1, (n, 1), device=x.device)
    rows = (torch.arange(h, device=x.device) + shift_y).clamp(-1, h) + 1
    cols = (torch.arange(w, device=x.device) + shift_x).clamp(-1, w) + 1
    x = F.pad(x, [1, 1, 1, 1], mode="replicate")
    index = torch.arange(n, device=x.device)[:, None, None]
    return x.permute(0, 2, 3, 1)[index, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


def _cutout(x: Tensor, ratio: float = 0.5) -> Tensor:
    """Blank a square of half the size at a random place."""
    n, _, h, w = x.shape
    ch, cw = int(h * ratio + 0.5), int(w * ratio + 0.5)
    top = torch.randint(0, h + (1 - ch % 2), (n, 1), device=x.device) - ch // 2
    left = torch.randint(0, w + (1 - cw % 2), (n, 1), device=x.device) - cw // 2
    y, z = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
    inside = ((y >= top) & (y < top + ch))[:, :, None] & ((z >= left) & (z < left + cw))[:, None, :]
    return x * (~inside[:, None]).to(x.dtype)


POLICIES = {"color": _color, "translation": _translation, "cutout": _cutout}


def check_policy(policy: str) -> str:
    """Raise ValueError unless `policy` is a comma-separated list of color, translation, cutout (or empty)."""
    unknown = [name for name in policy.split(",") if name and name not in POLICIES]
    if unknown:
        raise ValueError(f"augment: expected names of {', '.join(POLICIES)} joined by commas, got {unknown[0]!r}")
    return policy


def augment(x: Tensor, policy: str, image_range: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
    """Apply a policy such as "color,translation,cutout" to images [N, C, H, W] in image_range, as it is published for
    [-1, 1]: brightness by up to a quarter of the range, grey where something is cut. Other shapes pass unchanged."""
    names = [name for name in policy.split(",") if name]
    if x.ndim != 4 or not names:
        return x
    low, high = image_range
    plain = (low, high) == (-1.0, 1.0)
    if not plain:
        x = (x - low) * (2 / (high - low)) - 1
    for name in names:
        x = POLICIES[name](x)
    return x if plain else (x + 1) * ((high - low) / 2) + low
