"""A pass through both networks and back, timed in several ways to choose one for a training; and the findings, kept."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
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

ENOUGH = 1e10  # flops that are timed at once, of as many samples as fit in them
LITTLE = 1e9  # flops of a batch there and back below which a step is calls and bookkeeping
SECONDS = 1.0  # for a choice, or two passes of each where they take longer
TURNS = 9


class Passes:
    """A batch through both networks and back to their weights, on copies in eval mode."""

    def __init__(self, gan: GAN, batch: int):
        self.gan = gan.copy()
        self.z, self.c = gan.inputs(batch)
        networks = [self.gan.generator, self.gan.discriminator]
        self.networks = [module.requires_grad_(True) for module in networks if module is not None]
        self.params = [p for module in self.networks for p in module.parameters()]

    def run(self, precision: str = "float32", back: bool = True) -> torch.Tensor:
        """The loss of the batch; back: with the gradients."""
        self.gan.precision = precision
        with fork_rng(self.gan.device, 0), eval_mode(*self.networks), self.gan.autocast(), torch.set_grad_enabled(back):
            loss = F.softplus(-self.gan.logits(self.gan.fake(self.z, self.c), self.c)).mean()
        if back:
            torch.autograd.grad(loss, self.params, allow_unused=True)
        return loss.detach()


def flops(gan: GAN) -> int:
    """Of one sample through both networks and back, about."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        Passes(gan, 1).run(back=False)
    return 3 * counter.get_total_flops()


def clocked(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def fastest_of(runs: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """The least seconds that each call tells, of calls in turns: the first of each, which sets things up, is not
    counted."""
    began = time.perf_counter()
    best = {name: float("inf") for name in runs}
    for turn in range(TURNS):
        for name, run in runs.items():
            seconds = run()
            best[name] = min(best[name], seconds) if turn else best[name]
        if turn and time.perf_counter() - began > SECONDS:
            break
    return best


# --- what was found


def machine(gan: GAN) -> dict[str, Any]:
    """What the speed depends on, beside the networks."""
    cuda = gan.device.type == "cuda"
    device = torch.cuda.get_device_name(gan.device) if cuda else cpu_name()
    capability = "" if cuda else torch.backends.cpu.get_cpu_capability()
    threads = 0 if cuda else torch.get_num_threads()
    return dict(device=device, capability=capability, threads=threads, torch=torch.__version__)


def key(gan: GAN, batch: int) -> str:
    """Of this machine, and of the networks' classes and shapes."""
    shapes = {f"{n}.{k}": list(v.shape) for n, m in gan.modules().items() for k, v in m.state_dict().items()}
    kinds = [type(m).__name__ for top in gan.modules().values() for m in top.modules()]
    return digest({}, json.dumps([machine(gan), batch, list(gan.sample_shape), kinds, shapes], sort_keys=True))


def cache_file(name: str) -> Path:
    """NAME.json in the user's cache folder."""
    folder = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(folder).expanduser() / "atu" / f"{name}.json"


def kept(name: str) -> dict[str, dict[str, Any]]:
    """The rows of NAME.json, whose `seconds` are positive; nothing where the file is missing or of another kind."""
    try:
        data = json.loads(cache_file(name).read_text(encoding="utf-8"))
        return {k: row for k, row in data.items() if row["seconds"] and min(row["seconds"].values()) > 0}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        return {}


def keep(name: str, at: str, row: dict[str, Any]) -> None:
    """Add a row to NAME.json, where it can be written."""
    try:
        write_json(cache_file(name), {**kept(name), at: row})
    except (OSError, RuntimeError) as error:
        progress.log.debug("%s: what was measured is not kept (%s)", name, error)
