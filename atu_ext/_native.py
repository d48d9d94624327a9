"""The compiled module, or the reason why there is none."""

from __future__ import annotations

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch  # noqa: F401  - first, so that its OpenMP runtime is the one this process uses


def _has_module(package: Path) -> bool:
    return any((package / f"_C{suffix}").is_file() for suffix in EXTENSION_SUFFIXES)


def _installed_elsewhere(package: Path) -> Path | None:
    """The folder of another atu_ext on sys.path, one with a compiled module."""
    for entry in sys.path:
        other = Path(entry or ".").resolve() / package.name
        if other != package and _has_module(other):
            return other
    return None


def _why_missing(package: Path, fault: ImportError) -> tuple[str, str]:
    """(the reason, the remedy) for the package in that folder, whose compiled module could not be imported."""
    installed = None if _has_module(package) else _installed_elsewhere(package)
    if installed is None:
        return f"the compiled module atu_ext._C could not be imported ({fault})", "reinstall with: pip install ."
    return (
        f"Python found the source tree {package} first, which has no compiled module; the installed one is {installed}",
        f"start Python in another folder than {package.parent}, or run there: pip install -e .",
    )


_C: Any
error: str | None
try:
    from . import _C  # type: ignore[no-redef]

    error = remedy = None
except ImportError as fault:
    _C = None
    reason, remedy = _why_missing(Path(__file__).resolve().parent, fault)
    error = f"{reason}; {remedy}"
