"""upfirdn2d at StyleGAN2's shapes: see csrc/kernels/upfirdn2d.h for what bounds it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch

from atu_ext.ops import setup_filter, upfirdn2d

from .case import Case

UP = {"up": 2, "padding": [2, 1, 2, 1], "gain": 4}
SAME = {"padding": [2, 1, 2, 1]}
DOWN = {"down": 2, "padding": 1}
SHAPES = [
    ("up 2", (8, 64, 64, 64), UP),
    ("same", (8, 64, 128, 128), SAME),
    ("down 2", (8, 64, 128, 128), DOWN),
    ("RGB up 2", (4, 3, 256, 256), UP),
    ("RGB up 2", (1, 3, 512, 512), UP),
    ("up 2", (4, 512, 8, 8), UP),
    ("up 2", (16, 128, 16, 16), UP),
    ("odd up 2", (4, 31, 65, 67), UP),
]


def cases(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Iterator[Case]:
    """Forward in both layouts, and the backward of each shape in the first."""
    f = setup_filter([1, 3, 3, 1], device=device)
    for label, shape, options in SHAPES:
        x = torch.randn(shape, dtype=dtype, device=device)
        for layout in ("", " channels_last"):
            x = x.to(memory_format=torch.channels_last if layout else torch.contiguous_format)
            y = upfirdn2d(x, f, **options)
            up, down = options.get("up", 1), options.get("down", 1)
            # Separable: vertical taps at the input's width and the output's height, then horizontal ones.
            taps = math.ceil(f.shape[0] / up)
            flops = 2 * taps * (y.numel() * down // up + y.numel())
            size = "x".join(map(str, shape))
            yield Case(
                f"upfirdn2d {label} {size}{layout}",
                partial(upfirdn2d, x, f, **options, impl="native"),
                partial(upfirdn2d, x, f, **options, impl="reference"),
                x.nbytes + y.nbytes,
                flops,
            )
            if layout:
                continue
            gradients = []
            for impl in ("native", "reference"):
                leaf = x.detach().requires_grad_()
                out = upfirdn2d(leaf, f, **options, impl=impl)
                gradients.append(partial(torch.autograd.grad, out, leaf, torch.ones_like(out), retain_graph=True))
            yield Case(f"upfirdn2d {label} {size} backward", *gradients, x.nbytes + y.nbytes, flops)
