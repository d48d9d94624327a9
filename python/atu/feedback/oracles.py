"""An oracle answers during a run: samples [N, ...] -> bools [N], whether they are negative.

Other packages add oracles by name (entry point group `atu.oracles`, or `@ORACLES.register("name")`): functions of one
text, the arguments, that return an `is_negative`. Samples come on the GAN's device and in its range.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..support.registry import Registry

IsNegative = Callable[[Tensor], Tensor]
ORACLES: Registry[Callable[[str], IsNegative]] = Registry("atu.oracles", {})


def find(spec: str) -> IsNegative:
    """The oracle that "NAME" or "NAME:ARGUMENTS" stands for.

    Raises:
        ValueError: there is none of that name, or it does not take these arguments.
        ImportError: the package that gives it cannot be imported.
    """
    name, _, arguments = spec.partition(":")
    return Oracle(ORACLES.get(name)(arguments))


class Oracle:
    """Checks what the user's `is_negative` returns: bools [N] for samples [N, ...]."""

    def __init__(self, is_negative: IsNegative):
        if not callable(is_negative):
            raise TypeError(f"is_negative: expected a callable, got {type(is_negative).__name__}")
        self.is_negative = is_negative

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        answer = self.is_negative(x)
        if isinstance(answer, (np.ndarray, list, tuple)):
            answer = torch.as_tensor(answer)
        if not isinstance(answer, Tensor) or tuple(answer.shape) != (len(x),) or answer.dtype != torch.bool:
            got = f"{list(answer.shape)} {answer.dtype}" if isinstance(answer, Tensor) else type(answer).__name__
            raise ValueError(f"is_negative: expected a bool tensor [{len(x)}] for {len(x)} samples, got {got}")
        return answer.cpu()
