"""Marks as places: a labels.json names marked samples by their seeds, and the GAN makes them again."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.marks import labels_file, marks_folder
from ..data.samples import Samples, TensorSamples, as_samples
from ..formats.own_model import load_like
from ..gan import GAN
from ..support.digest import digest
from ..support.modules import state_of


def generator_digest(gan: GAN) -> str:
    """Digest of the weights that samples are made with."""
    return digest(state_of(gan.sampling_generator))


def marked_samples(
    gan: GAN, value: Any, name: str, resize: bool = False, label_given: bool = False
) -> tuple[Samples, Any]:
    """(negatives, positives) of what a user gives as negatives; positives: None, or as `as_samples` takes them.

    A folder that `atu label` wrote gives its unwanted/, and its good/ as positives. Its labels.json, alone or in a
    folder without pictures, gives the samples that it names, made again by `gan`. So does the whole folder for a
    conditional GAN, unless a label is given: a picture does not say what label it was made with.

    Args:
        value: as of `as_samples`, a folder of marks, or a labels.json. name: of the argument, for errors. label_given:
            one label stands for all of them.

    Raises:
        TypeError, ValueError: as of `as_samples`; or the labels.json is of another GAN.
    """
    beside = None
    if isinstance(value, tuple) and len(value) == 2 and labels_file(value[0]) is not None:
        marks, beside = marked_samples(gan, value[0], name, resize, label_given=True)
        assert isinstance(marks, TensorSamples)  # what files are read as
        value = (marks.tensor, value[1])  # with the label that was given
    elif (labels := labels_file(value)) is not None:
        value, beside = marks_folder(value)
        if gan.c_dim and not label_given:
            value, beside = labels, None
        if labels_file(value) is not None:
            read = _Labels(Path(value), gan, name)
            unwanted = read.samples("unwanted")
            if unwanted is None:
                raise ValueError(f"{name}: nothing in {value} is marked unwanted")
            return unwanted, read.samples("good")
    return as_samples(value, gan.sample_shape, gan.image_range, name, gan.c_dim, resize=resize), beside


class _Labels:
    """A labels.json, read and checked against the GAN."""

    def __init__(self, path: Path, gan: GAN, name: str):
        self.path, self.gan, self.name = path, gan, name
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            self.block = int(data["block"])
            self.rounds = [(str(one["generator"]), str(one["ckpt"])) for one in data["rounds"]]
            self.marks = [(str(m["label"]), int(m["round"]), int(m["seed"]), int(m["row"])) for m in data["samples"]]
            self.classes = [m.get("class") for m in data["samples"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{name}: {path} is no labels.json of atu label ({type(error).__name__}: {error})"
            ) from None
        if not all(1 <= number <= len(self.rounds) and 0 <= row < self.block for _, number, _, row in self.marks):
            raise ValueError(f"{name}: {path} names a round or a row that there is none of")

    def samples(self, label: str) -> TensorSamples | None:
        """The samples with that mark, in their order; None where there are none."""
        blocks: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for position, (given, number, seed, row) in enumerate(self.marks):
            if given == label:
                blocks[number, seed].append((position, row))
        marked: list[tuple[int, Tensor, Tensor | None]] = []
        gans: dict[int, GAN] = {}
        for (number, seed), rows in sorted(blocks.items()):
            if number not in gans:
                gans[number] = self._gan(number)
            gan = gans[number]
            x = gan.sample(self.block, seed=seed, batch_size=self.block).cpu()
            c = gan.inputs(self.block, seed)[1]
            for position, row in rows:
                marked.append((position, x[row], None if c is None else self._checked(c[row].cpu(), position)))
        if not marked:
            return None
        marked.sort(key=lambda one: one[0])
        labels = [c for _, _, c in marked if c is not None]
        return TensorSamples(torch.stack([x for _, x, _ in marked]), torch.stack(labels) if labels else None)

    def _checked(self, c: Tensor, position: int) -> Tensor:
        """A sample's label. It must be the one that was drawn when the sample was marked."""
        marked_as = self.classes[position]
        if marked_as is not None and int(c.argmax()) != marked_as:
            raise ValueError(
                f"{self.name}: the samples in {self.path} were drawn with other labels than this GAN draws now "
                "(--label, label_sampler); give its folder unwanted/ instead"
            )
        return c

    def _gan(self, number: int) -> GAN:
        """The GAN whose samples were marked in a round: the one given, or a run's result that labels.json names."""
        expected, ckpt = self.rounds[number - 1]
        if generator_digest(self.gan) == expected:
            return self.gan
        if number == 1:
            raise ValueError(
                f"{self.name}: the samples in {self.path} are of another GAN ({ckpt}, generator {expected}) than "
                f"the one given (generator {generator_digest(self.gan)})"
            )
        path = Path(ckpt)
        if not path.is_file():
            raise ValueError(
                f"{self.name}: samples of round {number} in {self.path} are of {ckpt}, which is not there; give "
                "its folder unwanted/ instead"
            )
        gan = load_like(path, self.gan)
        if generator_digest(gan) != expected:
            raise ValueError(f"{self.name}: {ckpt}, whose samples were marked in round {number}, has changed since")
        return gan
