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
    check_judge,
    check_no_run,
    check_replaceable,
    command_line,
    common,
    find_oracle,
    load_gan,
    oracle_options,
    require_gone,
    show,
    subject_of,
)

if TYPE_CHECKING:
    from ..evaluation.evaluate import Real
    from ..gan import GAN


@click.command("eval")
@click.argument("before")
@click.argument("after")
@oracle_options
@click.option("--negatives", type=FOLDER, help="Without --oracle: images that a probe learns from what is negative.")
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
    oracle: str | None,
    classes: tuple[str, ...],
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
    if oracle is not None and negatives is not None:
        raise click.UsageError("--negatives is for a judgement without --oracle; give one of them")
    check_judge(oracle, negatives)
    classifier, _ = find_oracle(oracle, classes, run.device)
    first, last = load_gan(before, run.device, "BEFORE"), load_gan(after, run.device, "AFTER")
    check_pair(first, last)
    other = None if retrained is None else load_gan(retrained, run.device, "retrained")
    networks = dict(extractor(spec) for spec in features)
    first.batch = last.batch = batch
    if not run.quiet:
        say_evaluation(first, samples, 2 if other is None else 3)
    start = time.monotonic()
    probe = None if classifier is not None else probe_of(first, negatives, seed=run.seed)
    judge, beside, answered = judges_for(oracle, classifier, first)
    found = compare(
        first,
        last,
        judge,
        classes,
        _real(real, first),
        is_negative=probe,
        judges=beside,
        answered=answered,
        retrained=other,
        extractors=networks,
        n=samples,
        seed=run.seed,
    )
    context = report.Context(
        subject=subject_of(classes, negatives, subject),
        seconds={"evaluate": time.monotonic() - start},
        command=command_line(),
        config={},
        seed=run.seed,
        device=str(first.device),
        notes=[PROBE_JUDGES] if classifier is None else (),
        negatives=negatives,
    )
    data = report.write(run.out, found, context)
    show(data, run)
    require_gone(data, require)


def judges_for(oracle: str | None, classifier: Any, gan: GAN) -> tuple[Any, dict[str, Any], list[str]]:
    """(judge, further judges, names of oracles). Where the bundled classifier is asked for, which answers in demos, the
    bundled judge gives the figures, and others stand beside it."""
    from ..experiments.judge import beside_the_judge, mnist_judge

    if oracle != "mnist" or Path(oracle).exists():
        return classifier, {}, []
    return mnist_judge().to(gan.device), beside_the_judge(gan.device), [classifier.name]


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
