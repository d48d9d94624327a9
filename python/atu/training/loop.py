"""The training loop of a stage: steps, logging, saving, resuming, Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import time
from typing import Any, Protocol

from ..gan import GAN
from ..support import progress, world
from ..support.signals import held_back, interruption
from .run_folder import RunFolder
from .step import NonFiniteError


class Trainer(Protocol):
    """A training that runs one step at a time, such as `AdversarialStep`."""

    gan: GAN
    step_count: int

    def step(self) -> dict[str, float]:
        """One step; returns values to log."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""


class StageHooks:
    """Hooks of a stage's training loop. The base class does nothing."""

    def after_step(self, step: int, metrics: dict[str, float]) -> bool:
        """Called after each step; may add to `metrics`. True ends the stage."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Nested dicts of tensors and plain data to resume from."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`; the trainer has loaded its state already."""


def run_stage(run: RunFolder, stage: str, trainer: Trainer, steps: int, hooks: StageHooks) -> None:
    """Train up to step `steps` (fewer if the hooks say so), logging, saving and resuming a killed run.

    Raises:
        NonFiniteError: a loss is not finite; the last saved state stays.
        KeyboardInterrupt: on Ctrl-C or SIGTERM (`Terminated`), after the state was saved.
        CheckpointError: no saved state can be read.
        WorldError: another process of the run has stopped.
    """
    seconds = 0.0
    stopped = False
    saved = run.load_latest(f"{stage}-state")
    if saved is not None:
        trainer.load_state_dict(saved["trainer"])
        hooks.load_state_dict(saved["hooks"])
        seconds, stopped = saved["seconds"], saved["stopped"]
        if trainer.step_count < steps and not stopped:
            progress.say(f"{stage}: resumed at step {trainer.step_count} of {steps}, from {run.out}")
    if run.resumed:
        run.rewind(stage, trainer.step_count)
    start = time.monotonic() - seconds

    def save() -> None:
        state = {"trainer": trainer.state_dict(), "hooks": hooks.state_dict()}
        run.save_latest(f"{stage}-state", {**state, "seconds": time.monotonic() - start, "stopped": stopped})

    with progress.bar(stage, steps, trainer.step_count) as bar, held_back() as signals:
        while trainer.step_count < steps and not stopped:
            try:
                metrics = trainer.step()
            except NonFiniteError:
                progress.log.error("%s: diverged at step %d", stage, trainer.step_count)
                raise
            stopped = world.any_of(hooks.after_step(trainer.step_count, metrics), trainer.gan.device)
            if world.any_of(bool(signals), trainer.gan.device) and not signals:
                signals.append(signal.SIGTERM)  # another process of this run got it
            bar.update(metrics)
            last = stopped or trainer.step_count == steps
            if last or trainer.step_count % run.log_every == 0 or "score" in metrics:
                run.log(stage, trainer.step_count, time.monotonic() - start, metrics)
            if run.out is not None and (last or signals or trainer.step_count % run.save_every == 0):
                save()
            if signals:
                where = "" if run.out is None else f"; the same call with out={str(run.out)!r} goes on from here"
                text = f"{stage}: stopped at step {trainer.step_count} of {steps}{where}"
                raise interruption(signals[0], text)
