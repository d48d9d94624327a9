"""`atu unlearn` on the marks, as a process of its own; its progress is read from its run folder."""

from __future__ import annotations

import json
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
from ..support.modules import eval_mode
from .session import Session

USUAL_STEPS = 600  # of the last stage, where the settings leave it open
PASSES = 2.5  # of a training step, in passes of one sample forth and back through both networks
COPIES = 8  # of the weights: gradients, Adam's moments, averages, anchors


class Runs:
    """The runs of a session, one a round: MARKS-run-1, MARKS-run-2 ... beside the folder of marks.

    options: of `atu unlearn`, for every run (--config, --device, --samples, ...). A run ends with this process,
    unless that is killed outright; one that was stopped goes on when started again.
    """

    def __init__(self, session: Session, options: Sequence[str], config: Path | None = None):
        self.session, self.options = session, list(options)
        self.config = Config.of() if config is None else Config.load(config)
        self.process: subprocess.Popen | None = None
        self.started = 0.0

    def folder(self, number: int) -> Path:
        marks = self.session.folder.absolute()
        return marks.with_name(f"{marks.name}-run-{number}")

    def command(self, number: int) -> list[str]:
        """The arguments of `atu` for a round's run."""
        marks = self.session.folder.absolute()
        words = ["unlearn", self.session.rounds[number - 1].ckpt, "--negatives", str(marks / "unwanted")]
        if any((marks / "good").glob("*.png")):
            words += ["--positives", str(marks / "good")]
        words += ["--subject", "what was marked"]
        return [*words, "--out", str(self.folder(number)), "--seed", str(self.session.seed), *self.options]

    @property
    def busy(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, number: int) -> None:
        """Begin a round's run, or go on with one that was stopped.

        Raises:
            ValueError: one is running, or it is finished already.
        """
        if self.busy:
            raise ValueError("a run is going on already")
        if self.finished(number):
            raise ValueError("this round's run is finished; begin the next round to unlearn more")
        with open(self.session.folder / f"run-{number}.log", "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "atu.cli.main", *self.command(number)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C comes from here, once: a second one would not wait for its state
            )
        self.started = time.monotonic()

    def stop(self) -> None:
        """Stop the run that is going on, as Ctrl-C does: its state is saved."""
        if self.process is not None and self.busy:
            self.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """Stop it and wait; killed where it does not end."""
        self.stop()
        if self.process is not None:
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def report(self, number: int) -> Path:
        return self.folder(number) / "report.html"

    def finished(self, number: int) -> bool:
        return self.report(number).exists() and (self.folder(number) / "result.safetensors").exists()

    def status(self, number: int) -> dict[str, Any]:
        """What the page shows of a round's run: state (none, running, stopped, failed, finished), stage, step, done (a
        share of the steps), seconds, line (the last of its output), command."""
        if self.busy:
            state = "running"
        elif self.finished(number):
            state = "finished"
        elif self.process is not None and self.process.returncode not in (0, 130, -signal.SIGINT):
            state = "failed"
        else:
            state = "stopped" if self.folder(number).exists() else "none"
        found: dict[str, Any] = dict(state=state, command=shlex.join(["atu", *self.command(number)]))
        if state in ("running", "failed"):
            found["line"] = _last_line(self.session.folder / f"run-{number}.log")
        steps = _steps(self.folder(number) / "metrics.jsonl")
        if steps:
            found["stage"], found["step"] = next(reversed(steps.items()))
            found["done"] = min(sum(steps.values()) / sum(self._planned()), 1.0)
        if state == "running":
            found["seconds"] = round(time.monotonic() - self.started)
        if state == "finished":
            found["summary"] = _summary(self.folder(number) / "report.json")
        return found

    def _planned(self) -> tuple[int, int]:
        """Steps of stage 1 and of stage 2."""
        adapt, repel = self.config.adapt, self.config.repel
        return adapt.models * adapt.steps, (repel.steps or USUAL_STEPS) + repel.guide_steps

    def cost(self, gan: GAN) -> dict[str, float]:
        """seconds and bytes that training will take, about: those of one batch, for all steps."""
        sizes = self.config.adapt.adversarial.batch_size, self.config.repel.adversarial.batch_size
        n = min(*sizes, self.session.block)
        _one_sample(gan, n)  # the first pass of all takes longer
        seconds, saved = _one_sample(gan, n)
        adapt, repel = self._planned()
        weights = sum(p.numel() * p.element_size() for module in gan.modules().values() for p in module.parameters())
        return dict(
            seconds=PASSES * seconds * (adapt * sizes[0] + repel * sizes[1]),
            bytes=COPIES * weights + saved * max(sizes),
        )


def _one_sample(gan: GAN, n: int) -> tuple[float, int]:
    """(seconds, bytes kept for the way back) of one sample in a batch of n, forth and back through both networks."""
    networks = [gan.generator] if gan.discriminator is None else [gan.generator, gan.discriminator]
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.data_ptr()] = t.numel() * t.element_size()
        return t

    z, c = gan.inputs(n)
    params = [p for module in networks for p in module.parameters() if p.requires_grad]
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
    """What the page shows of a report: how many of the n samples are negative before and after."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return dict(before=data["negatives_before"], after=data["negatives_after"], n=data["n"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
