"""What was marked: kept in a journal, undone and redone without limit, the same after any kill.

FOLDER/journal.jsonl     what happened, in order; everything else follows from it
FOLDER/unwanted, good    the marked samples as PNG files (see output.py)
FOLDER/labels.json       their seeds, indices, hashes and times
"""

from __future__ import annotations

import datetime
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..measures.intervals import wilson
from ..support.files import check_writable, remove_partial
from ..support.lock import FolderLock
from .journal import NAME, Journal, has_begun

FORMAT = 1
NONE, UNWANTED, GOOD, UNSURE = b".ngu"
FOLDERS = {UNWANTED: "unwanted", GOOD: "good"}
PICTURE = re.compile(r"r\d+-\d+\.png")  # names of files that are written and removed in them
RUN_FILE = re.compile(r"run-\d+\.(log|lock)")
CODES = {"none": NONE, "unwanted": UNWANTED, "good": GOOD, "unsure": UNSURE}
# The first indices are a random sample of their own: shown in one row, in order, and nowhere else.
RANDOM = 1024
# Samples of the original, and as many of a round's result, that are judged blind once its run is done. They are of
# latents of their own and have negative indices: -1 is the first that is shown.
JUDGED = 200


@dataclass
class Round:
    """The marks of one GAN's samples. codes: one byte a sample. times: of each mark, by index. blind: one byte a sample
    that is judged after the run, in the order shown. revealed: whether the verdict was shown; it then stays as it is.
    """

    ckpt: str
    gan: str
    codes: bytearray
    blind: bytearray = field(default_factory=lambda: bytearray([NONE]) * (2 * JUDGED))
    revealed: bool = False
    times: dict[int, str] = field(default_factory=dict)
    undone: list[list[tuple[int, int]]] = field(default_factory=list)
    done: list[list[tuple[int, int]]] = field(default_factory=list)
    changes: list[tuple[int, int]] = field(default_factory=list)  # since this process began: (index, code)

    def code(self, index: int) -> int:
        return self.blind[-1 - index] if index < 0 else self.codes[index]

    def put(self, index: int, code: int) -> None:
        if index < 0:
            self.blind[-1 - index] = code
        else:
            self.codes[index] = code

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
        ValueError: the folder cannot be written, is in use, holds a symbolic link, marks of another GAN, or, without a
            journal, files that would be overwritten.
    """

    def __init__(self, folder: Path, ckpt: str, gan: str, seed: int, block: int, samples: int):
        self.folder, self.size = check_writable(folder, "out"), RANDOM + samples
        _refuse_links(folder)
        _refuse_foreign(folder)
        self._lock = FolderLock(folder, "out")
        self._mutex = threading.Lock()
        try:
            self.journal = Journal(folder / NAME)
            remove_partial(folder)
            if not self.journal.entries:
                self.journal.append({"op": "open", "format": FORMAT, "seed": seed, "block": block, **_of(ckpt, gan)})
            entries = self.journal.entries or [dict(seed=seed, block=block, gan=gan, format=FORMAT, ckpt=ckpt)]
            self._check(entries[0], gan)
            self.seed, self.block = int(entries[0]["seed"]), int(entries[0]["block"])
            # By the name of now: the file may have moved, and a name in a folder from elsewhere is not to be run.
            self.rounds, self.stamp = [self._round({**entries[0], "ckpt": ckpt})], 0
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
            indices: of this round's samples, those that are judged blind among them. label: one of `CODES`. via: the
                view that they were shown in.

        Raises:
            ValueError: an index or label that there is none of.
        """
        if label not in CODES:
            raise ValueError(f"label: expected one of {', '.join(CODES)}, got {label!r}")
        if not all(isinstance(i, int) and not isinstance(i, bool) and -2 * JUDGED <= i < self.size for i in indices):
            raise ValueError(f"indices: expected integers from 0 to {self.size - 1}")
        at = sorted(set(indices))
        with self._mutex:
            if self.now.revealed and at and at[0] < 0:
                raise ValueError("the verdict was shown, and stays as it is")
            if any(self.now.code(i) != CODES[label] for i in at):
                self._write({"op": "mark", "label": label, "at": at, "via": via})

    def undo(self) -> bool:
        """Take the last step of this round back; False where there is none."""
        with self._mutex:
            return bool(self.now.done) and self._write({"op": "undo"})

    def redo(self) -> bool:
        """Do again what was undone last; False where there is nothing."""
        with self._mutex:
            return bool(self.now.undone) and self._write({"op": "redo"})

    def reveal(self) -> None:
        """End the judging of this round's result: from here on nothing of it changes, and what was done before cannot
        be undone."""
        with self._mutex:
            if not self.now.revealed:
                self._write({"op": "reveal"})

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
        elif op == "reveal":
            now.revealed = True
            now.done.clear()
            now.undone.clear()
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
        before = [(i, where.code(i)) for i, code in codes if where.code(i) != code]
        for i, code in codes:
            where.put(i, code)
            where.times[i] = time
        where.changes.extend((i, where.code(i)) for i, _ in before)
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
        return share_of(_answered((where or self.now).codes[:RANDOM]))

    def blind_order(self, number: int) -> np.ndarray:
        """What is shown in which order to the judge of round `number` (from 1): sample k of the original below JUDGED,
        of the result from there on."""
        return np.random.default_rng([self.seed, number]).permutation(2 * JUDGED)

    def blind_verdict(self, number: int) -> dict[str, Any]:
        """The verdict on round `number`'s result, as far as all that were shown have an answer.

        Returns:
            judged (of both), before and after: each as of `verdict`.
        """
        answered = _answered(self.rounds[number - 1].blind)
        of_result = self.blind_order(number)[: len(answered)] >= JUDGED
        codes = np.frombuffer(bytes(answered), np.uint8)
        halves = {"before": codes[~of_result], "after": codes[of_result]}
        return dict(judged=len(answered), **{name: share_of(bytearray(half)) for name, half in halves.items()})

    def close(self) -> None:
        """Let go of the folder."""
        self.journal.close()
        self._lock.release()


