"""A classifier of several parts at once, each of which is one of several values: ears, muzzle, colour of a face.

What is negative is a conjunction of values of parts ("antlers", or "cat": pointed ears over a cat's muzzle), given by
name. A `PartsView` answers as a classifier of one set of classes does, so whatever takes a classifier takes it:

    names of one part alone   the classes are that part's values
    else                      each combination of the names that hold, and "other"; what a name joins by "+" counts for
                              itself

The network takes the parts for independent given the image, so the probability of a conjunction is a product.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..formats.tensors import CheckpointError, fill, load_format, module_tensors, save_tensors
from ..networks.classifier import ConvClassifier, StridedClassifier
from ..support.digest import sha256_of
from .classifier import Classifier

FORMAT = "atu-parts-classifier"
PartsNetwork = ConvClassifier | StridedClassifier
NETWORKS: Mapping[str, Callable[..., PartsNetwork]] = {
    "ConvClassifier": ConvClassifier,
    "StridedClassifier": StridedClassifier,
}
OTHER = "other"
# Part -> values; it holds where each part named has one of its values.
Condition = Mapping[str, Sequence[str]]
Conditions = Mapping[str, Condition]


class PartsClassifier(Classifier):
    """A network whose outputs are the logits of several parts side by side; its classes are PART=VALUE.

    Args:
        module: of NETWORKS.
        parts: part -> names of its values.
        conditions: the names that negatives are given by, and what they stand for.
        image_range, name, sha256: as of a `Classifier`.
    """

    def __init__(
        self,
        module: PartsNetwork,
        parts: Mapping[str, Sequence[str]],
        conditions: Conditions,
        image_range: tuple[float, float] = (-1.0, 1.0),
        name: str = "classifier",
        sha256: str | None = None,
    ):
        classes = [f"{part}={value}" for part, values in parts.items() for value in values]
        if module.head.out_features != len(classes):
            raise ValueError(f"parts: expected {module.head.out_features} values in all, got {len(classes)}")
        super().__init__(module, classes, image_range, name, sha256=sha256, exclusive=False)
        self.parts = {part: tuple(values) for part, values in parts.items()}
        self.conditions = {
            name: {part: tuple(values) for part, values in condition.items()} for name, condition in conditions.items()
        }

    def split(self, logits: Tensor) -> dict[str, Tensor]:
        """Logits [N, values] of each part, of the network's logits [N, C]."""
        sizes = [len(values) for values in self.parts.values()]
        return dict(zip(self.parts, logits.split(sizes, 1), strict=True))

    def labels(self, x: Tensor) -> Tensor:
        """The likeliest value of each part, int64 [N, parts]."""
        logits, _ = self.logits_and_features(x)
        return torch.stack([part.argmax(1) for part in self.split(logits).values()], 1)

    def condition(self, name: str) -> Condition:
        """The condition of a name: one of `conditions`, or PART=VALUE; several joined by "+" must all hold.

        Raises:
            ValueError: there is no such name, part or value, or what is joined cannot hold at once.
        """
        condition: dict[str, tuple[str, ...]] = {}
        for one in name.split("+"):
            key, _, value = one.partition("=")
            if one not in self.conditions and value not in self.parts.get(key, ()):
                names = ", ".join(self.conditions)
                raise ValueError(f"class: expected one of {names}, or PART=VALUE (color=pink), got {one!r}")
            for part, values in self.conditions.get(one, {key: (value,)}).items():
                condition[part] = tuple(v for v in condition.get(part, self.parts[part]) if v in values)
                if not condition[part]:
                    raise ValueError(f"class: nothing is all of {name}: no value of {part} is left")
        return condition

    def view(self, names: Iterable[str]) -> PartsView:
        """A classifier of one set of classes, of which some are what `names` stand for.

        Raises:
            ValueError: as of `condition`; no name.
        """
        return PartsView(self, {str(name): self.condition(str(name)) for name in names})

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> Path:
        """Write the classifier atomically, its floats as `dtype`; returns the path."""
        tensors = module_tensors("net", self.module)
        stored = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
        config = dict(
            network=type(self.module).__name__,
            kwargs=self.module.init_kwargs,
            parts=self.parts,
            rules=self.conditions,
            image_range=list(self.image_range),
        )
        return save_tensors(path, stored, {"format": FORMAT, "config": json.dumps(config)})

    @classmethod
    def load(cls, path: str | Path) -> PartsClassifier:
        """Read a classifier that `save` wrote, as float32.

        Raises:
            CheckpointError: the file is missing, corrupt, or no classifier of this format.
        """
        tensors, metadata = load_format(path, FORMAT)
        try:
            config = json.loads(metadata["config"])
            module = NETWORKS[config["network"]](**config["kwargs"])
            parts, conditions, image_range = config["parts"], config["rules"], tuple(config["image_range"])
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, OverflowError) as error:
            raise CheckpointError(f"{path}: its config cannot be read ({error})") from error
        floats = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
        fill(module, {name.removeprefix("net."): t for name, t in floats.items()}, str(path))
        module.eval().requires_grad_(False)
        return cls(module, parts, conditions, image_range, Path(path).stem, sha256_of(Path(path)))


