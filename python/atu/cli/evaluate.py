"""`atu eval`: what two checkpoints of one GAN make, on the same latents."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .estimate import say_evaluation
from .options import (
    BATCH,
    FOLDER,
    PROBE_JUDGES,
    REQUIRE,
    SAMPLES,
    SUBJECT,
    Common,
    check_no_run,
    check_replaceable,
    command_line,
    common,
    load_gan,
    require_gone,
    show,
    subject_of,
)
from .oracles import Asked, answered_in, check_judge, classes_of, described, judge_options

if TYPE_CHECKING:
    from ..evaluation.evaluate import Real
    from ..feedback.answers import Answers
    from ..gan import GAN


@click.command("eval")
@click.argument("before")
@click.argument("after")
@judge_options
@click.option("--negatives", type=FOLDER, help="Without --judge: images that a probe learns from what is negative.")
@click.option("--real", metavar="FOLDER", help="Real images to compare with (FID_cls): a folder of them, or mnist.")
@click.option(
    "--retrained", metavar="CKPT", help="A GAN retrained without the negatives: fewer than it makes is over-removal."
)
@click.option(
    "--features",
    multiple=True,
    metavar="KIND:PATH",
    help="Distances in further features too: inception, dinov2 or torchscript, from a file at hand; may be repeated.",
)
@SAMPLES
@BATCH
@SUBJECT
@REQUIRE
@common("Folder for report.json and report.html.")
def evaluate(
    run: Common,
    before: str,
    after: str,
    asked: Asked,
    negatives: Path | None,
    real: str | None,
    retrained: str | None,
    features: tuple[str, ...],
    samples: int,
    batch: int | None,
    subject: str | None,
    require: float | None,
) -> None:
    """Compare two checkpoints of one GAN.

    BEFORE and AFTER unlearning, on the same latents: checkpoints or run folders; mnist is the bundled GAN.
    """
    from ..evaluation.evaluate import evaluate as compare
    from ..evaluation.judges import probe_of
    from ..measures.extractors import extractor
    from ..report import report

    check_no_run(run.out)
    check_replaceable(run.out, "report", "negatives_before")
    if asked.oracle is not None and negatives is not None:
        raise click.UsageError("--negatives is for a judgement without --judge; give one of them")
    check_judge(asked, negatives)
    first, last = load_gan(before, run.device, "BEFORE"), load_gan(after, run.device, "AFTER")
    check_pair(first, last)
    other = None if retrained is None else load_gan(retrained, run.device, "retrained")
    networks = dict(extractor(spec) for spec in features)
    first.batch = last.batch = batch
    if not run.quiet:
        say_evaluation(first, samples, 2 if other is None else 3)
    judge = asked.find(asked.oracle, first)
    start = time.monotonic()
    if judge is None:
        judged: dict[str, Any] = dict(is_negative=probe_of(first, negatives, seed=run.seed))
    else:
        judged = judged_by(asked, judge, first)
    found = compare(
        first,
        last,
        real=_real(real, first),
        retrained=other,
        extractors=networks,
        n=samples,
        seed=run.seed,
        **judged,
    )
    context = report.Context(
        subject=subject_of(classes_of(asked, judge), negatives, subject),
        seconds={"evaluate": time.monotonic() - start},
        command=command_line(),
        config={},
        seed=run.seed,
        device=str(first.device),
        notes=_notes(asked, judge, after),
        negatives=negatives,
    )
    data = report.write(run.out, found, context)
    show(data, run)
    require_gone(data, require)


def by_bundled_judge(asked: Asked) -> bool:
    """The bundled classifier is asked for, which answers in demos: the bundled judge gives the figures in its place."""
    return asked.oracle == "mnist" and not Path(asked.oracle).exists()


def _notes(asked: Asked, judge: Answers | None, after: str) -> list[str]:
    if judge is None:
        return [PROBE_JUDGES]
    if by_bundled_judge(asked):
        return []
    own = ["It is the oracle that answered during the run that is measured."] if answered_in(after, judge) else []
    return [f"Measured by {described(judge)}.", *own]


def judged_by(asked: Asked, judge: Answers, gan: GAN) -> dict[str, Any]:
    """Of `evaluate`: who judges, and what stands beside it."""
    from ..experiments.judge import beside_the_judge, mnist_judge

    if not by_bundled_judge(asked):
        return judge.judge_arguments()
    return dict(
        classifier=mnist_judge().to(gan.device),
        negative_classes=judge.chosen,
        judges=beside_the_judge(gan.device),
        answered=[judge.classifier.name],
    )


def check_pair(before: GAN, after: GAN) -> None:
    """Raise ValueError unless both make the same samples of the same latents."""
    if before.sample_shape != after.sample_shape or before.latent_dim != after.latent_dim:
        raise ValueError(
            f"AFTER: expected a GAN of latents {before.latent_dim} and samples {list(before.sample_shape)}, as BEFORE, "
            f"got {after.latent_dim} and {list(after.sample_shape)}"
        )


def _real(real: str | None, gan: GAN) -> Real | None:
    import torch

    from ..data.mnist import mnist
    from ..data.samples import as_samples

    if real is None:
        return None
    if real == "mnist" and not Path(real).exists():
        return mnist(gan.sample_shape[-1])
    samples = as_samples(real, gan.sample_shape, gan.image_range, "real")
    return samples.batch(torch.arange(len(samples)))
