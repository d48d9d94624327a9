"""A run that can start: its inputs checked, its folder open, its feedback built."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .data.marks import KEPT, keep_marks
from .inputs import Inputs, Request, check_inputs
from .judging.feedback import Feedback, build_feedback
from .methods.registry import Task
from .support.digest import digest
from .training.run_folder import RunFolder, gan_digest, samples_digest


@dataclass(frozen=True)
class Job:
    """A run that can start. began: `time.monotonic()` at the call."""

    inputs: Inputs
    run: RunFolder
    feedback: Feedback
    began: float

    @property
    def task(self) -> Task:
        """What a method is given."""
        return Task(self.inputs.gan, self.feedback, self.inputs.config, self.run, self.inputs.seed)


def _identity(inputs: Inputs) -> dict[str, Any]:
    """What a run folder's run must agree with to be resumed, beside the config."""
    gan, (negatives, positives) = inputs.original, inputs.given
    identity = {"seed": inputs.seed, "gan": gan_digest(gan), "negatives": samples_digest(negatives)}
    identity["positives"] = None if positives is None else samples_digest(positives)
    identity["oracle"] = False if inputs.oracle is None else inputs.oracle.identity
    drawn = gan.labels(64, torch.Generator().manual_seed(0))
    if drawn is not None:
        identity["labels"] = digest({"drawn": drawn})
    if gan.is_big:
        identity["at_once"] = inputs.context.batch
    if inputs.adapted is not None:
        identity["adapted"] = [digest(state) for state in inputs.adapted]
    if inputs.earlier is not None:
        identity["round"] = inputs.earlier.round + 1
        identity["from"] = {"gan": gan_digest(inputs.gan), "negatives": samples_digest(inputs.earlier.negatives)}
    return identity


def _open_run_folder(inputs: Inputs) -> RunFolder:
    modules = inputs.gan.modules().values()
    weights = sum(t.numel() * t.element_size() for m in modules for t in m.state_dict().values())
    # Two states and a third that is being written, four to five times the weights each; and the result.
    needed = weights * (15 + inputs.config.adapt.models)
    return RunFolder(inputs.out, inputs.config, _identity(inputs), needed_bytes=needed)


@contextmanager
def started(request: Request) -> Iterator[Job]:
    """The job of a request, ready to run, with gradients on; its run folder is closed at the end."""
    began = time.monotonic()
    with torch.inference_mode(False), torch.enable_grad():
        inputs = check_inputs(request)
        with inputs.context:
            run = _open_run_folder(inputs)
            try:
                if run.out is not None and not (run.out / KEPT).exists():
                    keep_marks(run.out, inputs.negatives, inputs.positives, inputs.gan.image_range)
                yield Job(inputs, run, _feedback(inputs, run), began)
            finally:
                run.close()


def _feedback(inputs: Inputs, run: RunFolder) -> Feedback:
    given = inputs.gan, inputs.negatives, inputs.positives, inputs.oracle, inputs.config.feedback, inputs.seed
    try:
        return build_feedback(*given)
    except Exception:
        run.withdraw()
        raise
