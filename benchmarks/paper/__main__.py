"""`python -m benchmarks.paper`: the published table."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from atu import presets
from atu.assets import DOMAINS
from atu.cli.options import (
    BATCH,
    CONFIG,
    FILE,
    FOLDER,
    MARKS,
    SAMPLES,
    Common,
    begin,
    class_option,
    common,
    load_gan,
)
from atu.support.context import RunContext
from atu.support.processes import beside

if TYPE_CHECKING:
    from .cells import Plan


@dataclass(frozen=True)
class Wanted:
    """What was asked for, as one process can tell it another; options: of every plan. dry: train no classifier."""

    dataset: str
    classes: tuple[str, ...]
    data: Path | None
    ckpt: str | None
    classifiers: Path | None
    extractor: Path | None
    device: str | None
    options: dict[str, Any]
    dry: bool = False

    def plan(self, out: Path) -> Plan:
        """All that is to be computed, in OUT."""
        from atu.measures.extractors import torchscript
        from atu.support.digest import sha256_of

        from . import recipes

        options = dict(self.options)
        if self.extractor is not None:
            options.update(extractor=torchscript(self.extractor), extractor_sha256=sha256_of(self.extractor))
        gan = None if self.ckpt is None else load_gan(self.ckpt, self.device, "ckpt")
        if self.dataset == "mnist":
            plan = recipes.mnist_plan(self.classes or ("1", "4", "8"), gan=gan, **options)
        elif self.dataset == "animals":
            plan = recipes.animals_plan(self.classes, gan=gan, **options)
        else:
            assert self.data is not None and gan is not None
            given = self.data, gan, out, self.classes, self.classifiers, not self.dry
            plan = recipes.PLANS[self.dataset](*given, **options)
        plan.gan.to(self.device or plan.gan.device)
        for task in plan.tasks:
            task.judge.to(plan.gan.device)
            task.asked.to(plan.gan.device)
        return plan


def take_part(wanted: Wanted, out: Path, context: RunContext) -> None:
    """Compute cells as one of several processes; the first alone speaks."""
    from atu.support.remarks import InputWarning

    from .reproduce import reproduce

    begin(quiet=True, device=wanted.device)
    warnings.simplefilter("ignore", InputWarning)
    with context:
        reproduce(wanted.plan(out), out)


@click.command("reproduce")
@click.argument("dataset", type=click.Choice(["mnist", "animals", "afhq", "celebahq"]))
@class_option("Class or attribute to unlearn; those of the table when not given (of mnist 1, 4 and 8)")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Seeds of each cell, from 0 on.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    type=click.Choice(list(presets.METHODS)),
    help=f"Method: {', '.join(presets.METHODS)}; may be repeated. All when not given.",
)
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
@CONFIG
@SAMPLES
@click.option(
    "--jobs",
    type=click.IntRange(1),
    help="Cells to compute side by side, each with its share of the threads; when not given one a thread on a CPU, as "
    "far as memory allows, and one on a GPU.",
)
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
    jobs: int | None,
) -> None:
    """Compute the published table.

    Every method, class and seed, beside the paper's rows. A stopped one goes on.

    DATASET: mnist, animals, afhq or celebahq.
    """
    import torch

    from . import reproduce as table

    for option, given in (("--data", data), ("--classifiers", classifiers)):
        if dataset in DOMAINS and given is not None:
            raise click.UsageError(f"{dataset} takes no {option}")
    if dataset not in DOMAINS and (data is None or ckpt is None):
        raise click.UsageError(f"{dataset} needs --data FOLDER and --ckpt CKPT")
    options: dict[str, Any] = dict(seeds=seeds, negatives=marks, samples=samples, oracle=not no_oracle)
    options.update(methods=table.check_methods(methods), config=table.read_config(config))
    wanted = Wanted(dataset, classes, data, ckpt, classifiers, extractor, run.device, options, dry_run)
    plan = wanted.plan(run.out)
    threads = torch.get_num_threads()
    jobs = jobs or table.jobs_for(plan, run.out, threads)
    with RunContext(threads=max(threads // jobs, 1)) as context:
        if dry_run or not run.quiet:
            click.echo(table.told(table.forecast(plan, run.out), jobs), err=not dry_run)
        if dry_run:
            _say_untrained(plan)
            return
        with beside(jobs - 1, take_part, wanted, run.out, context):
            found = table.reproduce(plan, run.out)
    click.echo(f"{found['cells_done']} of {found['cells']} cells", err=True)
    for name in ("cells.csv", "table.md", "figure.png", "pictures.jpg"):
        click.echo(str(run.out / name))


def _say_untrained(plan: Plan) -> None:
    """Which classifiers are to be trained beforehand, which the forecast does not count."""
    from .recipes import Untrained

    names = dict.fromkeys(task.judge.name for task in plan.tasks if isinstance(task.judge, Untrained))
    if names:
        click.echo(f"Training the classifiers comes on top: {', '.join(names)}")


if __name__ == "__main__":
    reproduce()
