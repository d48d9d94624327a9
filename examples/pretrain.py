"""The GANs that this project trains itself.

python -m examples.pretrain mnist | animals     the bundled StyleGAN2s of MNIST and of drawn animals
python -m examples.pretrain dcgan | mlp         a DCGAN with batch norm, and a fully connected GAN of very unequal
                                                classes, to develop on
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from atu.assets import asset
from atu.cli.options import PRECISION, Common, common
from atu.config import Adversarial
from atu.data.images import map_range
from atu.data.mnist import mnist
from atu.data.samples import PixelSamples, Samples, TensorSamples
from atu.gan import GAN
from atu.judging.classifier import Classifier
from atu.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.networks.stylegan2 import Discriminator, Generator
from atu.support.environment import machine, versions
from atu.support.files import write_json
from atu.support.seeding import fork_rng
from atu.training.run_folder import RunFolder, recorded

from .animals import LikeDrawings, oracle
from .drawings import drawings, without_any
from .scratch import Lessons, Look, centre_logits, train
from .supervision import Supervision

MNIST_CHANNELS = dict(channel_base=768, channel_max=64)


# The logistic loss collapses here to a few digits; so do random translations, which make a collapsed generator look
# diverse to the minibatch deviation.
MNIST_CONFIG = Adversarial(batch_size=32, loss="relativistic", ema_half_life=10_000)


MNIST_STEPS = 18_000


# (share of the steps at which a phase ends, weight of R1 and R2): strong while modes are found, weak for sharp strokes.
MNIST_PHASES = ((10 / 18, 0.5), (14 / 18, 0.1), (1, 0.05))


ANIMALS_CHANNELS = dict(channel_base=1024, channel_max=96)


ANIMALS_CONFIG = Adversarial(batch_size=16, loss="relativistic", ema_half_life=10_000)


ANIMALS_STEPS = 5_000


ANIMALS_PHASES = ((0.7, 0.1), (1, 0.05))  # as MNIST_PHASES


ANIMALS_LESSONS = (100_000, 90_000)  # steps of the two of `Supervision`


DCGAN_WIDTH = 16


DCGAN_CONFIG = Adversarial(batch_size=32, lr=2e-4, beta1=0.5, beta2=0.999, r1_gamma=0.0, ema_half_life=10_000)


DCGAN_STEPS = 5_000


MLP_SHARES = (0.07, 0.35, 0.05, 0.09, 0.035, 0.02, 0.06, 0.18, 0.025, 0.12)  # of the digits 0 to 9


# Without R1 (binary cross-entropy alone) it collapses to the largest class within 2,000 steps.
MLP_CONFIG = Adversarial(batch_size=64, lr=5e-4, beta1=0.0, beta2=0.99, r1_gamma=2.0, ema_half_life=10_000)


MLP_STEPS = 12_000


def mnist_stylegan2() -> GAN:
    """An untrained StyleGAN2 for 32 x 32 grey images: 64-d latents, 480,000 weights in G and D together."""
    generator = Generator(64, 0, 64, 32, 1, dict(num_layers=2), dict(MNIST_CHANNELS))
    return GAN(generator, Discriminator(0, 32, 1, **MNIST_CHANNELS))


def animals_stylegan2() -> GAN:
    """An untrained StyleGAN2 for 64 x 64 colour images: 128-d latents, 1.1 million weights in G and D together."""
    generator = Generator(128, 0, 128, 64, 3, dict(num_layers=4), dict(ANIMALS_CHANNELS))
    return GAN(generator, Discriminator(0, 64, 3, **ANIMALS_CHANNELS), image_range=(-1.0, 1.0))


def pretrain_mnist(
    out: str | Path, steps: int = MNIST_STEPS, seed: int = 0, precision: str = "float32", without: Sequence[str] = ()
) -> Path:
    """Train the bundled MNIST GAN on all 5,000 images; a killed training goes on from OUT.

    Writes OUT/mnist-gan.safetensors and OUT/mnist-gan.json: seed, settings, machine, the log, and what the bundled
    classifier says of 10,000 samples. without: digits whose images are left out: a GAN to compare an unlearned one
    with.

    Returns:
        The checkpoint's path.

    Raises:
        ValueError: something in `without` is no digit, or nothing is left.
    """
    phases = _falling_penalty(MNIST_CONFIG, MNIST_PHASES, steps)
    images, labels = mnist()
    samples = TensorSamples(images[~torch.isin(labels, _digits(without))])
    options: dict[str, Any] = dict(finish=centre_logits, precision=precision, without=without)
    return _pretrain("mnist", "mnist-gan", mnist_stylegan2, samples, phases, out, seed, **options)


def _digits(names: Sequence[str]) -> Tensor:
    """int64 [N] of names of digits, not all ten."""
    known = [str(digit) for digit in range(10)]
    strange = [name for name in names if name not in known]
    if strange or set(names) >= set(known):
        raise ValueError(f"without: expected digits, 0 to 9, and not all ten, got {', '.join(strange or names)}")
    return torch.tensor([int(name) for name in names], dtype=torch.int64)


def pretrain_animals(
    out: str | Path, steps: int = ANIMALS_STEPS, seed: int = 0, precision: str = "float32", without: Sequence[str] = ()
) -> Path:
    """Train the bundled GAN of drawn animals on 16,000 drawings; a killed training goes on from OUT.

    Writes OUT/animals-gan.safetensors and its log, as `pretrain_mnist` does. Every 1,000 steps it writes the GAN as it
    is by then, a grid of samples, and how like the drawings they are (`LikeDrawings`) into the log. without: features
    or species whose drawings are left out, as `PartsClassifier.condition` takes them.
    """
    phases = _falling_penalty(ANIMALS_CONFIG, ANIMALS_PHASES, steps)
    rules = [oracle().condition(name) for name in without]
    data = without_any(drawings(), rules)
    if not len(data):
        raise ValueError(f"without: no drawing is left without {', '.join(without)}")
    samples = PixelSamples(data.images)
    share = steps / ANIMALS_STEPS
    lessons = Supervision(samples, data.labels, *(max(round(n * share), 1) for n in ANIMALS_LESSONS))
    measure = LikeDrawings(without=rules)
    path = Path(out) / "animals-gan.safetensors"

    def look(run: RunFolder, gan: GAN, step: int) -> dict[str, float]:
        run.picture(f"step-{step:06d}", gan.sample(100, seed=0), gan.image_range)
        so_far = gan.copy()
        centre_logits(so_far, samples)
        so_far.save(path)
        return measure(gan)

    options: dict[str, Any] = dict(
        finish=centre_logits, precision=precision, look=look, describe=measure, lessons=lessons, without=without
    )
    return _pretrain("animals", "animals-gan", animals_stylegan2, samples, phases, out, seed, **options)


def _falling_penalty(
    config: Adversarial, phases: Sequence[tuple[float, float]], steps: int
) -> list[tuple[int, Adversarial]]:
    """Phases of a training from (share of the steps at which one ends, weight of R1 and R2)."""
    return [
        (round(steps * share), dataclasses.replace(config, r1_gamma=gamma, r2_gamma=gamma)) for share, gamma in phases
    ]


def mnist_dcgan() -> GAN:
    """An untrained DCGAN for 32 x 32 grey images: 64-d latents, batch norm in both networks, 149,000 weights."""
    return GAN(DCGANGenerator(64, 32, 1, DCGAN_WIDTH), DCGANDiscriminator(32, 1, DCGAN_WIDTH))


def mnist_mlp() -> GAN:
    """An untrained fully connected GAN for 32 x 32 grey images in [0, 1]; both networks end in a sigmoid."""
    shape = [1, 32, 32]
    return GAN(
        MLPGenerator(64, shape, (256, 256), "sigmoid"),
        MLPDiscriminator(shape, (256, 256), output="sigmoid"),
        image_range=(0.0, 1.0),
    )


def unequal_mnist(n: int = 20_000, seed: int = 0) -> Tensor:
    """n MNIST images [n, 1, 32, 32] in [0, 1], drawn so that the digits have the shares MLP_SHARES."""
    images, labels = mnist()
    rng = torch.Generator().manual_seed(seed)
    parts = []
    for digit, share in enumerate(MLP_SHARES):
        members = torch.nonzero(labels == digit).flatten()
        parts.append(members[torch.randint(len(members), (round(n * share),), generator=rng)])
    return (images[torch.cat(parts)] + 1) / 2


def pretrain_dcgan(out: str | Path, steps: int = DCGAN_STEPS, seed: int = 0, precision: str = "float32") -> Path:
    """Train the DCGAN on all 5,000 images; writes OUT/dcgan.safetensors and its log, as `pretrain_mnist` does."""
    phases, samples = [(steps, DCGAN_CONFIG)], TensorSamples(mnist()[0])
    return _pretrain("dcgan", "dcgan", mnist_dcgan, samples, phases, out, seed, precision=precision)


def pretrain_mlp(out: str | Path, steps: int = MLP_STEPS, seed: int = 0, precision: str = "float32") -> Path:
    """Train the MLP GAN on `unequal_mnist`; writes OUT/mlp.safetensors and its log, as `pretrain_mnist` does."""
    phases, samples = [(steps, MLP_CONFIG)], TensorSamples(unequal_mnist(seed=seed))
    return _pretrain("mlp", "mlp", mnist_mlp, samples, phases, out, seed, precision=precision)


def _pretrain(
    command: str,
    name: str,
    build: Callable[[], GAN],
    samples: Samples,
    phases: Sequence[tuple[int, Adversarial]],
    out: str | Path,
    seed: int,
    finish: Callable[[GAN, Samples], None] | None = None,
    precision: str = "float32",
    look: Look | None = None,
    describe: Callable[[GAN], dict[str, Any]] | None = None,
    lessons: Lessons | None = None,
    without: Sequence[str] = (),
) -> Path:
    """Build, train, finish and save OUT/NAME.safetensors, with OUT/NAME.json beside it; returns its path.

    phases: (step at which it ends, settings), one after the other. finish: what is done to the trained GAN. look: of
    `train`. describe: what the log says of samples; `describe_digits` when not given. without: what `samples` lack.
    """
    with fork_rng(torch.device("cpu"), seed):
        gan = build()
    history = train(gan, samples, phases, out, seed, precision=precision, look=look, lessons=lessons)
    if finish is not None:
        finish(gan, samples)
    path = gan.save(Path(out) / f"{name}.safetensors")
    shown = [row for row in history if row["stage"] == "pretrain" or row["step"] % 1000 == 0]
    log = [{key: value for key, value in row.items() if (key, value) != ("stage", "pretrain")} for row in shown]
    settings = [dict(until_step=last, **dataclasses.asdict(config)) for last, config in phases]
    words = " ".join(["python -m examples.pretrain", command, *(f"--without {name}" for name in without)])
    about: dict[str, Any] = dict(command=words, seed=seed, phases=settings)
    about["precision"] = recorded(out)["precision"]
    about["samples"] = (describe or describe_digits)(gan)
    write_json(path.with_suffix(".json"), about | dict(machine=machine(), versions=versions(), log=log))
    return path


def describe_digits(gan: GAN, n: int = 10_000) -> dict[str, Any]:
    """Share of each digit among n samples, and of samples that the bundled classifier is >= 0.9 sure of."""
    classifier = Classifier.load(asset("mnist-classifier.safetensors"))
    sure, counts = 0, torch.zeros(len(classifier.classes), dtype=torch.long)
    for x in gan.batches(n, seed=0):
        probability, index = classifier.logits(map_range(x, gan.image_range, classifier.image_range)).softmax(1).max(1)
        sure += int((probability >= 0.9).sum())
        counts += index.bincount(minlength=len(counts))
    shares = {name: round(int(count) / n, 4) for name, count in zip(classifier.classes, counts, strict=True)}
    return dict(n=n, shares=shares, confident=round(sure / n, 4))


RECIPES = {"mnist": pretrain_mnist, "animals": pretrain_animals, "dcgan": pretrain_dcgan, "mlp": pretrain_mlp}


@click.command("pretrain")
@click.argument("recipe", type=click.Choice(list(RECIPES)))
@click.option("--steps", type=click.IntRange(1), help="Training steps; the recipe's own number when not given.")
@click.option(
    "--without",
    multiple=True,
    metavar="NAME",
    help="Of mnist and animals: a digit, feature or species whose images it does not see; may be repeated.",
)
@PRECISION
@common("Folder for the GAN and its training state.", device=False, threads=True)
def pretrain(run: Common, recipe: str, steps: int | None, without: tuple[str, ...], precision: str | None) -> None:
    """Train a GAN from scratch. A stopped training goes on when called again.

    RECIPE: mnist, animals, dcgan or mlp.
    """
    given = dict(steps=steps, precision=precision, without=without or None)
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    click.echo(str(RECIPES[recipe](run.out, seed=run.seed, **options)))


if __name__ == "__main__":
    pretrain()
