"""All settings of an unlearning run: nested dataclasses, read from and written to TOML.

Every default is meant to work on a GAN that nobody tuned on: weights are relative to quantities of the run itself.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from .augment import check_policy

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

STRICT = ConfigDict(extra="forbid", validate_assignment=True)
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


def _check_expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"expected a regular expression ({error})") from None
    return pattern


@dataclass(config=STRICT)
class Adversarial:
    """Settings of the adversarial game.

    lr, beta1, beta2: Adam; unset takes 0.002, 0 and 0.99 for StyleGAN kinds (equalised learning rates), and 0.0002,
    0.5 and 0.999 otherwise. With lazy regularisation of interval k they become lr c, beta^c, c = k / (k + 1).
    loss: "logistic" (non-saturating), or "relativistic" (pairs of real and generated samples; covers modes better when
    training from scratch). r1_gamma: weight of R1, every r1_interval steps; r2_gamma: of the same at generated samples.
    pl_weight: of path length (StyleGAN kinds), every pl_interval.
    ema_half_life: in images. augment: names of `atu.augment`, joined by commas.
    """

    batch_size: PositiveCount = 32
    lr: Positive | None = None
    beta1: Beta | None = None
    beta2: Beta | None = None
    d_lr_ratio: Positive = 1.0
    loss: Literal["logistic", "relativistic"] = "logistic"
    r1_gamma: NonNegative = 1.0
    r2_gamma: NonNegative = 0.0
    r1_interval: PositiveCount = 16
    pl_weight: NonNegative = 0.0
    pl_interval: PositiveCount = 4
    style_mixing: Fraction = 0.0
    ema_half_life: NonNegative = 1000.0
    augment: Annotated[str, AfterValidator(check_policy)] = ""


@dataclass(config=STRICT)
class Fisher:
    """Diagonal empirical Fisher information of the generator.

    of: "logit" (squared gradients of D's logit) or "log_likelihood" (of log sigmoid of it). samples: "generated", or
    "negatives" (those of the generated samples that the oracle or the probe calls negative). n: how many. parameters:
    regular expressions of the parameters that EWC holds; all when empty.
    """

    of: Literal["logit", "log_likelihood"] = "logit"
    samples: Literal["generated", "negatives"] = "generated"
    n: PositiveCount = 64
    parameters: list[Annotated[str, AfterValidator(_check_expression)]] = field(default_factory=list)


@dataclass(config=STRICT)
class Adapt:
    """Stage 1: adapt the GAN to the negatives.

    models: adapted generators N, each with its own seed. ewc_weight: lambda of METHOD (lambda/2 sum F dtheta^2) when
    ewc_relative is off; with it on, the penalty is divided by sum F theta_G^2, the same for every network.
    """

    models: PositiveCount = 1
    steps: Count = 200
    ewc_weight: NonNegative = 50.0
    ewc_relative: bool = True
    fisher: Fisher = field(default_factory=Fisher)
    adversarial: Adversarial = field(
        default_factory=lambda: Adversarial(augment="color,translation,cutout", ema_half_life=500.0)
    )


@dataclass(config=STRICT)
class Repel:
    """Stage 2: retrain the original on positives, away from the adapted weights.

    loss: "el2" exp(-alpha d), "nl2" -d (up to `ceiling`), "il2" 1 / (d + epsilon), or "none". reduction of d: "sum",
    "tensor_mean" or "relative" (d2 / d2(theta_G), 1 at the start). gamma: weight of the loss; unset, the one at which
    the repulsion's gradient at the start has `strength` times the norm of the adversarial one. schedule: of gamma over
    the steps. negatives_weight: weight of the negatives shown to the discriminator as fakes. guide_weight: of the
    guide's loss (`atu.guide`), which is trained for guide_steps steps; 0 for none. warm_start: start at
    theta_G - warm_start (theta_N - theta_G). check_every, check_samples: how often the run is scored, and on how many
    samples. patience: checks without a better score before stopping; drift_weight: see `atu.score`.
    """

    steps: Count = 600
    loss: Literal["el2", "nl2", "il2", "none"] = "el2"
    reduction: Literal["sum", "tensor_mean", "relative"] = "relative"
    gamma: NonNegative | None = None
    strength: NonNegative = 0.05
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    alpha: Positive = 1.0
    ceiling: Positive = 4.0
    epsilon: Positive = 1e-3
    negatives_weight: NonNegative = 0.05
    guide_weight: NonNegative = 0.5
    guide_steps: Count = 200
    warm_start: NonNegative = 0.0
    check_every: PositiveCount = 50
    check_samples: PositiveCount = 1000
    patience: PositiveCount = 6
    drift_weight: NonNegative = 1.0
    adversarial: Adversarial = field(default_factory=lambda: Adversarial(ema_half_life=5000.0))


@dataclass(config=STRICT)
class Feedback:
    """How positives are built when the user gives none.

    pool: samples drawn from the pretrained GAN and filtered. recall: share of the negatives that the probe must
    recognise when there is no oracle; more drops more of what is merely similar.
    """

    pool: PositiveCount = 5000
    recall: Fraction = 0.95


@dataclass(config=STRICT)
class Config:
    """Settings of `atu.unlearn`. `Config.load(path)`, `Config().save(path)`."""

    feedback: Feedback = field(default_factory=Feedback)
    adapt: Adapt = field(default_factory=Adapt)
    repel: Repel = field(default_factory=Repel)
    log_every: PositiveCount = 10
    save_every: PositiveCount = 100

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Config:
        """Build from nested dicts; anything left out keeps its default.

        Raises:
            ValueError: naming each field that is unknown or has a wrong value.
        """
        try:
            # Merged here, as a stage's own defaults differ from those of the class its settings are held in.
            return TypeAdapter(cls).validate_python(_merged(cls().to_dict(), data))
        except ValidationError as error:
            lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}" for e in error.errors()]
            raise ValueError("config: " + "; ".join(lines)) from None

    @classmethod
    def load(cls, path: str | Path) -> Config:
        """Read a TOML file."""
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"config: {path} cannot be read ({error})") from error
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"config: {path} is not valid TOML ({error})") from error
        return cls.from_dict(data)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain data; fields that are unset are left out, as TOML has no null."""
        return _without_none(dataclasses.asdict(self))

    def to_toml(self) -> str:
        return tomli_w.dumps(self.to_dict())

    def save(self, path: str | Path) -> Path:
        """Write a TOML file atomically."""
        from .files import write_text

        return write_text(path, self.to_toml())


def _merged(defaults: Any, data: Any) -> Any:
    """`data` over `defaults`, section by section."""
    if not isinstance(defaults, dict) or not isinstance(data, Mapping):
        return data
    return {**defaults, **{key: _merged(defaults.get(key), value) for key, value in data.items()}}


def _without_none(data: dict[str, Any]) -> dict[str, Any]:
    return {k: _without_none(v) if isinstance(v, dict) else v for k, v in data.items() if v is not None}
