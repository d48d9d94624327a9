"""What a demonstration unlearns: digits that the bundled classifier knows, or a measured feature of the stroke."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..evaluation.attributes import Attribute, feature
from ..evaluation.classifier import Classifier
from ..evaluation.goals import Goal, class_goal, feature_goal

Oracle = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Target:
    """subject: in words. parts: an oracle a thing that the user marks negatives of. classes: of the classifier, none
    for a feature. goal: for the audit; its is_negative is the oracle of the whole. plain: as JSON, see `from_plain`."""

    subject: str
    parts: Mapping[str, Oracle]
    classes: tuple[str, ...]
    goal: Goal
    plain: Mapping[str, Any]

    @property
    def is_negative(self) -> Oracle:
        return self.goal.is_negative


def digits(classifier: Classifier, wanted: Iterable[int | str], image_range: tuple[float, float]) -> Target:
    """Images of some of the classifier's classes.

    Raises:
        ValueError: a class there is none of, none, or all of them.
    """
    names = [classifier.classes[index] for index in classifier.class_indices(wanted)]
    parts = {name: class_goal(classifier, [name], image_range).is_negative for name in names}
    subject = f"the digit {names[0]}"
    if len(names) > 1:
        subject = f"the digits {', '.join(names[:-1])} and {names[-1]}"
    return Target(subject, parts, tuple(names), class_goal(classifier, names, image_range), {"classes": names})


def stroke(attribute: Attribute) -> Target:
    """Images that have a measured feature."""
    plain = {"feature": attribute.name, "threshold": attribute.threshold}
    return Target(attribute.feature.subject, {attribute.name: attribute}, (), feature_goal(attribute), plain)


def from_plain(plain: Mapping[str, Any], classifier: Classifier, image_range: tuple[float, float]) -> Target:
    """The target that `plain` (of a target) describes."""
    if "classes" in plain:
        return digits(classifier, plain["classes"], image_range)
    feature(plain["feature"])
    return stroke(Attribute(plain["feature"], float(plain["threshold"]), image_range))


def earlier_targets(run: Path, kinds: Sequence[str] = ("classes", "feature")) -> list[dict[str, Any]]:
    """What the run in a folder, and those that it went on from, had unlearned, as plain data.

    kinds: of which each target has one.

    Raises:
        ValueError: the folder holds no result and report of a demonstration, or those of another one.
    """
    try:
        found = json.loads((run / "report.json").read_text(encoding="utf-8"))["targets"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"from: {run} holds no report of an unlearning that could be gone on from ({error})") from None
    if not (run / "result.safetensors").is_file() or not found:
        raise ValueError(f"from: expected the folder of a finished `atu demo`, but {run} holds no result of one")
    if any(not set(kinds) & one.keys() for one in found):
        raise ValueError(f"from: {run} is of another demonstration: what it unlearned is not of this GAN")
    return list(found)


def any_of(oracles: Sequence[Oracle]) -> Oracle:
    """samples -> whether some oracle calls them negative."""

    def is_negative(x: Tensor) -> Tensor:
        flags = oracles[0](x)
        for oracle in oracles[1:]:
            flags = flags | oracle(x)
        return flags

    return is_negative
