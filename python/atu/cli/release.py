"""`atu release`: of a run folder, only what may be handed over."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import click

from .help import Command
from .models import Model, model_options
from .options import FOLDER, check_writable, checkpoint_of, load_gan

MODELS = ("before", "after", "adapted", "previous", "retrained")
# What numbers.json holds of a report, at any depth: names that atu itself gives. What is by class, attribute or target
# is left out altogether: its order would tell what was unlearned even without its names.
TOLD = {
    *MODELS,
    "agreed", "alarms", "answered", "by_a_pixel", "ci95", "ci95_exact", "compared", "confident", "contradicted",
    "cores", "corrected", "count", "coverage", "coverage_chance", "decisions", "density", "density_chance",
    "difference", "difference_ci95", "distances", "drawn_without_a_rule", "drift", "dropped_as_negative", "fewer",
    "fid_cls", "frechet", "frechet_chance", "frechet_redistribution", "good_changed", "held_out", "judges", "kept",
    "kid", "kid_chance", "kid_cls", "landing", "latents", "load_average", "machine", "metrics", "models", "n",
    "negative", "negative_rate", "negative_share", "negatives", "negatives_after", "negatives_before",
    "negatives_found", "of", "of_good", "over_removal", "parameter_path", "person", "pool", "positives_doubted",
    "precision", "precision_chance", "probe", "pul", "pul_ci95", "real_fid", "real_images", "real_kid", "recall",
    "recall_chance", "recognised", "reference", "round", "run_seed", "s", "score", "seconds", "seed", "sensitivity",
    "share", "share_after", "share_after_ci95", "share_before", "share_before_ci95", "specificity", "steps_run",
    "still_negative", "sure", "sure_chance", "threads", "trained_on", "tv", "tv_redistribution", "unsure", "unwanted",
    "value",
}  # fmt: skip
COUNTED = ("judges", "distances", "metrics")  # keys in these, names that the user gave, become 1, 2 ...


@click.command("release", cls=Command)
@click.argument("run", type=FOLDER)
@model_options
@click.option("--out", required=True, type=FOLDER, help="New or empty folder.")
def release(run: Path, model: Model, out: Path) -> None:
    """Write what may be handed over of a run.

    RUN: the folder of a finished run. Writes generator.safetensors (the unlearned generator alone), numbers.json (those
    of the report's numbers that do not tell what was unlearned), config.toml and SHA256SUMS: no picture, no path, no
    adapted generator and no discriminator.
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
        label_sampler=found.label_sampler,
        image_range=found.image_range,
        c_dim=found.c_dim,
        label_format=found.label_format,
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
    """The numbers under names in `TOLD`, however deep; text, which may name folders or people, is left out."""
    found = {}
    for name, value in data.items():
        if name in COUNTED and isinstance(value, dict):
            value = {str(number): _kept(one) for number, one in enumerate(value.values(), 1)}
        else:
            value = _kept(value)
        if name in TOLD and value not in (None, {}, []):
            found[name] = value
    return found


def _kept(value: Any) -> Any:
    if isinstance(value, dict):
        return _numbers(value)
    if isinstance(value, list):  # of an interval, a bound that is not known stays in its place
        found = [_kept(item) for item in value]
        return found if any(item not in (None, {}, []) for item in found) else []
    return value if isinstance(value, (int, float)) else None
