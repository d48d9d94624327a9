"""What a user asks for (`Request`), checked and read (`Inputs`): everything at once, before the run folder exists.

The negatives play three roles, and these are all:
1. In stage 1 the discriminator takes them for real samples, so that the adapted generators make them.
2. They are one class of the guide, the positives the other (`methods.adapt_then_unlearn.guide`).
3. The probe that stands in for an oracle is fitted on them.
With an oracle, the negatives that it finds among the generated samples join them in the first two. Without one, the
guide leaves out those positives that it takes for negatives though the probe passed them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import presets
from .check_gan import check_adapted, check_gan, rehearse
from .config import Config
from .data.marks import joined
from .data.samples import Samples, TensorSamples, as_samples
from .gan import GAN
from .judging.checks import label_remarks
from .judging.earlier import Earlier, earlier_run, read_run
from .judging.finding import find
from .judging.places import marked_samples
from .judging.positives import check_distinct
from .judging.rule import Rule
from .methods.registry import METHODS, Plan
from .support import world
from .support.context import RunContext, current
from .training import compute
from .training.run_folder import gan_digest, recorded


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks for, unchecked; the fields are the arguments of `atu.unlearn`.

    adapted: state dicts of adapted generators, for stage 2 on its own.
    """

    gan: Any
    negatives: Any
    positives: Any = None
    is_negative: Rule | Callable[[Tensor], Tensor] | str | None = None
    config: Config | Mapping[str, Any] | str | Path | None = None
    out: str | Path | None = None
    seed: int = 0
    device: str | torch.device | None = None
    method: str | None = None
    compat: str | None = None
    precision: str | None = None
    resize: bool = False
    adapted: Sequence[Mapping[str, Tensor]] | None = None
    from_run: str | Path | None = None


@dataclass(frozen=True)
class Inputs:
    """A request that was checked: everything read, nothing written, the GANs on the device where it will run.

    gan: the pair that training starts from, the original's or that of the earlier run. original: the one given, which
    outcomes are measured against. negatives, positives: those of earlier rounds among them. given: (negatives,
    positives) of this round alone.
    """

    gan: GAN
    original: GAN
    negatives: Samples
    positives: Samples | None
    oracle: Rule | None
    config: Config
    context: RunContext
    out: str | Path | None
    seed: int
    adapted: list[dict[str, Tensor]] | None
    given: tuple[Samples, Samples | None]
    earlier: Earlier | None = None


def _device(device: str | torch.device | None, gan: GAN) -> torch.device:
    try:
        wanted = gan.device if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device: expected cpu, cuda or cuda:<index>, got {device!r}") from error
    if wanted.type not in ("cpu", "cuda"):
        raise ValueError(
            f"device: expected cpu or cuda, which the kernels and the run's random state are made for, got "
            f"{str(wanted)!r}"
        )
    if device is None or wanted.type == "cpu":
        return wanted
    if not torch.cuda.is_available():
        raise ValueError(f"device: expected one that is there, got {str(wanted)!r}, but torch sees no CUDA device")
    count = torch.cuda.device_count()
    if wanted.index is not None and wanted.index >= count:
        raise ValueError(
            f"device: expected one that is there, got {str(wanted)!r}, but torch sees {count} CUDA devices"
        )
    return torch.device("cuda", torch.cuda.current_device() if wanted.index is None else wanted.index)


def _config(config: Config | Mapping[str, Any] | str | Path | None, method: str | None, compat: str | None) -> Config:
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
        config.check_preset()
        cfg = copy.deepcopy(config)
    elif config is None or isinstance(config, Mapping):
        cfg = Config.of(method, compat, config)
    elif isinstance(config, (str, Path)):
        cfg = Config.load(config, method, compat)
    else:
        raise TypeError(f"config: expected a Config, dict or path of a TOML file, got {type(config).__name__}")
    return cfg


def _checked_plan(gan: GAN, config: Config, request: Request) -> Plan:
    """The stages that the request asks for; ValueError where method, settings and GAN do not fit."""
    if request.compat is not None and not gan.is_stylegan:
        raise ValueError(
            f"compat: the reference's settings are those of a StyleGAN2, and {type(gan.generator).__name__} has no "
            "mapping and synthesis networks"
        )
    if request.adapted is not None and config.method not in presets.REPULSION:
        raise ValueError(f"method: expected one of {', '.join(presets.REPULSION)} for stage 2, got {config.method!r}")
    plan = METHODS[config.method].plan(gan, config)
    plan = plan if request.adapted is None else plan.after("adapt")
    plan.check()
    return plan


def _folder_of(value: Any) -> Path | None:
    """The folder that a user gave for samples, alone or with labels."""
    if isinstance(value, tuple) and len(value) == 2:
        value = value[0]
    return Path(value).resolve() if isinstance(value, (str, Path)) else None


