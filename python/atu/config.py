"""All settings of an unlearning run: nested dataclasses, read from and written to TOML.

Every default is meant to work on a GAN that nobody tuned on: weights are relative to quantities of the run itself. Each
field's annotation says what it is, and `atu config` prints that. A method's own settings are in the method's file.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from . import presets
from .data.augment import check_policy
from .support.files import write_text
from .support.toml import read_toml


@dataclasses.dataclass(frozen=True)
class Unit:
    """What a setting is counted in; stands in its annotation."""

    name: str


def _check_expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"expected a regular expression ({error})") from None
    return pattern


STRICT = ConfigDict(extra="forbid", validate_assignment=True)
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
NonNegativeOrAuto = NonNegative | Literal["auto"]
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]
PositiveCountOrAuto = PositiveCount | Literal["auto"]
Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Expression = Annotated[str, AfterValidator(_check_expression)]
STEPS, IMAGES, SAMPLES = Unit("steps"), Unit("images"), Unit("samples")
OF_STEPS = Unit("share of the steps")


@dataclass(config=STRICT)
class Adversarial:
    """Settings of the adversarial loss, its optimiser and its regularisers."""

    batch_size: Annotated[PositiveCount, SAMPLES, Field(description="Real and generated samples of one step.")] = 32
    lr: Annotated[
        Positive | None,
        Field(
            description="Adam's learning rate; unset, 0.002 for StyleGAN kinds (equalised learning rates; 0.004 in "
            "stage 2 where it has 400 steps) and 0.0005 for others. Lazy regularisation of interval k makes it lr "
            "c, and each beta beta^c, c = k / (k + 1)."
        ),
    ] = None
    beta1: Annotated[Beta, Field(description="Adam's beta1.")] = 0.0
    beta2: Annotated[Beta, Field(description="Adam's beta2.")] = 0.99
    d_lr_ratio: Annotated[Positive, Field(description="The discriminator's learning rate over the generator's.")] = 1.0
    loss: Annotated[
        Literal["logistic", "relativistic"],
        Field(
            description="logistic: non-saturating. relativistic: on pairs of a real and a generated sample; covers "
            "modes better when training from scratch."
        ),
    ] = "logistic"
    r1_gamma: Annotated[
        NonNegativeOrAuto,
        Field(
            description="Weight of R1, the gradient penalty at real samples. auto: 0.05, and more for big images, "
            "0.0002 height width / batch_size (Karras et al., arXiv 2006.06676)."
        ),
    ] = 1.0
    r2_gamma: Annotated[NonNegativeOrAuto, Field(description="Weight of R2, the same at generated samples.")] = 0.0
    r1_interval: Annotated[PositiveCount, STEPS, Field(description="Every how many steps R1 and R2 are applied.")] = 16
    pl_weight: Annotated[NonNegative, Field(description="Weight of path length (StyleGAN kinds).")] = 0.0
    pl_interval: Annotated[PositiveCount, STEPS, Field(description="Every how many steps it is applied.")] = 4
    style_mixing: Annotated[
        Fraction, Field(description="Probability that a sample mixes the styles of two latents (StyleGAN kinds).")
    ] = 0.0
    ema_half_life: Annotated[NonNegative, IMAGES, Field(description="Half life of the weight average (EMA).")] = 1000.0
    ema_ramp: Annotated[
        Fraction,
        Field(
            description="The half life is at most this share of the images seen, so that the average of a network that "
            "started at random forgets the start (Karras et al., arXiv 2006.06676); 0: no such limit."
        ),
    ] = 0.0
    augment: Annotated[
        str,
        AfterValidator(check_policy),
        Field(description="Augmentations of what the discriminator sees, with commas: color, translation, cutout."),
    ] = ""


@dataclass(config=STRICT)
class Fisher:
    """Diagonal empirical Fisher information of the generator, by which EWC weighs its parameters."""

    n: Annotated[PositiveCount, SAMPLES, Field(description="How many.")] = 64
    parameters: Annotated[
        list[Expression],
        Field(description="Regular expressions of the parameters that EWC holds; all when empty."),
    ] = field(default_factory=list)


@dataclass(config=STRICT)
class Adapt:
    """Stage 1: adapt the GAN to the negatives."""

    models: Annotated[PositiveCount, Field(description="Adapted generators, each with a seed of its own.")] = 1
    steps: Annotated[Count, STEPS, Field(description="Training steps of each.")] = 100
    ewc_weight: Annotated[
        NonNegative,
        Field(
            description="Weight lambda of EWC, lambda/2 sum F (theta - theta_G)^2; with ewc_relative it is divided "
            "by 1/2 sum F theta_G^2."
        ),
    ] = 50.0
    ewc_relative: Annotated[
        bool,
        Field(description="Divide EWC by 1/2 sum F theta_G^2, so that one weight means the same for every network."),
    ] = True
    fisher: Annotated[Fisher, Field(description="The Fisher information F.")] = field(default_factory=Fisher)
    adversarial: Annotated[Adversarial, Field(description="The adversarial loss, on the negatives.")] = field(
        default_factory=lambda: Adversarial(r1_gamma=1.0, augment="color,translation,cutout", ema_half_life=500.0)
    )


@dataclass(config=STRICT)
class Repel:
    """Stage 2: retrain the original on positives, repelled from the adapted weights."""

    steps: Annotated[
        Count | None,
        STEPS,
        Field(
            description="Training steps; unset, 400 for StyleGAN kinds (800 at half the learning rate where "
            "hold_weight is 0, and of 256 x 256 and more), and 2,500 for others, whose learning rate is lower."
        ),
    ] = None
    strength: Annotated[
        NonNegative,
        Field(
            description="Of the repulsion: norm of its gradient over that of all other losses' gradient, at the start."
        ),
    ] = 0.05
    hold_weight: Annotated[
        NonNegativeOrAuto,
        Field(
            description="Weight of the distance to the original's samples of latents of which it makes good ones. Half "
            "of a step's latents are such, and the adversarial loss sees only the other half, of which it makes "
            "negatives. auto: 45 for StyleGAN kinds and 60 for others. 0: it sees all latents, and nothing is held."
        ),
    ] = "auto"
    nearby_weight: Annotated[
        NonNegativeOrAuto,
        Field(
            description="Weight of the root of the distance of the other half to good samples that the original makes "
            "of nearby latents. auto: 8 for images and 1 for other samples."
        ),
    ] = "auto"
    guide_weight: Annotated[NonNegative, Field(description="Weight of the guide's loss; 0: no guide.")] = 4.0
    guide_steps: Annotated[
        Count,
        STEPS,
        Field(
            description="Steps that the guide is trained for before stage 2; where it errs up to four times as many "
            "again, but no more than twice stage 2's. The ways to nearby good samples, which StyleGANs have "
            "not, are learnt in as many."
        ),
    ] = 200
    check_every: Annotated[PositiveCount, STEPS, Field(description="How often the generator is scored.")] = 100
    check_samples: Annotated[PositiveCount, SAMPLES, Field(description="On how many it is scored.")] = 1000
    decay: Annotated[
        Fraction, OF_STEPS, Field(description="The last ones, over which the learning rates fall to 0.")
    ] = 0.5
    adversarial: Annotated[Adversarial, Field(description="The adversarial loss, on the positives.")] = field(
        default_factory=lambda: Adversarial(
            beta1=0.5, r1_gamma="auto", r2_gamma="auto", r1_interval=8, ema_half_life=1500.0
        )
    )


@dataclass(config=STRICT)
class Feedback:
    """How positives are built when the user gives none, or few."""

    pool: Annotated[
        PositiveCountOrAuto,
        SAMPLES,
        Field(
            description="Drawn from the pretrained GAN, and filtered by the oracle or probe. auto: 5,000; of small "
            "images of other kinds than StyleGANs, for which an oracle answers, up to 20,000. At most as many as fit "
            "in 1 GiB (85 of 1024 x 1024 in colour), and 64 at least; another number than the one given is told."
        ),
    ] = "auto"
    recall: Annotated[
        Fraction,
        Field(
            description="Share of the negatives that the probe must recognise at least when there is no oracle; more "
            "drops more of what is merely similar."
        ),
    ] = 0.95
    least_positives: Annotated[
        Count,
        SAMPLES,
        Field(description="Positives that are given, where they are fewer, are joined by generated ones up to this."),
    ] = 1000


@dataclass(config=STRICT)
class Config:
    """Settings of `atu.unlearn`. `Config.of(method)`, `Config.load(path)`, `Config().save(path)`."""

    method: Annotated[
        str,
        AfterValidator(presets.check_method),
        Field(description="How to unlearn. A config made for one method is not one for another."),
    ] = presets.DEFAULT
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Field(
            description="What the networks' passes run in while training; weights, optimiser, average, penalties and "
            "losses are float32. auto measures once, and takes bfloat16 where it is 1.3 times as fast. float16 is for "
            "CUDA."
        ),
    ] = "auto"
    threads: Annotated[
        PositiveCount | None,
        Field(description="CPU threads of the training; unset, torch's number, and one for tiny networks."),
    ] = None
    log_every: Annotated[PositiveCount, STEPS, Field(description="How often losses are logged.")] = 10
    save_every: Annotated[PositiveCount, STEPS, Field(description="How often the state to resume from is saved.")] = 100
    feedback: Annotated[Feedback, Field(description="Positives when none are given.")] = field(default_factory=Feedback)
    adapt: Annotated[Adapt, Field(description="Stage 1.")] = field(default_factory=Adapt)
    repel: Annotated[Repel, Field(description="Stage 2.")] = field(default_factory=Repel)
    methods: Annotated[dict[str, Any], Field(description="The method's own settings, under its name.")] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        stray = [name for name in self.methods if name != self.method]
        if stray:
            raise ValueError(f"methods: expected settings of {self.method!r} alone, got those of {stray[0]!r}")
        settings = presets.METHODS.get(self.method).settings
        if settings is not None:
            own = self.methods.get(self.method, {})
            self.methods[self.method] = TypeAdapter(settings).validate_python(own)

    @property
    def own(self) -> Any:
        """The settings of the method itself, an instance of its settings dataclass.

        Raises:
            ValueError: there are none, as the method was changed after the config was made.
        """
        if self.method not in self.methods:
            raise ValueError(f"config: holds no settings of {self.method!r}; make it with Config.of({self.method!r})")
        return self.methods[self.method]

    def check_preset(self) -> None:
        """Raise ValueError where the method sets several fields and every one is the default method's: then the config
        is that one's under another name, as `Config(method="el2")` is."""
        preset = _leaves(presets.METHODS.get(self.method).preset)
        plain, own = (_leaves(config.to_dict()) for config in (Config(), self))
        unlike = [path for path, value in preset.items() if plain.get(path) != value]
        if len(unlike) > 1 and all(own.get(path) == plain.get(path) for path in unlike):
            raise ValueError(
                f"config: holds the settings of {presets.DEFAULT!r} under the name of {self.method!r}, which sets "
                f"{', '.join(unlike[:3])} and others; make it with Config.of({self.method!r}, data={{...}})"
            )

    @classmethod
    def of(cls, method: str | None = None, compat: str | None = None, data: Mapping[str, Any] | None = None) -> Config:
        """Settings of a method: the defaults, then what the method sets, then what `compat` does, then `data`.

        Args:
            method: one of `atu.presets.METHODS`; unset, data's own `method`, or else the default method.
            compat: "reference" for the constants and the schedule of the paper's reference implementation, whose
                method is el2 unless `method` says otherwise.
            data: nested dicts of fields. Under `methods` there may be tables of other methods too: they are checked and
                left out, so that one file serves several methods.

        Raises:
            ValueError: naming each field that is unknown or has a wrong value; `data` is for another method.
        """
        data = dict(data or {})
        given = data.get("method")
        if method is not None and given is not None and method != given:
            raise ValueError(f"method: expected {given!r}, which the config is for, got {method!r}")
        paper = presets.check_compat(compat) is not None
        usual = "el2" if paper else presets.DEFAULT
        method = method if method is not None else given if isinstance(given, str) else usual
        if paper and method == presets.DEFAULT:
            raise ValueError(f"compat: expected a method of the paper, such as el2, got {method!r}")
        tables = _tables(data.pop("methods", {}))
        own = {name: _defaults(name) for name in (method, *tables)}
        merged = _merged({**cls().to_dict(), "methods": own}, presets.METHODS.get(method).preset)
        if paper:
            adapt = data.get("adapt")
            models = adapt.get("models") if isinstance(adapt, Mapping) else None
            merged = _merged(merged, presets.reference(method, *([models] if isinstance(models, int) else [])))
        return cls._validated(_merged(merged, {"method": method, **data, "methods": tables}))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Config:
        """Build from nested dicts; anything left out keeps its default for the method that `data` names.

        Raises:
            ValueError: naming each field that is unknown or has a wrong value.
        """
        return cls.of(data=data)

    @classmethod
    def _validated(cls, data: dict[str, Any]) -> Config:
        """From dicts that hold every field: a stage's own defaults differ from those of the class of its settings."""
        errors: list[str] = []
        tables = {
            name: _checked(presets.METHODS.get(name).settings, table, f"methods.{name}.", errors)
            for name, table in data.pop("methods").items()
        }
        config: Config = _checked(cls, data, "", errors)
        if errors:
            raise ValueError("config: " + "; ".join(errors))
        if config.method in config.methods:
            config.methods[config.method] = tables[config.method]
        return config

    def having(self, **fields: Any) -> Config:
        """The same settings with other values of some fields.

        Raises:
            ValueError: naming each field that is unknown or has a wrong value.
        """
        return self._validated({**self.to_dict(), **fields})

    @classmethod
    def load(cls, path: str | Path, method: str | None = None, compat: str | None = None) -> Config:
        """Read a TOML file; `method` and `compat` as of `Config.of`."""
        return cls.of(method, compat, read_toml(path))

    def to_dict(self) -> dict[str, Any]:
        """Nested plain data; fields that are unset are left out, as TOML has no null."""
        return _without_none(dataclasses.asdict(self))

    def to_toml(self) -> str:
        return tomli_w.dumps(self.to_dict())

    def save(self, path: str | Path) -> Path:
        """Write a TOML file atomically."""
        return write_text(path, self.to_toml())


