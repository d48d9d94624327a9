"""The door: `unlearn(gan, negatives)`, its two stages on their own, and the closed-form baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import Config
from .gan import GAN
from .job import Result, _check_gan, _Job
from .methods.adapt_then_unlearn.adapt import adapt_all
from .methods.adapt_then_unlearn.repel import repel_gan
from .methods.extrapolate import extrapolated
from .methods.finetune import Outcome
from .methods.registry import METHODS


def unlearn(
    gan: GAN,
    negatives: Any,
    positives: Any = None,
    is_negative: Callable[[Tensor], Tensor] | None = None,
    config: Config | Mapping | str | Path | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    method: str | None = None,
    compat: str | None = None,
) -> Result:
    """Make a GAN forget what the negatives show: adapt to them, then retrain away from the adapted weights.

    Source: Tiwary et al., "Adapt then Unlearn" (arXiv 2309.14054). `gan` itself is not changed.

    Args:
        gan: pretrained pair.
        negatives: samples that show what is unwanted: a folder of images, a tensor or ndarray [N, ...] (floats in
            gan.image_range, or uint8 images), or a map-style Dataset. A dozen work; a hundred work better. For a
            conditional GAN also a pair (samples, labels), labels an index for all of them or int64 [N]: labels that
            are not given are drawn as the GAN draws them.
        positives: samples that are wanted, likewise. Generated and filtered when not given.
        is_negative: oracle, samples [N, ...] (on the GAN's device, in its range) -> bool tensor [N]. Filters the
            generated positives and scores the run; a probe on the discriminator's features stands in when not given.
        config: `Config`, dict of its fields, or path of a TOML file.
        out: run folder; a killed run is resumed by the same call.
        seed: of everything random. On the CPU the result is the same bit for bit for the same number of threads.
        device: where to train; the GAN's own device when not given.
        method: one of `atu.presets.METHODS`; docs/method.md says what each does. None is the config's, and without
            one the default method.
        compat: "reference" for the reduction, constants and schedule of the paper's reference implementation
            (StyleGAN kinds); what `config` says goes before them.

    Returns:
        `Result`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came, before any training.
        NonFiniteError: the training diverged.
    """
    job = _Job.prepare(gan, negatives, positives, is_negative, config, out, seed, device, method=method, compat=compat)
    try:
        outcome = METHODS[job.config.method].run(job.gan, job.feedback, job.config, job.run, seed)
        return _finish(job, outcome)
    finally:
        job.run.close()


def _finish(job: _Job, outcome: Outcome) -> Result:
    decisions = {"method": job.config.method, **outcome.decisions}
    result = job.result(outcome.gan, outcome.adapted, decisions)
    path = job.run.path("result.safetensors")
    if path is not None:
        result.save(path)
        from .support.files import write_json

        write_json(path.with_name("decisions.json"), decisions)
    return result


def adapt(
    gan: GAN,
    negatives: Any,
    is_negative: Callable[[Tensor], Tensor] | None = None,
    config: Config | Mapping | str | Path | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> list[dict[str, Tensor]]:
    """Stage 1 on its own: the state dicts of `config.adapt.models` generators adapted to the negatives.

    Arguments and errors as of `unlearn`.
    """
    job = _Job.prepare(gan, negatives, None, is_negative, config, out, seed, device)
    try:
        return adapt_all(job.gan, job.feedback, job.config.adapt, job.run, seed)
    finally:
        job.run.close()


def repel(
    gan: GAN,
    adapted: Sequence[Mapping[str, Tensor]],
    negatives: Any,
    positives: Any = None,
    is_negative: Callable[[Tensor], Tensor] | None = None,
    config: Config | Mapping | str | Path | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Result:
    """Stage 2 on its own, away from `adapted` (state dicts of generators, as `adapt` gives them).

    Arguments and errors otherwise as of `unlearn`; the config's method must be one with this stage.
    """
    gan = _check_gan(gan)
    states = _check_adapted(gan, adapted)
    job = _Job.prepare(gan, negatives, positives, is_negative, config, out, seed, device, states)
    try:
        unlearned, decisions = repel_gan(job.gan, job.feedback, states, job.config.repel, job.run, job.seed)
        return _finish(job, Outcome(unlearned, decisions, states))
    finally:
        job.run.close()


def _check_adapted(gan: GAN, adapted: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    if isinstance(adapted, (Mapping, str, Path)) or len(adapted) == 0 or not isinstance(adapted[0], Mapping):
        raise ValueError("adapted: expected a list of at least one generator state dict")
    own = gan.generator.state_dict()
    for state in adapted:
        wrong = [k for k, v in own.items() if k not in state or state[k].shape != v.shape]
        if wrong:
            raise ValueError(
                f"adapted: expected state dicts of gan.generator, but {wrong[0]} is missing or of another shape"
            )
    return [dict(state) for state in adapted]


def extrapolate(gan: GAN, adapted: Sequence[Mapping[str, Tensor]], s: float = 1.0) -> GAN:
    """The closed-form baseline: a copy of `gan` with theta_G - s (theta_N - theta_G), theta_N the adapted ones' mean.

    s = -1 is the adapted generator itself, 0 the pretrained one. Buffers stay as in `gan`.
    """
    return extrapolated(gan, _check_adapted(gan, adapted), s)
