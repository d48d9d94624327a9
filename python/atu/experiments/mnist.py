"""`atu demo mnist`: digits, or a feature of the stroke, unlearned from the bundled GAN."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..assets import asset
from ..data.mnist import mnist
from ..evaluation import audit
from ..evaluation.attributes import FEATURES, SHARE, Attribute, attributes
from ..evaluation.attributes import feature as feature_of
from ..evaluation.audit import Rule
from ..evaluation.classifier import Classifier
from ..evaluation.goals import Goal
from ..evaluation.judges import Judge
from ..gan import GAN
from . import targets
from .bundled import beside_the_judge, mnist_judge
from .demo import Demo, Marked, Told, asked_again, finish, gans_of, given_judge, judged_by, mark, unlearned

AUDIT = audit.Budget()


@dataclass(frozen=True, kw_only=True)
class MnistDemo(Demo):
    """Settings of `demo_mnist`: those of `Demo`, and digits to unlearn, or a feature, one of `attributes.FEATURES`."""

    digits: Iterable[int | str] = ()
    feature: str | None = None


def demo_mnist(settings: MnistDemo) -> dict[str, Any]:
    """Unlearn digits, or a feature of the stroke, from the bundled MNIST GAN; writes the run folder and its report.

    The bundled classifier (or the feature's measure) plays the user: it marks negatives and, with `settings.oracle`,
    answers for generated samples during the run too. The bundled judge, which never answers, or `settings.judge`
    measures the outcome of digits, on other latents; a feature is measured as it was marked, unless by
    `settings.judge`, as there is no other measure of it.

    Returns:
        The content of OUT/report.json.
    """
    classifier = Classifier.load(asset("mnist-classifier.safetensors"))
    if settings.device is not None:
        classifier = classifier.to(settings.device)
    earlier = [] if settings.source is None else targets.earlier_targets(Path(settings.source))
    gans = gans_of(settings, asset("mnist-gan.safetensors"))
    gan = gans.start
    known = attributes(gans.first)
    target = _target(settings.digits, settings.feature, classifier, known, gan.image_range)
    measures = _measures(settings, target, classifier, gan)
    before = [targets.from_plain(plain, classifier, gan.image_range) for plain in earlier]
    marked = mark(gan, target.parts, settings)
    result = unlearned(gan, marked, [target.is_negative, *(one.is_negative for one in before)], settings)
    began = time.monotonic()
    # Of digits, what was unlearned before is counted by the judge, as it was then.
    counting = classifier if settings.judge is not None else measures["classifier"]
    again = [targets.from_plain(plain, counting, gan.image_range) for plain in earlier]
    told = Told(
        subject=target.subject,
        plain=target.plain,
        earlier=earlier,
        before=[one.subject for one in before],
        measures=measures,
        attributes={**known, **{one.subject: one.is_negative for one in again}},
        searched=partial(_searched, target),
        notes=_notes(target, marked, settings),
        command=settings.command("mnist", *_words(target)),
    )
    return finish(settings, gans, marked, result, told, began)


def _searched(target: targets.Target, judge: Judge) -> tuple[str, Goal, dict[str, Rule], audit.Budget]:
    """Of the audit: what the oracle's score leads to, judged by the judge that was not searched."""
    searched = "oracle" if target.classes else target.plain["feature"]
    own = {searched: target.is_negative} if target.classes else {}
    return searched, target.goal, {judge.name: lambda x: judge.score(x)[0], **own}, AUDIT


def _target(
    digits: Iterable[int | str],
    feature: str | None,
    classifier: Classifier,
    known: Mapping[str, Attribute],
    image_range: tuple[float, float],
) -> targets.Target:
    if feature is None:
        return targets.digits(classifier, digits, image_range)
    if tuple(digits):
        raise ValueError("feature: expected digits or a feature to unlearn, got both")
    feature_of(feature)
    return targets.stroke(known[feature])


def _words(target: targets.Target) -> list[str]:
    return [word for name in target.classes for word in ("--class", name)] or ["--feature", target.plain["feature"]]


def _notes(target: targets.Target, marked: Marked, settings: MnistDemo) -> list[str]:
    who = "the bundled classifier" if target.classes else "the feature's measure"
    if settings.judge is not None:
        measured = judged_by(settings.judge)
    elif target.classes:
        measured = "Another network, which never answered, judges the outcome"
    else:
        measured = "It judges the outcome"
    found = f"{len(marked.samples)} negatives, marked by {who} among {marked.looked:,} samples."
    notes = [f"{found} {asked_again(settings)} {measured} on other latents."]
    if not target.classes:
        unit = FEATURES[target.plain["feature"]].unit
        notes.append(
            f"A sample is negative above {target.plain['threshold']:.3g} {unit}, which {100 * SHARE:g} % of the "
            "bundled GAN's samples exceed."
        )
    return notes


def _measures(settings: MnistDemo, target: targets.Target, classifier: Classifier, gan: GAN) -> dict[str, Any]:
    """Of `evaluate`: who judges, what stands beside it, who answered, and the real images."""
    if settings.judge is not None:
        return {**given_judge(settings.judge, gan, "mnist", target.classes), "real": mnist()[0], "answered": ()}
    answered = [classifier.name if target.classes else target.plain["feature"]] if settings.oracle else []
    return dict(
        classifier=mnist_judge().to(gan.device),
        negative_classes=target.classes,
        is_negative=None if target.classes else target.is_negative,
        judges=beside_the_judge(gan.device) if target.classes else None,
        answered=answered,
        real=mnist(),
    )
