"""`atu audit`: what someone who has the weights gets back out of an unlearned GAN."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .evaluate import animal_names, bundled, load_pair
from .help import Command
from .models import Model, model_options
from .options import (
    BATCH,
    MARKED,
    RETRAINED,
    SUBJECT,
    Common,
    check_replaceable,
    command_line,
    common,
    load_gan,
)
from .oracles import JUDGE, Asked, check_judge, oracle_options, subject_of

if TYPE_CHECKING:
    from ..gan import GAN
    from ..judging.rule import Rule


@click.command("audit", cls=Command)
@click.argument("before")
@click.argument("after")
@model_options
@JUDGE
@oracle_options
@RETRAINED
@click.option(
    "--negatives",
    type=MARKED,
    help="Images to relearn from, BEFORE's own if not given; without --oracle a probe learns from them.",
)
@click.option("--starts", default=128, show_default=True, type=click.IntRange(1), help="Random starts of each search.")
@click.option("--steps", default=100, show_default=True, type=click.IntRange(1), help="Gradient steps of each search.")
@click.option(
    "--images", default=6400, show_default=True, type=click.IntRange(1), help="Images of each relearning curve."
)
@click.option(
    "--samples", default=4000, show_default=True, type=click.IntRange(100), help="Samples for rates and the probe."
)
@BATCH
@SUBJECT
@common("Folder for audit.json and audit.html; the same command goes on from an audit that was stopped.", threads=True)
def audit(
    run: Common,
    before: str,
    after: str,
    model: Model,
    asked: Asked,
    retrained: str | None,
    negatives: Path | None,
    starts: int,
    steps: int,
    images: int,
    samples: int,
    subject: str | None,
) -> None:
    """See what can be got back.

    Latent search in every space, relearning from few negatives and from good samples, and a linear probe on the inner
    maps: of BEFORE and AFTER unlearning, and of a GAN retrained without the negatives.

    BEFORE and AFTER: checkpoints or run folders; mnist is the bundled GAN.
    """
    from ..evaluation import audit as auditing
    from ..report import report
    from ..report.words import duration
    from ..support import environment, progress

    check_replaceable(run.out, "audit", "seconds_by_part")
    check_judge(asked, negatives, "--oracle")
    first, last = load_pair(before, after, run.device, model)
    other = None if retrained is None else load_gan(retrained, run.device, "retrained", model)
    looked_at = min(samples, auditing.Budget.check_samples)
    budget = auditing.Budget(starts=starts, steps=steps, images=images, samples=samples, check_samples=looked_at)
    oracle, judge = asked.find_both(first)
    goal, judges, searched = _who_says(asked, oracle, judge, negatives, first, run.seed)
    known = None if negatives is None else _marked(negatives, first, budget.marks)
    wanted = auditing.subject_of(first, last, goal, judges, budget, run.seed, other, known)
    thought = auditing.estimate(wanted, run.out)
    progress.say(f"audit: {len(list(wanted.parts()))} parts, about {duration(thought)} on this machine")
    found = auditing.run(wanted, run.out)
    found.update(
        subject=subject_of(negatives, subject, oracle, judge),
        command=command_line(),
        searched=searched,
    )
    found.update(estimated_seconds=thought, machine=environment.machine(first.device))
    table = report.write_audit(run.out, found)
    if not run.quiet:
        _print(table)
        progress.say(f"judge: {found['judges'][0]}; searched: {searched}; took {duration(found['seconds'])}")
    for name in ("audit.html", "audit.json"):
        click.echo(str(run.out / name))


def _who_says(
    asked: Asked, oracle: Rule | None, judge: Rule | None, negatives: Path | None, gan: GAN, seed: int
) -> tuple[Rule, dict[str, Rule], str]:
    """(what is searched, the judges, the name of what is searched): the oracle, or a probe fitted on the negatives, is
    searched; the judge that was given, or the bundled one in the bundled classifier's place, was not."""
    from ..judging.finding import find
    from ..judging.probe import probe_of, with_slope

    goal = probe_of(gan, negatives, seed=seed) if oracle is None else with_slope(oracle, gan, seed)
    searched = goal.spec
    judges: dict[str, Rule] = {}
    domain = bundled(asked) if oracle is not None and oracle.classes else None
    if judge is not None:
        judges[judge.spec] = judge
    elif oracle is not None and domain is not None:
        names = animal_names(oracle) if domain == "animals" else oracle.subject
        judges[f"{domain}-judge"] = find(f"{domain}-judge", gan, {"class": ",".join(names)})
    return goal, {**judges, searched: goal}, searched


def _marked(negatives: Path, gan: GAN, marks: tuple[int, ...]) -> Any:
    import torch

    from ..data.samples import TensorSamples
    from ..judging.places import marked_samples

    given, _ = marked_samples(gan, negatives, "negatives")
    count = min(len(given), max(marks))
    labels = getattr(given, "labels", None)
    return TensorSamples(given.batch(torch.arange(count)).cpu(), None if labels is None else labels[:count])


def _print(table: list[list[str]]) -> None:
    """Rows under a header, as wide as the terminal allows."""
    from rich.table import Table

    from ..support.console import Console

    shown = Table(*table[0], box=None)
    for row in table[1:]:
        shown.add_row(*row)
    Console().print(shown)
