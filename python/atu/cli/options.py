"""What the commands of `atu` share: options, and what they mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .. import presets


def common(out_help: str) -> Callable:
    """The options of every command that trains: --seed, --device, --quiet, --out."""

    def add(function: Callable) -> Callable:
        for option in (
            click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help=out_help),
            click.option("--quiet", is_flag=True, help="No progress output."),
            click.option("--device", help='Where to compute, as torch names it: "cpu", "cuda", "cuda:1".'),
            click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of everything random."),
        ):
            function = option(function)
        return function

    return add


CONFIG = click.option("--config", type=click.Path(path_type=Path), help="TOML file with settings.")
METHOD = click.option(
    "--method",
    type=click.Choice(list(presets.METHODS)),
    metavar="NAME",
    help=f"How to unlearn: {', '.join(presets.METHODS)}; {presets.DEFAULT} unless --config says otherwise.",
)
COMPAT = click.option(
    "--compat",
    type=click.Choice(presets.COMPAT),
    help="Settings to start from: those of the paper's reference implementation (StyleGAN kinds).",
)
RETRAINED = click.option(
    "--retrained", metavar="CKPT", help="A GAN retrained without the negatives: attacks are compared with it."
)
SAMPLES = click.option(
    "--samples", default=10_000, show_default=True, type=click.IntRange(2), help="Fixed latents for the evaluation."
)


REQUIRE = click.option(
    "--require",
    "required",
    type=click.FloatRange(0, 100),
    metavar="PERCENT",
    help="Exit code 1 when less than this percentage of the negatives is gone.",
)
SUBJECT = click.option("--subject", metavar="TEXT", help='What is unlearned, in words, for the report: "hats".')


def require(data: dict[str, Any], percent: float | None) -> None:
    """Exit code 1 unless `percent` of the negatives are gone."""
    from ..report.words import meets

    if percent is not None and not meets(data, percent):
        click.echo(f"atu: {percent:g} % were required to be gone", err=True)
        raise click.exceptions.Exit(1)


def begin(quiet: bool = False, device: str | None = None) -> None:
    import torch

    from ..support import progress
    from ..support.environment import keep_freed_memory

    keep_freed_memory()
    progress.set_quiet(quiet)
    if device is None:
        return
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device: expected one as torch names it (cpu, cuda, cuda:1), got {device!r}") from None
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device: {device} was asked for, but torch sees no CUDA device; leave --device out for the CPU"
        )


def load_gan(name: str, device: str | None = None):
    from ..assets import asset
    from ..gan import GAN

    path = asset("mnist-gan.safetensors") if name == "mnist" and not Path(name).exists() else Path(name)
    if not path.exists():
        raise ValueError(f"CKPT: {name}: no such file")
    gan = GAN.load(path)
    return gan if device is None else gan.to(device)


def load_classifier(name: str, device: str | None = None):
    from ..assets import asset
    from ..evaluation.classifier import Classifier

    path = asset("mnist-classifier.safetensors") if name == "mnist" and not Path(name).exists() else Path(name)
    classifier = Classifier.load(path)
    return classifier if device is None else classifier.to(device)


def oracle_options(function: Callable) -> Callable:
    function = click.option("--class", "classes", multiple=True, help="A class the oracle knows; may be repeated.")(
        function
    )
    text = "A classifier file, or mnist: says which samples are negative."
    return click.option("--oracle", metavar="CLASSIFIER", help=text)(function)


def find_oracle(oracle: str | None, classes: tuple[str, ...], device: str | None = None):
    """(classifier, is_negative), or two Nones."""
    if oracle is None:
        if classes:
            raise click.UsageError("--class needs --oracle CLASSIFIER")
        return None, None
    if not classes:
        raise click.UsageError("--oracle needs at least one --class")
    classifier = load_classifier(oracle, device)
    return classifier, classifier.oracle(classes)


LABEL = click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="K[=WEIGHT]",
    help="Conditional GANs: draw only this label; may be repeated, with weights. All labels equally when not given.",
)


def choose_labels(gan, labels: tuple[str, ...]) -> None:
    """Let `gan` draw the labels that were asked for."""
    from ..gan import label_choice

    if not labels:
        return
    weights: dict[int, float] = {}
    for text in labels:
        index, _, weight = text.partition("=")
        try:
            weights[int(index)] = float(weight) if weight else 1.0
        except ValueError:
            raise click.UsageError(f"--label: expected K or K=WEIGHT, got {text!r}") from None
    gan.label_sampler = label_choice(gan.c_dim, weights)


def show(data: dict[str, Any], out: Path, quiet: bool) -> None:
    from ..report import report

    if not quiet:
        report.print_table(data)
    for name in ("report.html", "report.json", "result.safetensors"):
        if (out / name).exists():
            click.echo(str(out / name))
