"""Writing files so that a killed process, or a machine that goes down, never leaves half of one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PARTIAL = ".partial"  # in the names of files that are being written


def write_atomic(path: str | Path, write: Callable[[Path], Any], previous: Path | None = None) -> Path:
    """Call `write` with a temporary path beside `path`, flush it to disk, then rename it over `path`.

    previous: a path in the same folder, under which the file that was there before is kept.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=f"{_PARTIAL}{path.suffix}")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return path


def remove_partial(folder: Path) -> None:
    """Remove what killed processes had begun to write into a folder that nobody else writes to now."""
    for path in folder.glob(f".*{_PARTIAL}*"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Flush a folder's names to disk, where the system lets a folder be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:  # a file system that cannot
        pass
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file atomically."""
    return write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, data: Any) -> Path:
    """Write JSON atomically."""
    return write_text(path, json.dumps(data, indent=2) + "\n")


def check_writable(folder: str | Path, name: str) -> Path:
    """Make a folder if there is none, and write and remove a file in it: to be called before any work.

    Raises:
        ValueError: it cannot be made or written, naming the argument `name`.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".write-test."):
            pass
    except OSError as error:
        raise ValueError(f"{name}: {folder} cannot be written ({error.strerror})") from error
    return folder
