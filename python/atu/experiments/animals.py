"""`atu demo animals`: features and species unlearned from the bundled GAN of drawn animals.

The oracle marks the negatives and answers during the run. The judge, a network of another kind that learned from other
drawings, only measures afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..assets import asset
from ..data import animals
from ..data.images import map_range, to_range
from ..evaluation.audit import Rule
from ..evaluation.classifier import count_calls
from ..evaluation.goals import Goal, class_goal
from ..evaluation.judges import Judge
from ..evaluation.parts import PartsClassifier, PartsView
from ..gan import GAN
from ..measures.frechet import frechet
from ..measures.manifold import manifold
from ..support import progress
from .demo import Demo, Marked, Told, asked_again, finish, gans_of, given_judge, judged_by, mark, unlearned
from .targets import earlier_targets

HELD_OUT = 4000  # drawings that no network learned from
PLURALS = {"dog": "dogs", "cat": "cats", "deer": "deer", "goat": "goats", "boar": "boars"}


def oracle() -> PartsClassifier:
    """The bundled classifier that marks and answers."""
    return PartsClassifier.load(asset("animals-classifier.safetensors"))


def judge() -> PartsClassifier:
    """The bundled classifier that measures, and never answers during a run."""
    return PartsClassifier.load(asset("animals-judge.safetensors"))


@dataclass(frozen=True, kw_only=True)
class AnimalsDemo(Demo):
    """Settings of `demo_animals`: those of `Demo`, and these.

    names: what to unlearn, see `PartsClassifier.rule`: features, species, PART=VALUE, or several of these joined by
    "+", which must all hold. ckpt: a GAN of such faces in place of the bundled one.
    """

    names: tuple[str, ...]
    ckpt: str | Path | None = None


def demo_animals(settings: AnimalsDemo) -> dict[str, Any]:
    """Unlearn features or species from the bundled GAN of drawn animals; writes the run folder and its report.

    The bundled oracle marks the negatives and answers; the bundled judge, or `settings.judge`, measures the outcome.

    Returns:
        The content of OUT/report.json.
    """
    names = settings.names
    asked, measuring = oracle(), _Remembering.of(judge())
    asked.view(names)  # what is wrong with the names is told now
    drawn = held_out()  # and what is missing to draw them
    if settings.device is not None:
        asked.to(settings.device)
        measuring.to(settings.device)
    earlier = [] if settings.source is None else earlier_targets(Path(settings.source), ["names"])
    gans = gans_of(settings, settings.ckpt or asset("animals-gan.safetensors"))
    gan = gans.start
    given = None if settings.judge is None else given_judge(settings.judge, gan, "animals", names)

    def finds(one: tuple[str, ...], classifier: PartsClassifier = asked) -> Callable[[Tensor], Tensor]:
        return called(classifier.view(one), one, gan.image_range)

    marked = mark(gan, {name: finds((name,)) for name in names}, settings)
    before = [tuple(plain["names"]) for plain in earlier]
    result = unlearned(gan, marked, [finds(names), *map(finds, before)], settings)
    began = time.monotonic()
    own = judges_of(names, gan.device, measuring)
    images = to_range(drawn.images, gan.image_range)
    labels = own["classifier"].truth(drawn.labels)
    measures = {**own, "real": (images, labels)} if given is None else {**given, "real": images}
    measures["answered"] = own["answered"] if settings.oracle and given is None else ()
    has = _Answers(measuring, gan.image_range)
    kept: dict[str, Callable[[Tensor], Tensor]] = {name: has.rule(name) for name in animals.FEATURES}
    kept |= {subject_of(one): finds(one, measuring) for one in before}

    def searched(judge: Judge) -> tuple[str, Goal, dict[str, Rule], None]:
        goal = class_goal(asked.view(names), names, gan.image_range)
        own = {"judge": finds(names, measuring)} if given is None else {judge.name: lambda x: judge.score(x)[0]}
        return "oracle", goal, {**own, "oracle": goal.is_negative}, None

    told = Told(
        subject=subject_of(names),
        plain={"names": list(names)},
        earlier=earlier,
        before=[subject_of(one) for one in before],
        measures=measures,
        attributes=kept,
        searched=searched,
        notes=_notes(marked, settings),
        command=settings.command("animals", *_words(settings)),
    )
    return finish(settings, gans, marked, result, told, began)


def called(view: PartsView, names: tuple[str, ...], image_range: tuple[float, float]) -> Callable[[Tensor], Tensor]:
    """Images in image_range -> bool [N]: whether the classifier finds one of the names in them."""
    finds = view.oracle(names)
    return lambda x: finds(map_range(x, image_range, view.image_range))


class _Remembering(PartsClassifier):
    """Remembers what it said of the last batch, about which `evaluate` and then the rules ask."""

    last: tuple[Tensor, Tensor, Tensor] | None = None  # the batch, its logits and its features

    @classmethod
    def of(cls, one: PartsClassifier) -> _Remembering:
        return cls(one.module, one.parts, one.rules, one.image_range, one.name)

    def logits_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.last is None or not torch.equal(self.last[0], x):
            self.last = (x.clone(), *super().logits_and_features(x))
        return self.last[1:]


class _Answers:
    """Rules about one batch of samples, for which the network is asked once."""

    def __init__(self, classifier: PartsClassifier, image_range: tuple[float, float]):
        self.classifier, self.image_range = classifier, image_range
        self.asked: Tensor | None = None
        self.labels = torch.empty(0)

    def rule(self, name: str) -> Callable[[Tensor], Tensor]:
        wanted = self.classifier.rule(name)

        def has(x: Tensor) -> Tensor:
            if x is not self.asked:
                found = self.classifier.labels(map_range(x, self.image_range, self.classifier.image_range))
                self.asked, self.labels = x, found.cpu()
            return animals.holds(self.labels, wanted)

        return has


def held_out() -> animals.Drawings:
    """Drawings that no network has seen."""
    return animals.drawings("held-out", HELD_OUT)


def with_errors(classifier: PartsClassifier, *names: tuple[str, ...]) -> list[PartsView]:
    """The classifier's view of each group of names, its errors on unseen drawings counted (`confusion`)."""
    data, views = held_out(), [classifier.view(group) for group in names]
    batches = (to_range(x, classifier.image_range) for x in data.images.split(500))
    logits = torch.cat([classifier.logits_and_features(x)[0] for x in batches])
    for view in views:
        calls = view.of_parts(logits).argmax(1).cpu()
        view.confusion = count_calls(view.truth(data.labels), calls, len(view.classes))
    return views


