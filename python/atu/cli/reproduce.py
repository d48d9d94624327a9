"""`atu reproduce`: the published table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .. import presets
from ..assets import DOMAINS
from .options import BATCH, CONFIG, FILE, FOLDER, MARKS, SAMPLES, Common, class_option, common, load_gan, renamed


@click.command("reproduce")
@click.argument("dataset", type=click.Choice(["mnist", "animals", "afhq", "celebahq"]))
@class_option("Class or attribute to unlearn; those of the table when not given (of mnist 1, 4 and 8)")
@renamed("--classes", "--class, repeated: --class 1 --class 4")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Seeds of each cell, from 0 on.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    type=click.Choice(list(presets.METHODS)),
    help=f"Method: {', '.join(presets.METHODS)}; may be repeated. All when not given.",
)
@renamed("--methods", "--method, repeated: --method atu --method el2")
@click.option("--data", type=FOLDER, help="Folder of AFHQ or CelebA-HQ (see the docs).")
@click.option(
    "--ckpt",
    metavar="CKPT",
    help="Checkpoint or run folder of the GAN to unlearn from; of mnist and animals in place of the bundled one.",
)
@click.option("--classifiers", type=FOLDER, help="Folder of classifiers; trained when not given.")
@click.option("--extractor", type=FILE, help="TorchScript file of Inception, for FID.")
@click.option("--dry-run", is_flag=True, help="Only say what is to be computed, and about how long it will take.")
@MARKS
@click.option("--no-oracle", is_flag=True, help="Give the negatives only; what marks them answers no more.")
@renamed("--negatives", "--marks N (--negatives is a folder, of atu unlearn and atu audit)")
@CONFIG
@SAMPLES
@BATCH
@common("Folder; goes on from it.", seed=False, threads=True)
def reproduce(
    run: Common,
    dataset: str,
    classes: tuple[str, ...],
    seeds: int,
    methods: tuple[str, ...],
    data: Path | None,
    ckpt: str | None,
    classifiers: Path | None,
    extractor: Path | None,
    dry_run: bool,
    marks: int,
    no_oracle: bool,
    config: Path | None,
    samples: int,
    batch: int | None,
) -> None:
    """Compute the published table.

    Every method, class and seed, beside the paper's rows. A stopped one goes on.

    DATASET: mnist, animals, afhq or celebahq.
    """
    from ..experiments import recipes
    from ..experiments import reproduce as table
    from ..measures.extractors import torchscript

    options: dict[str, Any] = dict(seeds=seeds, negatives=marks, samples=samples, oracle=not no_oracle)
    options.update(methods=table.check_methods(methods), config=table.read_config(config))
    if extractor is not None:
        options["extractor"] = torchscript(extractor)
    if dataset in DOMAINS:
        if data is not None:
            raise click.UsageError(f"{dataset} takes no --data")
        options["gan"] = None if ckpt is None else load_gan(ckpt, run.device, "ckpt")
        if dataset == "mnist":
            plan = recipes.mnist_plan(classes or ("1", "4", "8"), **options)
        else:
            plan = recipes.animals_plan(classes, **options)
        plan.gan.to(run.device or plan.gan.device)
    else:
        if data is None or ckpt is None:
            raise click.UsageError(f"{dataset} needs --data FOLDER and --ckpt CKPT")
        plan = recipes.PLANS[dataset](
            data, load_gan(ckpt, run.device, "ckpt"), run.out, classes, classifiers, **options
        )
    plan.gan.batch = batch
    for task in plan.tasks:
        task.judge.to(plan.gan.device)
        task.asked.to(plan.gan.device)
    if dry_run or not run.quiet:
        click.echo(table.told(table.forecast(plan, run.out)), err=not dry_run)
    if dry_run:
        return
    found = table.reproduce(plan, run.out)
    click.echo(f"{found['cells_done']} of {found['cells']} cells", err=True)
    for name in ("table.md", "table.json", "figure.png"):
        click.echo(str(run.out / name))
