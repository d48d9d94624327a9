"""`atu demo mnist` and `atu demo animals`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from .options import (
    BATCH,
    COMPAT,
    CONFIG,
    FOLDER,
    MARKS,
    METHOD,
    PRECISION,
    RETRAINED,
    SAMPLES,
    Common,
    check_replaceable,
    checkpoint_of,
    class_option,
    common,
    renamed,
    show,
)
from .oracles import JUDGE


@click.group("demo")
def demo() -> None:
    """See it work: on MNIST, on drawn animals."""


def on_bundled(function: Callable) -> Callable:
    """The options of a demonstration on a bundled GAN; the command gets them as arguments of `experiments.demo.Demo`,
    under `shared`."""

    @functools.wraps(function)
    @common("Run folder.", threads=True)
    def command(
        run: Common, marks: int, no_oracle: bool, retrained: str | None, method: str | None, **rest: Any
    ) -> None:
        check_replaceable(run.out, "report", "negatives_before")
        names = ("source", "audited", "judge", "compat", "config", "precision", "samples", "batch")
        shared = dict(out=run.out, seed=run.seed, device=run.device, **{name: rest.pop(name) for name in names})
        shared.update(negatives=marks, oracle=not no_oracle, method=method)
        shared.update(retrained=None if retrained is None else checkpoint_of(retrained, "retrained"))
        function(run, shared, **rest)

    options = [
        click.option("--from", "source", type=FOLDER, metavar="RUN", help="Go on from the result of an earlier demo."),
        MARKS,
        click.option("--no-oracle", is_flag=True, help="Give the negatives only; what marks them answers no more."),
        click.option("--audit", "audited", is_flag=True, help="Audit it: what someone with its weights gets back."),
        *(RETRAINED, JUDGE, METHOD, COMPAT, CONFIG, PRECISION, SAMPLES, BATCH),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@demo.command("mnist")
@class_option("Digit to unlearn (8 unless --feature)")
@click.option("--feature", metavar="NAME", help="Unlearn a measured feature instead: thick, left (leaning) or wide.")
@renamed("--negatives", "--marks N (--negatives is a folder, of atu unlearn and atu audit)")
@renamed("--attacks", "--audit")
@on_bundled
def mnist(run: Common, shared: dict[str, Any], classes: tuple[str, ...], feature: str | None) -> None:
    """Unlearn a digit, or a feature of the stroke, from the bundled MNIST StyleGAN2."""
    from ..experiments.mnist import MnistDemo, demo_mnist

    digits = classes or (("8",) if feature is None else ())
    show(demo_mnist(MnistDemo(**shared, digits=digits, feature=feature)), run)


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
@click.option("--ckpt", metavar="CKPT", help="A GAN of such faces, in place of the bundled one.")
@on_bundled
def animals(
    run: Common,
    shared: dict[str, Any],
    features: tuple[str, ...],
    classes: tuple[str, ...],
    on: str | None,
    ckpt: str | None,
) -> None:
    """Unlearn features or species from the bundled StyleGAN2 of drawn animals.

    An oracle marks and answers; a judge that never answered measures.
    """
    from ..experiments.animals import AnimalsDemo, demo_animals

    names = (*features, *classes) or ("antlers",)
    wanted = names if on is None else tuple(f"{name}+color={on}" for name in names)
    show(demo_animals(AnimalsDemo(**shared, names=wanted, ckpt=ckpt and checkpoint_of(ckpt, "ckpt"))), run)