def judges_of(
    names: tuple[str, ...], device: torch.device | str, measuring: PartsClassifier | None = None
) -> dict[str, Any]:
    """Of `evaluate`: the judge of what names stand for (of `measuring`, the bundled one when not given), and beside it
    the oracle, which answers in runs."""
    networks = oracle(), measuring or judge()
    (asked,), (first,) = (with_errors(one.to(device), names) for one in networks)
    return dict(classifier=first, negative_classes=names, judges={asked.name: asked}, answered=[asked.name])


def subject_of(names: tuple[str, ...]) -> str:
    """What is unlearned, in words."""

    def words(name: str) -> str:
        head, *rest = name.split("+")
        head = PLURALS.get(head, head).replace("-", " ").replace("=", " ")
        return " ".join([head, *(f"with {one.replace('=', ' ').replace('-', ' ')}" for one in rest)])

    return " and ".join(map(words, names))


def _notes(marked: Marked, settings: AnimalsDemo) -> list[str]:
    own = "Another network, which learned from other drawings and never answered, judges the outcome"
    measured = own if settings.judge is None else judged_by(settings.judge)
    found = f"{len(marked.samples)} negatives, marked by the bundled oracle among {marked.looked:,} samples."
    return [f"{found} {asked_again(settings)} {measured} on other latents."]


def _words(settings: AnimalsDemo) -> list[str]:
    words = []
    for name in settings.names:
        words += ["--class" if name.split("+")[0] in animals.SPECIES else "--feature", name]
    return words if settings.ckpt is None else [*words, "--ckpt", str(settings.ckpt)]


class LikeDrawings:
    """How like the held-out drawings, but those for which a rule holds, a GAN's samples are, in the oracle's features
    and by its answers."""

    def __init__(self, n: int = HELD_OUT, without: Iterable[Mapping[str, Iterable[str]]] = ()):
        self.n, self.classifier = n, oracle()
        kept = animals.without_any(held_out(), without)
        images = (to_range(part, self.classifier.image_range) for part in kept.images.split(500))
        self.features = torch.cat([self.classifier.logits_and_features(x)[1] for x in images])
        self.shares = self._shares(kept.labels)

    def _shares(self, labels: Tensor) -> dict[str, Tensor]:
        columns = zip(self.classifier.parts.items(), labels.t(), strict=True)
        return {part: column.bincount(minlength=len(v)).double() / len(column) for (part, v), column in columns}

    def __call__(self, gan: GAN, seed: int = 0) -> dict[str, float]:
        """fid, precision and recall; share_error: the largest difference of a value's share from the drawings'; sure:
        share of samples of whose every part the classifier is sure (0.9); of n samples."""
        labels, features, sure = [], [], 0
        for x in progress.track("like drawings", gan.batches(self.n, seed, 250), self.n):
            logits, found = self.classifier.logits_and_features(
                map_range(x, gan.image_range, self.classifier.image_range)
            )
            parts = [part.softmax(1).max(1) for part in self.classifier.split(logits).values()]
            labels.append(torch.stack([part.indices for part in parts], 1).cpu())
            features.append(found.cpu())
            sure += int((torch.stack([part.values for part in parts]).min(0).values >= 0.9).sum())
        shares, own = self._shares(torch.cat(labels)), torch.cat(features)
        like = manifold(self.features, own)
        error = max(float((shares[part] - share).abs().max()) for part, share in self.shares.items())
        numbers = dict(fid=frechet(self.features, own), precision=like["precision"], recall=like["recall"])
        return {name: float(value) for name, value in numbers.items() if value is not None} | dict(
            share_error=error, sure=sure / self.n
        )
