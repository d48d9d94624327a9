"""`atu unlearn`: load, unlearn, evaluate, report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .estimate import say_evaluation, say_training
from .options import (
    BATCH,
    COMPAT,
    CONFIG,
    FOLDER,
    LABEL,
    METHOD,
    SAMPLES,
    TRAIN_DISCRIMINATOR,
    Common,
    check_replaceable,
    choose_labels,
    command_line,
    common,
    find_oracle,
    load_gan,
    oracle_options,
    show,
    subject_of,
    with_discriminator,
)

if TYPE_CHECKING:
    from ..evaluation.classifier import Classifier
    from ..evaluation.evaluate import Evaluation
    from ..gan import GAN
    from ..job import Result

ORACLE_JUDGES = "The oracle that answered during the run also judges the outcome, on other latents."
PROBE_JUDGES = (
    "No oracle was given: a probe fitted on your negatives and the original discriminator's features says what is "
    "negative. Its figures are estimates; look at the grids."
)


@click.command("unlearn")
@click.argument("ckpt")
@click.option("--negatives", required=True, type=FOLDER, help="Folder of images that must not be made.")
@click.option("--positives", type=FOLDER, help="Folder of images that may be made.")
@TRAIN_DISCRIMINATOR
@click.option(
    "--negative-label", type=click.IntRange(0), metavar="K", help="Conditional GANs: the label of all the negatives."
)
@LABEL
@oracle_options
@METHOD
@COMPAT
@CONFIG
@SAMPLES
@BATCH
@common("Run folder; the same command goes on from a run that was stopped.")
def unlearn(
    run: Common,
    ckpt: str,
    negatives: Path,
    positives: Path | None,
    train_discriminator: int | None,
    negative_label: int | None,
    labels: tuple[str, ...],
    oracle: str | None,
    classes: tuple[str, ...],
    method: str | None,
    compat: str | None,
    config: Path | None,
    samples: int,
    batch: int | None,
) -> None:
    """Unlearn what images show, and report on it.

    CKPT: a checkpoint, a run folder, or mnist.
    """
    from .. import api

    check_replaceable(run.out, "report", "negatives_before")
    classifier, is_negative = find_oracle(oracle, classes, run.device)
    gan = load_gan(ckpt, run.device)
    choose_labels(gan, labels)
    gan = with_discriminator(gan, train_discriminator, run.seed)
    gan.batch = batch
    if not run.quiet:
        say_evaluation(gan, samples, 3)
        say_training(gan, config, method, compat)
    result = api.unlearn(
        gan,
        negatives if negative_label is None else (negatives, negative_label),
        positives,
        is_negative,
        config,
        run.out,
        run.seed,
        run.device,
        method=method,
        compat=compat,
    )
    subject = subject_of(classes) if classes else f"what {negatives.name} shows"
    start = time.monotonic()
    evaluation = _evaluate(gan, result, negatives, classifier, classes, samples, run.seed)
    note = PROBE_JUDGES if classifier is None else ORACLE_JUDGES
    show(_report(run, gan, result, evaluation, subject, note, time.monotonic() - start), run)


def _evaluate(
    gan: GAN,
    result: Result,
    negatives: Path,
    classifier: Classifier | None,
    classes: tuple[str, ...],
    samples: int,
    seed: int,
) -> Evaluation:
    """By the classifier, or without one by a probe fitted on the negatives."""
    from ..data.samples import as_samples
    from ..evaluation.evaluate import evaluate
    from ..experiments.marking import adapted_generators
    from ..feedback.feedback import pool_size
    from ..feedback.probe import fit_probe
    from ..support.seeding import mix_seed

    options: dict[str, Any] = dict(others=adapted_generators(gan, result), n=samples, seed=mix_seed(seed, 999))
    if classifier is not None:
        return evaluate(gan, result.gan, classifier, classes, **options)
    marked = as_samples(negatives, gan.sample_shape, gan.image_range, "negatives")
    pool = gan.sample(pool_size(gan, 2000), seed=mix_seed(seed, 5)).cpu()
    probe = fit_probe(gan, marked, pool, result.config.feedback.recall)
    return evaluate(gan, result.gan, is_negative=probe, **options)


def _report(
    run: Common, gan: GAN, result: Result, evaluation: Evaluation, subject: str, note: str, seconds: float
) -> dict[str, Any]:
    from ..experiments.marking import stage_seconds
    from ..report import report

    context = report.Context(
        subject=subject,
        seconds={**stage_seconds(result), "evaluate": seconds},
        command=command_line(),
        config=result.config.to_dict(),
        seed=run.seed,
        device=str(gan.device),
        history=result.history,
        decisions=result.decisions,
        notes=[note],
    )
    return report.write(run.out, evaluation, context)
