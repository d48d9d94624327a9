"""`atu release`: of a run folder, only what may be handed over."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import click

from .models import Model, model_options
from .options import FOLDER, check_writable, checkpoint_of, load_gan


@click.command("release")
@click.argument("run", type=FOLDER)
@model_options
@click.option("--out", required=True, type=FOLDER, help="New or empty folder.")
def release(run: Path, model: Model, out: Path) -> None:
    """Write what may be handed over of a run.

    RUN: the folder of a finished run. Writes generator.safetensors (the unlearned generator alone), numbers.json (the
    report's numbers, and no text), config.toml and SHA256SUMS: no picture, no path, no adapted generator and no
    discriminator.
    """
    from ..formats import native
    from ..gan import GAN
    from ..support.files import write_json, write_text

    check_writable(out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"out: expected a new or empty folder, but {out} holds files that would be handed over too")
    checkpoint_of(run, "RUN")
    config = (run / "config.toml").read_text(encoding="utf-8")
    data = json.loads((run / "report.json").read_text(encoding="utf-8"))
    found = load_gan(run, argument="RUN", model=model)
    alone = GAN(
        found.sampling_generator,
        latent_dim=found.latent_dim,
        latent_sampler=found.latent_sampler,
        image_range=found.image_range,
    )
    paths = [
        native.save(alone, out / "generator.safetensors"),
        write_json(out / "numbers.json", _numbers(data) | {"versions": data["versions"]}),
        write_text(out / "config.toml", config),
    ]
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths]
    paths.append(write_text(out / "SHA256SUMS", "".join(lines)))
    for path in paths:
        click.echo(str(path))


def _numbers(data: dict[str, Any]) -> dict[str, Any]:
    """The numbers of nested dicts and lists; text, which may name folders or people, is left out."""
    return {name: kept for name, value in data.items() if (kept := _kept(value)) not in (None, {}, [])}


def _kept(value: Any) -> Any:
    if isinstance(value, dict):
        return _numbers(value)
    if isinstance(value, list):
        return [kept for item in value if (kept := _kept(item)) is not None]
    return value if isinstance(value, (int, float)) else None
