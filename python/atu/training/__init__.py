"""The training step, the loop round it, the run folder it saves to, and how a generator is scored on the way."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loop import StageHooks, run_stage
    from .run_folder import RunFolder
    from .step import AdversarialStep, Batch, NonFiniteError, Objective

_HOMES = {
    "AdversarialStep": "step",
    "Batch": "step",
    "NonFiniteError": "step",
    "Objective": "step",
    "RunFolder": "run_folder",
    "StageHooks": "loop",
    "run_stage": "loop",
}
__all__ = ["AdversarialStep", "Batch", "NonFiniteError", "Objective", "RunFolder", "StageHooks", "run_stage"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'atu.training' has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
