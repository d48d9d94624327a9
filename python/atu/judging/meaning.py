"""The meaning of a network's outputs: by the options of its spec, else by the outputs for some samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ..support import progress
from .spec import OPTIONS, OUTPUTS, Spec

UNWANTED = "unwanted"  # the class that needs no naming: what `atu label` and `atu train-classifier` call it


def output_of(spec: Spec, y: Tensor) -> str:
    """ "softmax", "sigmoid" or "probabilities", for outputs y [N, K].

    Raises:
        ValueError: an option that does not fit, or outputs that may be one thing or another.
    """
    said = spec.options.get("output")
    if said is not None:
        if said not in OUTPUTS:
            raise ValueError(f"{spec.source}: expected {OPTIONS['output']}; got output={said}")
        if said == "softmax" and y.shape[1] == 1:
            raise ValueError(
                f"{spec.source}: gives one number a sample, of which a softmax is always 1: output=sigmoid"
            )
        return said
    inside = bool((y >= 0).all() and (y <= 1).all())
    if y.shape[1] == 1:
        output = "probabilities" if inside else "sigmoid"
        what = "a probability" if inside else "a logit"
        progress.log.info("%s gives one number a sample, taken for %s (output=%s)", spec.source, what, output)
        return output
    if not inside:
        return "softmax"
    if sums_to_one(y, "probabilities"):
        return "probabilities"
    raise ValueError(
        f"{spec.source}: gives {y.shape[1]} numbers from 0 to 1 a sample that do not add up to 1: say "
        "output=probabilities if each is a probability by itself, or output=softmax if they are logits"
    )


def sums_to_one(y: Tensor, output: str) -> bool:
    """True if the outputs y [N, K] are probabilities of exclusive classes."""
    return output == "probabilities" and y.shape[1] > 1 and bool(((y.sum(1) - 1).abs() < 1e-3).all())


def names_of(spec: Spec, count: int) -> list[str]:
    """The names of `count` classes; their numbers where the spec names none."""
    text = spec.options.get("names")
    if text is None:
        return [UNWANTED] if count == 1 else [str(index) for index in range(count)]
    if Path(text).is_file():
        names = [line.strip() for line in Path(text).read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        names = text.split(",")
    if len(names) != count or len(set(names)) != count:
        raise ValueError(
            f"{spec.source}: gives {count} numbers a sample, and {len(names)} names ({len(set(names))} different) were "
            f"given: {OPTIONS['names']}"
        )
    return names


def threshold_of(spec: Spec) -> float | None:
    """The threshold that the spec gives.

    Raises:
        ValueError: it is no number between 0 and 1.
    """
    numbers = spec.numbers("threshold", (1,), None)
    if numbers is not None and not 0 < numbers[0] < 1:
        raise ValueError(f"{spec.source}: expected a threshold between 0 and 1, got {numbers[0]:g}")
    return None if numbers is None else numbers[0]


def chosen_of(spec: Spec, names: Sequence[str], exclusive: bool) -> list[int]:
    """Indices of the unwanted classes.

    Raises:
        ValueError: the spec names none, an unknown one, or all classes where they are exclusive.
    """
    text = spec.options.get("class")
    if text is None:
        if UNWANTED not in names:
            raise ValueError(
                f"{spec.source}: class: say which of its classes are unwanted, one of {_listed(names)}: {spec.source}?"
                f"class={names[0]}, or --class {names[0]}"
            )
        return [list(names).index(UNWANTED)]
    chosen = sorted({_index(spec.source, names, part) for part in text.split(",")})
    if exclusive and len(chosen) == len(names):
        raise ValueError(
            f"{spec.source}: class: all of its {len(names)} classes are named, and none is left to be good"
        )
    return chosen


def _index(source: str, names: Sequence[str], one: str) -> int:
    if one in names:
        return list(names).index(one)
    if one.isdigit() and int(one) < len(names):
        return int(one)
    raise ValueError(f"{source}: class: expected one of {_listed(names)}, got {one!r}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" ... ({len(names)} in all)" if len(names) > 12 else "")
