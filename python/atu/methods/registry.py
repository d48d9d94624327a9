"""Methods of unlearning: their interface, and all of them by name.

A method is one file of this room and one line of `atu.presets.METHODS`. Another package adds one by an entry point of
the group `atu.methods`, or by `METHODS.register("name")(Method(...))`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .. import presets
from ..config import Adversarial, Config
from ..gan import GAN
from ..judging.feedback import Feedback
from ..support.registry import Registry
from ..training.run_folder import RunFolder


@dataclass(frozen=True)
class Task:
    """Input of a method.

    gan: the pretrained pair, which is not changed. feedback: negatives, positives, and the rule that tells them apart.
    """

    gan: GAN
    feedback: Feedback
    config: Config
    run: RunFolder
    seed: int


@dataclass
class Outcome:
    """Result of a method: the unlearned GAN, its decisions, and the adapted generators' state dicts, if any."""

    gan: GAN
    decisions: dict[str, Any]
    adapted: list[dict[str, Tensor]] = field(default_factory=list)


def _fits() -> None:
    pass


@dataclass(frozen=True)
class Stage:
    """One training of a plan.

    name: in the run's history ("adapt" stands for adapt-0, adapt-1 ...). title: for people. steps: at most.
    batch_size: samples of a step. before: steps of trainings that prepare the stage. second_order: the stage takes
    gradients of gradients. batch_statistics: batch norm takes its statistics from the stage's batches. check: raises
    ValueError, before any work, if settings and GAN do not fit.
    """

    name: str
    title: str = ""
    steps: int = 0
    batch_size: int = 1
    before: int = 0
    second_order: bool = False
    batch_statistics: bool = True
    check: Callable[[], object] = _fits

    @classmethod
    def of(cls, name: str, title: str, steps: int, settings: Adversarial, **more: Any) -> Stage:
        """A stage of adversarial training."""
        second_order = bool(settings.r1_gamma or settings.r2_gamma)
        return cls(name, title, steps, settings.batch_size, **{"second_order": second_order, **more})


@dataclass(frozen=True)
class Plan:
    """The stages of a run, in order."""

    stages: Sequence[Stage] = ()

    @property
    def steps(self) -> int:
        """Steps of all stages, at most."""
        return sum(stage.steps for stage in self.stages)

    def after(self, name: str) -> Plan:
        """The plan without the stage of this name and those before it."""
        names = [stage.name for stage in self.stages]
        return Plan(self.stages[names.index(name) + 1 :]) if name in names else self

    def check(self) -> None:
        """Raise ValueError, before any work, if settings and GAN do not fit."""
        for stage in self.stages:
            stage.check()


def _no_stages(gan: GAN, cfg: Config) -> Plan:
    return Plan()


@dataclass(frozen=True)
class Method:
    """A method of unlearning.

    run: the method itself.
    settings: pydantic dataclass of the method's settings (with `atu.config.STRICT`; each field annotated with a
    description). `config.own` is one, and `[methods.NAME]` of a TOML file sets it. None if there are none.
    preset: nested dicts of the method's defaults in the config; what the user gives goes first.
    plan: the stages of a run, with their steps and checks.
    stages: titles of the stages by their names in the run's history ("adapt" for all of stage 1).
    """

    run: Callable[[Task], Outcome]
    settings: type[Any] | None = None
    preset: Mapping[str, Any] = field(default_factory=dict)
    plan: Callable[[GAN, Config], Plan] = _no_stages
    stages: Mapping[str, str] = field(default_factory=dict)


METHODS: Registry[Method] = presets.METHODS
