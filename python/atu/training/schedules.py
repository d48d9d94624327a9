"""Schedules of learning rates and weights over a stage."""

from __future__ import annotations

import math

from torch.optim import Optimizer


def lr_decay(share: float, decay: float) -> float:
    """Factor of the learning rates at a share of the steps: 1, then down to 0 over the last share `decay`."""
    return min((1 - share) / decay, 1.0) if decay else 1.0


def set_lr(optim: Optimizer, lr: float) -> None:
    """Set the learning rate of all of an optimiser's parameters."""
    for group in optim.param_groups:
        group["lr"] = lr


def schedule(name: str, step: int, steps: int) -> float:
    """Factor of a weight at a step: 1 ("constant"), or falling from 1 to 0 over the stage ("linear", "cosine")."""
    share = min(step / max(steps, 1), 1.0)
    if name == "linear":
        return 1 - share
    if name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * share))
    return 1.0
