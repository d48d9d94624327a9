"""Training a GAN from scratch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import tomli_w
import torch
from torch import Tensor

from atu.config import Adversarial
from atu.data.samples import Samples
from atu.gan import GAN
from atu.support import world
from atu.support.context import RunContext
from atu.support.files import write_text
from atu.support.modules import eval_mode
from atu.support.seeding import fork_rng
from atu.training import compute
from atu.training.loop import StageHooks, run_stage
from atu.training.run_folder import RunFolder, recorded, samples_digest
from atu.training.schedules import lr_decay
from atu.training.state import written_by
from atu.training.step import AdversarialStep, Objective

DECAY = 0.25  # last share of the steps, over which the learning rates decay to 0
Phases = Sequence[tuple[int, Adversarial]]  # (step at which it ends, settings), one after the other


class Lessons(Protocol):
    """What a generator learns beside the game with its discriminator."""

    def teach(self, run: RunFolder, gan: GAN) -> None:
        """Before it: stages of the run."""

    def loss(self, gan: GAN) -> tuple[Tensor, dict[str, Tensor]]:
        """During it: a term of the generator's loss, and its parts to log."""


class _WithLessons(Objective):
    """The GAN loss and that of the lessons."""

    def __init__(self, lessons: Lessons):
        self.lessons = lessons

    def generator_loss(self, step: AdversarialStep) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        yield self.lessons.loss(step.gan)
        yield from super().generator_loss(step)


Look = Callable[[RunFolder, GAN, int], dict[str, float]]  # (run, gan, step) -> what to log of the samples so far


@dataclass
class Pretraining:
    """Settings of a training from scratch, as its run folder keeps them."""

    phases: Phases
    log_every: int
    save_every: int
    precision: str = "float32"
    threads: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Plain data; fields that are unset are left out, as TOML has no null."""
        phases = [{"until_step": last, **asdict(settings)} for last, settings in self.phases]
        known = [{key: value for key, value in phase.items() if value is not None} for phase in phases]
        own = {"precision": self.precision, "threads": self.threads}
        return {"phases": known, **own, "log_every": self.log_every, "save_every": self.save_every}

    def save(self, path: str | Path) -> Path:
        """Write a TOML file atomically."""
        return write_text(path, tomli_w.dumps(self.to_dict()))


class _Phase(StageHooks):
    """Decays the learning rates to 0 over the last DECAY of a phase's steps, and takes a look every now and then."""

    def __init__(self, trainer: AdversarialStep, steps: int, look: Callable[[int], dict[str, float]]):
        self.trainer, self.steps, self.look = trainer, steps, look
        self._set(0)

    def _set(self, step: int) -> None:
        self.trainer.set_lr_factor(lr_decay(step / self.steps, DECAY))

    def after_step(self, step: int, metrics: dict[str, float]) -> bool:
        self._set(step)
        metrics.update(self.look(step))
        return False

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._set(self.trainer.step_count)


def train(
    gan: GAN,
    real: Samples,
    phases: Phases,
    out: str | Path,
    seed: int = 0,
    log_every: int = 100,
    save_every: int = 500,
    precision: str = "float32",
    look: Look | None = None,
    look_every: int = 1000,
    lessons: Lessons | None = None,
) -> list[dict[str, Any]]:
    """Train `gan` in place, phase after phase, the learning rates decaying to 0 over the last DECAY of each.

    Args:
        out: a run folder (`RunFolder`); a killed or interrupted training goes on from there.
        log_every, save_every: steps between two rows of the history, and between two states that are saved.
        precision: what the passes run in, as of `Config`.
        lessons: what it learns before, and beside that.
        look, look_every: called every so many steps (a multiple of log_every); it leaves the random state as it was.

    Returns:
        The history: one dict a logged step.

    Raises:
        ValueError: as `RunFolder`. KeyboardInterrupt: on Ctrl-C or SIGTERM, after the state was saved.
    """
    if (Path(out) / "state.safetensors").exists() and not (Path(out) / "run.json").exists():
        raise ValueError(f"out: the training in {out} {written_by(1, None)}; give another folder")
    identity = {"seed": seed, "samples": samples_digest(real)}
    own, batch = (out if world.is_first() else None), phases[0][1].batch_size
    before = recorded(own)
    count = world.from_first(lambda: compute.threads_for(gan, batch, None, before))
    with RunContext(threads=count):
        passes = world.from_first(lambda: compute.precision_for(gan, batch, precision, before))
    twin = copy.copy(gan)  # the same networks: the caller's GAN gets its average when it ends

    def looked(step: int) -> dict[str, float]:
        return look(run, twin, step) if look is not None and step % look_every == 0 else {}

    with RunContext(passes, count):
        run = RunFolder(own, Pretraining(phases, log_every, save_every, passes, count), identity)
        try:
            if lessons is not None:
                with fork_rng(gan.device, seed):
                    lessons.teach(run, twin)
            objective = Objective() if lessons is None else _WithLessons(lessons)
            for last, settings in phases:
                with fork_rng(gan.device, seed):
                    trainer = AdversarialStep(twin, real, objective, settings)
                    run_stage(run, "pretrain", trainer, last, _Phase(trainer, last, looked))
        finally:
            gan.generator_ema = twin.generator_ema
            run.close()
    return run.history


@torch.no_grad()
def centre_logits(gan: GAN, real: Samples, n: int = 500) -> None:
    """Shift D's last bias so that real and generated samples lie evenly about 0: pairs of samples leave it free."""
    discriminator: Any = gan.discriminator
    index = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))[:n]  # files come sorted by class
    with eval_mode(discriminator):
        x = gan.sample(len(index)), real.batch(index).to(gan.device)
        middle = torch.stack([gan.logits(part).mean() for part in x]).mean()
    discriminator.b4.out.bias.sub_(middle)
