"""Cases of single ops, one file an op: `cases(dtype, device, quick)` yields them one at a time, `custom_cases(custom,
dtype, device, quick)` those of a shape that the user gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import torch

from ..case import Case

OPS = ("upfirdn2d", "bias_act", "modulated_conv2d", "param_penalty")


@dataclass(frozen=True)
class Custom:
    """A shape that the user asks for, in place of the op's own list.

    shape: (N, C, H, W), of bias_act also (N, C). up, down: factors, of upfirdn2d one of them, of modulated_conv2d up
    alone. out_channels: of modulated_conv2d, C unless given.
    """

    shape: tuple[int, ...]
    up: int = 1
    down: int = 1
    out_channels: int | None = None
    channels_last: bool = False


def cases(
    ops: tuple[str, ...], dtypes: Sequence[torch.dtype], device: str, quick: bool, custom: Custom | None = None
) -> Iterator[dict[torch.dtype, Case]]:
    """The cases of several ops, each in all dtypes. They are made one at a time: their tensors live no longer than
    their turn.

    Raises:
        ValueError: an op that cannot have the custom shape.
    """
    for op in ops:
        module = import_module(f"{__name__}.{op}")
        if custom is not None and not hasattr(module, "custom_cases"):
            raise ValueError(f"shape: {op} takes lists of parameters, not an image; leave --shape out, or give --op")
        make = module.cases if custom is None else partial(module.custom_cases, custom)
        for same in zip(*(make(dtype, device, quick) for dtype in dtypes), strict=True):
            yield dict(zip(dtypes, same, strict=True))
