"""Modes, parameters and moving averages of modules."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def eval_mode(*modules: nn.Module):
    """Put modules into eval mode and back, each submodule as it was."""
    before = [(m, m.training) for module in modules for m in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for m, training in before:
            m.training = training


def ema_beta(batch_size: int, half_life_images: float) -> float:
    """EMA decay of one step, from a half life in images."""
    return 0.5 ** (batch_size / half_life_images) if half_life_images > 0 else 0.0


@torch.no_grad()
def update_ema(ema: nn.Module, module: nn.Module, beta: float) -> None:
    """Move ema's parameters towards module's; copy its buffers."""
    for average, parameter in zip(ema.parameters(), module.parameters(), strict=True):
        average.lerp_(parameter, 1 - beta)
    for mine, theirs in zip(ema.buffers(), module.buffers(), strict=True):
        mine.copy_(theirs)


def trainable(module: nn.Module) -> list[Tensor]:
    """The parameters that require grad; all of them (made to) where none does, as in networks kept for sampling."""
    if not any(p.requires_grad for p in module.parameters()):
        module.requires_grad_(True)
    return [p for p in module.parameters() if p.requires_grad]
