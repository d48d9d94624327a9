"""What a method of unlearning is, and the methods by name.

A method is one file of this room and one line of `atu.presets.METHODS`. One of another package is an entry point of the
group `atu.methods`, or is added by `METHODS.register("name")(Method(...))`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .. import presets
from ..config import Config
from ..feedback.feedback import Feedback
from ..gan import GAN
from ..support.registry import Registry
from ..training.run_folder import RunFolder
from .finetune import Outcome


def _fits(gan: GAN, cfg: Config) -> None:
    pass


@dataclass(frozen=True)
class Method:
    """A method of unlearning.

    run: (gan, feedback, config, run folder, seed) -> Outcome. gan is the pretrained pair (left as it is), feedback the
    negatives, positives and who says what is negative.
    settings: dataclass of the method's own settings (pydantic's, with `atu.config.STRICT`; each field annotated with a
    description), which `config.own` then is and `[methods.NAME]` of a TOML file sets; None where it has none.
    preset: what the method sets in the config, beneath what the user gives: nested dicts.
    check: raises ValueError, before any work, where config and GAN do not fit.
    stages: how people call the method's stages, by their names in the run's history ("adapt" for all of stage 1).
    """

    run: Callable[[GAN, Feedback, Config, RunFolder, int], Outcome]
    settings: type[Any] | None = None
    preset: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[GAN, Config], object] = _fits
    stages: Mapping[str, str] = field(default_factory=dict)


METHODS: Registry[Method] = presets.METHODS
