"""In which precision a training's passes run, and whether bfloat16 is worth it on this machine: measured, and kept."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

from ..gan import GAN
from ..support import progress
from . import trial

WINS = 1.3  # times as fast as float32 that bfloat16 must be, for "auto" to take it


def resolve(precision: str, gan: GAN, batch: int, recorded: str | None = None) -> str:
    """What `precision` ("auto", "float32", "bfloat16" or "float16") means for training `gan` with batches of `batch`.

    recorded: what a run that goes on was begun with, which "auto" keeps to.

    Raises:
        ValueError: the GAN or its device cannot be trained in it.
    """
    if precision == "auto":
        return faster(gan, batch) if recorded is None else recorded
    if precision != "float32":
        _check(precision, gan)
    return precision


def _check(precision: str, gan: GAN) -> None:
    if precision == "float16" and gan.device.type != "cuda":
        raise ValueError(
            f"precision: float16 is for CUDA devices, as a {gan.device.type.upper()} takes longer for it than for "
            "float32; expected auto, bfloat16 or float32"
        )
    why = _obstacle(precision, gan)
    if why is not None:
        raise ValueError(f"precision: {precision} was asked for, but {why}; expected auto or float32")


def _obstacle(precision: str, gan: GAN) -> str | None:
    """Why the GAN cannot be trained in it, found by a pass of two samples; None where it can."""
    for name, module in gan.modules().items():
        wide = next((p.dtype for p in module.parameters() if p.dtype == torch.float64), None)
        if wide is not None:
            return f"the {name}'s weights are float64, which torch.autocast leaves as they are"
    try:
        value = float(trial.Passes(gan, 2).run(precision))
    except (RuntimeError, TypeError, ValueError) as error:
        return f"the networks do not run under torch.autocast ({' '.join(str(error).split())[:200]})"
    return None if math.isfinite(value) else "the networks give values in it that are not finite"


def faster(gan: GAN, batch: int) -> str:
    """ "bfloat16" where a pass through both networks and back is `WINS` times as fast in it as in float32, else that.

    Measured once for networks of these shapes on this machine, and kept in the user's cache folder.
    """
    if gan.discriminator is None or any(p.dtype == torch.float64 for p in gan.generator.parameters()):
        return "float32"
    each = trial.flops(gan)
    if each * batch < trial.LITTLE:
        return "float32"
    batch = max(1, min(batch, int(trial.ENOUGH / each)))
    key = trial.key(gan, batch)
    found = measurements().get(key)
    if found is None:
        if _obstacle("bfloat16", gan) is not None:
            return "float32"
        found = dict(seconds=_timed(gan, batch), **trial.machine(gan), network=type(gan.generator).__name__)
        found["sample"] = list(gan.sample_shape)
        trial.keep("precision", key, found)
    chosen = "bfloat16" if gain(found) >= WINS else "float32"
    progress.log.info("precision: bfloat16 is %.2f times as fast as float32 here: %s", gain(found), chosen)
    return chosen


def _timed(gan: GAN, batch: int) -> dict[str, float]:
    passes = trial.Passes(gan, batch)
    runs = {name: partial(passes.run, name) for name in ("float32", "bfloat16")}
    return trial.fastest_of({name: partial(trial.clocked, run, gan.device) for name, run in runs.items()})


def measurements() -> dict[str, dict[str, Any]]:
    """What was measured on this user's machines: seconds of both, device, threads, network."""
    return {
        key: row for key, row in trial.kept("precision").items() if row["seconds"].keys() >= {"float32", "bfloat16"}
    }


def gain(row: dict[str, Any]) -> float:
    """How many times as fast as float32 bfloat16 was."""
    return float(row["seconds"]["float32"] / row["seconds"]["bfloat16"])
