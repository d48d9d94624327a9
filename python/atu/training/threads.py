"""With how many threads a training on the CPU runs: as many as pay, by measuring, and one where networks are tiny.

Threads of small operations wait for each other most of the time, and where another program has one of the cores, all of
them wait for the one that it holds up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from ..gan import GAN
from ..support import progress
from . import trial

GAINS = 1.25  # times as fast that twice as many threads must be


def choose(gan: GAN, batch: int, wanted: int | None = None, recorded: int | None = None) -> int:
    """How many threads to train `gan` with: `wanted`; else what the environment says (OMP_NUM_THREADS); else, for a run
    that goes on, what it was `recorded` with; else by measuring, torch's own number at most.

    What was measured on an idle machine is kept; beside other programs it holds for this run alone.
    """
    most = torch.get_num_threads()
    if wanted is not None:
        return wanted
    if gan.device.type != "cpu" or os.environ.get("OMP_NUM_THREADS"):
        return most
    if recorded is not None:
        return recorded
    if most == 1 or gan.discriminator is None:
        return most
    chosen = _measured(gan, batch, most)
    progress.say(f"threads: {chosen} of {most} (--threads, or OMP_NUM_THREADS, to choose)")
    return chosen


def _measured(gan: GAN, batch: int, most: int) -> int:
    each = trial.flops(gan)
    if each * batch < trial.LITTLE:
        return 1
    batch = max(1, min(batch, int(trial.ENOUGH / each)))
    key = trial.key(gan, batch)
    row = trial.kept("threads").get(key)
    if row is None:
        quiet = _is_quiet()
        passes = trial.Passes(gan, batch)
        counts = [2**i for i in range(most.bit_length()) if 2**i < most] + [most]
        seconds = trial.fastest_of({str(n): partial(_clocked, passes, n) for n in counts})
        row = dict(seconds=seconds, **trial.machine(gan))
        if quiet:
            trial.keep("threads", key, row)
    return _best({int(n): s for n, s in row["seconds"].items()})


def _is_quiet() -> bool:
    return not hasattr(os, "getloadavg") or os.getloadavg()[0] < 0.5


def _clocked(passes: trial.Passes, threads: int) -> float:
    with using(threads):
        return trial.clocked(passes.run, passes.gan.device)


def _best(seconds: dict[int, float]) -> int:
    """The largest number up to which every step up pays, in proportion to GAINS at each doubling."""
    counts = sorted(seconds)
    chosen = counts[0]
    for count in counts[1:]:
        if seconds[chosen] / seconds[count] < 1 + (GAINS - 1) * (count / chosen - 1):
            break
        chosen = count
    return chosen


@contextmanager
def using(threads: int) -> Iterator[None]:
    """torch's number of threads inside, and what it was afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
