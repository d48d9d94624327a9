"""A judge's verdicts on samples: negative or not, features, classes and confidence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.images import map_range, thumbnails
from ..gan import GAN
from ..judging.rule import Rule
from ..measures.features import DiscriminatorFeatures

SHOWN = 24  # negatives of each model that are kept to be looked at


class Verdicts(NamedTuple):
    """negative: bool [N]. features: [N, F]. labels: int64 [N], and confidence [N], or None. All on the CPU."""

    negative: Tensor
    features: Tensor
    labels: Tensor | None
    confidence: Tensor | None


Look = Callable[[Tensor], Verdicts]


def verdicts_of(judge: Rule, gan: GAN) -> Look:
    """Samples [N, ...] in the GAN's range -> the judge's `Verdicts`. Features are those of its classifier, or of the
    GAN's discriminator where it has none (`feature_source`)."""
    classifier, negative = judge.classifier, torch.tensor(judge.classes)
    of = DiscriminatorFeatures(gan) if feature_source(judge, gan) == "discriminator" else None
    if classifier is None:
        assert of is not None
        return lambda x: Verdicts(judge(x), of.penultimate([x]), None, None)

    def look(x: Tensor) -> Verdicts:
        logits, features = classifier.logits_and_features(map_range(x, gan.image_range, classifier.image_range))
        confidence, labels = logits.softmax(1).cpu().max(1)
        flags = torch.isin(labels, negative) if judge.classes else judge(x)
        if of is not None:
            features = of.penultimate([x])
        return Verdicts(flags, features.cpu(), labels, confidence)

    return look


def feature_source(judge: Rule, gan: GAN) -> str:
    """ "classifier" or "discriminator": whose features `verdicts_of` gives."""
    classifier = judge.classifier
    if classifier is None or (not classifier.has_features and gan.discriminator is not None):
        return "discriminator"
    return "classifier"


@dataclass
class Judged:
    """One model's n samples. negative: bool [n]. features: [n, F]. labels: int64 [n] and confidence [n], or None.
    first: the first samples themselves (thumbnails of large images), for a grid. attributes: bool [n] each, by name.
    shown: the first samples that are negative, likewise. verdicts: bool [n] each of further judges, by name; extracted:
    features [n, F] of further networks, by name."""

    negative: Tensor
    features: Tensor
    labels: Tensor | None
    confidence: Tensor | None
    first: Tensor
    attributes: dict[str, Tensor] = field(default_factory=dict)
    shown: Tensor = field(default_factory=lambda: torch.empty(0))
    verdicts: dict[str, Tensor] = field(default_factory=dict)
    extracted: dict[str, Tensor] = field(default_factory=dict)


def judge_samples(
    batches: Iterable[Tensor],
    look: Look,
    keep: int = 0,
    attributes: Mapping[str, Rule] | None = None,
    shown: int = SHOWN,
    judges: Mapping[str, Rule] | None = None,
    extractors: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> Judged:
    """Look at samples batch by batch, keeping thumbnails of the first `keep` and of the first `shown` negatives.

    judges: further ones, of which only the yes or no is kept. extractors: samples -> features [N, F], by name.
    """
    verdicts = list[Verdicts]()
    first, negatives = _First(keep), _First(shown)
    asked, further = _Asked(attributes or {}), _Asked(judges or {})
    extracted = _Asked(extractors or {})
    for x in batches:
        verdicts.append(look(x))
        for questions in (asked, further, extracted):
            questions.add(x)
        first.add(x)
        negatives.add(x[verdicts[-1].negative.to(x.device)])
    negative, features, labels, confidence = zip(*verdicts, strict=True)
    return Judged(
        torch.cat(negative),
        torch.cat(features).float(),
        _joined(labels),
        _joined(confidence),
        first.samples(),
        asked.answers(),
        negatives.samples(),
        further.answers(),
        extracted.answers(),
    )


class _Asked:
    """Answers of functions of the samples, batch by batch, by name."""

    def __init__(self, questions: Mapping[str, Callable[[Tensor], Tensor]]):
        self.questions = questions
        self.parts: dict[str, list[Tensor]] = {name: [] for name in questions}

    def add(self, x: Tensor) -> None:
        for name, question in self.questions.items():
            self.parts[name].append(question(x).cpu())

    def answers(self) -> dict[str, Tensor]:
        return {name: torch.cat(parts) for name, parts in self.parts.items()}


class _First:
    """Thumbnails of the first `most` samples of those added, on the CPU."""

    def __init__(self, most: int):
        self.left, self.parts = most, list[Tensor]()

    def add(self, x: Tensor) -> None:
        if self.left and len(x):
            self.parts.append(thumbnails(x[: self.left].cpu()))
            self.left -= len(self.parts[-1])

    def samples(self) -> Tensor:
        return torch.cat(self.parts) if self.parts else torch.empty(0)


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None
