"""A judge measures afterwards: which samples are negative, their features, classes and confidence.

It may be anything that tells negatives from others: `as_judge` makes one of a classifier, any nn.Module that gives one
logit a class, any callable that says yes or no (a probe, an oracle), or of negatives themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..config import Feedback
from ..data.images import map_range, thumbnails
from ..data.samples import Samples, as_samples
from ..feedback.oracles import IsNegative, Oracle
from ..feedback.places import marked_samples
from ..feedback.probe import Probe, fit_probe
from ..gan import GAN
from ..measures.features import discriminator_features
from ..measures.prevalence import Errors
from ..support import progress
from ..support.modules import eval_mode
from ..support.seeding import Stream, stream_seed
from .classifier import Classifier, ModuleClassifier, check_logits, error_counts

SHOWN = 24  # negatives of each model that are kept to be looked at
Scores = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


@runtime_checkable
class AnyClassifier(Protocol):
    """What is asked of a classifier; `Classifier` and `ModuleClassifier` of classifier.py are such."""

    classes: list[str]
    image_range: tuple[float, float]

    def logits_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [N, classes], penultimate features [N, F])."""
        ...

    def class_indices(self, classes: Iterable[int | str]) -> list[int]: ...


@dataclass(frozen=True)
class Judge:
    """score: samples in the GAN's range -> (negative bool [N], features [N, F], labels int64 [N] or None, confidence
    [N] or None), on the CPU. classes: their names; none where it says only yes or no. negative: the classes that are
    negative; none where a rule of its own says so. features: where they come from, for the report. name: what figures
    that it gave are said to come from. errors: its counts on held-out real samples, where they are known. marks: a
    probe's, on held-out marks (`Probe.marks`)."""

    score: Callable[[Tensor], Scores]
    classes: Sequence[str] = ()
    negative: Sequence[int] = ()
    features: str = "classifier"
    name: str = "judge"
    errors: Errors | None = None
    marks: Mapping[str, int] | None = None


def as_judge(
    value: Any,
    gan: GAN,
    negative_classes: Iterable[int | str] = (),
    is_negative: IsNegative | None = None,
    seed: int = 0,
) -> Judge:
    """A judge of `gan`'s samples.

    Args:
        value: a `Judge`, which stays as it is; an `AnyClassifier`; an nn.Module, samples in `gan.image_range` -> logits
            [N, classes], whose classes are named "0", "1", ... (`ModuleClassifier` takes other names and ranges); the
            file of a `Classifier`; a callable, samples -> bool [N], a probe for instance; or negatives, from which
            a probe is fitted: a folder of images, a tensor, an array or a dataset. None where `is_negative` says it
            all.
        negative_classes: names or indices, of a classifier.
        is_negative: samples -> bool [N], in place of negative_classes; classes and features are the classifier's where
            one is given, else features are those of the GAN's discriminator.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    if isinstance(value, Judge):
        return value
    wanted = tuple(negative_classes)
    if value is None and is_negative is None:
        raise ValueError(
            "classifier: expected a classifier, negatives or a rule (is_negative) that say which samples are negative"
        )
    classifier = None if value is None else as_classifier(value, gan)
    if classifier is None:
        if wanted:
            raise ValueError(f"negative_classes: {', '.join(map(str, wanted))} need a classifier that knows classes")
        if value is not None and is_negative is not None:
            raise ValueError("is_negative: expected one rule that says what is negative, got another beside it")
        return yes_no_judge(as_rule(value, gan, seed) if is_negative is None else is_negative, gan)
    if is_negative is not None and wanted:
        raise ValueError("is_negative: expected either negative_classes or is_negative beside a classifier, got both")
    return classifier_judge(classifier, gan, wanted, is_negative)


def as_classifier(value: Any, gan: GAN) -> AnyClassifier | None:
    """The classifier that `value` is, an nn.Module or a file among them; None where it knows no classes."""
    if isinstance(value, AnyClassifier):
        return value
    if isinstance(value, (str, Path)) and not Path(value).is_dir():
        return Classifier.load(value)
    if not isinstance(value, nn.Module):
        return None
    x = gan.sample(2)
    tensor = next((t for t in [*value.parameters(), *value.buffers()]), x)
    with torch.no_grad(), eval_mode(value):
        logits = value(x.to(tensor.device, torch.float32))
    check_logits(logits, len(x))
    return ModuleClassifier(value, [str(index) for index in range(logits.shape[1])], gan.image_range)


def as_rule(value: Any, gan: GAN, seed: int = 0) -> IsNegative:
    """samples -> bool [N]: `value` itself where it can be called, else a probe fitted on it."""
    return value if callable(value) else probe_of(gan, value, seed=seed)


def probe_of(
    gan: GAN,
    negatives: Any,
    recall: float | None = None,
    seed: int = 0,
    resize: bool = False,
    samples: int = 2000,
    good: Samples | None = None,
) -> Probe:
    """A probe that tells negatives (as `atu.unlearn` takes them) from the GAN's samples, of latents of its own.

    recall: share of the held-out negatives to be recognised; that of the settings when not given. resize: as of
    `atu.unlearn`. samples: how many it is fitted on. good: samples that are none; those of the folder of marks, where
    the negatives are one.
    """
    marked, beside = marked_samples(gan, negatives, "negatives", resize)
    if beside is not None and good is None:
        good = as_samples(beside, gan.sample_shape, gan.image_range, "good", gan.c_dim, resize=resize)
    pool = progress.track("probe", gan.batches(samples, stream_seed(seed, Stream.EVALUATION_PROBE)), samples)
    return fit_probe(gan, marked, pool, Feedback().recall if recall is None else recall, good)


def classifier_judge(
    classifier: AnyClassifier,
    gan: GAN,
    negative_classes: Iterable[int | str] = (),
    is_negative: IsNegative | None = None,
) -> Judge:
    """Judges by a classifier; negative by `is_negative` if given."""
    negative = [] if is_negative is not None else classifier.class_indices(negative_classes)
    wanted, rule = torch.tensor(negative), None if is_negative is None else Oracle(is_negative)

    def score(x: Tensor) -> Scores:
        logits, features = classifier.logits_and_features(map_range(x, gan.image_range, classifier.image_range))
        confidence, labels = logits.softmax(1).cpu().max(1)
        flags = torch.isin(labels, wanted) if rule is None else rule(x)
        return flags, features.cpu(), labels, confidence

    counts: Tensor | None = getattr(classifier, "confusion", None)
    return Judge(
        score,
        list(classifier.classes),
        negative,
        getattr(classifier, "feature_source", "classifier"),
        name_of(classifier) if rule is None else name_of(is_negative),
        None if counts is None or rule is not None else _errors(counts, negative),
    )


def _errors(confusion: Tensor, negative: Sequence[int]) -> Errors | None:
    """A judge's errors where both negatives and others are among the held-out images, else None."""
    hits, negatives, passed, others = error_counts(confusion, negative)
    return Errors(hits, negatives, passed, others) if negatives and others else None


