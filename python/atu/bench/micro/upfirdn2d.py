"""upfirdn2d at StyleGAN2's shapes: see csrc/kernels/upfirdn2d.h for what bounds it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from atu_ext.ops import setup_filter, upfirdn2d

from ..case import Case, Layer, Traffic, cases_of, nbytes

UP: dict[str, Any] = {"up": 2, "padding": [2, 1, 2, 1], "gain": 4}
SAME: dict[str, Any] = {"padding": [2, 1, 2, 1]}
DOWN: dict[str, Any] = {"down": 2, "padding": 1}
PLANAR, PIXELS = torch.contiguous_format, torch.channels_last
# (label, shape, options, layout): first the four of docs/performance.md; then networks of 32, 256 and 1024 pixels,
# whose layers are channels-last here and whose images are planar; odd sizes last.
SHAPES = [
    ("up 2", (8, 64, 64, 64), UP, PLANAR),
    ("same", (8, 64, 128, 128), SAME, PLANAR),
    ("down 2", (8, 64, 128, 128), DOWN, PLANAR),
    ("up 2", (4, 3, 256, 256), UP, PLANAR),
    ("same", (16, 24, 33, 33), SAME, PIXELS),
    ("down 2", (16, 24, 32, 32), DOWN, PIXELS),
    ("up 2", (4, 512, 8, 8), UP, PLANAR),
    ("same", (8, 64, 128, 128), SAME, PIXELS),
    ("down 2", (4, 128, 128, 128), DOWN, PIXELS),
    ("up 2", (1, 3, 512, 512), UP, PLANAR),
    ("same", (1, 32, 513, 513), SAME, PIXELS),
    ("up 2", (4, 31, 65, 67), UP, PLANAR),
]
QUICK = [("up 2", (1, 4, 8, 8), UP, PLANAR), ("down 2", (1, 4, 9, 7), DOWN, PIXELS)]


def layer(label: str, shape: tuple[int, ...], options: dict[str, Any], layout: Any, dtype, device) -> Layer:
    """One shape, with the traffic of its forward and backward pass."""
    f = setup_filter([1, 3, 3, 1], device=device)
    x = torch.randn(shape, dtype=dtype, device=device).to(memory_format=layout).requires_grad_()
    with torch.no_grad():
        y = upfirdn2d(x, f, **options)
    up, down = options.get("up", 1), options.get("down", 1)
    # Separable: vertical taps at the input's width and the output's height, then horizontal ones.
    flops = 2 * math.ceil(f.shape[0] / up) * (y.numel() * down // up + y.numel())
    size = "x".join(map(str, shape))
    return Layer(
        f"upfirdn2d {label} {size}" + (" channels_last" if layout is PIXELS else ""),
        "upfirdn2d",
        [x],
        partial(upfirdn2d, f=f, **options, impl="native"),
        partial(upfirdn2d, f=f, **options, impl="reference"),
        {
            "forward": Traffic(nbytes(x), nbytes(y), flops),
            "backward": Traffic(nbytes(y), nbytes(x), flops),
        },
    )


def cases(dtype: torch.dtype = torch.float32, device: str = "cpu", quick: bool = False) -> Iterator[Case]:
    """Forward and backward of every shape."""
    for shape in QUICK if quick else SHAPES:
        yield from cases_of(layer(*shape, dtype, device))


def custom_cases(custom: Any, dtype: torch.dtype, device: str, quick: bool) -> Iterator[Case]:
    """Of a `Custom` shape: up, down or neither.

    Raises:
        ValueError: no image [N, C, H, W], or both factors.
    """
    if len(custom.shape) != 4 or (custom.up > 1 and custom.down > 1):
        raise ValueError(f"shape: upfirdn2d takes NxCxHxW and one of --up and --down, got {custom}")
    options, label = SAME, "same"
    if custom.up > 1:
        u = custom.up
        options, label = {"up": u, "padding": [(3 + u) // 2, (4 - u) // 2] * 2, "gain": u * u}, f"up {u}"
    elif custom.down > 1:
        d = custom.down
        options, label = {"down": d, "padding": [(5 - d) // 2, (4 - d) // 2] * 2}, f"down {d}"
    yield from cases_of(layer(label, custom.shape, options, PIXELS if custom.channels_last else PLANAR, dtype, device))
