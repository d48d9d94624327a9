"""The training loop of a stage: steps, logging, saving, resuming, Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ..support import progress
from .run_folder import RunFolder
from .trainer import AdversarialTrainer, NonFiniteError


class StageHooks:
    """What a stage adds to its training loop. The base class adds nothing."""

    def after_step(self, step: int, metrics: dict[str, float]) -> bool:
        """Called after each step; may add to `metrics`. True ends the stage."""
        return False

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain data to go on from."""
        return {}, {}

    def load_state(self, tensors: dict[str, Tensor], data: dict[str, Any]) -> None:
        """Go on from what `state` gave."""


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collect the first Ctrl-C, so that a step is finished and saved; a second one raises at once."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    signal.signal(signal.SIGINT, handle)
    try:
        yield seen
    finally:
        # None: a handler that was not set from Python, and cannot be put back from it.
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)


def run_stage(run: RunFolder, stage: str, trainer: AdversarialTrainer, steps: int, hooks: StageHooks) -> None:
    """Train for `steps` steps (fewer if the hooks say so), logging, saving and taking up a killed run.

    Raises:
        NonFiniteError: a loss is not finite; the last saved state stays.
        KeyboardInterrupt: on Ctrl-C, after the state was saved.
    """
    seconds = 0.0
    stopped = False
    saved = run.load(f"{stage}-state")
    if saved is not None:
        tensors, data = saved
        own = {k.removeprefix("trainer/"): v for k, v in tensors.items() if k.startswith("trainer/")}
        trainer.load_state(own, data["trainer"])
        hooks.load_state(
            {k.removeprefix("hooks/"): v for k, v in tensors.items() if k.startswith("hooks/")}, data["hooks"]
        )
        seconds, stopped = data["seconds"], data["stopped"]
        progress.say(f"{stage}: resumed at step {trainer.step_count} of {steps}, from {run.out}")
    if run.resumed:
        run.rewind(stage, trainer.step_count)
    start = time.monotonic() - seconds

    def save() -> None:
        tensors, data = trainer.state()
        more_tensors, more = hooks.state()
        both = {f"trainer/{k}": v for k, v in tensors.items()} | {f"hooks/{k}": v for k, v in more_tensors.items()}
        state = {"trainer": data, "hooks": more, "seconds": time.monotonic() - start, "stopped": stopped}
        run.save(f"{stage}-state", both, state)

    with progress.bar(stage, steps, trainer.step_count) as bar, _interrupts() as interrupted:
        while trainer.step_count < steps and not stopped:
            try:
                metrics = trainer.step()
            except NonFiniteError:
                progress.log.error("%s: diverged at step %d", stage, trainer.step_count)
                raise
            stopped = hooks.after_step(trainer.step_count, metrics)
            bar.update(metrics)
            last = stopped or trainer.step_count == steps
            if last or trainer.step_count % run.config.log_every == 0 or "score" in metrics:
                run.log(stage, trainer.step_count, time.monotonic() - start, metrics)
            if run.out is not None and (last or interrupted or trainer.step_count % run.config.save_every == 0):
                save()
            if interrupted:
                where = "" if run.out is None else f"; the same call with out={str(run.out)!r} goes on from here"
                raise KeyboardInterrupt(f"{stage}: stopped at step {trainer.step_count} of {steps}{where}")
