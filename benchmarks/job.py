"""A whole unlearning of the bundled GAN, with the time at which 95 % and 99 % of the negatives are gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import click
import torch

from atu.api import stage_seconds, unlearn
from atu.assets import asset
from atu.bench.cli import measure, on_machine
from atu.config import Config
from atu.gan import GAN
from atu.judging.classifier import Classifier
from atu.judging.marking import mark_negatives
from atu.judging.rule import class_rule
from atu.support.seeding import Stream, stream_seed
from atu_ext.ops import default_impl

LEVELS = (95, 99)


def time_to(history: list[dict[str, Any]], before: float, level: float, offset: float) -> float | None:
    """Seconds from the start of the job to the first check of stage 2 at which PUL is at least `level`, or None."""
    for row in history:
        if "negative_rate" in row and before > 0 and 100 * (1 - row["negative_rate"] / before) >= level:
            return offset + row["seconds"]
    return None


def run_job(
    device: str, quick: bool, digit: str, precisions: Sequence[str], say: Callable[[str], None]
) -> dict[str, Any]:
    """Unlearn `digit` from the bundled GAN with the default settings: once in each precision that can train it, and
    (without `quick`) in plain torch.

    PUL is that of the run's own checks (`repel.check_samples` fixed latents, the EMA generator, the bundled
    classifier). `to_pul` counts from the call to the first check at that level, checks included.
    """
    gan = GAN.load(asset("mnist-gan.safetensors"))
    classifier = Classifier.load(asset("mnist-classifier.safetensors"))
    gan, classifier = gan.to(device), classifier.to(device)
    oracle = class_rule(classifier, [digit], gan.image_range)
    config = Config()
    if quick:
        config.adapt.steps = config.repel.steps = config.repel.check_every = 2
        config.adapt.fisher.n, config.repel.check_samples, config.repel.guide_steps = 2, 64, 2
        config.feedback.pool = 64
        config.adapt.adversarial.batch_size = config.repel.adversarial.batch_size = 4
    negatives, _ = mark_negatives(gan, oracle, 8 if quick else 200, 0)
    with torch.no_grad():
        latents = gan.sample(config.repel.check_samples, stream_seed(0, Stream.SCORE))
    rows = []
    runs = [("auto", name) for name in precisions if name != "float64"]
    for impl, precision in runs if quick else [*runs, ("reference", "float32")]:
        say(f"job, {impl}, {precision}")
        start = time.perf_counter()
        with default_impl(impl):
            result = unlearn(gan, negatives, is_negative=oracle, config=config, device=device, precision=precision)
        seconds = time.perf_counter() - start
        before = float(oracle(latents).float().mean())
        stages = stage_seconds(result)
        offset = seconds - stages.get("repel", 0.0)
        rows.append(
            dict(
                name=f"unlearn {digit}",
                impl=(f"ours, {precision}" if precision != "float32" else "ours") if impl == "auto" else impl,
                seconds=seconds,
                stages=stages,
                before=before,
                after=result.decisions.get("negative_rate"),
                to_pul={str(level): time_to(result.history, before, level, offset) for level in LEVELS},
            )
        )
    return dict(gan="bundled MNIST StyleGAN2", digit=digit, rows=rows)


@click.command("job")
@click.option("--class", "digit", default="8", show_default=True, metavar="K", help="Digit to unlearn.")
@on_machine
def main(measured: dict[str, Any], digit: str) -> None:
    """Time a whole unlearning of the bundled GAN."""
    device, quick, dtypes = (measured[name] for name in ("device", "quick", "dtypes"))
    measure("job", lambda plan, rates, say: run_job(device, quick, digit, dtypes, say), **measured)


if __name__ == "__main__":
    main()
