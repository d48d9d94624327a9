"""The passes over parameter lists: the value kernel, and both penalties as ops of one order of gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _native
from .dispatch import DTYPE_CODES, address, launch
from .layout import is_dense, laid_out_as, same_layout
from .param_lists import address_table, chunk_layout
from .registration import register


def run_value(
    params: Sequence[Tensor],
    tables: tuple[int, int, int, int, int],
    scale: Tensor | None,
    constant: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The value kernel: ([2, T] ewc and distance of each tensor, [2] totals), float64."""
    device, dtype = params[0].device, params[0].dtype
    layout = chunk_layout(params)
    values = torch.empty(2, layout.tensors, dtype=torch.float64, device=device)
    total = torch.empty(2, dtype=torch.float64, device=device)
    partials = torch.empty(layout.chunks, 2, dtype=torch.float64, device=device)
    launch(
        _native._C.param_penalty_value, params[0], DTYPE_CODES[dtype], layout.args, tables, address(scale),
        address(constant), partials.data_ptr(), values.data_ptr(), total.data_ptr(),
    )  # fmt: skip
    return values, total


def _tables(
    params: Sequence[Tensor],
    anchor: Sequence[Tensor],
    fisher: Sequence[Tensor],
    repel: Sequence[Tensor],
    grads: Sequence[Tensor] = (),
) -> tuple[tuple[int, int, int, int, int], object]:
    """Addresses for a call of a kernel, and what must outlive it."""
    device = params[0].device
    lists = [
        [t if same_layout(t, p) else laid_out_as(t, p) for t, p in zip(ts, params, strict=True)] if ts else []
        for ts in (anchor, fisher, repel)
    ]
    tables = [address_table(ts, device) if ts else None for ts in (params, grads, *lists)]
    theta, grad, *others = (address(t) for t in tables)
    return (theta, grad, others[0], others[1], others[2]), (lists, tables)


def _scale_tensor(scale: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(scale, dtype=torch.float64, device=device)


def _dense(params: Sequence[Tensor]) -> list[Tensor]:
    return [p if is_dense(p) else p.contiguous() for p in params]


def _kernel(
    params: list[Tensor], anchor: list[Tensor], fisher: list[Tensor], repel: list[Tensor], scale: list[float]
) -> tuple[Tensor, Tensor]:
    params = _dense(params)
    tables, keep = _tables(params, anchor, fisher, repel)
    _, total = run_value(params, tables, _scale_tensor(scale, params[0].device), None)
    del keep
    ewc, distance = total.unbind()
    return ewc.clone(), distance.clone()


def _grad_kernel(
    grad_ewc: Tensor,
    grad_distance: Tensor,
    params: list[Tensor],
    anchor: list[Tensor],
    fisher: list[Tensor],
    repel: list[Tensor],
    scale: list[float],
) -> list[Tensor]:
    params = _dense(params)
    device = params[0].device
    grads = [torch.zeros_like(p) for p in params]
    tables, keep = _tables(params, anchor, fisher, repel, grads)
    weights = torch.stack([grad_ewc, grad_distance]).to(device, torch.float64)
    scales = _scale_tensor(scale, device)
    launch(
        _native._C.param_penalty_grad, params[0], DTYPE_CODES[params[0].dtype], chunk_layout(params).args, tables,
        address(scales), weights.data_ptr(),
    )  # fmt: skip
    del keep
    return grads


def _fake(params: list[Tensor], *args: Any) -> tuple[Tensor, Tensor]:
    ewc, distance = (torch.empty((), dtype=torch.float64, device=params[0].device) for _ in range(2))
    return ewc, distance


def _fake_grad(grad_ewc: Tensor, grad_distance: Tensor, params: list[Tensor], *args: Any) -> list[Tensor]:
    return [torch.empty_like(p) for p in _dense(params)]


def _differentiable_grad(
    grad_ewc: Tensor,
    grad_distance: Tensor,
    params: list[Tensor],
    anchor: list[Tensor],
    fisher: list[Tensor],
    repel: list[Tensor],
    scale: list[float],
) -> list[Tensor]:
    """What `param_penalty_grad` computes, by torch's operators."""
    grads = []
    for i, p in enumerate(params):
        theta = p.double()
        g = torch.zeros_like(theta)
        if anchor:
            g = g + grad_ewc * fisher[i].double() * (theta - anchor[i].double())
        if repel:
            g = g + 2 * scale[i] * grad_distance * (theta - repel[i].double())
        grads.append(g.to(p.dtype))
    return grads


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    params, anchor, fisher, repel, scale = inputs
    ctx.save_for_backward(*params, *anchor, *fisher, *repel)
    ctx.counts = [len(params), len(anchor), len(fisher), len(repel)]
    ctx.scale = scale


def _backward(ctx: Any, grad_ewc: Tensor, grad_distance: Tensor) -> tuple[Any, ...]:
    saved = iter(ctx.saved_tensors)
    params, anchor, fisher, repel = ([next(saved) for _ in range(count)] for count in ctx.counts)
    grads: list[Tensor]
    if torch.is_grad_enabled():  # it is to be differentiated itself
        grads = _differentiable_grad(grad_ewc, grad_distance, params, anchor, fisher, repel, ctx.scale)
    else:
        grads = param_penalty_grad(grad_ewc, grad_distance, params, anchor, fisher, repel, ctx.scale)
    return grads, [None] * len(anchor), [None] * len(fisher), [None] * len(repel), None


_LISTS = "Tensor[] params, Tensor[] anchor, Tensor[] fisher, Tensor[] repel, float[] scale"
param_penalty = register("param_penalty", f"({_LISTS}) -> (Tensor, Tensor)", _kernel, _fake, _setup, _backward)
param_penalty_grad = register(
    "param_penalty_grad", f"(Tensor grad_ewc, Tensor grad_distance, {_LISTS}) -> Tensor[]", _grad_kernel, _fake_grad
)
