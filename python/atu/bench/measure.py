"""Times and peak memory of one case's implementations, taken in turns: a busy machine disturbs them alike."""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any, TypeVar

import torch
from torch.utils import benchmark

Run = Callable[[], Any]
Key = TypeVar("Key")
FLUSH_BYTES = 256 << 20  # more than the second-level cache of any GPU


class Plan:
    """How long to measure: each implementation for `seconds` in all, in at least `rounds` turns."""

    def __init__(self, seconds: float = 0.5, rounds: int = 7, threads: int = 1, device: str = "cpu"):
        self.seconds, self.rounds, self.threads, self.device = seconds, rounds, threads, device
        self.is_cuda = torch.device(device).type == "cuda"
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device) if self.is_cuda else None

    def block(self, run: Run, number: int) -> list[float]:
        """Seconds a call: on the CPU one mean of `number` calls, on a GPU each call by its own events, after a flush of
        its second-level cache."""
        if not self.is_cuda:
            timer = benchmark.Timer("run()", globals={"run": run}, num_threads=self.threads)
            return timer.timeit(number).times
        assert self._flush is not None
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(number)]
        for begin, end in events:
            self._flush.zero_()
            begin.record()
            run()
            end.record()
        torch.cuda.synchronize(self.device)
        return [begin.elapsed_time(end) / 1e3 for begin, end in events]


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's collector, which would free what others left behind in the middle of a measurement."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def times(runs: Mapping[Key, Run], plan: Plan) -> dict[Key, dict[str, float]]:
    """Median and interquartile range in seconds of each run, from turns through all of them.

    Each is called twice to warm up; a turn is long enough (about a tenth of a millisecond or one call) for the clock.
    """
    numbers: dict[Key, int] = {}
    before = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    gc.collect()
    try:
        with _uncollected():
            for name, run in runs.items():
                plan.block(run, 1)
                once = max(min(plan.block(run, 2)), 1e-7)
                numbers[name] = max(1, min(int(plan.seconds / plan.rounds / once), 10_000))
            samples: dict[Key, list[float]] = {name: [] for name in runs}
            for _ in range(plan.rounds):
                for name, run in runs.items():
                    samples[name] += plan.block(run, numbers[name])
    finally:
        torch.set_num_threads(before)
    return {name: _summary(taken, numbers[name]) for name, taken in samples.items()}


def _summary(taken: list[float], number: int) -> dict[str, float]:
    if len(taken) < 2:
        return dict(median=taken[0], iqr=0.0, fastest=taken[0], blocks=1, calls=number)
    low, median, high = quantiles(taken, n=4, method="inclusive")
    return dict(median=median, iqr=high - low, fastest=min(taken), blocks=len(taken), calls=number)


@contextmanager
def _silenced() -> Iterator[None]:
    """Nothing on stderr, not even from C++: some builds of the profiler report every start and stop."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def peak_memory(run: Run, device: str = "cpu") -> int:
    """Bytes of tensors alive at once during a call, beyond those there before: torch's own count.

    On the CPU from the profiler's record of every allocation; memory that a kernel takes by itself (a few KB of rows in
    ours, oneDNN's reordered weights in its) is not in it.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        with _uncollected():
            run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _silenced(), _uncollected(), torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    handle, path = tempfile.mkstemp(suffix=".json")
    os.close(handle)
    try:
        profile.export_chrome_trace(path)
        trace = json.loads(Path(path).read_text(encoding="utf-8"))["traceEvents"]
    finally:
        os.unlink(path)
    events = sorted((e for e in trace if e.get("name") == "[memory]"), key=lambda e: e["ts"])
    level = peak = 0
    for event in events:
        level += event["args"]["Bytes"]
        peak = max(peak, level)
    return peak
