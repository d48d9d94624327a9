"""Writing files so that a killed process, or a machine that goes down, never leaves half of one."""

from __future__ import annotations

import json
import os
import re
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

_PARTIAL = ".partial"  # in the names of files that are being written
_PROBE = bytes(2**20)


def open_to_write(path: str | Path, mode: str = "w", within: str | Path | None = None) -> IO[Any]:
    """Open a file for writing as `open` does: "w", "a" or "x", UTF-8, or bytes with a "b". A new file gets the rights
    that the umask leaves.

    within: a folder that may come from elsewhere, in which `path` lies. A link below it could lead to any file of the
    user's: each is refused.

    Raises:
        ValueError: there is a link below `within`, or `path` is not below it.
        OSError: as of `open`; `path` itself is a link.
    """
    path = Path(path)
    if within is not None:
        check_no_links(path, within)
    return open(path, mode, encoding=None if "b" in mode else "utf-8", opener=_without_links)


def _without_links(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NOFOLLOW, 0o666)


def check_no_links(path: str | Path, within: str | Path) -> None:
    """Raise ValueError where `path`, or a folder between it and `within`, is a symbolic link or not below `within`."""
    place = Path(within)
    for part in Path(path).relative_to(within).parts:
        place /= part
        if part == ".." or place.is_symlink():
            raise ValueError(f"{place}: a link, which could lead anywhere: nothing is written through it")


def write_atomic(path: str | Path, write: Callable[[Path], Any], previous: Path | None = None) -> Path:
    """Call `write` with a temporary path beside `path`, flush it to disk, then rename it over `path`.

    previous: a path in the same folder, under which the file that was there before is kept.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_PARTIAL}{path.suffix}")
    with open_to_write(temporary, "xb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
    try:
        _written(write, temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)  # what the umask left, where `write` put a file of its own in the place
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return path


def _written(write: Callable[[Path], Any], path: Path) -> None:
    """Call `write`. Where the disk is why it failed, that becomes an OSError: safetensors tells the number in its text,
    torch tells nothing, and so the disk itself is asked."""
    try:
        write(path)
    except OSError:
        raise
    except Exception as error:
        told = re.search(r"\(os error (\d+)\)", str(error))
        if told:
            raise OSError(int(told[1]), os.strerror(int(told[1])), str(path)) from error
        with open_to_write(path, "ab") as file:
            file.write(_PROBE)
        raise


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
