"""`atu unlearn` on the marks, as a process of its own; its progress is read from its run folder."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import Config
from ..gan import GAN
from ..methods.registry import METHODS, Plan
from ..support.modules import eval_mode, trainable
from .journal import has_begun
from .session import Session

PASSES = 2.5  # of a training step, in passes of one sample forth and back through both networks
COPIES = 8  # of the weights: gradients, Adam's moments, averages, anchors


class Runs:
    """The runs of a session, one a round: MARKS-run-1, MARKS-run-2 ... beside the folder of marks.

    gan: what the first of them unlearns from. options: of `atu unlearn`, for every run (--config, --device, --samples,
    ...). A run ends with this process. Where that is killed outright, the run goes on, and the next process that opens
    the session finds it: the run holds a lock on MARKS/run-N.lock, which names it. One that was stopped goes on when
    started again.
    """

    def __init__(self, session: Session, gan: GAN, options: Sequence[str], config: Path | None = None):
        self.session, self.gan, self.options = session, gan, list(options)
        self.config = Config.of() if config is None else Config.load(config)
        self.process: subprocess.Popen | None = None
        self.stopping = False
        self.program = [sys.executable, "-m", "atu.cli.main"]
        self.own_bytes = _most_bytes()
        self.orphan = self._orphan(len(session.rounds))

    def folder(self, number: int) -> Path:
        marks = self.session.folder.absolute()
        return marks.with_name(f"{marks.name}-run-{number}")

    def _log(self, number: int) -> Path:
        return self.session.folder / f"run-{number}.log"

    def _lock(self, number: int) -> Path:
        return self.session.folder / f"run-{number}.lock"

    def command(self, number: int) -> list[str]:
        """The arguments of `atu` for a round's run."""
        words = ["unlearn", self.session.rounds[0].ckpt, "--negatives", str(self.session.folder.absolute())]
        if number > 1:
            words += ["--from", str(self.folder(number - 1))]
        words += ["--subject", "what was marked"]
        return [*words, "--out", str(self.folder(number)), "--seed", str(self.session.seed), *self.options]

    def _orphan(self, number: int) -> int | None:
        """The process of a run that an earlier process of the page began and that is still at work."""
        with contextlib.suppress(FileNotFoundError), open(self._lock(number), "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or 0)
        return None

    @property
    def busy(self) -> bool:
        if self.orphan is not None:
            self.orphan = self._orphan(len(self.session.rounds))
        return self.orphan is not None or (self.process is not None and self.process.poll() is None)

    def start(self, number: int) -> None:
        """Begin a round's run, or go on with one that was stopped.

        Raises:
            ValueError: one is running, or it is finished already.
        """
        if self.busy:
            raise ValueError("a run is going on already")
        if self.finished(number):
            raise ValueError("this round's run is finished; begin the next round to unlearn more")
        self.stopping = False
        with open(self._log(number), "wb") as log, open(self._lock(number), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the process inherits it, and holds it until it ends, however it does
            self.process = subprocess.Popen(
                [*self.program, *self.command(number)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C comes from here, once: a second one would not wait for its state
                pass_fds=[lock.fileno()],
            )
            lock.write(str(self.process.pid))

    def set_aside(self, number: int) -> None:
        """Move what there is of a round's unfinished run to MARKS-run-N-stopped-K: it goes on with the same marks and
        settings only.

        Raises:
            ValueError: it is going on, or finished.
        """
        if self.busy or self.finished(number):
            raise ValueError("only a run that was stopped, or failed, can be started over")
        folder = self.folder(number)
        if folder.exists():
            names = (folder.with_name(f"{folder.name}-stopped-{k}") for k in itertools.count(1))
            folder.rename(next(name for name in names if not name.exists()))

    def stop(self) -> None:
        """Stop the run that is going on: its state is saved. Not by SIGINT, which it ignores where the page was started
        in the background of a script."""
        if self.busy:
            self.stopping = True
            self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        pid = self.orphan if self.process is None or self.process.poll() is not None else self.process.pid
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def close(self) -> None:
        """Stop it and wait; killed where it does not end."""
        self.stop()
        deadline = time.monotonic() + 30
        while self.busy:
            if time.monotonic() > deadline:
                self._send(signal.SIGKILL)
            time.sleep(0.05)

    def report(self, number: int) -> Path:
        return self.folder(number) / "report.html"

    def result(self, number: int) -> Path:
        return self.folder(number) / "result.safetensors"

    def finished(self, number: int) -> bool:
        return self.report(number).exists() and self.result(number).exists()

    def status(self, number: int) -> dict[str, Any]:
        """What the page shows of a round's run: state (none, running, stopped, failed, finished), stage and step by its
        metrics, done (a share of all steps), seconds, stopping, line (the last of its output), summary, result,
        command."""
        found: dict[str, Any] = dict(command=shlex.join(["atu", *self.command(number)]))
        found["state"] = state = self._state(number)
        if state in ("running", "failed"):
            found["line"] = _last_line(self._log(number))
        steps = _steps(self.folder(number) / "metrics.jsonl")
        if steps:
            found["stage"], found["step"] = list(steps.items())[-1]
            planned = sum(stage.before + stage.steps for stage in self._plan().stages)
            found["done"] = min(sum(steps.values()) / planned, 1.0)
        if state == "running":
            found["stopping"] = self.stopping
            found["seconds"] = max(round(time.time() - self._lock(number).stat().st_mtime), 0)
        if state == "finished":
            found["summary"] = _summary(self.folder(number) / "report.json")
            found["result"] = str(self.result(number))
        return found

    def _state(self, number: int) -> str:
        if self.busy:
            return "running"
        if self.finished(number):
            return "finished"
        ended = None if self.process is None else self.process.returncode
        if ended not in (None, 0, 130, 143, -signal.SIGTERM) or _last_line(self._log(number)).startswith("Error"):
            return "failed"
        return "stopped" if self.folder(number).exists() else "none"

    def _plan(self) -> Plan:
        return METHODS[self.config.method].plan(self.gan, self.config)

    def cost(self) -> dict[str, float]:
        """seconds and bytes that training will take, about: those of one batch, for all steps, and what this process
        took when it had loaded the GAN."""
        stages = self._plan().stages
        gan, n = self.gan, min(self.session.block, *(stage.batch_size for stage in stages))
        _one_sample(gan, n)  # the first pass of all takes longer
        seconds, saved = _one_sample(gan, n)
        weights = sum(p.numel() * p.element_size() for module in gan.modules().values() for p in module.parameters())
        return dict(
            seconds=PASSES * seconds * sum((stage.before + stage.steps) * stage.batch_size for stage in stages),
            bytes=self.own_bytes + COPIES * weights + saved * max(stage.batch_size for stage in stages),
        )


def refuse_earlier_runs(marks: Path) -> None:
    """Raise ValueError where a new folder of marks would go on from the runs of earlier ones under its name."""
    marks = marks.absolute()
    if has_begun(marks):
        return
    name = re.compile(re.escape(marks.name) + r"-run-\d+")
    for path in sorted(marks.parent.glob("*-run-*")):
        if name.fullmatch(path.name):
            raise ValueError(
                f"out: {path} is of earlier marks under this name; move it away, or give another folder for the marks"
            )


def _most_bytes() -> int:
    """The most memory that this process has taken so far."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _one_sample(gan: GAN, n: int) -> tuple[float, int]:
    """(seconds, bytes kept for the way back) of one sample in a batch of n, forth and back through both networks."""
    networks = [gan.generator] if gan.discriminator is None else [gan.generator, gan.discriminator]
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.data_ptr()] = t.numel() * t.element_size()
        return t

    z, c = gan.inputs(n)
    params = [p for module in networks for p in trainable(module)]
    known = {p.data_ptr() for p in params}
    start = time.monotonic()
    with eval_mode(*networks), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        x = gan.fake(z, c)
        y = gan.logits(x, c) if gan.discriminator is not None else x
        torch.autograd.grad(y.sum(), params, allow_unused=True)
    seconds = time.monotonic() - start
    return seconds / n, sum(size for key, size in kept.items() if key not in known) // n


def _steps(path: Path) -> dict[str, int]:
    """The last step logged of each stage, in their order."""
    found: dict[str, int] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return found
    for line in lines:
        try:
            row = json.loads(line)
            found[row["stage"]] = row["step"]
        except (ValueError, KeyError, TypeError):  # a line that is being written
            break
    return found


def _last_line(path: Path) -> str:
    try:
        lines = path.read_bytes()[-4000:].decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[:300]


def _summary(path: Path) -> dict[str, Any]:
    """What the page shows of a report: how many of the n samples are negative before and after, who says so, and the
    verdict."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        counts = dict(before=data["negatives_before"], after=data["negatives_after"], n=data["n"])
        return dict(counts, judge=data.get("judge", "probe"), verdict=data.get("verdict", ""))
    except (OSError, ValueError, KeyError, TypeError):
        return {}
