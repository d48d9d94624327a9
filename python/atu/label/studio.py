"""The session at work: one thread that makes samples, fits the probe and writes files, behind what the page asks."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..formats.own_model import load_like
from ..gan import GAN
from ..judging.rule import Rule
from ..report.person import add_person, person_of
from ..support import progress
from ..support.seeding import mix_seed
from ..training.run_folder import gan_digest
from . import suggest
from .like import nearest, read_picture
from .output import Output
from .pool import Pool, Space, block_size
from .run import Runs, refuse_earlier_runs
from .session import GOOD, JUDGED, NONE, RANDOM, UNWANTED, Session

WAITING = 64  # blocks that are asked for and not made yet; of more, the oldest are forgotten
CALM = 1.0  # least seconds without a mark before files are written
ROW = suggest.ROW


class Studio:
    """All that the server holds. `start` begins the work, `close` ends it and writes what is missing."""

    def __init__(
        self, session: Session, gan: GAN, runs: Runs, pictures: Sequence[Tensor] = (), oracle: Rule | None = None
    ):
        if pictures and gan.discriminator is None:
            raise ValueError("like: pictures are compared by the discriminator's features, and this GAN has none")
        self.session, self.runs = session, runs
        self.space = Space(gan, session.block, session.size - RANDOM)
        self.pools = {1: Pool(gan, self.space, session.seed, session.block, session.size)}
        for number in range(2, len(session.rounds) + 1):
            self.pools[number] = self._load(number)
        self.judged: dict[int, tuple[Pool, Pool]] = {}  # what is judged blind of a round: (original, result)
        self.pictures = list(pictures)  # of the user's own: samples like them are offered
        self._like: np.ndarray | None = None  # their features
        self.oracle = oracle  # ranks samples, and says which it would mark
        self.output = Output(session)
        self.probe: suggest.Probe | None = None
        self.views: dict[str, list[int]] = {}
        self.history: list[tuple[int, float]] = []
        self.steady = False  # whether the held-out agreement has settled in this round
        self.cost: dict[str, float] | None = None  # empty where it could not be estimated
        self.error = ""
        self.fit_seconds = 0.0
        self._fitted = self._written = -1
        self._marked_at, self._calm, self._news = 0.0, CALM, 0
        self._wanted: list[tuple[Pool, int]] = []
        self._tasks: list[tuple[Callable[[], None], Future[None]]] = []
        self._wake = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="samples", daemon=True)

    def _load(self, number: int) -> Pool:
        found = self.session.rounds[number - 1]
        gan = load_like(found.ckpt, self.space.gan)
        if gan_digest(gan) != found.gan:
            raise ValueError(f"out: {found.ckpt}, whose samples were marked, has changed since")
        return Pool(gan, self.space, self.session.seed, self.session.block, self.session.size)

    def start(self) -> None:
        self._thread.start()

    def work(self, done: Callable[[], bool]) -> None:
        """Without `start`: do in this thread what there is to do, until `done` says so or nothing is left."""
        while not done() and self._step():
            pass

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

    def _place(self, number: int, index: int) -> tuple[Pool | None, int]:
        """The pool that a sample is of, and its index there; a negative index is of those that are judged blind."""
        if index >= 0:
            return self.pools.get(number), index
        if number not in self.judged:
            return None, 0
        which, at = divmod(int(self.session.blind_order(number)[-1 - index]), JUDGED)
        return self.judged[number][which], at

    def thumb(self, number: int, index: int) -> bytes | None:
        """An encoded thumbnail; None where it has to be made first."""
        pool, at = self._place(number, index)
        return None if pool is None else pool.thumb(at)

    def mark(self, indices: list[int], label: str, via: str) -> None:
        """Mark samples, as of `Session.mark`.

        Raises:
            ValueError: a result is judged that is not there yet.
        """
        if self.number not in self.judged and any(isinstance(i, int) and i < 0 for i in indices):
            raise ValueError("there is no result to judge yet")
        self.session.mark(indices, label, via)

    def reveal(self) -> None:
        """End the judging of this round's result, and write the verdict into its report.

        Raises:
            ValueError: nothing of it was judged.
        """
        verdict = self.session.blind_verdict(self.number)
        if not (verdict["before"]["marked"] and verdict["after"]["marked"]):
            raise ValueError("judge some samples first")
        self.session.reveal()
        add_person(self.runs.folder(self.number), person_of(verdict))

    def want(self, number: int, index: int) -> None:
        """Ask for a sample's block, before those that were asked for earlier."""
        pool, at = self._place(number, index)
        if pool is None:
            return
        key = (pool, at // self.session.block)
        with self._wake:
            if key not in self._wanted:
                self._wanted.append(key)
                del self._wanted[:-WAITING]
                self._wake.notify()

    def unlearn(self, anew: bool = False) -> None:
        """Begin this round's run on the marks as they are now, or go on with it. anew: set a stopped one aside.

        Raises:
            ValueError: nothing is marked unwanted, or in a later round nothing at all, or as of `Runs.start`,
                `Runs.set_aside`.
        """
        if self.session.counts()["unwanted"] == 0:
            raise ValueError("nothing is marked unwanted yet")
        if self.number > 1 and not len(self._marked(self.number)):
            raise ValueError("nothing of this round is marked yet: mark what survived, or was damaged, first")
        if self.space.gan.discriminator is None:
            raise ValueError("this checkpoint holds no discriminator; run atu unlearn with --train-discriminator STEPS")
        self._in_thread(lambda: self._begin_run(anew))

    def _begin_run(self, anew: bool) -> None:
        if anew:
            self.runs.set_aside(self.number)
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
        result, like = self.runs.result(self.number), self.space.gan
        gan = self.judged[self.number][1].gan if self.number in self.judged else load_like(result, like)
        pool = Pool(gan, self.space, self.session.seed, self.session.block, self.session.size)
        self.pools[self.number + 1] = pool
        self.session.begin_round(str(result), gan_digest(gan))
        self.views, self.history, self.steady, self.cost = {}, [], False, None

    def _open_judging(self) -> bool:
        """Load what this round's run gave, for the judge; False where there is nothing to do."""
        number, session = self.number, self.session
        if number in self.judged or self.runs.busy or not self.runs.finished(number):
            return False
        gans = self.space.gan, load_like(self.runs.result(number), self.space.gan)
        seeds = (mix_seed(session.seed, 900_000 + 2 * number + which) for which in (0, 1))
        before, after = (Pool(gan, self.space, seed, session.block, 0) for gan, seed in zip(gans, seeds, strict=True))
        self.judged[number] = before, after
        return True

    def _in_thread(self, work: Callable[[], None]) -> None:
        """Do it in the thread that makes samples, the only one that may: random state is the process's."""
        if not self._thread.is_alive():
            work()
            return
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
            marked=len(self._marked(self.number)),
            undo=len(now.done),
            redo=len(now.undone),
            views=self.views,
            fitted=self._fitted == session.stamp,
            probe=self._agreement(),
            verdict=session.verdict(),
            earlier=session.verdict(session.rounds[-2]) if self.number > 1 else None,
            judging=self._judging(),
            pictures=len(self.pictures),
            oracle=None if self.oracle is None else self.oracle.spec,
            called=[i for i in self.views.get("ranked", []) if self.pools[self.number].called[i]],
            made=int(self.pools[self.number].made.sum()) * session.block,
            cost=self.cost or None,
            run=self.runs.status(self.number),
            error=self.error,
        )
        found["advice"], found["steady"] = suggest.advice(found["counts"], self.steady), self.steady
        if number == self.number and 0 <= version - since <= 5000 and since >= 0:
            found["changes"] = now.changes[since:version]
        else:
            found["codes"], found["blind"] = now.codes.decode("ascii"), now.blind.decode("ascii")
        return found

    def _judging(self) -> dict[str, Any] | None:
        """How far the judging of this round's result is; the verdict once it was revealed, and not before."""
        if self.number not in self.judged:
            return None
        verdict, revealed = self.session.blind_verdict(self.number), self.session.now.revealed
        shown = verdict if revealed else dict(judged=verdict["judged"])
        return dict(shown, of=2 * JUDGED, revealed=revealed)

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
        stamp = self.session.stamp
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
            self._make(*key)
            return True
        if self._open_judging():
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
            self._make(self.pools[block[0]], block[1])
            self._news += 1
            awaited = (self.pictures and self.space.whiten is not None and "like" not in self.views) or (
                "ranked" not in self.views and self._has_ranked(self.pools[block[0]])
            )
            if len(urgent) == 1 or self._news >= 8 or awaited:  # more samples to learn and to suggest from
                self._fitted, self._news = -1, 0
            return True
        if self._news:  # the last ones
            self._fitted, self._news = -1, 0
            return True
        if self.cost is None:
            self.cost = self._estimated()
        return False

    def _estimated(self) -> dict[str, float]:
        try:
            return self.runs.cost()
        except Exception as error:  # of the user's networks, or memory is short: marking can do without
            progress.log.warning("what training takes cannot be estimated: %s: %s", type(error).__name__, error)
            return {}

    def _make(self, pool: Pool, block: int) -> None:
        """Make a block of samples, and have the oracle look at them."""
        first = block * pool.block
        x = pool.make(block)
        if self.oracle is None or first >= pool.size or np.isfinite(pool.ranks[first]):
            return
        part = slice(first, min(first + pool.block, pool.size))
        pool.ranks[part] = self.oracle.rank(x).numpy()[: pool.size - first]
        pool.called[part] = self.oracle(x).numpy()[: pool.size - first]

    def _has_ranked(self, pool: Pool) -> bool:
        """Whether the oracle has looked at enough samples for its first ones to be worth a look."""
        return self.oracle is not None and int(np.isfinite(pool.ranks).sum()) >= self.space.wanted

    def _urgent_blocks(self) -> list[tuple[int, int]]:
        """(round, block) of marked samples whose features are not there; of earlier marks in the original and now."""
        found = []
        for number, pool in self.pools.items():
            at = [self._marked(number)]
            if number in (1, self.number):
                at.append(np.flatnonzero(self._was() != NONE))
            blocks = np.unique(np.concatenate(at) // pool.block)
            found += [(number, int(block)) for block in blocks if not pool.made[block]]
        return sorted(found, key=lambda one: one[1])  # before and now of the same latents, one after the other

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
        if self.pictures and self.space.whiten is not None:
            views["like"] = nearest(pool.features[: pool.size], self._like_features(), free, ROW)
        if self._has_ranked(pool):
            ranked = np.isfinite(pool.ranks) & (codes == NONE)
            ranked[:RANDOM] = False
            views["ranked"] = suggest.highest(pool.ranks, ranked)
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
                self.steady = self.steady or suggest.settled(self.history)
            if number > 1:
                views.update(self._compared(number, scores, free))
        self.views, self.fit_seconds = views, time.monotonic() - start

    def _like_features(self) -> np.ndarray:
        """Features [M, F] of the user's pictures, each amid samples, as theirs are taken (minibatch statistics)."""
        if self._like is None:
            assert self.space.whiten is not None
            found = []
            for picture in self.pictures:
                batch = self.pools[1].images(0)
                batch[0] = picture.to(batch.device)
                raw = self.space.raw(batch)
                assert raw is not None
                found.append(self.space.whiten(raw[:1]).float().numpy())
            self._like = np.concatenate(found)
        return self._like

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

    def _was(self) -> np.ndarray:
        """The last mark of each index in the rounds before this one, as codes [size]; NONE where it had none."""
        codes = np.full(self.pools[self.number].size, NONE, np.uint8)
        for found in self.session.rounds[:-1]:
            of_round = np.frombuffer(bytes(found.codes), np.uint8)[: len(codes)]
            marked = (of_round == UNWANTED) | (of_round == GOOD)
            codes[marked] = of_round[marked]
        return codes

    def _compared(self, number: int, scores: np.ndarray, free: np.ndarray) -> dict[str, list[int]]:
        """The same latents under the original and now: of what was unwanted, by a mark or by the probe, what is
        likeliest to be so still, what changed most of what was good, and a random sample of what was marked unwanted
        and of what was marked good. Nothing before all that was marked is known of both.

        The probe may miss what survived, as the run has learnt to satisfy one, so nothing is left out by its sign.
        """
        assert self.probe is not None
        before, pool, was = self.pools[1], self.pools[number], self._was()
        known = pool.known() & before.known()
        if not known[was != NONE].all():
            return {}
        unwanted, good = (np.flatnonzero(was == code) for code in (UNWANTED, GOOD))
        looked = np.zeros(len(was), bool)
        looked[known] = self.probe.score(before.features[: pool.size][known]) > 0
        were = free & known & ((was == UNWANTED) | (looked & (was == NONE)))
        moved = np.linalg.norm(pool.features[good] - before.features[good], axis=1)
        damaged = good[np.argsort(-moved, kind="stable")][:ROW]
        found = dict(survived=suggest.highest(scores, were), damaged=damaged.tolist())
        for name, index in (("were_unwanted", unwanted), ("were_good", good)):
            found[name] = np.random.default_rng([self.session.seed, number]).permutation(index)[:ROW].tolist()
        return found


def _spread(index: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the indices, evenly spread."""
    return index if len(index) <= most else index[np.linspace(0, len(index) - 1, most).astype(int)]


def open_studio(
    gan: GAN,
    ckpt: str,
    folder: Path,
    samples: int,
    seed: int,
    options: list[str],
    config: Path | None,
    like: Sequence[Path] = (),
    oracle: Rule | None = None,
) -> Studio:
    """Open a folder of marks, new or not, for the samples of a GAN; arguments and errors as of `Session`, and of
    `refuse_earlier_runs`.

    like: pictures of the user's own; samples like them are offered. oracle: what ranks samples, and proposes marks.
    """
    refuse_earlier_runs(folder)
    block_size(gan)  # an error where the samples are no images
    pictures = [read_picture(path, gan.sample_shape, gan.image_range) for path in like]
    session = Session(folder, ckpt, gan_digest(gan), seed, block_size(gan), samples)
    try:
        return Studio(session, gan, Runs(session, gan, options, config), pictures, oracle)
    except BaseException:
        session.close()
        raise
