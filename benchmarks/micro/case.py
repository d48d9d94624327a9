"""One benchmark case as plain data; the suite does the timing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """A piece of work in up to three implementations, all of the same inputs.

    bytes: read and written at least once, however it is computed. flops: of the method that `ours` uses.
    """

    name: str
    ours: Callable[[], Any]
    reference: Callable[[], Any]
    bytes: int
    flops: int
    peer: Callable[[], Any] | None = None
