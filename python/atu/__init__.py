"""Adapt-then-Unlearn for GANs: the training API. `atu_ext` re-exports what users need.

Names are fetched on first use, so that the `atu` command can answer `--help` without importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Result, adapt, extrapolate, repel, unlearn
    from .config import Config
    from .evaluation.evaluate import evaluate
    from .gan import GAN
    from .judging.checks import FeedbackWarning
    from .support.context import RunContext
    from .training.fit_discriminator import fit_discriminator

__all__ = [
    "GAN",
    "Config",
    "FeedbackWarning",
    "Result",
    "RunContext",
    "adapt",
    "evaluate",
    "extrapolate",
    "fit_discriminator",
    "repel",
    "unlearn",
]

_HOMES = {
    "GAN": "gan",
    "Config": "config",
    "FeedbackWarning": "judging.checks",
    "RunContext": "support.context",
    "evaluate": "evaluation.evaluate",
    "fit_discriminator": "training.fit_discriminator",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'atu' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"atu.{_HOMES.get(name, 'api')}"), name)
    globals()[name] = value
    return value
