"""From what a user gives to a run that can start: checked inputs, the run folder, the feedback."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import presets
from .config import Config
from .data.samples import as_samples
from .feedback.feedback import Feedback, build, check_distinct
from .feedback.oracles import Oracle
from .gan import GAN
from .methods.registry import METHODS
from .support.digest import digest
from .support.modules import eval_mode
from .training.run_folder import RunFolder, gan_digest, samples_digest


@dataclass
class Result:
    """What unlearning gives.

    gan: the unlearned pair; its `generator_ema` is the kept one. adapted: state dicts of the stage-1 generators.
    history: one dict a logged step (stage, step, seconds, losses, distance, negative_rate ...). decisions: what the run
    chose and why. seconds: of training. out: the run folder, if there is one.
    """

    gan: GAN
    adapted: list[dict[str, Tensor]]
    history: list[dict[str, Any]]
    decisions: dict[str, Any]
    seconds: float
    config: Config = field(default_factory=Config)
    out: Path | None = None

    @property
    def generator(self) -> nn.Module:
        """The unlearned EMA generator in eval mode, of the class that was given."""
        return self.gan.sampling_generator.eval()

    def save(self, path: str | Path) -> Path:
        """Write the unlearned GAN as a checkpoint; see `GAN.save`."""
        return self.gan.save(path)


def _check_gan(gan: Any) -> GAN:
    if not isinstance(gan, GAN):
        raise TypeError(
            f"gan: expected an atu_ext.GAN, got {type(gan).__name__}; wrap the pair: GAN(generator=..., ...)"
        )
    if gan.discriminator is None:
        raise ValueError(
            "gan: it has no discriminator, and both stages train against one; load a checkpoint that holds it, or fit "
            "one on generated samples first: atu.training.fit_discriminator(gan, steps), or atu unlearn with "
            "--train-discriminator STEPS"
        )
    for name, module in gan.modules().items():
        for key, value in module.state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise ValueError(f"gan: {name}.{key} holds values that are not finite")
    x = gan.sample(2)
    if len(x) != 2 or not torch.isfinite(x).all():
        raise ValueError(f"gan: its generator gave {list(x.shape)} for 2 latents, or values that are not finite")
    with torch.no_grad(), eval_mode(gan.discriminator):
        gan.logits(x, gan.labels(2, torch.Generator().manual_seed(0)))
    return gan


def _device(device: str | torch.device | None, gan: GAN) -> torch.device:
    if device is None:
        return gan.device
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device: expected cpu, cuda or cuda:<index>, got {device!r}") from error
    if wanted.type != "cuda":
        return wanted
    if not torch.cuda.is_available():
        raise ValueError(f"device: expected one that is there, got {str(wanted)!r}, but torch sees no CUDA device")
    count = torch.cuda.device_count()
    if wanted.index is not None and wanted.index >= count:
        raise ValueError(
            f"device: expected one that is there, got {str(wanted)!r}, but torch sees {count} CUDA devices"
        )
    return torch.device("cuda", torch.cuda.current_device() if wanted.index is None else wanted.index)


def _config(config: Config | Mapping | str | Path | None, method: str | None, compat: str | None) -> Config:
    if method is not None:
        presets.check_method(method)
    presets.check_compat(compat)
    if isinstance(config, Config):
        if compat is not None:
            raise ValueError(
                "compat: a Config holds every setting already; make it with Config.of(method, compat, {...}), or give "
                "a dict or TOML file of what differs"
            )
        if method is not None and method != config.method:
            raise ValueError(f"method: expected {config.method!r}, which the config is for, got {method!r}")
        cfg = copy.deepcopy(config)
    elif config is None or isinstance(config, Mapping):
        cfg = Config.of(method, compat, config)
    elif isinstance(config, (str, Path)):
        cfg = Config.load(config, method, compat)
    else:
        raise TypeError(f"config: expected a Config, dict or path of a TOML file, got {type(config).__name__}")
    return cfg


@dataclass
class _Job:
    """Checked inputs of a run."""

    gan: GAN
    feedback: Feedback
    config: Config
    run: RunFolder
    seed: int
    start: float

    @classmethod
    def prepare(
        cls,
        gan: GAN,
        negatives: Any,
        positives: Any,
        is_negative: Callable[[Tensor], Tensor] | None,
        config: Config | Mapping | str | Path | None,
        out: str | Path | None,
        seed: int,
        device: str | torch.device | None,
        adapted: Sequence[Mapping[str, Tensor]] | None = None,
        method: str | None = None,
        compat: str | None = None,
    ) -> _Job:
        start = time.monotonic()
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ValueError(f"seed: expected a non-negative int, got {seed!r}")
        cfg = _config(config, method, compat)
        where = _device(device, gan) if isinstance(gan, GAN) else None
        gan = _check_gan(gan)
        if where is not None and where != gan.device:
            gan = gan.copy().to(where)
        if compat is not None and not gan.is_stylegan:
            raise ValueError(
                f"compat: the reference's settings are those of a StyleGAN2, and {type(gan.generator).__name__} has no "
                "mapping and synthesis networks"
            )
        if adapted is not None and cfg.method not in presets.REPULSION:
            raise ValueError(f"method: expected one of {', '.join(presets.REPULSION)} for stage 2, got {cfg.method!r}")
        METHODS[cfg.method].check(gan, cfg)
        shape, image_range = gan.sample_shape, gan.image_range
        marked = as_samples(negatives, shape, image_range, "negatives", gan.c_dim)
        given = None if positives is None else as_samples(positives, shape, image_range, "positives", gan.c_dim)
        oracle = None if is_negative is None else Oracle(is_negative)
        if oracle is not None:
            oracle(gan.sample(4))
        if given is not None:
            check_distinct(marked, given)
        identity = {"seed": seed, "gan": gan_digest(gan), "negatives": samples_digest(marked)}
        identity["positives"] = None if given is None else samples_digest(given)
        identity["oracle"] = oracle is not None
        drawn = gan.labels(64, torch.Generator().manual_seed(0))
        if drawn is not None:
            identity["labels"] = digest({"drawn": drawn})
        if adapted is not None:
            identity["adapted"] = [digest(dict(state)) for state in adapted]
        weights = sum(t.numel() * t.element_size() for m in gan.modules().values() for t in m.state_dict().values())
        # Two states and a third that is being written, four to five times the weights each; and the result.
        run = RunFolder(out, cfg, identity, needed_bytes=weights * (15 + cfg.adapt.models))
        try:
            feedback = build(gan, marked, given, oracle, cfg.feedback, seed)
        except BaseException:
            run.close()
            raise
        return cls(gan, feedback, cfg, run, seed, start)

    def result(self, gan: GAN, adapted: list[dict[str, Tensor]], decisions: dict[str, Any]) -> Result:
        seconds = time.monotonic() - self.start
        return Result(gan, adapted, self.run.history, decisions, seconds, self.config, self.run.out)
