"""EWC and repulsion over the parameters of whole generators: value and gradient in place, with 1, 2 and 5 anchors."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from atu_ext.ops import ParamPenalty

from ...networks.stylegan2 import Generator
from ..case import Case, Traffic, nbytes

WEIGHTS = (1e-3, -1e-3)  # of EWC and of the distance


def parameters(resolution: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Of the StyleGAN2 generator: config-f at 256 pixels (30 M weights in 110 tensors), or the bundled one at 32."""
    small = dict(num_layers=2), dict(channel_base=768, channel_max=64)
    generator = Generator(64, 0, 64, 32, 1, *small) if resolution == 32 else Generator(512, 0, 512, resolution, 3)
    return [p.detach().to(device, dtype).requires_grad_() for p in generator.parameters()]


def _native(penalty: ParamPenalty) -> tuple[float, float]:
    found = penalty.value()
    penalty.add_grad_(*WEIGHTS)
    return found


def _eager(params: list[Tensor], anchor: list[Tensor], fisher: list[Tensor], models: list[list[Tensor]]):
    """The loop over tensors and anchors, with autograd."""
    nothing = torch.zeros((), dtype=params[0].dtype, device=params[0].device)
    ewc = sum((0.5 * (f * (p - a).square()).sum() for p, a, f in zip(params, anchor, fisher, strict=True)), nothing)
    distance = sum(
        (sum(((p - m[i]).square().sum() for m in models), nothing) / len(models) for i, p in enumerate(params)), nothing
    )
    torch.autograd.backward(WEIGHTS[0] * ewc + WEIGHTS[1] * distance)
    return ewc.item(), distance.item()


def _in_float64(params: list[Tensor], anchor: list[Tensor], fisher: list[Tensor], models: list[list[Tensor]]):
    wide = [p.detach().double().requires_grad_() for p in params]
    others = [[t.double() for t in tensors] for tensors in (anchor, fisher, *models)]
    return _eager(wide, others[0], others[1], others[2:])


@torch.no_grad()
def _foreach(params: list[Tensor], anchor: list[Tensor], fisher: list[Tensor], models: list[list[Tensor]]):
    """torch's multi-tensor operations, with the gradient by hand."""
    grads = [p.grad for p in params if p.grad is not None]
    moved = torch._foreach_sub(params, anchor)
    pull = torch._foreach_mul(moved, fisher)
    ewc = 0.5 * torch.stack([t.sum() for t in torch._foreach_mul(pull, moved)]).sum()
    torch._foreach_add_(grads, pull, alpha=WEIGHTS[0])
    distance = torch.zeros((), dtype=params[0].dtype, device=params[0].device)
    for model in models:
        away = torch._foreach_sub(params, model)
        distance += torch.stack(torch._foreach_norm(away)).square().sum() / len(models)
        torch._foreach_add_(grads, away, alpha=2 * WEIGHTS[1] / len(models))
    return float(ewc), float(distance)


def case(resolution: int, anchors: int, dtype: torch.dtype, device: str) -> Case:
    """Value and gradient. Reads the parameters, theta_G, F and theta_bar twice and the gradient once; writes the
    gradient: the value must be known before its weight in the gradient is."""
    params = parameters(resolution, dtype, device)
    # Of 16 bits farther apart: the mean of several anchors is rounded, which a distance that small would not survive.
    apart = 0.5 if dtype in (torch.float16, torch.bfloat16) else 0.01
    anchor = [p.detach() + apart * torch.randn_like(p) for p in params]
    fisher = [torch.rand_like(p) for p in params]
    models = [[p.detach() + apart * torch.randn_like(p) for p in params] for _ in range(anchors)]
    for p in params:
        p.grad = torch.zeros_like(p)
    size, count = nbytes(*params), sum(p.numel() for p in params)
    penalty = ParamPenalty(params, anchor, fisher, models, impl="native")
    args = (params, anchor, fisher, models)
    return Case(
        f"param_penalty {count / 1e6:.1f} M weights in {len(params)} tensors, N={anchors}",
        "param_penalty",
        "value + gradient",
        partial(_native, penalty),
        partial(_eager, *args),
        Traffic(9 * size, size, 16 * count),
        None,
        partial(_foreach, *args),
        "torch._foreach",
        tolerance=2e-2,  # the loops sum 30 M float32 terms in float32
        exact=partial(_in_float64, *args),
    )


def cases(dtype: torch.dtype = torch.float32, device: str = "cpu", quick: bool = False) -> Iterator[Case]:
    """Two networks, 1, 2 and 5 anchors."""
    for resolution in (32,) if quick else (32, 256):
        for anchors in (1, 2) if quick else (1, 2, 5):
            yield case(resolution, anchors, dtype, device)
