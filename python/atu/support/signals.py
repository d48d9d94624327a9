"""Ctrl-C and SIGTERM, held back until a step is finished."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM came: as from a batch system at the end of its time. `atu` then exits with `exit_code`."""

    exit_code = 128 + signal.SIGTERM


def interruption(number: int, text: str = "") -> KeyboardInterrupt:
    """The exception for a signal: Terminated for SIGTERM, KeyboardInterrupt for Ctrl-C."""
    return Terminated(text) if number == signal.SIGTERM else KeyboardInterrupt(text)


@contextmanager
def held_back() -> Iterator[list[int]]:
    """Collect the first SIGINT or SIGTERM, so that a step is finished and saved; a second one raises at once.

    In another thread than the main one, which alone may handle signals, nothing is collected.
    """
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def handle(number: int, frame: Any) -> None:
        if seen:
            raise interruption(number)
        seen.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    usual: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            # None: a handler that was not set from Python, and cannot be put back from it.
            signal.signal(number, usual[number] if handler is None else handler)
