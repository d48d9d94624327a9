"""The compiled module, or the reason why there is none."""

from __future__ import annotations

from typing import Any

import torch  # noqa: F401  - first, so that its OpenMP runtime is the one this process uses

_C: Any
error: str | None
try:
    from . import _C  # type: ignore[no-redef]

    error = None
except ImportError as exc:
    _C = None
    error = f"the compiled module atu_ext._C could not be imported ({exc}); reinstall with: pip install ."
