"""Further processes of Python that take part in this one's work."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def beside(n: int, work: Callable[..., Any], *arguments: Any) -> Iterator[None]:
    """While the block runs, have `n` further processes each do work(*arguments), and wait for them at its end.

    Where the block raises they get SIGTERM first; so they do where this process dies. Ctrl-C on the terminal is this
    process's alone. `work`, of a module's top level, and its arguments are pickled. A process that fails ends quietly:
    what it left undone is for this one to find.
    """
    context = multiprocessing.get_context("spawn")
    there = [context.Process(target=_take_part, args=(work, *arguments)) for _ in range(n)]
    for process in there:
        process.start()
    try:
        yield
    except BaseException:
        for process in there:
            process.terminate()
        raise
    finally:
        for process in there:
            process.join()


def _take_part(work: Callable[..., Any], *arguments: Any) -> None:
    if hasattr(os, "setsid"):
        os.setsid()  # out of reach of the terminal's Ctrl-C
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(*arguments)
    except (Exception, KeyboardInterrupt):
        raise SystemExit(1) from None


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
