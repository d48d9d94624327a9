"""What a run with big samples will take, said before it starts: measured on one sample. Of small ones, most of the time
is not the samples', and nothing is said."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config import Adversarial
    from ..gan import GAN

LONG = 600.0  # seconds from which on the user is told
PASSES = 2.5  # of a training step, in passes of one sample forth and back through both networks
GIB = 2**30


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _at_once(gan: GAN, wanted: int) -> str:
    """Memory of one batch, in words; nothing where it is not known."""
    bytes_each, _ = gan.cost()
    batch = gan.fitting(wanted)
    return "" if bytes_each is None else f", {batch} at a time in {batch * bytes_each / GIB:.1f} GiB"


def say_sampling(gan: GAN, samples: int) -> None:
    """Tell how long `samples` samples take, where it is long."""
    from ..support import progress

    seconds = samples * gan.cost()[1] if gan.is_big else 0.0
    if seconds >= LONG:
        progress.say(f"sampling: {samples:,} samples, about {_time(seconds)}{_at_once(gan, 100)}")


def say_evaluation(gan: GAN, samples: int, generators: int) -> None:
    """Tell what evaluating `generators` generators takes, where it is long, and offer a smaller evaluation."""
    from ..support import progress

    each = generators * gan.cost()[1] if gan.is_big else 0.0
    if samples * each < LONG:
        return
    text = f"evaluation: {samples:,} samples of each of {generators} generators, about {_time(samples * each)}"
    progress.say(text + _at_once(gan, 250))
    smaller = max(int(LONG / each / 100) * 100, 100)
    if smaller < samples:
        progress.say(f"            --samples {smaller} takes about {_time(smaller * each)}")


def training_cost(gan: GAN, settings: Adversarial) -> tuple[int | None, float]:
    """(bytes at the peak, seconds) of one sample forth and back through both networks and, in its share, of R1."""
    import torch

    from ..support import memory
    from ..support.modules import eval_mode, trainable
    from ..training.losses import r1_penalty

    networks = [module for module in (gan.generator, gan.discriminator) if module is not None]
    z, c = gan.inputs(1)
    params, params_d = map(trainable, networks)
    sample = gan.sample(1)

    def passes() -> None:
        torch.autograd.grad(gan.logits(gan.fake(z, c), c).sum(), params + params_d, allow_unused=True)

    def r1() -> None:
        x = sample.to(gan.device).requires_grad_(True)
        torch.autograd.grad(r1_penalty(gan.logits(x, c), x), params_d, allow_unused=True)

    with eval_mode(*networks):
        most, seconds = memory.measure(passes, gan.device)
        if settings.r1_gamma != 0:
            most_r1, seconds_r1 = memory.measure(r1, gan.device)
            most = None if most is None or most_r1 is None else max(most, most_r1)
            seconds += seconds_r1 / settings.r1_interval
    return most, seconds


def say_training(gan: GAN, config: Path | None, method: str | None, compat: str | None) -> None:
    """Tell what training takes, where it is long or more than there is memory for."""
    from ..config import Config
    from ..methods.registry import METHODS
    from ..support import memory, progress

    if gan.discriminator is None or not gan.is_big:
        return
    settings = Config.of(method, compat) if config is None else Config.load(config, method, compat)
    bytes_each, seconds_each = training_cost(gan, settings.repel.adversarial)
    batch = settings.repel.adversarial.batch_size
    steps = METHODS[settings.method].plan(gan, settings).steps
    seconds = steps * batch * seconds_each * PASSES
    there = memory.free(gan.device)
    short = bytes_each is not None and there is not None and batch * bytes_each > there
    if seconds < LONG and not short:
        return
    needs = "" if bytes_each is None else f", {batch * bytes_each / GIB:.1f} GiB"
    progress.say(f"training: up to {steps:,} steps of {batch} samples, about {_time(seconds)}{needs}")
    if short:
        assert bytes_each is not None and there is not None
        fits = max(int(there / 2 / bytes_each), 1)
        progress.say(
            f"          more memory than the {there / GIB:.1f} GiB that are free: adapt.adversarial.batch_size and "
            f"repel.adversarial.batch_size = {fits} in --config fit"
        )
