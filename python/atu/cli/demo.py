"""`atu demo mnist` and `atu demo animals`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .help import Group
from .options import (
    CONFIG,
    MARKS,
    METHOD,
    SAMPLES,
    Common,
    check_replaceable,
    class_option,
    command_line,
    common,
    show,
)


@click.group("demo", cls=Group)
def demo() -> None:
    """See it work: on MNIST, on drawn animals."""


def on_bundled(function: Callable[..., tuple[str, ...]]) -> Callable:
    """Make a demonstration of a function that names what its options stand for."""

    @functools.wraps(function)
    @MARKS
    @click.option("--no-oracle", is_flag=True, help="Give the negatives only; what marks them answers no more.")
    @METHOD
    @CONFIG
    @SAMPLES
    @common("Run folder.", threads=True)
    def command(
        run: Common, marks: int, no_oracle: bool, method: str | None, config: Path | None, samples: int, **rest: Any
    ) -> None:
        from ..demo import demo

        check_replaceable(run.out, "report", "negatives_before")
        names, domain = function(**rest), click.get_current_context().info_name or ""
        options: dict[str, Any] = dict(seed=run.seed, device=run.device, method=method, config=config)
        options.update(marks=marks, oracle=not no_oracle, samples=samples, command=command_line())
        show(demo(domain, names, run.out, **options), run)

    return command


@demo.command("mnist")
@class_option("Digit to unlearn (8 unless --feature)")
@click.option("--feature", metavar="NAME", help="Unlearn a measured feature instead: thick, left (leaning) or wide.")
@on_bundled
def mnist(classes: tuple[str, ...], feature: str | None) -> tuple[str, ...]:
    """Unlearn a digit, or a feature of the stroke, from the bundled MNIST StyleGAN2."""
    if feature is None:
        return classes or ("8",)
    if classes or feature not in ("thick", "left", "wide"):
        raise click.UsageError("--feature: expected thick, left or wide, and no --class")
    return (feature,)


@demo.command("animals")
@click.option(
    "--feature",
    "features",
    multiple=True,
    metavar="NAME",
    help="Feature to unlearn (antlers unless --class), or PART=VALUE; may be repeated. See the docs for the names.",
)
@class_option("Species to unlearn: dog, cat, deer, goat or boar")
@click.option(
    "--on", metavar="COLOR", help="Only on faces of this colour: sand, brown, pink, olive, sage or turquoise."
)
@on_bundled
def animals(features: tuple[str, ...], classes: tuple[str, ...], on: str | None) -> tuple[str, ...]:
    """Unlearn features or species from the bundled StyleGAN2 of drawn animals.

    An oracle marks and answers; a judge that never answered measures.
    """
    names = (*features, *classes) or ("antlers",)
    return names if on is None else tuple(f"{name}+color={on}" for name in names)
