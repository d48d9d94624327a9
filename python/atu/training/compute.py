"""With how many threads and in which precision a training runs.

Threads of small operations mostly wait for each other, so tiny networks get one. Whether bfloat16 is worth it depends
on the machine: it is measured once and kept in the user's cache folder.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ..gan import GAN
from ..support import progress
from ..support.context import RunContext, current
from ..support.digest import digest
from ..support.environment import cpu_name
from ..support.files import write_json
from ..support.modules import eval_mode
from ..support.seeding import fork_rng

WINS = 1.3  # times as fast as float32 that bfloat16 must be, for "auto" to take it
LITTLE = 1e9  # flops of a batch there and back below which a step is calls and bookkeeping
ENOUGH = 1e10  # flops that are timed at once, of as many samples as fit in them
SECONDS = 1.0  # for a choice, or two passes of each where they take longer
TURNS = 9

Recorded = Mapping[str, Any]  # what a run that goes on was begun with: precision, threads


def threads_for(gan: GAN, batch: int, wanted: int | None = None, recorded: Recorded | None = None) -> int:
    """How many threads to train `gan` with: `wanted`; else the context's or the environment's (OMP_NUM_THREADS); else,
    for a run that goes on, its own; else one for tiny networks and torch's number for others."""
    most = torch.get_num_threads()
    if wanted is not None:
        return wanted
    if gan.device.type != "cpu" or current().threads is not None or os.environ.get("OMP_NUM_THREADS"):
        return most
    before = (recorded or {}).get("threads")
    if before is not None:
        return int(before)
    return 1 if most > 1 and flops(gan) * batch < LITTLE else most


def precision_for(gan: GAN, batch: int, wanted: str = "auto", recorded: Recorded | None = None) -> str:
    """What `wanted` ("auto", "float32", "bfloat16" or "float16") means for training `gan` with batches of `batch`.

    A run that goes on keeps what it was begun with under "auto".

    Raises:
        ValueError: the GAN or its device cannot be trained in it.
    """
    if wanted == "auto":
        return (recorded or {}).get("precision") or faster(gan, batch)
    if wanted == "float16" and gan.device.type != "cuda":
        raise ValueError(
            f"precision: float16 is for CUDA devices, as a {gan.device.type.upper()} takes longer for it than for "
            "float32; expected auto, bfloat16 or float32"
        )
    why = None if wanted == "float32" else _obstacle(wanted, gan)
    if why is not None:
        raise ValueError(f"precision: {wanted} was asked for, but {why}; expected auto or float32")
    return wanted


def _obstacle(precision: str, gan: GAN) -> str | None:
    """Why the GAN cannot be trained in it, found by a pass of two samples; None where it can."""
    for name, module in gan.modules().items():
        if any(p.dtype == torch.float64 for p in module.parameters()):
            return f"the {name}'s weights are float64, which torch.autocast leaves as they are"
    try:
        value = float(_Passes(gan, 2).run(precision))
    except (RuntimeError, TypeError, ValueError) as error:
        return f"the networks do not run under torch.autocast ({' '.join(str(error).split())[:200]})"
    return None if math.isfinite(value) else "the networks give values in it that are not finite"


def faster(gan: GAN, batch: int) -> str:
    """ "bfloat16" where a pass through both networks and back is `WINS` times as fast in it as in float32, else that.

    Measured once for networks of these shapes on this machine.
    """
    if gan.discriminator is None or any(p.dtype == torch.float64 for p in gan.generator.parameters()):
        return "float32"
    each = flops(gan)
    if each * batch < LITTLE:
        return "float32"
    batch = max(1, min(batch, int(ENOUGH / each)))
    machine, key = _machine(gan), _key(gan, batch)
    row = measurements().get(key)
    if row is None:
        if _obstacle("bfloat16", gan) is not None:
            return "float32"
        row = dict(seconds=_timed(gan, batch), **machine, network=type(gan.generator).__name__)
        row["sample"] = list(gan.sample_shape)
        _keep(key, row)
    chosen = "bfloat16" if gain(row) >= WINS else "float32"
    progress.log.info("precision: bfloat16 is %.2f times as fast as float32 here: %s", gain(row), chosen)
    return chosen


def gain(row: Mapping[str, Any]) -> float:
    """How many times as fast as float32 bfloat16 was."""
    return float(row["seconds"]["float32"] / row["seconds"]["bfloat16"])


# --- passes


class _Passes:
    """A batch through both networks and back to their weights, on copies in eval mode."""

    def __init__(self, gan: GAN, batch: int):
        self.gan = gan.copy()
        self.z, self.c = gan.inputs(batch)
        networks = [self.gan.generator, self.gan.discriminator]
        self.networks = [module.requires_grad_(True) for module in networks if module is not None]
        self.params = [p for module in self.networks for p in module.parameters()]

    def run(self, precision: str = "float32", back: bool = True) -> torch.Tensor:
        """The loss of the batch; back: with the gradients."""
        gan = self.gan
        with RunContext(precision), fork_rng(gan.device, 0), eval_mode(*self.networks), torch.set_grad_enabled(back):
            with gan.autocast():
                loss = F.softplus(-gan.logits(gan.fake(self.z, self.c), self.c)).mean()
            if back:
                torch.autograd.grad(loss, self.params, allow_unused=True)
        return loss.detach()


def flops(gan: GAN) -> int:
    """Of one sample through both networks and back, about; 0 without a discriminator."""
    from torch.utils.flop_counter import FlopCounterMode

    if gan.discriminator is None:
        return 0
    with FlopCounterMode(display=False) as counter:
        _Passes(gan, 1).run(back=False)
    return 3 * counter.get_total_flops()


def _timed(gan: GAN, batch: int) -> dict[str, float]:
    """The least seconds of a pass in either precision, in turns; the first turn, which sets things up, is not
    counted."""
    passes, began = _Passes(gan, batch), time.perf_counter()
    best = {"float32": math.inf, "bfloat16": math.inf}
    for turn in range(TURNS):
        for name in best:
            seconds = _clocked(passes, name)
            best[name] = min(best[name], seconds) if turn else best[name]
        if turn and time.perf_counter() - began > SECONDS:
            break
    return best


def _clocked(passes: _Passes, precision: str) -> float:
    start = time.perf_counter()
    passes.run(precision)
    if passes.gan.device.type == "cuda":
        torch.cuda.synchronize(passes.gan.device)
    return time.perf_counter() - start


# --- what was measured


def _machine(gan: GAN) -> dict[str, Any]:
    """What the speed depends on, beside the networks."""
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


def _cache_file() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(folder).expanduser() / "atu" / "precision.json"


def measurements() -> dict[str, dict[str, Any]]:
    """What was measured on this user's machines: seconds of both, device, threads, network. Nothing where the file is
    missing or of another kind."""
    try:
        data = json.loads(_cache_file().read_text(encoding="utf-8"))
        return {key: row for key, row in data.items() if gain(row) > 0}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ZeroDivisionError):
        return {}


def _keep(key: str, row: dict[str, Any]) -> None:
    """Add a row to what was measured, where it can be written."""
    try:
        write_json(_cache_file(), {**measurements(), key: row})
    except (OSError, RuntimeError) as error:
        progress.log.debug("precision: what was measured is not kept (%s)", error)
