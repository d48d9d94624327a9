"""The activations: one table for the ops, their references and networks; codes are those of the kernels (enum Act)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Activation:
    """One activation: the kernels' code, its function of (x, alpha), and its defaults."""

    code: int
    func: Callable[[Tensor, float], Tensor]
    def_alpha: float = 0.0
    def_gain: float = 1.0
    curved: bool = True  # act'' is not 0 everywhere
    from_value: bool = True  # act' and act'' are functions of act(x)


_SQRT2 = 2.0**0.5

activations = {
    "linear": Activation(0, lambda x, alpha: x, curved=False),
    "relu": Activation(1, lambda x, alpha: F.relu(x), def_gain=_SQRT2, curved=False),
    "lrelu": Activation(2, lambda x, alpha: F.leaky_relu(x, alpha), def_alpha=0.2, def_gain=_SQRT2, curved=False),
    "tanh": Activation(3, lambda x, alpha: torch.tanh(x)),
    "sigmoid": Activation(4, lambda x, alpha: torch.sigmoid(x)),
    "elu": Activation(5, lambda x, alpha: F.elu(x)),
    "selu": Activation(6, lambda x, alpha: F.selu(x)),
    "softplus": Activation(7, lambda x, alpha: F.softplus(x)),
    "swish": Activation(8, lambda x, alpha: torch.sigmoid(x) * x, def_gain=_SQRT2, from_value=False),
}
BY_CODE = tuple(activations.values())


class ActSettings(NamedTuple):
    """clamp(gain * act(x)) as the kernels take it."""

    act: int  # the activation's code
    alpha: float
    gain: float
    clamp: float  # negative: none

    @property
    def is_identity(self) -> bool:
        return self.act == 0 and self.gain == 1 and self.clamp < 0


LINEAR = ActSettings(0, 0.0, 1.0, -1.0)


def act_settings(act: str, alpha: float | None, gain: float | None, clamp: float | None) -> ActSettings:
    """The ops' arguments, checked, with the activation's defaults filled in.

    Raises:
        ValueError: no such activation; a clamp that is not >= 0.
    """
    spec = activations.get(act)
    if spec is None:
        raise ValueError(f"act: expected one of {', '.join(activations)}, got {act!r}")
    if clamp is not None and not clamp >= 0:
        raise ValueError(f"clamp: expected a number >= 0 or None, got {clamp!r}")
    return ActSettings(
        spec.code,
        spec.def_alpha if alpha is None else float(alpha),
        spec.def_gain if gain is None else float(gain),
        -1.0 if clamp is None else float(clamp),
    )


def activate(x: Tensor, settings: ActSettings) -> Tensor:
    """The plain-torch reference: clamp(gain * act(x))."""
    x = BY_CODE[settings.act].func(x, settings.alpha)
    if settings.gain != 1:
        x = x * settings.gain
    return x if settings.clamp < 0 else x.clamp(-settings.clamp, settings.clamp)