class PartsView(Classifier):
    """A `PartsClassifier` as a classifier of one set of classes; see the head of this file.

    conditions: the names that `class_indices` knows beside the classes' own, and what they stand for. Its `confusion`
    is not known before it is counted (`atu.judging.confusion`).
    """

    def __init__(self, classifier: PartsClassifier, conditions: Conditions):
        if not conditions:
            raise ValueError("class: expected at least one name, got none")
        parts = list(dict.fromkeys(part for condition in conditions.values() for part in condition))
        cells = list(itertools.product(*(classifier.parts[part] for part in parts)))
        atoms = {atom: classifier.condition(atom) for name in conditions for atom in name.split("+")}
        named = [
            cell[0] if len(parts) == 1 else " and ".join(atom for atom in atoms if _holds(atoms[atom], parts, cell))
            for cell in cells
        ]
        classes = list(dict.fromkeys(name or OTHER for name in named))
        index = [classes.index(name or OTHER) for name in named]
        self.classifier, self._joint = classifier, _Joint(classifier, parts, index)
        super().__init__(self._joint, classes, classifier.image_range, classifier.name, sha256=classifier.sha256)
        self.members = {
            name: sorted({i for i, cell in zip(index, cells, strict=True) if _holds(condition, parts, cell)})
            for name, condition in conditions.items()
        }
        self.columns = [list(classifier.parts).index(part) for part in parts]
        self.cell_class = torch.tensor(index).reshape([len(classifier.parts[part]) for part in parts])

    def logits_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(log probabilities [N, classes], penultimate features [N, F]) of images in `image_range`."""
        logits, features = self.classifier.logits_and_features(x)
        return self.of_parts(logits), features

    def of_parts(self, logits: Tensor) -> Tensor:
        """Log probabilities [N, classes] by logits [N, C] of the `PartsClassifier`, so that many views ask it once."""
        return self._joint.joint(logits)

    def truth(self, labels: Tensor) -> Tensor:
        """The class, int64 [N], of samples whose parts are known: labels int64 [N, parts]."""
        return self.cell_class[tuple(labels[:, self.columns].t())]

    def class_indices(self, classes: Iterable[int | str]) -> list[int]:
        """Indices of the classes in which one of the given names holds; a class's own name or index will do too.

        Raises:
            ValueError: on a name there is none of, or none at all, or all classes.
        """
        members = [self.classes[i] for one in classes for i in self.members.get(str(one), ())]
        return super().class_indices([*members, *(one for one in classes if str(one) not in self.members)])


def _holds(condition: Condition, parts: Sequence[str], values: Sequence[str]) -> bool:
    return all(value in condition.get(part, (value,)) for part, value in zip(parts, values, strict=True))


class _Joint(nn.Module):
    """Log probabilities [N, classes] of sets of values of some parts, which are independent given the image."""

    def __init__(self, classifier: PartsClassifier, parts: Sequence[str], index: Sequence[int]):
        super().__init__()
        self.net: PartsNetwork = classifier.module
        self.parts = list(parts)
        self.img_resolution, self.img_channels = self.net.img_resolution, self.net.img_channels
        self.split = classifier.split
        # [classes, cells]: whether a cell of the parts' joint table belongs to a class.
        members = torch.arange(max(index) + 1)[:, None] == torch.tensor(index)
        self.members: Tensor
        self.register_buffer("members", members)

    def features(self, x: Tensor) -> Tensor:
        """Penultimate layer, [N, F]."""
        return self.net.features(x)

    def head(self, features: Tensor) -> Tensor:
        """Log probabilities [N, classes] by the penultimate layer."""
        return self.joint(self.net.head(features))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def joint(self, together: Tensor) -> Tensor:
        """Log probabilities [N, classes] by the network's logits [N, C]."""
        logits = self.split(together)
        joint = logits[self.parts[0]].log_softmax(1)
        for part in self.parts[1:]:
            joint = (joint[:, :, None] + logits[part].log_softmax(1)[:, None, :]).flatten(1)
        return torch.stack([joint[:, row].logsumexp(1) for row in self.members], 1)
