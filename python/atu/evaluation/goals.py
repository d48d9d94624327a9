"""What an attacker is after: samples that a judge calls negative, and a score to climb towards them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import Feedback
from ..data.images import map_range
from ..data.samples import TensorSamples
from ..feedback.feedback import pool_size
from ..feedback.oracles import IsNegative, Oracle
from ..feedback.probe import Probe, fit_probe, logit
from ..gan import GAN
from ..measures.features import batch_features
from ..support.modules import eval_mode
from ..support.seeding import Stream, stream_seed
from .attributes import Attribute
from .judges import as_classifier, as_rule, classifier_judge


@dataclass(frozen=True)
class Goal:
    """What an attacker wants. is_negative: samples -> bool [N]. score: samples -> [N], differentiable, higher the
    nearer a sample is to being called negative."""

    is_negative: Callable[[Tensor], Tensor]
    score: Callable[[Tensor], Tensor]


def class_goal(classifier: Any, classes: Iterable[int | str], image_range: tuple[float, float]) -> Goal:
    """Samples in image_range that a `Classifier` or `ModuleClassifier` calls one of `classes`; the score is their log
    odds."""
    chosen = torch.zeros(len(classifier.classes), dtype=torch.bool, device=classifier.device)
    chosen[classifier.class_indices(classes)] = True

    def score(x: Tensor) -> Tensor:
        x = map_range(x, image_range, classifier.image_range)
        with eval_mode(classifier.module):
            logits = classifier.module(x.to(classifier.device, torch.float32))
        return logits[:, chosen].logsumexp(1) - logits[:, ~chosen].logsumexp(1)

    def is_negative(x: Tensor) -> Tensor:
        # As the classifier's oracle has it: the likeliest class decides, whatever the others add up to.
        logits, _ = classifier.logits_and_features(map_range(x, image_range, classifier.image_range))
        return chosen[logits.argmax(1)].to(x.device)

    return Goal(is_negative, score)


def feature_goal(attribute: Attribute) -> Goal:
    """Images that have a measured feature; the score is the measure itself."""
    return Goal(attribute, lambda x: attribute.measure(x))


def rule_goal(rule: IsNegative, gan: GAN, seed: int = 0, samples: int = 2000) -> Goal:
    """Samples that a rule calls negative. The score is a probe's log odds: of the rule itself where it is a probe, else
    of one fitted on what the rule says of the GAN's samples, as a rule has no gradient to go along.

    Raises:
        ValueError: the rule calls none, or all, of the samples negative.
    """
    if isinstance(rule, Probe):
        return Goal(rule, lambda x: _probe_score(rule, x))
    oracle, samples = Oracle(rule), pool_size(gan, samples)
    x = gan.sample(samples, seed=stream_seed(seed, Stream.ATTACK_PROBE))
    flags = torch.cat([oracle(part) for part in x.split(250)])
    if not 0 < int(flags.sum()) < samples:
        raise ValueError(
            f"goal: expected a rule that calls some of the original's samples negative, got {int(flags.sum())} of "
            f"{samples:,}"
        )
    probe = fit_probe(gan, TensorSamples(x.cpu()[flags]), x.cpu(), Feedback().recall)
    return Goal(oracle, lambda x: _probe_score(probe, x))


def _probe_score(probe: Probe, x: Tensor) -> Tensor:
    """Log odds [N] by a probe, differentiable with respect to x."""
    return logit(probe.whiten(batch_features(probe.gan, x).cpu()).float(), probe.weight)


def as_goal(value: Any, gan: GAN, classes: Iterable[int | str] = (), seed: int = 0) -> Goal:
    """A goal from what `evaluate` takes too: a classifier or any nn.Module with `classes`, a rule that says yes or no
    (a probe, a measured feature), or negatives, from which a probe is fitted; a `Goal` stays as it is.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    wanted = tuple(classes)
    if isinstance(value, Goal):
        return value
    if isinstance(value, Attribute):
        return feature_goal(value)
    classifier = as_classifier(value, gan)
    if classifier is None:
        if wanted:
            raise ValueError(f"classes: {', '.join(map(str, wanted))} need a classifier that knows classes")
        return rule_goal(as_rule(value, gan, seed), gan, seed)
    if hasattr(classifier, "module"):
        return class_goal(classifier, wanted, gan.image_range)
    judge = classifier_judge(classifier, gan, wanted)
    return rule_goal(lambda x: judge.score(x)[0], gan, seed)
