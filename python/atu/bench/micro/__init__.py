"""Cases of single ops, one file an op: `cases(dtype, device, quick)` yields them one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module

import torch

from ..case import Case

OPS = ("upfirdn2d", "bias_act", "modulated_conv2d", "param_penalty")


def cases(ops: tuple[str, ...], dtype: torch.dtype, device: str, quick: bool) -> Iterator[Case]:
    """The cases of several ops. They are made one at a time: their tensors live no longer than their turn."""
    for op in ops:
        make: Callable[..., Iterator[Case]] = import_module(f"{__name__}.{op}").cases
        yield from make(dtype, device, quick)
