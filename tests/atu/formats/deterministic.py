"""Weights and inputs by formula, so that figures computed elsewhere can be compared with."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor, nn

# Names whose values belong to the architecture.
_FIXED = ("_filter", "kernel", "transform", "freqs", "phases")
_SCALES = {"bias": 0.3, "noise_strength": 0.3, "noise.weight": 0.3, "magnitude_ema": 0.1}


def numbers(name: str, shape: tuple[int, ...]) -> Tensor:
    """Normal values drawn by NumPy's frozen legacy generator, seeded by the name's checksum."""
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape or (1,))
    return torch.from_numpy(draw.astype(np.float32)).reshape(shape)


@torch.no_grad()
def fill(module: nn.Module) -> nn.Module:
    """Set every weight and buffer by its name, but filters and the input's transform."""
    for name, value in module.state_dict().items():
        if name.endswith(("freqs", "phases")):
            value.copy_(numbers(name, tuple(value.shape)) * 1.5)
        elif not name.endswith(_FIXED):
            scale = next((s for end, s in _SCALES.items() if name.endswith(end)), 1.0)
            offset = 1.0 if name.endswith("magnitude_ema") else 0.0
            if name.endswith(("affine.bias", "modulation.bias")):
                offset = 1.0
            if ("mapping.fc" in name and name.endswith("weight")) or name.startswith("style."):
                scale = 100.0 if name.endswith("weight") else scale
            value.copy_(numbers(name, tuple(value.shape)) * scale + offset)
    return module.eval().requires_grad_(False)


def probe(image: Tensor) -> list[float]:
    """Sixteen values spread over a tensor, with its mean and root mean square."""
    flat = image.detach().double().flatten()
    picked = flat[torch.linspace(0, flat.numel() - 1, min(16, flat.numel())).long()]
    return [round(v, 7) for v in [*picked.tolist(), float(flat.mean()), float(flat.square().mean().sqrt())]]
