"""What a method of unlearning is, and the methods by name.

A method is one file of this room and one line of `atu.presets.METHODS`. One of another package is an entry point of the
group `atu.methods`, or is added by `METHODS.register("name")(Method(...))`.
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
    """What a method is given.

    gan: the pretrained pair, which stays as it is. feedback: negatives, positives, and the rule that tells them apart.
    """

    gan: GAN
    feedback: Feedback
    config: Config
    run: RunFolder
    seed: int


@dataclass
class Outcome:
    """What a method gives: the unlearned GAN, what it decided, and the adapted generators' state dicts, if any."""

    gan: GAN
    decisions: dict[str, Any]
    adapted: list[dict[str, Tensor]] = field(default_factory=list)


def _fits() -> None:
    pass


@dataclass(frozen=True)
class Stage:
    """One training of a plan.

    name: its name in the run's history ("adapt" stands for adapt-0, adapt-1 ...). title: for people. steps: at most.
    batch_size: samples of a step. before: steps of what is trained before the stage. second_order: it takes gradients
    of gradients. batch_statistics: batch norm takes its statistics from the stage's batches. check: raises ValueError,
    before any work, where settings and GAN do not fit.
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
        """Raise ValueError, before any work, where settings and GAN do not fit."""
        for stage in self.stages:
            stage.check()


def _no_stages(gan: GAN, cfg: Config) -> Plan:
    return Plan()


@dataclass(frozen=True)
class Method:
    """A method of unlearning.

    run: does it.
    settings: dataclass of the method's own settings (pydantic's, with `atu.config.STRICT`; each field annotated with a
    description), which `config.own` then is and `[methods.NAME]` of a TOML file sets; None where it has none.
    preset: what the method sets in the config, beneath what the user gives: nested dicts.
    plan: the stages of a run, their steps and checks.
    stages: titles of the stages by their names in the run's history ("adapt" for all of stage 1).
    """

    run: Callable[[Task], Outcome]
    settings: type[Any] | None = None
    preset: Mapping[str, Any] = field(default_factory=dict)
    plan: Callable[[GAN, Config], Plan] = _no_stages
    stages: Mapping[str, str] = field(default_factory=dict)


METHODS: Registry[Method] = presets.METHODS
