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

from . import presets
from .data.augment import check_policy

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
    """Settings of the adversarial training.

    lr, beta1, beta2: Adam; unset takes 0.002, 0 and 0.99 for StyleGAN kinds (equalised learning rates), and 0.0005,
    0 and 0.99 otherwise. With lazy regularisation of interval k they become lr c, beta^c, c = k / (k + 1).
    loss: "logistic" (non-saturating), or "relativistic" (pairs of real and generated samples; covers modes better when
    training from scratch). r1_gamma: weight of R1, every r1_interval steps; r2_gamma: of the same at generated samples.
    pl_weight: of path length (StyleGAN kinds), every pl_interval. ema_half_life: in images; ema_ramp: but at most this
    share of the images seen (0: no such limit), so that the average of a network that started at random forgets the
    start (Karras et al., arXiv 2006.06676). augment: names of `atu.data.augment`, joined by commas.
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
    ema_ramp: Fraction = 0.0
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

    models: adapted generators N, each with its own seed. ewc_weight: lambda of the paper (lambda/2 sum F dtheta^2) when
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
class GuideWeight:
    """How the guide's weight follows what is left of the negatives (their share over the pretrained GAN's)."""

    grow_above: NonNegative = Field(default=0.05, description="It grows while more than this is left.")
    shrink_below: NonNegative = Field(default=0.005, description="It shrinks while less than this is left,")
    shrink_below_drift: NonNegative = Field(
        default=0.25, description="or less than this share of what the drift adds to the score."
    )
    grow_after: Count = Field(default=100, description="Steps in which it does not grow: negatives go by themselves.")
    smoothing: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.05, description="Weight of the newest batch in the running mean of what is left."
    )
    lowest: Positive = Field(default=0.1, description="Its least value, over the one at the start.")
    highest: Positive = Field(default=3.0, description="Its greatest value, over the one at the start.")
    recent_samples: PositiveCount = Field(
        default=512, description="Generated samples of either kind that the guide goes on learning from."
    )


@dataclass(config=STRICT)
class Repel:
    """Stage 2: retrain the original on positives, away from the adapted weights.

    loss: "el2" exp(-alpha d), "nl2" -d (up to `ceiling`), "il2" 1 / (d + epsilon), or "none". reduction of d: "sum",
    "tensor_mean" or "relative" (d2 / d2(theta_G), 1 at the start). gamma: weight of the loss; unset, the one at which
    the repulsion's gradient at the start has `strength` times the norm of the adversarial one. schedule: of gamma over
    the steps. negatives_weight: weight of the negatives shown to the discriminator as fakes. guide_weight: of the
    guide's loss (see guide.py) over the share of negatives, at the start; 0 for none. guide_steps: that the guide is
    trained for. guide_rate: change of the log of its weight a step, up or down by what is left of the negatives; 0
    keeps it; guide_control: when and how far. guide_r1: weight of its gradient penalty. preserve_weight: of the
    distance to the original's samples of the same latents, those that the guide finds negative left out. warm_start:
    start at theta_G - warm_start (theta_N - theta_G). steps: unset, 600 for StyleGAN kinds, and 1,500 for others, whose
    learning rate is a quarter of theirs. decay: last share of the steps, over which the learning rates fall to 0.
    check_every, check_samples: how often the run is
    scored, and on how many samples. keep: the "best" generator by that score (the latest whose score is the lowest
    but for chance, see `CheckpointKeeper`), or the "final" one after all steps. patience: checks since the best before
    stopping ("best" only), once the learning rates fall; drift_weight: see `Score`.
    """

    steps: Count | None = None
    loss: Literal["el2", "nl2", "il2", "none"] = "el2"
    reduction: Literal["sum", "tensor_mean", "relative"] = "relative"
    gamma: NonNegative | None = None
    strength: NonNegative = 0.05
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    alpha: Positive = 1.0
    ceiling: Positive = 4.0
    epsilon: Positive = 1e-3
    negatives_weight: NonNegative = 0.05
    guide_weight: NonNegative = 0.8
    guide_steps: Count = 200
    guide_rate: NonNegative = 0.0025
    guide_r1: NonNegative = 1.0
    guide_control: GuideWeight = field(default_factory=GuideWeight)
    preserve_weight: NonNegative = 2.0
    warm_start: NonNegative = 0.0
    check_every: PositiveCount = 50
    check_samples: PositiveCount = 2000
    keep: Literal["best", "final"] = "best"
    patience: PositiveCount = 6
    drift_weight: NonNegative = 1.0
    decay: Fraction = 0.5
    adversarial: Adversarial = field(default_factory=lambda: Adversarial(loss="relativistic", ema_half_life=1500.0))


@dataclass(config=STRICT)
class Feedback:
    """How positives are built when the user gives none.

    pool: samples drawn from the pretrained GAN and filtered. recall: share of the negatives that the probe must
    recognise when there is no oracle; more drops more of what is merely similar.
    """

    pool: PositiveCount = 5000
    recall: Fraction = 0.95


@dataclass(config=STRICT)
class Extrapolate:
    """The closed form theta_G - s (theta_N - theta_G) after stage 1. check_samples, drift_weight: of its score."""

    s: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    check_samples: PositiveCount = 1000
    drift_weight: NonNegative = 1.0


@dataclass(config=STRICT)
class Finetune:
    """What the methods share that train on the positives alone, without stage 1.

    check_every, check_samples, drift_weight: when and how the run is scored, as in `Repel`. keep: the "final"
    generator, or the "best" by that score.
    """

    steps: Count = 600
    check_every: PositiveCount = 50
    check_samples: PositiveCount = 1000
    drift_weight: NonNegative = 1.0
    keep: Literal["final", "best"] = "final"
    adversarial: Adversarial = field(default_factory=lambda: Adversarial(ema_half_life=5000.0))


@dataclass(config=STRICT)
class Ewc(Finetune):
    """Positives and an EWC penalty that holds the generator at theta_G; weight, relative, fisher as in `Adapt`."""

    weight: NonNegative = 5.0
    relative: bool = True
    fisher: Fisher = field(default_factory=Fisher)


@dataclass(config=STRICT)
class LastLayers(Finetune):
    """CF-k and EU-k: only the generator's last k layers are trained, half of them (rounded up) when k is unset."""

    k: PositiveCount | None = None


