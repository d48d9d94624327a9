"""The commands `atu inspect` and `atu export`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..formats.export import FORMATS, format_of
from ..formats.export import export as write
from ..formats.inspect import inspect_checkpoint, print_inspection
from ..formats.tensors import CheckpointError
from ..gan import GAN
from ..training.fit_discriminator import fit_discriminator

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("inspect")
@click.argument("file", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def inspect(file: Path, as_json: bool) -> None:
    """Print what a checkpoint holds, without building or executing it."""
    try:
        found = inspect_checkpoint(file)
    except CheckpointError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(found, indent=2, default=str))
    else:
        print_inspection(found)


@click.command("export")
@click.argument("source", metavar="RUN", type=click.Path(exists=True, path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(FORMATS.names()), help="Default: by TARGET's suffix.")
@click.option("--template", type=_FILE, help="nvidia-pkl: the pickle to put the tensors into. Default: the original.")
@click.option("--train-discriminator", type=click.IntRange(1), metavar="STEPS", help="Fit one first, if it has none.")
def export(
    source: Path, target: Path, form: str | None, template: Path | None, train_discriminator: int | None
) -> None:
    """Write the GAN of a run folder, or of a checkpoint, in another format.

    RUN is the folder of `atu unlearn`, or any checkpoint that atu reads.
    """
    try:
        gan = GAN.load(checkpoint_of(source))
        if train_discriminator is not None and gan.discriminator is None:
            gan = fit_discriminator(gan, train_discriminator)
        path = write(gan, target, form, template)
    except (CheckpointError, ValueError, ImportError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{path}: {form or format_of(target)}, {path.stat().st_size / 2**20:.1f} MiB")


def checkpoint_of(source: Path) -> Path:
    """The checkpoint that a path stands for: itself, or a run folder's result."""
    if not source.is_dir():
        return source
    result = source / "result.safetensors"
    if not result.is_file():
        raise CheckpointError(f"{source}: a folder without result.safetensors; is the run finished?")
    return result
