"""The modulated layer with its whole epilogue (demodulation, noise, bias, lrelu) beside a plain convolution of the
same input and weight: see csrc/kernels/modulated_conv2d.h."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atu_ext.ops import modulated_conv2d, setup_filter

from ..case import Case, Layer, Traffic, cases_of, nbytes

PLANAR, PIXELS = torch.contiguous_format, torch.channels_last
# (batch, channels in, channels out, size, up, layout): first the three of docs/performance.md, then networks of 32, 256
# and 1024 pixels; odd sizes last. The planar ones show what a caller pays who has planar images.
SHAPES = [
    (8, 512, 512, 8, 1, PLANAR),
    (8, 256, 256, 32, 1, PLANAR),
    (4, 128, 128, 64, 2, PLANAR),
    (8, 256, 256, 32, 1, PIXELS),
    (4, 128, 128, 64, 2, PIXELS),
    (16, 24, 24, 32, 1, PIXELS),
    (16, 48, 24, 16, 2, PIXELS),
    (4, 512, 512, 16, 1, PIXELS),
    (1, 32, 32, 1024, 1, PIXELS),
    (3, 37, 29, 19, 1, PLANAR),
]
QUICK = [(2, 4, 6, 8, 1, PLANAR), (1, 4, 4, 5, 2, PIXELS)]


def layer(batch: int, c: int, o: int, size: int, up: int, layout: Any, dtype: torch.dtype, device: str) -> Layer:
    """One layer with a 3x3 kernel."""
    make = partial(torch.randn, dtype=dtype, device=device)
    x = make(batch, c, size, size).to(memory_format=layout).requires_grad_()
    weight, styles, bias = make(o, c, 3, 3).requires_grad_(), make(batch, c).requires_grad_(), make(o).requires_grad_()
    noise = make(batch, 1, up * size, up * size)
    f = setup_filter([1, 3, 3, 1], device=device) if up > 1 else None
    options: dict[str, Any] = dict(up=up, padding=1, resample_filter=f, act="lrelu", flip_weight=up == 1)

    def run(x: Tensor, weight: Tensor, styles: Tensor, bias: Tensor, noise: Tensor, impl: str) -> Tensor:
        return modulated_conv2d(x, weight, styles, noise, bias=bias, impl=impl, **options)

    out = batch * o * (up * size) ** 2 * x.element_size()
    flops = 2 * batch * size * size * c * o * 9  # of the (transposed) convolution; what surrounds it is linear in bytes
    given = nbytes(x, weight, styles, bias, noise)
    # The gradient needs dy, y, x and the weight, and writes the gradients of x and of the weight; the second one reads
    # what arrives at those too, and writes the gradients of dy, x and the weight.
    first, second = Traffic(given + 2 * out, given, 2 * flops), Traffic(2 * given + 2 * out, given + out, 4 * flops)
    return Layer(
        f"modulated_conv2d {'up 2 ' if up > 1 else ''}{batch}x{c}x{size}x{size}"
        + (f" to {o}" if o != c else "")
        + (" channels_last" if layout is PIXELS else ""),
        "modulated_conv2d",
        [x, weight, styles, bias, noise],
        partial(run, impl="native"),
        partial(run, impl="reference"),
        {"forward": Traffic(given, out, flops), "backward": first, "second": second},
        partial(F.conv2d, padding=1),
        "conv2d",
        library_inputs=2,
    )


def cases(dtype: torch.dtype = torch.float32, device: str = "cpu", quick: bool = False) -> Iterator[Case]:
    """Forward, backward (of x, weight, styles and bias) and second gradient."""
    for shape in QUICK if quick else SHAPES:
        yield from cases_of(layer(*shape, dtype, device))


def custom_cases(custom: Any, dtype: torch.dtype, device: str, quick: bool) -> Iterator[Case]:
    """Of a `Custom` shape, square.

    Raises:
        ValueError: no square image, a factor other than up 2, or channels out below 1.
    """
    shape = custom.shape
    if len(shape) != 4 or shape[2] != shape[3] or custom.up not in (1, 2) or custom.down > 1:
        raise ValueError(f"shape: modulated_conv2d takes NxCxSxS and no factor but --up 2, got {custom}")
    layout = PIXELS if custom.channels_last else PLANAR
    out = shape[1] if custom.out_channels is None else custom.out_channels
    yield from cases_of(layer(shape[0], shape[1], out, shape[2], custom.up, layout, dtype, device))
