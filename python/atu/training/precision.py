"""In which precision a training's passes run, and whether bfloat16 is worth it on this machine: measured, and kept."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ..gan import GAN
from ..support import progress
from ..support.digest import digest
from ..support.environment import cpu_name
from ..support.files import write_json
from ..support.modules import eval_mode
from ..support.seeding import fork_rng

WINS = 1.3  # times as fast as float32 that bfloat16 must be, for "auto" to take it
ENOUGH = 1e10  # flops that are measured at once, of as many samples as fit in them
LITTLE = 1e9  # flops of a pass there and back below which a step is calls and bookkeeping, whatever the precision
SECONDS = 1.0  # for a measurement, or four passes where they take longer


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
        value = float(_Passes(gan, 2).run(precision))
    except (RuntimeError, TypeError, ValueError) as error:
        return f"the networks do not run under torch.autocast ({' '.join(str(error).split())[:200]})"
    return None if math.isfinite(value) else "the networks give values in it that are not finite"


class _Passes:
    """A batch through both networks and back to their weights, on copies in eval mode."""

    def __init__(self, gan: GAN, batch: int):
        self.gan = gan.copy()
        self.z, self.c = gan.inputs(batch)
        networks = [self.gan.generator, self.gan.discriminator]
        self.networks = [module.requires_grad_(True) for module in networks if module is not None]
        self.params = [p for module in self.networks for p in module.parameters()]

    def run(self, precision: str, back: bool = True) -> torch.Tensor:
        """The loss of the batch; back: with the gradients."""
        self.gan.precision = precision
        with fork_rng(self.gan.device, 0), eval_mode(*self.networks), self.gan.autocast(), torch.set_grad_enabled(back):
            loss = F.softplus(-self.gan.logits(self.gan.fake(self.z, self.c), self.c)).mean()
        if back:
            torch.autograd.grad(loss, self.params, allow_unused=True)
        return loss.detach()


def faster(gan: GAN, batch: int) -> str:
    """ "bfloat16" where a pass through both networks and back is `WINS` times as fast in it as in float32, else that.

    Measured once for networks of these shapes on this machine, and kept in the user's cache folder.
    """
    if gan.discriminator is None or any(p.dtype == torch.float64 for p in gan.generator.parameters()):
        return "float32"
    flops = 3 * _flops(gan)
    if flops * batch < LITTLE:
        return "float32"
    batch = max(1, min(batch, int(ENOUGH / flops)))
    key = _key(gan, batch)
    found = measurements().get(key)
    if found is None:
        if _obstacle("bfloat16", gan) is not None:
            return "float32"
        passes = _Passes(gan, batch)
        found = _compared({name: _timed(passes, name) for name in ("float32", "bfloat16")}, gan)
        _keep(key, found)
    ratio = found["float32"] / found["bfloat16"]
    chosen = "bfloat16" if ratio >= WINS else "float32"
    progress.log.info("precision: bfloat16 is %.2f times as fast as float32 here: %s", ratio, chosen)
    return chosen


def _flops(gan: GAN) -> int:
    """Of one sample through both networks."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        _Passes(gan, 1).run("float32", back=False)
    return counter.get_total_flops()


def _timed(passes: _Passes, precision: str) -> Callable[[], float]:
    def seconds() -> float:
        start = time.perf_counter()
        passes.run(precision)
        if passes.gan.device.type == "cuda":
            torch.cuda.synchronize(passes.gan.device)
        return time.perf_counter() - start

    return seconds


def _compared(runs: dict[str, Callable[[], float]], gan: GAN) -> dict[str, Any]:
    """The least seconds of each, taken in turns: the first call of each, which sets things up, does not count."""
    began = time.perf_counter()
    best = {name: float("inf") for name in runs}
    for turn in range(9):
        for name, run in runs.items():
            seconds = run()
            best[name] = min(best[name], seconds) if turn else best[name]
        if turn and time.perf_counter() - began > SECONDS:
            break
    return {**best, **_machine(gan), "network": type(gan.generator).__name__, "sample": list(gan.sample_shape)}


# --- what was measured


def _machine(gan: GAN) -> dict[str, Any]:
    cuda = gan.device.type == "cuda"
    device = torch.cuda.get_device_name(gan.device) if cuda else cpu_name()
    capability = "" if cuda else torch.backends.cpu.get_cpu_capability()
    threads = 0 if cuda else torch.get_num_threads()
    return dict(device=device, capability=capability, threads=threads, torch=torch.__version__)


def _key(gan: GAN, batch: int) -> str:
    """Of this machine, and of the networks' classes and shapes."""
    shapes = {f"{n}.{k}": list(v.shape) for n, m in gan.modules().items() for k, v in m.state_dict().items()}
    kinds = [type(m).__name__ for top in gan.modules().values() for m in top.modules()]
    return digest({}, json.dumps([_machine(gan), batch, list(gan.sample_shape), kinds, shapes], sort_keys=True))


def cache_file() -> Path:
    """precision.json in the user's cache folder, where measurements are kept."""
    folder = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(folder).expanduser() / "atu" / "precision.json"


def measurements() -> dict[str, dict[str, Any]]:
    """All that is kept, by key; nothing where the file is missing, or is none of this kind."""
    try:
        data = json.loads(cache_file().read_text(encoding="utf-8"))
        return {key: row for key, row in data.items() if row["float32"] > 0 and row["bfloat16"] > 0}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        return {}


def _keep(key: str, found: dict[str, Any]) -> None:
    try:
        write_json(cache_file(), {**measurements(), key: found})
    except (OSError, RuntimeError) as error:
        progress.log.debug("precision: what was measured is not kept (%s)", error)
