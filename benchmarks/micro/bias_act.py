"""bias_act, forward and both gradients, at StyleGAN2's shapes: bound by bytes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from atu_ext.ops import bias_act

from .case import Case

SHAPES = [(8, 64, 128, 128), (4, 512, 16, 16), (16, 512), (4, 31, 65, 67)]
# Operations for each element, about: bias, activation, gain.
FLOPS = {"linear": 2, "lrelu": 4, "swish": 25, "tanh": 25}


def cases(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Iterator[Case]:
    """For each shape and activation: forward, gradient (of x and b) and second gradient."""
    for shape in SHAPES:
        for act, flops in FLOPS.items():
            x = torch.randn(shape, dtype=dtype, device=device)
            b = torch.randn(shape[1], dtype=dtype, device=device)
            label = f"bias_act {act} {'x'.join(map(str, shape))}"
            yield Case(
                label,
                partial(bias_act, x, b, act=act, impl="native"),
                partial(bias_act, x, b, act=act, impl="reference"),
                2 * x.nbytes,
                flops * x.numel(),
            )
            first, second = zip(*(_gradients(x, b, act, impl) for impl in ("native", "reference")), strict=True)
            yield Case(f"{label} gradient", *first, 3 * x.nbytes, flops * x.numel())
            if act in ("swish", "tanh"):
                yield Case(f"{label} second gradient", *second, 5 * x.nbytes, flops * x.numel())


def _gradients(x, b, act, impl):
    x, b = x.detach().requires_grad_(), b.detach().requires_grad_()
    y = bias_act(x, b, act=act, impl=impl)
    dy = torch.randn_like(y).requires_grad_()
    first = partial(torch.autograd.grad, y, (x, b), dy.detach(), retain_graph=True)
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    g = torch.randn_like(dx)
    second = partial(torch.autograd.grad, dx, (x, dy), g, retain_graph=True, allow_unused=True)
    return first, second
