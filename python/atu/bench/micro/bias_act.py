"""bias_act, forward and both gradients, at StyleGAN2's shapes: bound by bytes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from atu_ext.ops import bias_act

from ..case import Case, Layer, Traffic, cases_of, nbytes

PLANAR, PIXELS = torch.contiguous_format, torch.channels_last
SHAPES: list[tuple[tuple[int, ...], torch.memory_format]] = [
    ((8, 64, 128, 128), PLANAR),
    ((8, 64, 128, 128), PIXELS),
    ((16, 24, 32, 32), PIXELS),
    ((4, 512, 16, 16), PLANAR),
    ((1, 32, 1024, 1024), PLANAR),
    ((16, 512), PLANAR),
    ((4, 31, 65, 67), PLANAR),
]
QUICK: list[tuple[tuple[int, ...], torch.memory_format]] = [((1, 4, 8, 8), PLANAR), ((2, 5, 7, 3), PIXELS)]
# Operations for each element, about: bias, activation, gain.
FLOPS = {"lrelu": 4, "swish": 25}
CURVED = ("swish",)


def layer(shape: tuple[int, ...], layout: torch.memory_format, act: str, dtype: torch.dtype, device: str) -> Layer:
    """One shape and activation. lrelu's gradient reads dy and y, swish's dy and x; both write dx."""
    x = torch.randn(shape, dtype=dtype, device=device).to(memory_format=layout).requires_grad_()
    b = torch.randn(shape[1], dtype=dtype, device=device, requires_grad=True)
    size, flops = nbytes(x), FLOPS[act] * x.numel()
    traffic = {"forward": Traffic(size, size, flops), "backward": Traffic(2 * size, size, flops)}
    if act in CURVED:  # reads what arrives at dx, and dy and x; writes what goes to each of the two
        traffic["second"] = Traffic(3 * size, 2 * size, flops)
    else:  # reads what arrives at dx, and y
        traffic["second"] = Traffic(2 * size, size, flops)
    return Layer(
        f"bias_act {act} {'x'.join(map(str, shape))}" + (" channels_last" if layout is PIXELS else ""),
        "bias_act",
        [x, b],
        partial(bias_act, act=act, impl="native"),
        partial(bias_act, act=act, impl="reference"),
        traffic,
    )


def cases(dtype: torch.dtype = torch.float32, device: str = "cpu", quick: bool = False) -> Iterator[Case]:
    """For each shape and activation: forward, gradient (of x and b) and second gradient."""
    for shape, layout in QUICK if quick else SHAPES:
        for act in FLOPS:
            yield from cases_of(layer(shape, layout, act, dtype, device))


def custom_cases(custom: Any, dtype: torch.dtype, device: str, quick: bool) -> Iterator[Case]:
    """Of a `Custom` shape, which does not resample.

    Raises:
        ValueError: neither [N, C] nor an image, or a factor.
    """
    if len(custom.shape) not in (2, 4) or custom.up > 1 or custom.down > 1:
        raise ValueError(f"shape: bias_act takes NxC or NxCxHxW and no factor, got {custom}")
    layout = PIXELS if custom.channels_last and len(custom.shape) == 4 else PLANAR
    for act in FLOPS:
        yield from cases_of(layer(custom.shape, layout, act, dtype, device))
