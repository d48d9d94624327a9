"""`atu pretrain` and `atu train-classifier`: networks from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import FILE, FOLDER, PRECISION, Common, common


@click.group("pretrain")
def pretrain() -> None:
    """Train a GAN from scratch."""


def _add(name: str, text: str, kinds: str = "") -> None:
    """Add `atu pretrain NAME`, which calls atu.experiments.pretrain.pretrain_NAME; kinds: what it can do without."""

    @pretrain.command(name, help=f"{text} A stopped training goes on when called again.")
    @click.option("--steps", type=click.IntRange(1), help="Training steps; the recipe's own number when not given.")
    @PRECISION
    @common("Folder for the GAN and its training state.", device=False, threads=True)
    def command(run: Common, steps: int | None, precision: str | None, without: tuple[str, ...] = ()) -> None:
        from ..experiments import pretrain

        given = dict(steps=steps, precision=precision, without=without or None)
        options = {name: value for name, value in given.items() if value is not None}
        click.echo(str(getattr(pretrain, f"pretrain_{name}")(run.out, seed=run.seed, **options)))

    if kinds:
        text = f"{kinds} whose images it does not see, to compare an unlearned GAN with; may be repeated."
        click.option("--without", multiple=True, metavar="NAME", help=text)(command)


_add("mnist", "The command that made the bundled MNIST StyleGAN2.", "Digit")
_add(
    "animals",
    "The command that made the bundled StyleGAN2 of drawn animals, 64 x 64 in colour.",
    "Feature or species, as of atu demo animals,",
)
_add("dcgan", "A DCGAN with batch norm on MNIST, to develop on.")
_add("mlp", "A fully connected GAN with BCE on MNIST of very unequal classes (2 to 35 %), to develop on.")


class _Folders(click.Group):
    """A folder in the place of a command's name is what `folder` trains on."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in self.commands or args[0].startswith("-"):
            return super().resolve_command(ctx, args)
        if not Path(args[0]).is_dir():
            raise click.UsageError(f"{args[0]}: expected a folder of images, or one of {', '.join(self.commands)}", ctx)
        return "folder", self.commands["folder"], args


@click.group("train-classifier", cls=_Folders)
def train_classifier() -> None:
    """Train a classifier to judge samples with: on a FOLDER of yours, or a bundled one anew."""


@train_classifier.command("folder")
@click.argument("folder", type=FOLDER)
@click.option("--size", type=click.IntRange(8, 1024), help="Pixels a side that it sees; by the images, 16 to 64.")
@click.option("--steps", type=click.IntRange(1), help="Training steps; 40 passes, 400 to 4,000, when not given.")
@click.option(
    "--held-out", default=0.2, show_default=True, type=float, metavar="SHARE", help="Share of each class to test on."
)
@click.option(
    "--augment",
    default="affine,light",
    show_default=True,
    metavar="NAMES",
    help="Random changes while learning: affine, flip, light, joined by commas; none.",
)
@click.option("--backbone", metavar="NAME", help="A network of timm instead of a small one; it is kept as it is.")
@click.option("--weights", type=FILE, help="Of the backbone; nothing is downloaded.")
@common("The classifier's file, ending in .safetensors, or a folder for classifier.safetensors.", file=True)
def own(
    run: Common,
    folder: Path,
    size: int | None,
    steps: int | None,
    held_out: float,
    augment: str,
    backbone: str | None,
    weights: Path | None,
) -> None:
    """Train on images of your own.

    FOLDER: holds a folder of images a class, or unwanted/ and good/, as atu label writes them. Prints how good it is on
    images that it has not learned from.
    """
    from ..experiments.own_classifier import Plan, remarks, train_folder

    if run.out.is_file() and run.out.suffix != ".safetensors":
        raise ValueError(f"out: expected a file ending in .safetensors, or a folder, but {run.out} is a file")
    names = tuple(name for name in augment.split(",") if name and name != "none")
    plan = Plan(
        size=size,
        held_out=held_out,
        augment=names,
        steps=steps,
        backbone=backbone,
        weights=weights,
        seed=run.seed,
        device=run.device,
    )
    path, data = train_folder(folder, run.out, plan)
    if not run.quiet:
        _print(data)
    for remark in remarks(data):
        click.echo(f"Warning: {remark}", err=True)
    click.echo(str(path))


def _print(data: dict[str, Any]) -> None:
    """The held-out figures, and what was taken for what."""
    from rich.console import Console
    from rich.table import Table

    right, (low, high) = data["accuracy"]["share"], data["accuracy"]["ci95"]
    console = Console(markup=False, emoji=False)  # classes are called as their folders are
    text = f"{100 * right:.1f} % of {data['held_out']} held-out images right"
    console.print(f"{text} (95 %: {100 * low:.1f} to {100 * high:.1f} %)", highlight=False)
    table = Table(title="held-out images: what they are, and are called", title_justify="left")
    table.add_column("is")
    for name in data["classes"]:
        table.add_column(f"called {name}", justify="right", overflow="fold")
    table.add_column("recognised", justify="right")
    for name, row in zip(data["classes"], data["confusion"], strict=True):
        hits = data["by_class"][name]["sensitivity"]
        low, high = (100 * value for value in hits["ci95"])
        table.add_row(name, *map(str, row), f"{100 * hits['share']:.1f} % ({low:.1f} to {high:.1f})")
    console.print(table)


ROLE = click.option(
    "--role",
    type=click.Choice(["oracle", "judge"]),
    default="oracle",
    show_default=True,
    help="What for: the judge is another network, on other images, that answers in no run.",
)


@train_classifier.command("mnist")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the images; 40, or 100 for the judge.")
@ROLE
@common("Folder for the classifier.", device=False)
def mnist(run: Common, epochs: int | None, role: str) -> None:
    """The command that made the bundled MNIST classifier, and its judge."""
    from ..experiments.classifiers import train_mnist
    from ..experiments.judge import train_mnist_judge

    options = {} if epochs is None else dict(epochs=epochs)
    path, accuracy = (train_mnist_judge if role == "judge" else train_mnist)(run.out, seed=run.seed, **options)
    click.echo(f"{100 * accuracy:.1f} % of the held-out images right", err=True)
    click.echo(str(path))


@train_classifier.command("animals")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the drawings; 5, or 3 for the judge.")
@ROLE
@common("Folder for the classifier.", device=False)
def animals(run: Common, epochs: int | None, role: str) -> None:
    """The command that made the bundled classifier of drawn animals, and its judge."""
    from ..experiments.classifiers import train_animals

    path, accuracy = train_animals(run.out, role, epochs, run.seed)
    click.echo(f"{100 * accuracy:.2f} % of the held-out drawings right in its worst part", err=True)
    click.echo(str(path))
