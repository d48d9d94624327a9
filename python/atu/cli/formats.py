"""`atu inspect` and `atu export`: look into a checkpoint; convert it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .help import Command
from .models import Model, model_options
from .options import FILE, TRAIN_DISCRIMINATOR, check_writable, checkpoint_of, load_gan, weights_of, with_discriminator


@click.command("inspect", cls=Command)
@click.argument("ckpt")
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def inspect(ckpt: str, model: Model, as_json: bool) -> None:
    """Print what a checkpoint holds.

    Nothing is built or executed, but for --model, which tells how its weights fit, and what is missing. CKPT: a
    checkpoint, a run folder, mnist or animals.
    """
    from ..formats.inspect import inspect_checkpoint, print_inspection
    from ..formats.own_model import inspect_own

    own, weights = model.of(ckpt)
    if own is None:
        found = inspect_checkpoint(checkpoint_of(ckpt))
    else:
        found = inspect_own(own, None if weights is None else weights_of(weights))
    if as_json:
        click.echo(json.dumps(found, indent=2, default=str))
    else:
        print_inspection(found)


@click.command("export", cls=Command)
@click.argument("ckpt")
@click.argument("target", type=FILE)
@model_options
@click.option("--format", "form", metavar="NAME", help="One of the formats; what TARGET's ending says when not given.")
@click.option("--template", type=FILE, help="nvidia-pkl: the pickle to put the tensors into. Default: the original.")
@TRAIN_DISCRIMINATOR
@click.option("--force", is_flag=True, help="Overwrite TARGET where it exists.")
def export(
    ckpt: str,
    target: Path,
    model: Model,
    form: str | None,
    template: Path | None,
    train_discriminator: int | None,
    force: bool,
) -> None:
    """Write a GAN in another format.

    CKPT: a checkpoint, a run folder, mnist or animals. TARGET: the file to write; .pkl, .pt, .pth, .onnx and
    .safetensors say which format, any other ending needs --format.
    """
    from ..formats.export import check_target, format_of
    from ..formats.export import export as write

    form = format_of(target) if form is None else form
    check_target(target, overwrite=force)
    check_writable(target.parent, "TARGET")
    gan = with_discriminator(load_gan(ckpt, model=model), train_discriminator)
    path = write(gan, target, form, template, overwrite=force)
    click.echo(f"{path}: {form}, {path.stat().st_size / 2**20:.1f} MiB")
