"""What was marked: kept in a journal, undone and redone without limit, the same after any kill.

FOLDER/journal.jsonl     what happened, in order; everything else follows from it
FOLDER/unwanted, good    the marked samples as PNG files (see output.py)
FOLDER/labels.json       their seeds, indices, hashes and times
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..measures.intervals import wilson
from ..support.files import check_writable, remove_partial
from ..support.lock import FolderLock
from .journal import Journal

FORMAT = 1
NONE, UNWANTED, GOOD, UNSURE = b".ngu"
CODES = {"none": NONE, "unwanted": UNWANTED, "good": GOOD, "unsure": UNSURE}
# The first indices are a random sample of their own: shown in one row, in order, and nowhere else.
RANDOM = 1024


@dataclass
class Round:
    """The marks of one GAN's samples. codes: one byte a sample. times: of each mark, by index."""

    ckpt: str
    gan: str
    codes: bytearray
    times: dict[int, str] = field(default_factory=dict)
    undone: list[list[tuple[int, int]]] = field(default_factory=list)
    done: list[list[tuple[int, int]]] = field(default_factory=list)
    changes: list[tuple[int, int]] = field(default_factory=list)  # since this process began: (index, code)

    def indices(self, code: int) -> list[int]:
        found, at = [], self.codes.find(code)
        while at >= 0:
            found.append(at)
            at = self.codes.find(code, at + 1)
        return found


class Session:
    """A folder of marks, held by one process.

    Args:
        folder: made if there is none. ckpt, gan: name and digest of the GAN whose samples are marked. seed: of the
            samples. block: samples made at once, part of what a sample is keyed by. samples: how many are offered.

    Raises:
        ValueError: the folder cannot be written, is in use, or holds marks of another GAN.
    """

    def __init__(self, folder: Path, ckpt: str, gan: str, seed: int, block: int, samples: int):
        self.folder, self.size = check_writable(folder, "out"), RANDOM + samples
        self._lock = FolderLock(folder, "out")
        self._mutex = threading.Lock()
        try:
            remove_partial(folder)
            self.journal = Journal(folder / "journal.jsonl")
            if not self.journal.entries:
                self.journal.append({"op": "open", "format": FORMAT, "seed": seed, "block": block, **_of(ckpt, gan)})
            entries = self.journal.entries or [dict(seed=seed, block=block, gan=gan, format=FORMAT, ckpt=ckpt)]
            self._check(entries[0], gan)
            self.seed, self.block = int(entries[0]["seed"]), int(entries[0]["block"])
            self.rounds, self.stamp = [self._round(entries[0])], 0
            for entry in entries[1:]:
                self._replay(entry)
            self.journal.entries = []
            for found in self.rounds:  # it was opened with more samples before
                found.codes.extend(bytes([NONE]) * (self.size - len(found.codes)))
        except BaseException:
            self._lock.release()
            raise

    def _check(self, first: dict[str, Any], gan: str) -> None:
        if first.get("format") != FORMAT:
            raise ValueError(f"out: {self.folder} holds marks of format {first.get('format')}, and this reads {FORMAT}")
        if first["gan"] != gan:
            raise ValueError(
                f"out: {self.folder} holds marks of another GAN ({first['ckpt']}); give that one, or another folder"
            )

    def _round(self, entry: dict[str, Any]) -> Round:
        return Round(entry["ckpt"], entry["gan"], bytearray([NONE]) * self.size)

    @property
    def now(self) -> Round:
        """The round that is being marked."""
        return self.rounds[-1]

    @property
    def version(self) -> int:
        return len(self.now.changes)

    # --- marking

    def mark(self, indices: Sequence[int], label: str, via: str = "all") -> None:
        """Mark samples; on disk when this returns.

        Args:
            indices: of this round's samples. label: one of `CODES`. via: the view that they were shown in.

        Raises:
            ValueError: an index or label that there is none of.
        """
        if label not in CODES:
            raise ValueError(f"label: expected one of {', '.join(CODES)}, got {label!r}")
        if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < self.size for i in indices):
            raise ValueError(f"indices: expected integers from 0 to {self.size - 1}")
        at = sorted(set(indices))
        with self._mutex:
            if any(self.now.codes[i] != CODES[label] for i in at):
                self._write({"op": "mark", "label": label, "at": at, "via": via})

    def undo(self) -> bool:
        """Take the last step of this round back; False where there is none."""
        with self._mutex:
            return bool(self.now.done) and self._write({"op": "undo"})

    def redo(self) -> bool:
        """Do again what was undone last; False where there is nothing."""
        with self._mutex:
            return bool(self.now.undone) and self._write({"op": "redo"})

    def begin_round(self, ckpt: str, gan: str) -> None:
        """Go on with the samples of another GAN; the marks so far are kept, and count."""
        with self._mutex:
            self._write({"op": "round", **_of(ckpt, gan)})

    def _write(self, entry: dict[str, Any]) -> bool:
        entry = {**entry, "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")}
        self.journal.append(entry)
        self._replay(entry)
        return True

    def _replay(self, entry: dict[str, Any]) -> None:
        now, op = self.now, entry["op"]
        self.stamp += 1
        if op == "round":
            self.rounds.append(self._round(entry))
        elif op == "mark":
            now.undone.clear()
            now.done.append(self._set(now, [(i, CODES[entry["label"]]) for i in entry["at"]], entry["time"]))
        elif op == "undo":
            now.undone.append(self._set(now, now.done.pop(), entry["time"]))
        elif op == "redo":
            now.done.append(self._set(now, now.undone.pop(), entry["time"]))
        else:
            raise ValueError(f"out: {self.journal.path} holds an entry {op!r}, which this version does not know")

    def _set(self, where: Round, codes: list[tuple[int, int]], time: str) -> list[tuple[int, int]]:
        """Set codes; returns what sets them back."""
        highest = max((i for i, _ in codes), default=0)
        if highest >= len(where.codes):
            where.codes.extend(bytes([NONE]) * (highest + 1 - len(where.codes)))
            self.size = max(self.size, highest + 1)
        before = [(i, where.codes[i]) for i, code in codes if where.codes[i] != code]
        for i, code in codes:
            where.codes[i] = code
            where.times[i] = time
        where.changes.extend((i, where.codes[i]) for i, _ in before)
        return before

    # --- what the marks say

    def counts(self) -> dict[str, int]:
        """Marks of all rounds, by label."""
        return {
            label: sum(found.codes.count(code) for found in self.rounds)
            for label, code in CODES.items()
            if code != NONE
        }

    def verdict(self, where: Round | None = None) -> dict[str, Any]:
        """The person's verdict on a random sample, the first indices as far as all of them are marked.

        Returns:
            marked, unwanted, unsure, share and its Wilson interval (low, high, 95 %). Unsure ones count as neither.
        """
        codes = (where or self.now).codes[:RANDOM]
        end = codes.find(NONE)
        seen = codes if end < 0 else codes[:end]
        unwanted, n = seen.count(UNWANTED), len(seen) - seen.count(UNSURE)
        low, high = wilson(unwanted, n)
        share = unwanted / n if n else None
        return dict(marked=len(seen), unwanted=unwanted, unsure=len(seen) - n, share=share, low=low, high=high)

    def close(self) -> None:
        """Let go of the folder."""
        self.journal.close()
        self._lock.release()


def _of(ckpt: str, gan: str) -> dict[str, str]:
    return {"ckpt": ckpt, "gan": gan}
