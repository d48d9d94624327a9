"""atu-ext: machine unlearning for GANs.

The ops live in `atu_ext.ops`. The training API (`unlearn`, `adapt`, `repel`, `extrapolate`, `GAN`, `Config`, ...) is
fetched from the package `atu` on first use, so that importing the ops imports no training code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from atu import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module 'atu_ext' has no attribute {name!r}")
    import importlib

    if name == "ops":
        return importlib.import_module("atu_ext.ops")
    door = importlib.import_module("atu")
    if name in getattr(door, "__all__", ()):
        value = getattr(door, name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'atu_ext' has no attribute {name!r}")


def __dir__() -> list[str]:
    import atu

    return sorted({*globals(), "ops", *getattr(atu, "__all__", ())})


__all__ = ["__version__"]