@dataclass(config=STRICT)
class L1Sparse(Finetune):
    """Positives and weight * sum |theta| over the generator. weight: unset, the one at which its gradient has
    `strength` times the norm of the adversarial one at theta_G. schedule: of the weight over the steps."""

    weight: NonNegative | None = None
    strength: NonNegative = 0.2
    schedule: Literal["constant", "linear", "cosine"] = "constant"


@dataclass(config=STRICT)
class Cdc(Finetune):
    """Cross-domain correspondence. weight: of the loss. batch: latents compared in one step. layers: regular
    expressions of the modules whose inputs are compared; when empty all that take in feature maps (hidden
    activations, where the generator has no maps)."""

    weight: NonNegative = 1000.0
    batch: Annotated[int, Field(ge=3)] = 4
    layers: list[Annotated[str, AfterValidator(_check_expression)]] = field(default_factory=list)


@dataclass(config=STRICT)
class Rssa(Finetune):
    """Spatial structural alignment. self_weight, disturbance_weight: of the two losses. disturbance: share of fresh
    noise in the latents compared with each other. max_size: larger maps are averaged down to it. batch, layers: as in
    `Cdc`, feature maps only."""

    self_weight: NonNegative = 0.8
    disturbance_weight: NonNegative = 0.4
    disturbance: Fraction = 0.15
    max_size: Annotated[int, Field(ge=2)] = 16
    batch: Annotated[int, Field(ge=2)] = 4
    layers: list[Annotated[str, AfterValidator(_check_expression)]] = field(default_factory=list)


@dataclass(config=STRICT)
class Retrain(Finetune):
    """From scratch on positives. decay: last share of the steps, over which the learning rates fall to 0."""

    steps: Count = 10_000
    check_every: PositiveCount = 500
    decay: Fraction = 0.25
    adversarial: Adversarial = field(
        default_factory=lambda: Adversarial(
            loss="relativistic", r1_gamma=0.5, r2_gamma=0.5, ema_half_life=10_000.0, ema_ramp=0.05
        )
    )


