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
_add("dcgan", "A DCGAN with batch norm on MNIST, to develop on.")
_add("mlp", "A fully connected GAN with BCE on MNIST of very unequal classes (2 to 35 %), to develop on.")


@click.group("train-classifier")
def train_classifier() -> None:
    """Train a classifier to judge samples with."""


@train_classifier.command("mnist")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the images; 40, or 100 for the judge.")
@click.option(
    "--role",
    type=click.Choice(["oracle", "judge"]),
    default="oracle",
    show_default=True,
    help="What for: the judge is another network, on other images, that answers in no run.",
)
@common("Folder for the classifier.", device=False)
def mnist(run: Common, epochs: int | None, role: str) -> None:
    """The command that made the bundled MNIST classifier, and its judge."""
    from ..experiments.classifiers import train_mnist
    from ..experiments.judge import train_mnist_judge

    options = {} if epochs is None else dict(epochs=epochs)
    path, accuracy = (train_mnist_judge if role == "judge" else train_mnist)(run.out, seed=run.seed, **options)
    click.echo(f"{100 * accuracy:.1f} % of the held-out images right", err=True)
    click.echo(str(path))
