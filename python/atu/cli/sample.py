"""`atu sample`: samples as picture files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .estimate import say_sampling
from .help import Command
from .models import Model, model_options
from .options import BATCH, LABEL, Common, choose_labels, common, load_gan
from .oracles import Asked, oracle_options

if TYPE_CHECKING:
    from ..gan import GAN


@click.command("sample", cls=Command)
@click.argument("ckpt")
@model_options
@click.option("--samples", default=64, show_default=True, type=click.IntRange(1), help="How many images.")
@click.option("--truncation", default=1.0, show_default=True, metavar="PSI", help="Truncation (StyleGAN kinds).")
@click.option("--noise", type=click.Choice(["random", "const", "none"]), help="Noise mode (StyleGAN kinds).")
@click.option("--grid", is_flag=True, help="One picture of all of them instead of one file an image.")
@BATCH
@LABEL
@oracle_options
@common("Folder for the images; another seed's are added to those that are there.")
def sample(
    run: Common,
    ckpt: str,
    model: Model,
    samples: int,
    truncation: float,
    noise: str | None,
    grid: bool,
    labels: tuple[str, ...],
    asked: Asked,
) -> None:
    """Write samples as PNG files.

    CKPT: a checkpoint, a run folder, mnist or animals. With --oracle, only samples that it calls one of the classes.
    The files are named after the seed and their number.
    """
    import torch

    from ..data import images
    from ..support import progress

    if asked.oracle is not None and (truncation != 1 or noise is not None):
        raise click.UsageError("--oracle cannot be combined with --truncation or --noise")
    gan = load_gan(ckpt, run.device, model=model)
    _check_images(gan)
    choose_labels(gan, labels)
    wanted = asked.find(asked.oracle, gan)
    settings = dict(
        truncation=truncation, noise=noise, labels=sorted(labels), oracle=asked.oracle, classes=sorted(asked.classes)
    )
    record = _record(run, gan, settings, samples)
    if wanted is None:
        options: dict[str, Any] = {} if truncation == 1 else {"truncation_psi": truncation}
        options |= {} if noise is None else {"noise_mode": noise}
        if not run.quiet:
            say_sampling(gan, samples)
        batches = progress.track("sample", gan.batches(samples, seed=run.seed, **options), samples)
        x = torch.cat([batch.cpu() for batch in batches])
    else:
        from ..judging.marking import mark_negatives

        x, looked = mark_negatives(gan, wanted, samples, run.seed)
        click.echo(f"{len(x)} of {looked} samples", err=True)
    _write_record(run.out, record)
    if grid:
        path = images.save_grid(x, gan.image_range, run.out / f"seed{run.seed}-grid.png")
    else:
        path = images.save_folder(x, gan.image_range, run.out, run.seed)
    click.echo(str(path))


def _check_images(gan: GAN) -> None:
    """Raise ValueError where the samples cannot be written as pictures, before they are drawn."""
    from ..data.images import are_pictures

    if not are_pictures(gan.sample_shape):
        got = list(gan.sample_shape)
        raise ValueError(f"CKPT: expected a GAN of images [1, 3 or 4, H, W], got one of samples {got}")


# --- OUT/samples.json: what the folder's images are samples of


def _record(run: Common, gan: GAN, settings: dict[str, Any], samples: int) -> dict[str, Any]:
    """The folder's record with this command's samples in it.

    Raises:
        ValueError: the folder holds samples of something else, or this seed's under another number of samples, which
            would be other images of the same names.
    """
    from ..training.run_folder import gan_digest

    path, seed = run.out / "samples.json", str(run.seed)
    record: dict[str, Any] = {"gan": gan_digest(gan), "settings": settings, "seeds": {}}
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            known, there = {"gan": before["gan"], **before["settings"]}, dict(before["seeds"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"out: {path} cannot be read ({error}); give another folder") from error
        differs = [name for name, value in {"gan": record["gan"], **settings}.items() if known.get(name) != value]
        if differs:
            other = ", ".join(differs)
            raise ValueError(f"out: {run.out} holds samples of another kind ({other}); give another folder")
        if there.get(seed, samples) != samples:
            raise ValueError(
                f"out: {run.out} holds {there[seed]} samples of seed {seed} already; give another --seed or folder"
            )
        record["seeds"] = there
    taken = sorted(run.out.glob(f"seed{seed}-*.png")) if seed not in record["seeds"] else []
    if taken:
        raise ValueError(f"out: {taken[0]} is there already; give another --seed or folder")
    record["seeds"][seed] = samples
    return record


def _write_record(out: Path, record: dict[str, Any]) -> None:
    from ..support.files import write_json

    write_json(out / "samples.json", record)