@dataclass(config=STRICT)
class Methods:
    """Settings of the methods other than the repulsion ones, which are in `Config.repel`."""

    extrapolate: Extrapolate = field(default_factory=Extrapolate)
    ewc: Ewc = field(default_factory=Ewc)
    cf_k: LastLayers = field(default_factory=LastLayers)
    eu_k: LastLayers = field(
        default_factory=lambda: LastLayers(adversarial=Adversarial(ema_half_life=5000.0, ema_ramp=0.05))
    )
    l1_sparse: L1Sparse = field(default_factory=L1Sparse)
    cdc: Cdc = field(default_factory=Cdc)
    rssa: Rssa = field(default_factory=Rssa)
    retrain: Retrain = field(default_factory=Retrain)


@dataclass(config=STRICT)
class Config:
    """Settings of `atu.unlearn`. `Config.of(method)`, `Config.load(path)`, `Config().save(path)`.

    method: one of `atu.presets.METHODS`; a Config made for one method is not one for another.
    """

    method: Annotated[str, AfterValidator(presets.check_method)] = presets.DEFAULT
    feedback: Feedback = field(default_factory=Feedback)
    adapt: Adapt = field(default_factory=Adapt)
    repel: Repel = field(default_factory=Repel)
    methods: Methods = field(default_factory=Methods)
    log_every: PositiveCount = 10
    save_every: PositiveCount = 100

    @classmethod
    def of(cls, method: str | None = None, compat: str | None = None, data: Mapping[str, Any] | None = None) -> Config:
        """Settings of a method: the defaults, then what the method sets, then what `compat` does, then `data`.

        Args:
            method: one of `atu.presets.METHODS`; unset, data's own `method`, or else the default method.
            compat: "reference" for the constants and the schedule of the paper's reference implementation.
            data: nested dicts of fields.

        Raises:
            ValueError: naming each field that is unknown or has a wrong value; `data` is for another method.
        """
        data = dict(data or {})
        given = data.get("method")
        if method is not None and given is not None and method != given:
            raise ValueError(f"method: expected {given!r}, which the config is for, got {method!r}")
        method = method if method is not None else given if isinstance(given, str) else presets.DEFAULT
        merged = _merged(cls().to_dict(), presets.METHODS[presets.check_method(method)])
        if presets.check_compat(compat) is not None:
            adapt = data.get("adapt")
            models = adapt.get("models") if isinstance(adapt, Mapping) else None
            merged = _merged(merged, presets.reference(method, *([models] if isinstance(models, int) else [])))
        return cls._validated(_merged(merged, {"method": method, **data}))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Config:
        """Build from nested dicts; anything left out keeps its default for the method that `data` names.

        Raises:
            ValueError: naming each field that is unknown or has a wrong value.
        """
        return cls.of(data=data)

    @classmethod
    def _validated(cls, data: dict[str, Any]) -> Config:
        try:
            # Merged before, as a stage's own defaults differ from those of the class its settings are held in.
            return TypeAdapter(cls).validate_python(data)
        except ValidationError as error:
            lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}" for e in error.errors()]
            raise ValueError("config: " + "; ".join(lines)) from None

    @classmethod
    def load(cls, path: str | Path, method: str | None = None, compat: str | None = None) -> Config:
        """Read a TOML file; `method` and `compat` as of `Config.of`."""
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"config: {path} cannot be read ({error})") from error
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"config: {path} is not valid TOML ({error})") from error
        return cls.of(method, compat, data)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain data; fields that are unset are left out, as TOML has no null."""
        return _without_none(dataclasses.asdict(self))

    def to_toml(self) -> str:
        return tomli_w.dumps(self.to_dict())

    def save(self, path: str | Path) -> Path:
        """Write a TOML file atomically."""
        from .support.files import write_text

        return write_text(path, self.to_toml())


def _merged(defaults: Any, data: Any) -> Any:
    """`data` over `defaults`, section by section."""
    if not isinstance(defaults, dict) or not isinstance(data, Mapping):
        return data
    return {**defaults, **{key: _merged(defaults.get(key), value) for key, value in data.items()}}


def _without_none(data: dict[str, Any]) -> dict[str, Any]:
    return {k: _without_none(v) if isinstance(v, dict) else v for k, v in data.items() if v is not None}
