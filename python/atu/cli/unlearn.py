"""`atu unlearn`: load, unlearn, evaluate, report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .estimate import say_evaluation, say_training
from .help import Command
from .models import Model, model_options
from .options import (
    BATCH,
    COMPAT,
    CONFIG,
    FOLDER,
    LABEL,
    MARKED,
    METHOD,
    PRECISION,
    PROBE_JUDGES,
    REQUIRE,
    SAMPLES,
    SUBJECT,
    TRAIN_DISCRIMINATOR,
    Common,
    check_replaceable,
    choose_labels,
    command_line,
    common,
    join_world,
    load_gan,
    require_gone,
    show,
    with_discriminator,
)
from .oracles import JUDGE, Asked, described, oracle_options, subject_of

if TYPE_CHECKING:
    from ..api import Result
    from ..evaluation.evaluate import Evaluation
    from ..gan import GAN
    from ..judging.rule import Rule
    from ..report.report import Context

ORACLE_JUDGES = "The oracle that answered during the run also judges the outcome, on other latents."


@click.command("unlearn", cls=Command)
@click.argument("ckpt")
@model_options
@click.option(
    "--negatives",
    required=True,
    type=MARKED,
    help="Folder of images that must not be made, or of marks, or a labels.json of marks.",
)
@click.option("--positives", type=FOLDER, help="Folder of images that may be made.")
@click.option(
    "--from",
    "from_run",
    type=FOLDER,
    metavar="RUN",
    help="Go on from a finished run on CKPT, with its marks and these; CKPT stays what is compared with.",
)
@click.option("--resize", is_flag=True, help="Scale images of the same proportions, but another size, to the GAN's.")
@TRAIN_DISCRIMINATOR
@click.option(
    "--negative-label", type=click.IntRange(0), metavar="K", help="Conditional GANs: the label of all the negatives."
)
@LABEL
@JUDGE
@oracle_options
@METHOD
@COMPAT
@CONFIG
@PRECISION
@SAMPLES
@BATCH
@SUBJECT
@REQUIRE
@common("Run folder; the same command goes on from a run that was stopped.", threads=True, several=True)
def unlearn(
    run: Common,
    ckpt: str,
    model: Model,
    negatives: Path,
    positives: Path | None,
    from_run: Path | None,
    resize: bool,
    train_discriminator: int | None,
    negative_label: int | None,
    labels: tuple[str, ...],
    asked: Asked,
    method: str | None,
    compat: str | None,
    config: Path | None,
    precision: str | None,
    samples: int,
    subject: str | None,
    require: float | None,
) -> None:
    """Unlearn what images show, and report on it.

    \b
      atu unlearn network.pkl --negatives marks --out run
      atu unlearn network.pkl --negatives hats --oracle hats.onnx -o run

    CKPT: a checkpoint, a run folder, mnist or animals.
    """
    from .. import api
    from ..inputs import Request, check_without_discriminator
    from ..report import report
    from ..support import world

    run = join_world(run)
    check_replaceable(run.out, "report", "negatives_before")
    _check_judged(run.out, asked)
    gan = load_gan(ckpt, run.device, model=model)
    choose_labels(gan, labels)
    oracle, judge = asked.find_both(gan)
    given = negatives if negative_label is None else (negatives, negative_label)
    if train_discriminator is not None and gan.discriminator is None:
        check_without_discriminator(
            Request(
                gan=gan,
                negatives=given,
                positives=positives,
                config=config,
                method=method,
                compat=compat,
                resize=resize,
                from_run=from_run,
            )
        )
    fitted = with_discriminator(gan, train_discriminator, run.seed)
    if fitted is not gan:  # what they saw before was to find errors early; the features are the new discriminator's
        gan, (oracle, judge) = fitted, asked.find_both(fitted)
    if not run.quiet:
        say_evaluation(gan, samples, 3)
        say_training(gan, config, method, compat)
    result = api.unlearn(
        gan,
        given,
        positives,
        oracle,
        config,
        run.out,
        run.seed,
        run.device,
        method=method,
        compat=compat,
        resize=resize,
        precision=precision,
        from_run=from_run,
    )
    if not world.leave():
        return
    start = time.monotonic()
    evaluation = _evaluate(gan, result, judge or oracle, judge is None, samples, run.seed)
    context = _context(run, gan, result, _notes(oracle, judge), time.monotonic() - start)
    context.subject, context.negatives = subject_of(negatives, subject, oracle, judge), negatives
    data = report.write(run.out, evaluation, context)
    show(data, run)
    require_gone(data, require)


def _check_judged(out: Path, asked: Asked) -> None:
    """Raise ValueError where OUT's report holds the verdict of a judge, and none is asked for now."""
    if asked.judge is not None or not (out / "report.json").exists():
        return
    found = json.loads((out / "report.json").read_text(encoding="utf-8"))
    name = str(found.get("judge"))
    one = (found.get("judges") or {}).get(name) or {}
    if one.get("answered") is False and not found.get("probe"):
        raise ValueError(f"out: its report holds the verdict of {name}, which would be lost; give --judge again")


def _evaluate(
    gan: GAN,
    result: Result,
    judge: Rule | None,
    answered: bool,
    samples: int,
    seed: int,
) -> Evaluation:
    """By the judge, or without one by a probe fitted on the negatives, as the run's; answered: whether it did there."""
    from ..api import other_generators
    from ..data.samples import TensorSamples
    from ..evaluation.evaluate import evaluate
    from ..judging.probe import probe_of
    from ..support.seeding import Stream, stream_seed

    latents = stream_seed(seed, Stream.EVALUATION)
    options: dict[str, Any] = dict(others=other_generators(gan, result), answered=answered, n=samples, seed=latents)
    if judge is not None:
        return evaluate(gan, result.gan, judge, **options)
    # A small evaluation is asked for where samples are dear.
    few = max(min(samples, 2000), 64)
    assert isinstance(result.negatives, TensorSamples)  # what files are read as
    recall, good = result.config.feedback.recall, result.positives
    probe = probe_of(gan, result.negatives.tensor, recall, seed, samples=few, good=good)
    return evaluate(gan, result.gan, probe, **options)


def _notes(oracle: Rule | None, judge: Rule | None) -> list[str]:
    """Who answered and who measures, for the report."""
    if oracle is None and judge is None:
        return [PROBE_JUDGES]
    notes = [] if oracle is None else [f"During the run {described(oracle)} answered."]
    if judge is None:
        return [*notes, ORACLE_JUDGES]
    return [*notes, f"The outcome is measured by {described(judge)}, which did not answer during the run."]


def _context(run: Common, gan: GAN, result: Result, notes: list[str], seconds: float) -> Context:
    from ..api import stage_seconds
    from ..report.report import Context

    return Context(
        subject="",
        seconds={**stage_seconds(result), "evaluate": seconds},
        command=command_line(),
        config=result.config.to_dict(),
        seed=run.seed,
        device=str(gan.device),
        history=result.history,
        decisions=result.decisions,
        notes=notes,
    )
