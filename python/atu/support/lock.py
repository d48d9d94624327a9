"""One process at a time in a folder, or at a piece of work."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .files import write_json


class FolderLock:
    """Holds a folder until `release`, or until the process ends, however it does.

    FOLDER/.lock is what is locked, and stays; FOLDER/.owner.json says by whom.

    Raises:
        ValueError: another run holds it, naming the argument `name` and the owner.
    """

    def __init__(self, folder: Path, name: str):
        self._owner = folder / ".owner.json"
        self._lock = FileLock(folder / ".lock", timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise ValueError(
                f"{name}: {folder} is in use by another run ({self._told()}); wait for it to end, or give another "
                "folder"
            ) from None
        since = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        write_json(self._owner, {"pid": os.getpid(), "host": platform.node(), "since": since})

    def _told(self) -> str:
        try:
            owner = json.loads(self._owner.read_text(encoding="utf-8"))
            return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
        except (OSError, ValueError, KeyError, TypeError):  # it has just begun
            return "which has not said yet who it is"

    def release(self) -> None:
        if self._lock.is_locked:
            self._owner.unlink(missing_ok=True)
            self._lock.release()


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether the work that `path` stands for is this process's own: no other one, nor an outer block, holds it.

    Held until the block, or the process, ends, however it does. `path` is what is locked, and stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
