"""`atu train-classifier`: a classifier of your own images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .help import Command
from .options import FILE, FOLDER, Common, common


@click.command("train-classifier", cls=Command)
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
def train_classifier(
    run: Common,
    folder: Path,
    size: int | None,
    steps: int | None,
    held_out: float,
    augment: str,
    backbone: str | None,
    weights: Path | None,
) -> None:
    """Train a classifier on images of your own.

    FOLDER: holds a folder of images a class, or unwanted/ and good/, as atu label writes them. Prints how good it is on
    images that it has not learned from.
    """
    from ..judging.train import TrainingPlan, remarks, train_folder

    if run.out.is_file() and run.out.suffix != ".safetensors":
        raise ValueError(f"out: expected a file ending in .safetensors, or a folder, but {run.out} is a file")
    names = tuple(name for name in augment.split(",") if name and name != "none")
    plan = TrainingPlan(
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
    from rich.table import Table

    from ..support.console import Console

    right, (low, high) = data["accuracy"]["share"], data["accuracy"]["ci95"]
    console = Console()
    text = f"{100 * right:.1f} % of {data['held_out']} held-out images right"
    console.print(f"{text} (95 %: {100 * low:.1f} to {100 * high:.1f} %)")
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
