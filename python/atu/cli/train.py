"""`atu pretrain` and `atu train-classifier`: networks from scratch."""

from __future__ import annotations

import click

from .options import PRECISION, Common, common


@click.group("pretrain")
def pretrain() -> None:
    """Train a GAN from scratch."""


def _add(name: str, text: str) -> None:
    """Add `atu pretrain NAME`, which calls atu.experiments.pretrain.pretrain_NAME."""

    @pretrain.command(name, help=f"{text} A stopped training goes on when called again.")
    @click.option("--steps", type=click.IntRange(1), help="Training steps; the recipe's own number when not given.")
    @PRECISION
    @common("Folder for the GAN and its training state.", device=False)
    def command(run: Common, steps: int | None, precision: str | None) -> None:
        from ..experiments import pretrain

        given = dict(steps=steps, precision=precision)
        options = {name: value for name, value in given.items() if value is not None}
        click.echo(str(getattr(pretrain, f"pretrain_{name}")(run.out, seed=run.seed, **options)))


_add("mnist", "The command that made the bundled MNIST StyleGAN2.")
_add("animals", "The command that made the bundled StyleGAN2 of drawn animals, 64 x 64 in colour.")
_add("dcgan", "A DCGAN with batch norm on MNIST, to develop on.")
_add("mlp", "A fully connected GAN with BCE on MNIST of very unequal classes (2 to 35 %), to develop on.")


@click.group("train-classifier")
def train_classifier() -> None:
    """Train a classifier to judge samples with."""


@train_classifier.command("mnist")
@click.option("--epochs", default=40, show_default=True, type=click.IntRange(1), help="Passes over the images.")
@common("Folder for the classifier.", device=False)
def mnist(run: Common, epochs: int) -> None:
    """The command that made the bundled MNIST classifier."""
    from ..experiments.classifiers import train_mnist

    path, accuracy = train_mnist(run.out, epochs, run.seed)
    click.echo(f"{100 * accuracy:.1f} % of the held-out images right", err=True)
    click.echo(str(path))


@train_classifier.command("animals")
@click.option("--epochs", default=5, show_default=True, type=click.IntRange(1), help="Passes over the drawings.")
@common("Folder for the classifiers.", device=False)
def animals(run: Common, epochs: int) -> None:
    """The command that made the bundled classifiers of drawn animals: an oracle, and a judge of another kind."""
    from ..experiments.classifiers import train_animals

    path, accuracy = train_animals(run.out, epochs, run.seed)
    click.echo(f"{100 * accuracy:.2f} % of the held-out drawings right in the oracle's worst part", err=True)
    click.echo(str(path))
