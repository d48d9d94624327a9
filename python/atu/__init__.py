"""Adapt-then-Unlearn for GANs: the training API. `atu_ext` re-exports what users need.

Names are fetched on first use, so that the `atu` command can answer `--help` without importing torch.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Config
    from .gan import GAN
    from .unlearn import Result, adapt, extrapolate, repel, unlearn

__all__ = ["GAN", "Config", "Result", "adapt", "extrapolate", "repel", "unlearn"]

_HOMES = {"GAN": "gan", "Config": "config"}


class _Door(types.ModuleType):
    """Keeps `atu.unlearn`, `atu.adapt` and `atu.repel` the functions, though submodules have these names too."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'atu' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"atu.{_HOMES.get(name, 'unlearn')}"), name)
    globals()[name] = value
    return value


sys.modules[__name__].__class__ = _Door
