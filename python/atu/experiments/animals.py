"""`atu demo animals`: features and species unlearned from the bundled GAN of drawn animals.

The oracle marks the negatives and answers during the run. The judge, a network of another kind that learned from other
drawings, only measures afterwards.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..api import adapted_generators, stage_seconds, unlearn
from ..assets import asset
from ..config import Config
from ..data import animals
from ..data.images import map_range, save_folder, to_range
from ..evaluation.audit import audited
from ..evaluation.classifier import confusion
from ..evaluation.evaluate import evaluate
from ..evaluation.goals import class_goal
from ..evaluation.judges import as_judge
from ..evaluation.parts import PartsClassifier, PartsView
from ..gan import GAN
from ..measures.frechet import frechet
from ..measures.manifold import manifold
from ..report import plots, report
from ..support import progress
from ..support.seeding import Stream, stream_seed
from .marking import mark_negatives
from .mnist import parameter_path_of, still_unlearned
from .targets import any_of, earlier_targets

HELD_OUT = 4000  # drawings that no network learned from
PLURALS = {"dog": "dogs", "cat": "cats", "deer": "deer", "goat": "goats", "boar": "boars"}


def oracle() -> PartsClassifier:
    """The bundled classifier that marks and answers."""
    return PartsClassifier.load(asset("animals-classifier.safetensors"))


def judge() -> PartsClassifier:
    """The bundled classifier that measures, and never answers during a run."""
    return PartsClassifier.load(asset("animals-judge.safetensors"))


@dataclass(frozen=True, kw_only=True)
class AnimalsDemo:
    """Settings of `demo_animals`.

    names: what to unlearn, see `PartsClassifier.rule`: features, species, PART=VALUE, or several of these joined by
    "+", which must all hold. out: run folder. ckpt: a GAN of such faces in place of the bundled one. negatives: marked
    of each name. samples: fixed latents of the evaluation. answers: whether the oracle answers during the run too.
    source: folder of an earlier run to go on from; what it had unlearned stays negative, and is counted before and
    after. audited: audit the result (audit.py), beside the GAN in `retrained` if given. seed, device, config,
    method, compat, precision: of `unlearn`.
    """

    names: tuple[str, ...]
    out: str | Path
    ckpt: str | Path | None = None
    negatives: int = 200
    samples: int = 10_000
    seed: int = 0
    device: str | None = None
    config: Config | Mapping[str, Any] | str | Path | None = None
    answers: bool = True
    method: str | None = None
    compat: str | None = None
    precision: str | None = None
    source: str | Path | None = None
    audited: bool = False
    retrained: str | Path | None = None


def demo_animals(settings: AnimalsDemo) -> dict[str, Any]:
    """Unlearn features or species from the bundled GAN of drawn animals; writes the run folder and its report.

    Returns:
        The content of OUT/report.json.
    """
    seed, out, device, names = settings.seed, Path(settings.out), settings.device, settings.names
    asked, measuring = oracle(), judge()
    asked.view(names)  # what is wrong with the names is told now
    first = GAN.load(settings.ckpt or asset("animals-gan.safetensors"))
    earlier = [] if settings.source is None else earlier_targets(Path(settings.source), ["names"])
    gan = first if settings.source is None else GAN.load(Path(settings.source) / "result.safetensors")
    other = None if settings.retrained is None else GAN.load(settings.retrained)
    if device is not None:
        first, gan, other = first.to(device), gan.to(device), None if other is None else other.to(device)
        asked, measuring = asked.to(device), measuring.to(device)
    start = time.monotonic()
    view = asked.view(names)
    is_negative = called(view, names, gan.image_range)
    marked, looked = [], 0
    for name in names:
        part = called(asked.view([name]), (name,), gan.image_range)
        chosen, seen = mark_negatives(gan, part, settings.negatives, stream_seed(seed, Stream.MARKS))
        save_folder(chosen, gan.image_range, out / "negatives" / name.replace("=", "-"), seed)
        marked.append(chosen)
        looked = max(looked, seen)
    marking = time.monotonic() - start
    before = [tuple(plain["names"]) for plain in earlier]
    rules = [is_negative, *(called(asked.view(one), one, gan.image_range) for one in before)]
    result = unlearn(
        gan,
        torch.cat(marked),
        is_negative=any_of(rules) if settings.answers else None,
        config=settings.config,
        out=out,
        seed=seed,
        device=device,
        method=settings.method,
        compat=settings.compat,
        precision=settings.precision,
    )
    start = time.monotonic()
    measures = judges_of(names, gan.device)
    images, labels = held_out(measures["classifier"])
    has = _Answers(measuring, gan.image_range)
    kept: dict[str, Callable[[Tensor], Tensor]] = {name: has.rule(name) for name in animals.FEATURES}
    kept |= {subject_of(one): called(measuring.view(one), one, gan.image_range) for one in before}
    evaluation = evaluate(
        gan,
        result.gan,
        **{**measures, "answered": measures["answered"] if settings.answers else []},
        real=(map_range(images, measuring.image_range, gan.image_range), labels),
        retrained=other,
        others={**adapted_generators(gan, result), **({"first": first.sampling_generator} if before else {})},
        attributes=kept,
        n=settings.samples,
        seed=stream_seed(seed, Stream.EVALUATION),
    )
    path = parameter_path_of(gan, result, evaluation, as_judge(measures["classifier"], gan, names).score, seed)
    if path is not None:
        plots.save_path(out / "parameter-path.png", path)
    seconds = {"mark negatives": marking, **stage_seconds(result), "evaluate": time.monotonic() - start}
    found = None
    if settings.audited:
        start = time.monotonic()
        goal = class_goal(view, names, gan.image_range)
        judges = {"judge": called(measuring.view(names), names, gan.image_range), "oracle": goal.is_negative}
        given = (gan, result.gan, goal, judges, None, stream_seed(seed, Stream.ATTACKS), other, torch.cat(marked).cpu())
        found = audited(out, "oracle", *given)
        seconds["audit"] = time.monotonic() - start
    context = report.Context(
        subject=subject_of(names),
        seconds=seconds,
        command=_command(settings),
        config=result.config.to_dict(),
        seed=seed,
        device=str(gan.device),
        history=result.history,
        decisions=result.decisions,
        notes=_notes(sum(map(len, marked)), looked, settings.answers),
        targets=[*earlier, {"names": list(names)}],
        audit=found,
        path=path,
        earlier=[still_unlearned(subject_of(one), evaluation) for one in before],
        negatives=out / "negatives",
    )
    return report.write(out, evaluation, context)


def called(view: PartsView, names: tuple[str, ...], image_range: tuple[float, float]) -> Callable[[Tensor], Tensor]:
    """Images in image_range -> bool [N]: whether the classifier finds one of the names in them."""
    finds = view.oracle(names)
    return lambda x: finds(map_range(x, image_range, view.image_range))


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


def held_out(view: PartsView) -> tuple[Tensor, Tensor]:
    """(images [HELD_OUT, 3, R, R] in the view's range, the view's class of each): drawings that no network has seen."""
    data = animals.drawings("held-out", HELD_OUT)
    return to_range(data.images, view.image_range), view.truth(data.labels)


def with_errors(view: PartsView) -> PartsView:
    """The view, its errors on unseen drawings counted (`confusion`)."""
    view.confusion = confusion(view, *held_out(view))
    return view


def judges_of(names: tuple[str, ...], device: torch.device | str) -> dict[str, Any]:
    """Of `evaluate`: the judge of what names stand for, and beside it the oracle, which answers in runs."""
    asked, measuring = (with_errors(one.to(device).view(names)) for one in (oracle(), judge()))
    return dict(classifier=measuring, negative_classes=names, judges={asked.name: asked}, answered=[asked.name])


def subject_of(names: tuple[str, ...]) -> str:
    """What is unlearned, in words."""

    def words(name: str) -> str:
        head, *rest = name.split("+")
        head = PLURALS.get(head, head).replace("-", " ").replace("=", " ")
        return " ".join([head, *(f"with {one.replace('=', ' ').replace('-', ' ')}" for one in rest)])

    return " and ".join(map(words, names))


def _notes(marked: int, looked: int, answers: bool) -> list[str]:
    again = (
        "It also answered for generated samples during the run." if answers else "It was not asked again in the run."
    )
    return [
        f"{marked} negatives, marked by the bundled oracle among {looked:,} samples. {again} Another network, which "
        "learned from other drawings and never answered, judges the outcome on other latents."
    ]


def _command(settings: AnimalsDemo) -> str:
    """The command line of this run."""
    words = ["atu", "demo", "animals"]
    for name in settings.names:
        words += ["--class" if name.split("+")[0] in animals.SPECIES else "--feature", name]
    given = {"from": settings.source}
    given |= {name: getattr(settings, name) for name in ("ckpt", "method", "compat", "precision", "retrained")}
    for option, value in given.items():
        words += [] if value is None else [f"--{option}", str(value)]
    words += ["--marks", str(settings.negatives), "--seed", str(settings.seed)]
    words += ["--no-oracle"] * (not settings.answers) + ["--audit"] * settings.audited
    return shlex.join([*words, "--out", "DIR"])


class LikeDrawings:
    """How like the held-out drawings a GAN's samples are, in the oracle's features and by its answers."""

    def __init__(self, n: int = HELD_OUT):
        self.n, self.classifier = n, oracle()
        held_out = animals.drawings("held-out", HELD_OUT)
        images = (to_range(part, self.classifier.image_range) for part in held_out.images.split(500))
        self.features = torch.cat([self.classifier.logits_and_features(x)[1] for x in images])
        self.shares = self._shares(held_out.labels)

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
