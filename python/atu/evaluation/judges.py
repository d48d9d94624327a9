"""A judge measures afterwards: which samples are negative, their features, classes and confidence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..data.images import map_range, thumbnails
from ..gan import GAN
from ..measures.features import discriminator_features


class Judge(Protocol):
    """What `evaluate` asks of a classifier; `atu.evaluation.classifier.Classifier` is one."""

    classes: list[str]
    image_range: tuple[float, float]

    def judge(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [N, classes], penultimate features [N, F])."""
        ...

    def class_indices(self, classes: Iterable[int | str]) -> list[int]: ...


@dataclass
class Judged:
    """One model's n samples. negative: bool [n]. features: [n, F]. labels: int64 [n] and confidence [n], or None.
    first: the first samples themselves, for a grid. attributes: bool [n] each, by name."""

    negative: Tensor
    features: Tensor
    labels: Tensor | None
    confidence: Tensor | None
    first: Tensor
    attributes: dict[str, Tensor] = field(default_factory=dict)


Scores = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def classifier_scorer(
    classifier: Judge,
    negative: Sequence[int],
    image_range: tuple[float, float],
    is_negative: Callable[[Tensor], Tensor] | None = None,
) -> Callable[[Tensor], Scores]:
    """samples -> (negative, features, labels, confidence), by a classifier; negative by `is_negative` if given."""
    wanted = torch.tensor(list(negative))

    def score(x: Tensor) -> Scores:
        logits, features = classifier.judge(map_range(x, image_range, classifier.image_range))
        confidence, labels = logits.softmax(1).cpu().max(1)
        flags = torch.isin(labels, wanted) if is_negative is None else is_negative(x).cpu()
        return flags, features.cpu(), labels, confidence

    return score


def oracle_scorer(gan: GAN, is_negative: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Scores]:
    """The same by an oracle alone; the features are those of the original discriminator's penultimate layer."""

    def score(x: Tensor) -> Scores:
        return is_negative(x).cpu(), discriminator_features(gan, [x]), None, None

    return score


def judge_samples(
    batches: Iterable[Tensor],
    score: Callable[[Tensor], Scores],
    keep: int = 0,
    attributes: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> Judged:
    """Score samples batch by batch, keeping thumbnails of the first `keep`; attributes: samples -> bool [N] each."""
    scores, first, kept = [], [], 0
    found: dict[str, list[Tensor]] = {name: [] for name in attributes or {}}
    for x in batches:
        scores.append(score(x))
        for name, has in (attributes or {}).items():
            found[name].append(has(x).cpu())
        if kept < keep:
            first.append(thumbnails(x[: keep - kept].cpu()))
            kept += len(first[-1])
    negative, features, labels, confidence = zip(*scores, strict=True)
    shown = torch.cat(first) if first else torch.empty(0)
    flags = {name: torch.cat(parts) for name, parts in found.items()}
    return Judged(torch.cat(negative), torch.cat(features).float(), _joined(labels), _joined(confidence), shown, flags)


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None
