"""A journal of JSON lines: what was appended is on disk before `append` returns."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Journal:
    """FOLDER/journal.jsonl, one object a line. A last line that a killed process left unfinished is cut off."""

    def __init__(self, path: Path):
        self.path = path
        self.entries = list(self._read())
        self._file = open(path, "ab")  # noqa: SIM115  closed by `close`

    def _read(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        good = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    entry = json.loads(line)
                except ValueError:
                    raise ValueError(f"out: line {number} of {self.path} is not JSON; was it edited?") from None
                good += len(line)
                yield entry
        if good < self.path.stat().st_size:
            os.truncate(self.path, good)

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
