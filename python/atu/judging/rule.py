"""A rule says which samples are unwanted: samples [N, ...] in the GAN's range -> bool [N].

Whoever answers during a run has the role of the oracle; whoever only measures afterwards has the role of the judge.
Either is a `Rule`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.images import map_range
from ..measures.prevalence import Errors
from .classifier import Classifier
from .errors import error_counts


@dataclass(frozen=True)
class Source:
    """The origin of a rule.

    spec: its text, without folders. sha256: of the file that it names; None where there is none. sufficient: True if
    the hash alone identifies the network, so that another spec with the same hash is the same one.
    """

    spec: str
    sha256: str | None = None
    sufficient: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class Rule:
    """Says which samples are unwanted.

    Attributes:
        decide: samples [N, ...] in the GAN's range, on its device -> bool [N]. Call the rule itself, which checks.
        name: what its figures are said to come from.
        score: samples -> float32 [N], higher the likelier unwanted; None for a rule that only says yes or no.
        slope: samples -> [N], differentiable, higher the nearer to being called unwanted; None where there is none.
        classifier: gives classes and features beside the rule; None for a rule without.
        classes: indices of the classifier's classes that are unwanted, where the likeliest class decides; else empty.
        subject: names of what it looks for, where they are known.
        errors: its counts on held-out real images, where they are known.
        source: where it was read from; None for a rule that was made in Python.
    """

    decide: Callable[[Tensor], Any] = field(kw_only=False)
    name: str = "rule"
    score: Callable[[Tensor], Tensor] | None = None
    slope: Callable[[Tensor], Tensor] | None = None
    classifier: Classifier | None = None
    classes: tuple[int, ...] = ()
    subject: tuple[str, ...] = ()
    errors: Errors | None = None
    source: Source | None = None

    def __post_init__(self) -> None:
        if not callable(self.decide):
            raise TypeError(f"is_negative: expected a callable, got {type(self.decide).__name__}")

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """bool [N] on the CPU: which samples are unwanted.

        Raises:
            ValueError: the answer is something else.
        """
        answer = self.decide(x)
        if isinstance(answer, (np.ndarray, list, tuple)):
            answer = torch.as_tensor(answer)
        if not isinstance(answer, Tensor) or tuple(answer.shape) != (len(x),) or answer.dtype != torch.bool:
            got = f"{list(answer.shape)} {answer.dtype}" if isinstance(answer, Tensor) else type(answer).__name__
            raise ValueError(f"is_negative: expected a bool tensor [{len(x)}] for {len(x)} samples, got {got}")
        return answer.cpu()

    @torch.no_grad()
    def rank(self, x: Tensor) -> Tensor:
        """float32 [N] on the CPU to rank samples by, higher the likelier unwanted; 0 and 1 where there is no score."""
        return self(x).float() if self.score is None else self.score(x).cpu()

    @property
    def identity(self) -> Any:
        """Plain data by which a run folder knows it again: spec and hash; of a rule made in Python only True."""
        return True if self.source is None else {"spec": self.source.spec, "sha256": self.source.sha256}

    @property
    def spec(self) -> str:
        """The spec that it was read from, else its name."""
        return self.name if self.source is None else self.source.spec


def class_rule(classifier: Classifier, classes: Sequence[int | str], image_range: tuple[float, float]) -> Rule:
    """Samples in image_range whose likeliest class is one of `classes`, by name or index.

    Raises:
        ValueError: on an unknown class, or on none or all of them.
    """
    return index_rule(classifier, classifier.class_indices(classes), image_range)


def index_rule(
    classifier: Classifier,
    chosen: Sequence[int],
    image_range: tuple[float, float],
    threshold: float | None = None,
    source: Source | None = None,
) -> Rule:
    """Samples in image_range that a classifier calls one of the chosen classes (indices).

    Exclusive classes: the likeliest decides; with a threshold, the sum of their probabilities. Else the highest
    probability decides, by the threshold or one half.
    """
    likeliest = classifier.exclusive and threshold is None
    indices = torch.tensor(list(chosen))

    def seen(x: Tensor) -> Tensor:
        return map_range(x, image_range, classifier.image_range)

    def score(x: Tensor) -> Tensor:
        p = classifier.probabilities(seen(x)).cpu()[:, indices]
        return p.sum(1) if classifier.exclusive else p.max(1).values

    def decide(x: Tensor) -> Tensor:
        if likeliest:
            return torch.isin(classifier.predict(seen(x)).cpu(), indices)
        return score(x) >= (0.5 if threshold is None else threshold)

    climbable = likeliest and classifier.differentiable
    counted = likeliest and classifier.confusion is not None
    return Rule(
        decide=decide,
        name=classifier.name if likeliest or source is None else source.spec,
        score=score,
        slope=(lambda x: classifier.log_odds(seen(x), chosen)) if climbable else None,
        classifier=classifier if classifier.exclusive else None,
        classes=tuple(chosen) if likeliest else (),
        subject=tuple(classifier.classes[index] for index in chosen) if len(classifier.classes) > 1 else (),
        errors=_errors(classifier.confusion, chosen) if counted else None,
        source=source,
    )


def _errors(confusion: Tensor | None, negative: Sequence[int]) -> Errors | None:
    """The errors where both negatives and others are among the held-out images, else None."""
    assert confusion is not None
    hits, negatives, passed, others = error_counts(confusion, negative)
    return Errors(hits, negatives, passed, others) if negatives and others else None


def check_independent(oracle: Rule | None, judge: Rule | None) -> None:
    """Raise ValueError where the judge is the oracle: what answered during a run cannot measure its outcome."""
    if oracle is None or judge is None or oracle.source is None or judge.source is None:
        return
    first, second = oracle.source, judge.source
    same = first.sha256 is not None and first.sha256 == second.sha256 and first.sufficient and second.sufficient
    same_name = first.spec.partition("?")[0] == second.spec.partition("?")[0]
    if same or (same_name and first.sha256 == second.sha256):
        raise ValueError(
            f"judge: {second.spec} is the network that answers during the run ({first.spec}); give another one, or "
            "leave the judge out: the report then says that the oracle measures too"
        )
