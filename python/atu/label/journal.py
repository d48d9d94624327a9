"""A journal of JSON lines: what was appended is on disk before `append` returns."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAME = "journal.jsonl"
FIRST = b'{"op":"open"'  # what its first line begins with


def has_begun(folder: Path) -> bool:
    """Whether the journal of a folder holds a first line, whole."""
    try:
        with open(folder / NAME, "rb") as file:
            return file.readline().endswith(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return False


class Journal:
    """FOLDER/journal.jsonl, one object a line. A last line that a killed process left unfinished is cut off.

    Raises:
        ValueError: a line is not JSON, or another program wrote the file, of which nothing is cut off then.
    """

    def __init__(self, path: Path):
        self.path = path
        self.entries = list(self._read())
        self._file = open(path, "ab")  # noqa: SIM115  closed by `close`

    def _read(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        good, torn = 0, b""
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    torn = line
                    break
                try:
                    entry = json.loads(line)
                except ValueError:
                    raise ValueError(f"out: line {number} of {self.path} is not JSON; was it edited?") from None
                self._check(number > 1 or (isinstance(entry, dict) and entry.get("op") == "open"))
                good += len(line)
                yield entry
        self._check(good > 0 or FIRST.startswith(torn.rstrip(b"\0")[: len(FIRST)]))  # a torn file may end in zeros
        if torn:
            os.truncate(self.path, good)

    def _check(self, ours: bool) -> None:
        if not ours:
            raise ValueError(f"out: {self.path} is no journal of atu label; give another folder")

    def append(self, entry: dict[str, Any]) -> None:
        """Write one entry and flush it to disk.

        Raises:
            OSError: it could not be written; nothing of it counts.
        """
        at = self._file.tell()
        try:
            self._file.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError:
            self._discard(at)
            raise

    def _discard(self, at: int) -> None:
        """Forget what is in the buffer or half on disk, so that the next entry begins a line."""
        raw = self._file.detach()
        os.truncate(self.path, at)
        raw.close()
        self._file = open(self.path, "ab")  # noqa: SIM115

    def close(self) -> None:
        self._file.close()