def yes_no_judge(is_negative: IsNegative, gan: GAN) -> Judge:
    """Judges by a rule alone; the features are those of the GAN's discriminator, its penultimate layer."""
    rule = Oracle(is_negative)

    def score(x: Tensor) -> Scores:
        return rule(x), discriminator_features(gan, [x]), None, None

    marks = is_negative.marks if isinstance(is_negative, Probe) else None
    return Judge(score, features="discriminator", name=name_of(is_negative), marks=marks)


def name_of(value: Any) -> str:
    """What a judge is called where nobody named it: its own `name`, else what kind of thing it is."""
    if isinstance(value, Probe):
        return "probe"
    own = getattr(value, "name", None)
    if isinstance(own, str) and own:
        return own
    return "rule" if callable(value) and not isinstance(value, nn.Module) else type(value).__name__


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
    score: Callable[[Tensor], Scores],
    keep: int = 0,
    attributes: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    shown: int = SHOWN,
    judges: Mapping[str, Judge] | None = None,
    extractors: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> Judged:
    """Score samples batch by batch, keeping thumbnails of the first `keep` and of the first `shown` negatives.

    attributes: samples -> bool [N], by name. judges: further ones, of whom only the verdict is kept. extractors:
    samples -> features [N, F], by name.
    """
    scores = []
    first, negatives = _First(keep), _First(shown)
    asked = _Asked({name: Oracle(has) for name, has in (attributes or {}).items()})
    verdicts = _Asked({name: _verdict(judge) for name, judge in (judges or {}).items()})
    extracted = _Asked(dict(extractors or {}))
    for x in batches:
        scores.append(score(x))
        for questions in (asked, verdicts, extracted):
            questions.add(x)
        first.add(x)
        negatives.add(x[scores[-1][0].to(x.device)])
    negative, features, labels, confidence = zip(*scores, strict=True)
    return Judged(
        torch.cat(negative),
        torch.cat(features).float(),
        _joined(labels),
        _joined(confidence),
        first.samples(),
        asked.answers(),
        negatives.samples(),
        verdicts.answers(),
        extracted.answers(),
    )


def _verdict(judge: Judge) -> Callable[[Tensor], Tensor]:
    return lambda x: judge.score(x)[0]


class _Asked:
    """What functions of the samples answer, batch by batch, by name."""

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
