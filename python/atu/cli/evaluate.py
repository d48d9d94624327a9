"""`atu eval`: what two checkpoints of one GAN make, on the same latents."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .estimate import say_evaluation
from .help import Command
from .models import Model, model_options
from .options import (
    BATCH,
    MARKED,
    PROBE_JUDGES,
    REQUIRE,
    SAMPLES,
    SUBJECT,
    Common,
    check_no_run,
    check_replaceable,
    command_line,
    common,
    is_bundled,
    load_gan,
    require_gone,
    show,
)
from .oracles import Asked, answered_in, check_judge, described, judge_options, subject_of

if TYPE_CHECKING:
    from ..evaluation.evaluate import Real
    from ..gan import GAN
    from ..judging.rule import Rule


@click.command("eval", cls=Command)
@click.argument("before")
@click.argument("after")
@model_options
@judge_options
@click.option("--negatives", type=MARKED, help="Without --judge: images that a probe learns from what is negative.")
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
    model: Model,
    asked: Asked,
    negatives: Path | None,
    real: str | None,
    retrained: str | None,
    features: tuple[str, ...],
    samples: int,
    subject: str | None,
    require: float | None,
) -> None:
    """Compare two checkpoints of one GAN.

    BEFORE and AFTER unlearning, on the same latents: checkpoints or run folders; mnist and animals are bundled GANs.
    """
    from ..evaluation.evaluate import evaluate as compare
    from ..judging.probe import probe_of
    from ..measures.extractors import extractors
    from ..report import report

    check_no_run(run.out)
    check_replaceable(run.out, "report", "negatives_before")
    if asked.oracle is not None and negatives is not None:
        raise click.UsageError("--negatives is for a judgement without --judge; give one of them")
    check_judge(asked, negatives)
    first, last = load_pair(before, after, run.device, model)
    other = None if retrained is None else load_gan(retrained, run.device, "retrained", model)
    networks = extractors(features)
    if not run.quiet:
        say_evaluation(first, samples, 2 if other is None else 3)
    judge = asked.find(asked.oracle, first)
    start = time.monotonic()
    if judge is None:
        probe = probe_of(first, negatives, seed=run.seed)
        judged: dict[str, Any] = dict(judge=probe, answered=answered_in(after, None))
    else:
        judged = _judged(asked, judge, first, answered_in(after, judge))
    found = compare(
        first,
        last,
        real=_real(real, first, bundled(asked)),
        retrained=other,
        extractors=networks,
        n=samples,
        seed=run.seed,
        **judged,
    )
    context = report.Context(
        subject=subject_of(negatives, subject, judge),
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


def bundled(asked: Asked) -> str | None:
    """The bundled domain whose classifier is asked for, which answers in demos: its judge gives the figures instead."""
    name = (asked.oracle or "").partition("?")[0]
    return name if is_bundled(name) else None


def animal_names(rule: Rule) -> tuple[str, ...]:
    """The features and species that the bundled classifier of drawn animals was asked for."""
    from ..judging.spec import parse

    return tuple(parse(rule.spec).options["class"].split(","))


def _notes(asked: Asked, judge: Rule | None, after: str) -> list[str]:
    if judge is None:
        return [PROBE_JUDGES]
    if bundled(asked) is not None:
        return []
    own = ["It is the oracle that answered during the run that is measured."] if answered_in(after, judge) else []
    return [f"Measured by {described(judge)}.", *own]


def _judged(asked: Asked, judge: Rule, gan: GAN, answered: bool | None) -> dict[str, Any]:
    """Of `evaluate`: who judges, what stands beside it, and whether `judge` answered during the run."""
    from ..evaluation.pixels import pixel_judges
    from ..judging.finding import find
    from ..judging.rule import class_rule

    domain = bundled(asked)
    if domain is None or not judge.classes:  # with a threshold of the user's it is that very classifier that judges
        return dict(judge=judge, answered=answered)
    names = animal_names(judge) if domain == "animals" else judge.subject
    measuring = find(f"{domain}-judge", gan, {"class": ",".join(names)})
    beside = {f"{domain}-classifier": judge}  # the oracle comes first
    if domain == "mnist" and gan.sample_shape == (1, 32, 32):
        beside |= {name: class_rule(one, names, gan.image_range) for name, one in pixel_judges().items()}
    return {"judge": measuring, "judges": beside, "answered": answered and list(beside)[:1]}


def load_pair(first: str, second: str, device: str | None, model: Model) -> tuple[GAN, GAN]:
    before, after = load_gan(first, device, "BEFORE", model), load_gan(second, device, "AFTER", model)
    if before.sample_shape != after.sample_shape or before.latent_dim != after.latent_dim:
        raise ValueError(
            f"AFTER: expected a GAN of latents {before.latent_dim} and samples {list(before.sample_shape)}, as BEFORE, "
            f"got {after.latent_dim} and {list(after.sample_shape)}"
        )
    return before, after


def _real(real: str | None, gan: GAN, domain: str | None) -> Real | None:
    """What --real names, in the GAN's range; with labels only where `domain`'s judge has these classes."""
    import torch

    from ..data.images import map_range
    from ..data.mnist import mnist
    from ..data.samples import as_samples

    if real is None:
        return None
    if real == "mnist" and is_bundled(real):
        images, labels = mnist(gan.sample_shape[-1])
        images = map_range(images, (-1.0, 1.0), gan.image_range)
        return (images, labels) if domain == "mnist" else images
    samples = as_samples(real, gan.sample_shape, gan.image_range, "real")
    return samples.batch(torch.arange(len(samples)))