def _leaves(data: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The values in nested dicts, by their names joined with dots."""
    found: dict[str, Any] = {}
    for name, value in data.items():
        found.update(_leaves(value, f"{above}{name}.") if isinstance(value, Mapping) else {above + name: value})
    return found


def _merged(defaults: Any, data: Any) -> Any:
    """`data` over `defaults`, section by section."""
    if not isinstance(defaults, dict) or not isinstance(data, Mapping):
        return data
    return {**defaults, **{key: _merged(defaults.get(key), value) for key, value in data.items()}}


def _without_none(data: dict[str, Any]) -> dict[str, Any]:
    return {k: _without_none(v) if isinstance(v, dict) else v for k, v in data.items() if v is not None}


def _tables(data: Any) -> dict[str, Any]:
    """The tables under `methods` by the methods' names; cf_k may stand for cf-k, as it once was written."""
    if not isinstance(data, Mapping):
        raise ValueError(f"config: methods: expected a table for each method, got {data!r}")
    found: dict[str, Any] = {}
    for key, table in data.items():
        name = key if key in presets.METHODS else str(key).replace("_", "-")
        if name not in presets.METHODS or presets.METHODS.get(name).settings is None:
            raise ValueError(f"config: methods.{key}: there is no method of this name with settings of its own")
        if name in found:
            raise ValueError(f"config: methods.{key}: given a second time as methods.{name}")
        found[name] = table
    return found


def _defaults(method: str) -> dict[str, Any]:
    settings = presets.METHODS.get(method).settings
    return {} if settings is None else _without_none(dataclasses.asdict(settings()))


# What pydantic puts behind a field's name where a value may be of several kinds.
_KINDS = ("constrained-float", "constrained-int", "literal['auto']")


def _checked(kind: Any, data: Any, where: str, errors: list[str]) -> Any:
    """An instance of the dataclass `kind`; what is wrong in `data` is added to `errors`."""
    if kind is None:
        return None
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        found: dict[str, Any] = {}
        for one in error.errors():
            names = [str(part) for part in one["loc"] if part not in _KINDS]
            path = f"{where}{'.'.join(names)}".removesuffix(".")
            messages, _ = found.setdefault(path, ([], one["input"]))
            messages.append(one["msg"].removeprefix("Input should be ") if messages else one["msg"])
        errors += [f"{path}: {' or '.join(messages)}, got {given!r}" for path, (messages, given) in found.items()]
    return None
