"""The session at work: one thread that makes samples, fits the probe and writes files, behind what the page asks."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from ..formats.own_model import load_like
from ..gan import GAN
from ..support import progress
from ..training.run_folder import gan_digest
from . import suggest
from .output import Output
from .pool import Pool, Space, block_size
from .run import Runs
from .session import GOOD, NONE, RANDOM, UNWANTED, Session

WAITING = 64  # blocks that are asked for and not made yet; of more, the oldest are forgotten
CALM = 1.0  # least seconds without a mark before files are written
ROW = suggest.ROW


class Studio:
    """All that the server holds. `start` begins the work, `close` ends it and writes what is missing."""

    def __init__(self, session: Session, gan: GAN, runs: Runs):
        self.session, self.runs = session, runs
        self.space = Space(gan, session.block, session.size - RANDOM)
        self.pools = {1: Pool(gan, self.space, session.seed, session.block, session.size)}
        for number in range(2, len(session.rounds) + 1):
            self.pools[number] = self._load(number)
        self.output = Output(session)
        self.probe: suggest.Probe | None = None
        self.views: dict[str, list[int]] = {}
        self.history: list[tuple[int, float]] = []
        self.cost: dict[str, float] | None = None
        self.error = ""
        self.fit_seconds = 0.0
        self._fitted = self._written = -1
        self._marked_at, self._calm, self._news = 0.0, CALM, 0
        self._wanted: list[tuple[int, int]] = []
        self._tasks: list[tuple[Callable[[], None], Future[None]]] = []
        self._wake = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="samples", daemon=True)

    def _load(self, number: int) -> Pool:
        found = self.session.rounds[number - 1]
        gan = load_like(found.ckpt, self.space.gan).to(self.space.gan.device)
        if gan_digest(gan) != found.gan:
            raise ValueError(f"out: {found.ckpt}, whose samples were marked, has changed since")
        return Pool(gan, self.space, self.session.seed, self.session.block, self.session.size)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop the run and the work, write the files, let go of the folder."""
        with self._wake:
            self._ended = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()
        self.runs.close()
        try:
            self.output.write(self.pools)
        finally:
            self.session.close()

    # --- what the page asks

    @property
    def number(self) -> int:
        """The round, from 1."""
        return len(self.session.rounds)

    def touched(self) -> None:
        """Marks have changed."""
        with self._wake:
            self._marked_at = time.monotonic()
            self._wake.notify()

    def want(self, number: int, index: int) -> None:
        """Ask for a sample's block, before those that were asked for earlier."""
        key = (number, index // self.session.block)
        with self._wake:
            if key not in self._wanted:
                self._wanted.append(key)
                del self._wanted[:-WAITING]
                self._wake.notify()

    def unlearn(self) -> None:
        """Begin this round's run on the marks as they are now.

        Raises:
            ValueError: nothing is marked unwanted, or as of `Runs.start`.
        """
        if self.session.counts()["unwanted"] == 0:
            raise ValueError("nothing is marked unwanted yet")
        if self.space.gan.discriminator is None:
            raise ValueError("this checkpoint holds no discriminator; run atu unlearn with --train-discriminator STEPS")
        self._in_thread(self._begin_run)

    def _begin_run(self) -> None:
        self.output.write(self.pools)
        self.runs.start(self.number)

    def next_round(self) -> None:
        """Go on with the samples of this round's result.

        Raises:
            ValueError: there is none yet.
        """
        self._in_thread(self._begin_round)

    def _begin_round(self) -> None:
        if self.runs.busy or not self.runs.finished(self.number):
            raise ValueError("the run of this round is not finished")
        result = self.runs.folder(self.number) / "result.safetensors"
        gan = load_like(result, self.space.gan).to(self.space.gan.device)
        pool = Pool(gan, self.space, self.session.seed, self.session.block, self.session.size)
        self.pools[self.number + 1] = pool
        self.session.begin_round(str(result), gan_digest(gan))
        self.views, self.history, self.cost = {}, [], None

    def _in_thread(self, work: Callable[[], None]) -> None:
        """Do it in the thread that makes samples, the only one that may: random state is the process's."""
        done: Future[None] = Future()
        with self._wake:
            self._tasks.append((work, done))
            self._wake.notify()
        done.result()

    def state(self, since: int, number: int) -> dict[str, Any]:
        """All that the page shows; codes are left out where the page has those of version `since`."""
        session, now = self.session, self.session.now
        version = session.version
        found: dict[str, Any] = dict(
            round=self.number,
            size=len(now.codes),
            random=RANDOM,
            version=version,
            counts=session.counts(),
            undo=len(now.done),
            redo=len(now.undone),
            views=self.views,
            fitted=self._fitted == session.stamp,
            probe=self._agreement(),
            verdict=session.verdict(),
            earlier=session.verdict(session.rounds[-2]) if self.number > 1 else None,
            made=int(self.pools[self.number].made.sum()) * session.block,
            cost=self.cost,
            run=self.runs.status(self.number),
            error=self.error,
        )
        steady = suggest.settled(self.history)
        found["advice"], found["steady"] = suggest.advice(found["counts"], steady), steady
        if number == self.number and 0 <= version - since <= 5000 and since >= 0:
            found["changes"] = now.changes[since:version]
        else:
            found["codes"] = now.codes.decode("ascii")
        return found

    def _agreement(self) -> dict[str, Any] | None:
        probe = self.probe
        if probe is None:
            return None
        return dict(
            recall=suggest.agreement(probe.recall),
            specificity=suggest.agreement(probe.specificity),
            duplicates=len(probe.duplicates),
            seconds=round(self.fit_seconds, 2),
        )

    # --- the thread

    def _work(self) -> None:
        while True:
            with self._wake:
                if self._ended:
                    return
            try:
                idle = not self._step()
                self.error = ""
            except Exception as error:  # shown in the page; the marks are safe in the journal
                progress.log.error("%s", traceback.format_exc())
                self.error = f"{type(error).__name__}: {error}"[:300]
                time.sleep(1)
                idle = True
            if idle:
                with self._wake:
                    if not (self._wanted or self._tasks or self._ended):
                        self._wake.wait(0.25)

    def _step(self) -> bool:
        """Do the most urgent thing; False when nothing is left to do for now."""
        number, stamp = self.number, self.session.stamp
        with self._wake:
            task = self._tasks.pop(0) if self._tasks else None
            key = self._wanted.pop() if self._wanted and task is None else None
        if task is not None:
            work, done = task
            try:
                done.set_result(work())
            except Exception as error:  # of whoever asked
                done.set_exception(error)
            return True
        if key is not None:
            self.pools[key[0]].make(key[1])
            return True
        if self._fitted != stamp:
            self._fit()
            self._fitted = stamp
            return True
        if self._written != stamp and time.monotonic() - self._marked_at > self._calm:
            start = time.monotonic()
            if self.output.write(self.pools, lambda: bool(self._wanted) or self.session.stamp != stamp):
                self._written = stamp
                self._calm = max(CALM, 5 * (time.monotonic() - start))
            return True
        if self.runs.busy:  # it needs the processors more
            return False
        urgent = self._urgent_blocks()
        block = urgent[0] if urgent else self._next_block()
        if block is not None:
            self.pools[block[0]].make(block[1])
            self._news += 1
            if len(urgent) == 1 or self._news >= 8:  # more samples to learn and to suggest from
                self._fitted, self._news = -1, 0
            return True
        if self.cost is None:
            self.cost = self.runs.cost(self.pools[number].gan)
        return False

    def _urgent_blocks(self) -> list[tuple[int, int]]:
        """(round, block) of marked samples whose features are not there; of the last round's marks in this one too."""
        found = []
        for number, pool in self.pools.items():
            at = [self._marked(number)]
            if number == self.number > 1:
                at.append(self._marked(number - 1))
            blocks = np.unique(np.concatenate(at) // pool.block)
            found += [(number, int(block)) for block in blocks if not pool.made[block]]
        return found

    def _marked(self, number: int) -> np.ndarray:
        """Indices of a round's unwanted and good marks."""
        codes = np.frombuffer(bytes(self.session.rounds[number - 1].codes), np.uint8)[: self.pools[number].size]
        return np.flatnonzero((codes == UNWANTED) | (codes == GOOD))

    def _next_block(self) -> tuple[int, int] | None:
        """(round, block) that comes next in the grid."""
        pool = self.pools[self.number]
        first = RANDOM // pool.block
        left = np.flatnonzero(~pool.made[first:])
        return (self.number, first + int(left[0])) if len(left) else None

    def _fit(self) -> None:
        """The probe and the rows of suggestions, from the marks as they are now."""
        start, number, pool = time.monotonic(), self.number, self.pools[self.number]
        known, codes = pool.known(), np.frombuffer(bytes(self.session.now.codes), np.uint8)[: pool.size]
        free = known & (codes == NONE)
        free[:RANDOM] = False
        at, features, unwanted = self._marks()
        others = pool.features[_spread(np.flatnonzero(free), 1000)]
        self.probe = suggest.fit(features, unwanted, others) if len(at) else None
        views: dict[str, list[int]] = {}
        if self.probe is not None:
            scores = np.full(pool.size, -np.inf, np.float32)
            scores[known] = self.probe.score(pool.features[: pool.size][known])
            views["likely"] = suggest.likely(scores, free)
            views["unsure"] = suggest.unsure(scores, free)
            views["contradictory"] = [at[i][1] for i in self.probe.contradictions if at[i][0] == number][:ROW]
            views["duplicates"] = [at[i][1] for i in self.probe.duplicates if at[i][0] == number][: 4 * ROW]
            right, of = self.probe.recall
            if not self.history or self.history[-1][0] != len(at):
                self.history.append((len(at), right / of))
            if number > 1:
                views.update(self._compared(number, scores))
        self.views, self.fit_seconds = views, time.monotonic() - start

    def _marks(self) -> tuple[list[tuple[int, int]], np.ndarray, np.ndarray]:
        """(round, index), features and unwanted or not, of marks of all rounds."""
        at: list[tuple[int, int]] = []
        features, unwanted = [], []
        for number, found in enumerate(self.session.rounds, 1):
            pool, known = self.pools[number], self.pools[number].known()
            for code in (UNWANTED, GOOD):
                index = np.array([i for i in found.indices(code) if i < pool.size and known[i]], int)
                index = _spread(index, suggest.MOST)
                at += [(number, int(i)) for i in index]
                features.append(pool.features[index])
                unwanted += [code == UNWANTED] * len(index)
        there = [part for part in features if part.shape[1]]
        return at, np.concatenate(there) if there else np.zeros((0, 1), np.float32), np.array(unwanted, bool)

    def _compared(self, number: int, scores: np.ndarray) -> dict[str, list[int]]:
        """What survived, and what changed most of what was good: the same latents under the GAN before and now."""
        before, pool, last = self.pools[number - 1], self.pools[number], self.session.rounds[-2]
        known = pool.known() & before.known()
        index = {code: [i for i in last.indices(code) if i < pool.size and known[i]] for code in (UNWANTED, GOOD)}
        survived = sorted((i for i in index[UNWANTED] if scores[i] > 0), key=lambda i: -scores[i])
        moved = np.linalg.norm(pool.features[index[GOOD]] - before.features[index[GOOD]], axis=1)
        damaged = [index[GOOD][int(k)] for k in np.argsort(-moved, kind="stable")[:ROW]]
        return dict(survived=survived[: 4 * ROW], damaged=damaged)


def _spread(index: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the indices, evenly spread."""
    return index if len(index) <= most else index[np.linspace(0, len(index) - 1, most).astype(int)]


def open_studio(
    gan: GAN, ckpt: str, folder: Path, samples: int, seed: int, options: list[str], config: Path | None
) -> Studio:
    """Open a folder of marks, new or not, for the samples of a GAN; arguments and errors as of `Session`."""
    session = Session(folder, ckpt, gan_digest(gan), seed, block_size(gan), samples)
    try:
        return Studio(session, gan, Runs(session, options, config))
    except BaseException:
        session.close()
        raise