def _refuse_links(folder: Path) -> None:
    """What is written into a folder must stay in it: one from elsewhere could lead to other files of the user's."""
    for path in folder.iterdir():
        if path.is_symlink():
            raise ValueError(f"out: {path} is a symbolic link, and the page would write to what it leads to; remove it")


def _refuse_foreign(folder: Path) -> None:
    """Without a journal, what a session would write over or remove is the user's own, or of marks from elsewhere."""
    found = None if has_begun(folder) else next(_written(folder), None)
    if found is not None:
        raise ValueError(
            f"out: {found} is there without a journal of atu label, and would be overwritten; give another folder"
        )


def _written(folder: Path) -> Iterator[Path]:
    """What is there under the names of files that a session and its runs write."""
    for path in sorted(folder.iterdir()):
        if path.name in ("labels.json", "latents.safetensors") or RUN_FILE.fullmatch(path.name):
            yield path
        elif path.name in FOLDERS.values() and path.is_dir():
            yield from (inner for inner in sorted(path.iterdir()) if PICTURE.fullmatch(inner.name))


def _answered(codes: bytearray) -> bytearray:
    """Codes up to the first sample that has none."""
    end = codes.find(NONE)
    return codes if end < 0 else codes[:end]


def share_of(seen: bytearray) -> dict[str, Any]:
    """marked, unwanted, unsure, share of unwanted and its Wilson interval. Unsure ones count as neither."""
    unwanted, n = seen.count(UNWANTED), len(seen) - seen.count(UNSURE)
    low, high = wilson(unwanted, n)
    share = unwanted / n if n else None
    return dict(marked=len(seen), unwanted=unwanted, unsure=len(seen) - n, share=share, low=low, high=high)


def _of(ckpt: str, gan: str) -> dict[str, str]:
    return {"ckpt": ckpt, "gan": gan}