def _check_folders(request: Request) -> None:
    """Refuse a run folder whose pictures a later run would read as samples, or samples among its pictures."""
    if request.out is None:
        return
    out = Path(request.out).resolve()
    for name in ("negatives", "positives"):
        folder = _folder_of(getattr(request, name))
        if folder is None:
            continue
        if out == folder or folder in out.parents:
            raise ValueError(
                f"out: expected a folder outside of {name} ({folder}), got {out}: the run's own pictures would be "
                f"read as {name}"
            )
        pictures = out / "samples"
        if folder == pictures or pictures in folder.parents:
            raise ValueError(f"{name}: expected a folder other than {pictures}, where the run writes its own pictures")


def _given(gan: GAN, request: Request) -> tuple[Samples, Samples | None]:
    """The negatives and positives of the request."""
    negatives, beside = marked_samples(gan, request.negatives, "negatives", request.resize)
    value = request.positives
    if value is None:
        if beside is None or isinstance(beside, TensorSamples):
            return negatives, beside
        value = beside
    return negatives, as_samples(
        value, gan.sample_shape, gan.image_range, "positives", gan.c_dim, resize=request.resize
    )


def _earlier(request: Request, gan: GAN) -> Earlier | None:
    """The run that the request goes on from."""
    if request.from_run is None:
        return None
    if request.out is not None and Path(request.out).resolve() == Path(request.from_run).resolve():
        raise ValueError(f"out: expected another folder than that of the run that this goes on from, got {request.out}")
    return earlier_run(request.from_run, gan, gan_digest(gan))


def check_without_discriminator(request: Request) -> None:
    """What of `check_inputs` needs no discriminator, before one is fitted: settings, samples, and an earlier run."""
    _config(request.config, request.method, request.compat)
    _given(request.gan, request)
    if request.from_run is not None:
        read_run(request.from_run)


def check_inputs(request: Request) -> Inputs:
    """Check and read all that a run is made with; writes nothing.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    seed = request.seed
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed: expected a non-negative int, got {seed!r}")
    _check_folders(request)
    config = _config(request.config, request.method, request.compat)
    if request.precision is not None:
        config = config.having(precision=request.precision)
    where = _device(request.device, request.gan) if isinstance(request.gan, GAN) else None
    gan = check_gan(request.gan)
    if where is not None and where != gan.device:
        gan = gan.copy().to(where)
    adapted = None if request.adapted is None else check_adapted(gan, request.adapted)
    rehearse(gan, _checked_plan(gan, config, request))
    given = _given(gan, request)
    earlier = _earlier(request, gan)
    negatives, positives = _with_earlier(given, earlier, gan)
    oracle = _oracle(request.is_negative, gan)
    if oracle is not None:
        oracle(gan.sample(4))
    if positives is not None:
        check_distinct(negatives, positives)
    label_remarks(gan, negatives)
    out = request.out if world.is_first() else None
    start = gan if earlier is None else earlier.gan
    context = _context(start, config, out)
    config = config.having(precision=context.precision, threads=context.threads)
    return Inputs(start, gan, negatives, positives, oracle, config, context, out, seed, adapted, given, earlier)


def _oracle(given: Rule | Callable[[Tensor], Tensor] | str | None, gan: GAN) -> Rule | None:
    if given is None or isinstance(given, Rule):
        return given
    return find(given, gan) if isinstance(given, str) else Rule(given)


def _with_earlier(
    given: tuple[Samples, Samples | None], earlier: Earlier | None, gan: GAN
) -> tuple[Samples, Samples | None]:
    """The marks of this round joined by those of the rounds before; what was marked otherwise since is left out."""
    if earlier is None:
        return given
    negatives = joined(given[0], earlier.negatives, given[1], gan.image_range)
    assert negatives is not None
    return negatives, joined(given[1], earlier.positives, given[0], gan.image_range, "positives")


def _context(gan: GAN, config: Config, out: str | Path | None) -> RunContext:
    """With the threads and the precision that are best on this machine, or were when the run began, where the config
    leaves them open; and with how many big samples fit in memory at once, on which their noise depends."""
    batch, before = config.repel.adversarial.batch_size, recorded(out)
    threads = world.from_first(lambda: compute.threads_for(gan, batch, config.threads, before))
    with RunContext(threads=threads):
        precision = world.from_first(lambda: compute.precision_for(gan, batch, config.precision, before))
    at_once = current().batch
    if gan.is_big and at_once is None:
        at_once = world.from_first(lambda: before.get("at_once") or gan.fitting())
    return RunContext(precision, threads, at_once)
