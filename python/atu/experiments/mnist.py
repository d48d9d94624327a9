"""`atu demo mnist`: digits, or a feature of the stroke, unlearned from the bundled GAN."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..api import Result, adapted_generators, stage_seconds, unlearn
from ..assets import asset
from ..config import Config
from ..data.images import save_folder
from ..data.mnist import mnist
from ..evaluation import audit
from ..evaluation.attributes import FEATURES, SHARE, Attribute, attributes
from ..evaluation.attributes import feature as feature_of
from ..evaluation.classifier import Classifier
from ..evaluation.evaluate import Evaluation, evaluate
from ..evaluation.judges import Judge, Scores, as_judge
from ..evaluation.parameter_path import ParameterPath, parameter_path
from ..feedback.oracles import check_independent, find
from ..feedback.spec import parse
from ..gan import GAN
from ..measures.shares import unlearning
from ..report import plots, report
from ..support.seeding import Stream, stream_seed
from . import targets
from .judge import beside_the_judge, mnist_judge
from .marking import mark_negatives

AUDIT = audit.Budget()


@dataclass(frozen=True, kw_only=True)
class MnistDemo:
    """Settings of `demo_mnist`.

    digits: to unlearn; feature: one of `attributes.FEATURES`, in place of digits. out: run folder. negatives: marked of
    each digit. samples: fixed latents of the evaluation. oracle: whether what marks the negatives answers for generated
    samples during the run too. source: folder of an earlier run to go on from; what it had unlearned stays negative,
    and is counted before and after. audited: audit the result (audit.py). retrained: a GAN retrained without the
    negatives, to compare with.
    judge: spec (`feedback.oracles.find`) of what measures in place of the bundled classifier, which has marked.
    seed, device, config, method, compat, precision: of `unlearn`.
    """

    digits: Iterable[int | str] = ()
    out: str | Path
    negatives: int = 200
    samples: int = 10_000
    seed: int = 0
    device: str | None = None
    config: Config | Mapping[str, Any] | str | Path | None = None
    oracle: bool = True
    method: str | None = None
    compat: str | None = None
    precision: str | None = None
    feature: str | None = None
    source: str | Path | None = None
    audited: bool = False
    retrained: str | Path | None = None
    judge: str | None = None


def demo_mnist(settings: MnistDemo) -> dict[str, Any]:
    """Unlearn digits, or a feature of the stroke, from the bundled MNIST GAN; writes the run folder and its report.

    The bundled classifier (or the feature's measure) plays the user: it marks negatives and, with `settings.oracle`,
    answers for generated samples during the run too. The bundled judge, which never answers, or `settings.judge`
    measures the outcome of digits, on other latents; a feature is measured as it was marked, unless by
    `settings.judge`, as there is no other measure of it.

    Returns:
        The content of OUT/report.json.
    """
    seed, out, device, source = settings.seed, settings.out, settings.device, settings.source
    first = GAN.load(asset("mnist-gan.safetensors"))
    classifier = Classifier.load(asset("mnist-classifier.safetensors"))
    earlier = [] if source is None else targets.earlier_targets(Path(source))
    gan = first if source is None else GAN.load(Path(source) / "result.safetensors")
    other = None if settings.retrained is None else GAN.load(settings.retrained)
    if device is not None:
        first, gan, classifier = first.to(device), gan.to(device), classifier.to(device)
        other = None if other is None else other.to(device)
    start = time.monotonic()
    known = attributes(first)
    target = _target(settings.digits, settings.feature, classifier, known, gan.image_range)
    measures = _measures(settings, target, classifier, gan)
    before = [targets.from_plain(plain, classifier, gan.image_range) for plain in earlier]
    marked, looked = [], 0
    for name, is_part in target.parts.items():
        chosen, seen = mark_negatives(gan, is_part, settings.negatives, stream_seed(seed, Stream.MARKS))
        save_folder(chosen, gan.image_range, Path(out) / "negatives" / name, seed)
        marked.append(chosen)
        looked = max(looked, seen)
    marking = time.monotonic() - start
    oracle = targets.any_of([target.is_negative, *(one.is_negative for one in before)]) if settings.oracle else None
    result = unlearn(
        gan,
        torch.cat(marked),
        is_negative=oracle,
        config=settings.config,
        out=out,
        seed=seed,
        device=device,
        method=settings.method,
        compat=settings.compat,
        precision=settings.precision,
    )
    start = time.monotonic()
    # Of digits, what was unlearned before is counted by the judge, as it was then.
    counting = classifier if settings.judge is not None else measures["classifier"]
    again = [targets.from_plain(plain, counting, gan.image_range) for plain in earlier]
    kept: dict[str, Callable[[Tensor], Tensor]] = {**known, **{one.subject: one.is_negative for one in again}}
    evaluation = evaluate(
        gan,
        result.gan,
        **measures,
        retrained=other,
        others={**adapted_generators(gan, result), **({"first": first.sampling_generator} if before else {})},
        attributes=kept,
        n=settings.samples,
        seed=stream_seed(seed, Stream.EVALUATION),
    )
    judge = as_judge(measures["classifier"], gan, measures["negative_classes"], measures["is_negative"])
    path = parameter_path_of(gan, result, evaluation, judge.score, seed)
    if path is not None:
        plots.save_path(Path(out) / "parameter-path.png", path)
    seconds = {"mark negatives": marking, **stage_seconds(result), "evaluate": time.monotonic() - start}
    found = None
    if settings.audited:
        start = time.monotonic()
        found = _audit(settings, gan, result.gan, target, judge, torch.cat(marked), other)
        seconds["audit"] = time.monotonic() - start
    context = report.Context(
        subject=target.subject,
        seconds=seconds,
        command=_command(target, settings),
        config=result.config.to_dict(),
        seed=seed,
        device=str(gan.device),
        history=result.history,
        decisions=result.decisions,
        notes=_notes(target, sum(map(len, marked)), looked, settings),
        targets=[*earlier, target.plain],
        audit=found,
        path=path,
        earlier=[still_unlearned(one.subject, evaluation) for one in before],
        negatives=Path(out) / "negatives",
    )
    return report.write(out, evaluation, context)


def _audit(
    settings: MnistDemo,
    gan: GAN,
    after: GAN,
    target: targets.Target,
    judge: Judge,
    marked: Tensor,
    retrained: GAN | None,
) -> dict[str, Any]:
    """The audit of the result, in OUT: what the oracle's score leads to, judged by the judge that was not searched."""
    searched = "oracle" if target.classes else target.plain["feature"]
    judges = {judge.name: lambda x: judge.score(x)[0], **({searched: target.is_negative} if target.classes else {})}
    seed = stream_seed(settings.seed, Stream.ATTACKS)
    given = (gan, after, target.goal, judges, AUDIT, seed, retrained, marked.cpu())
    return audit.audited(settings.out, searched, *given)


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


def _command(target: targets.Target, settings: MnistDemo) -> str:
    """The command line of this run."""
    words = ["atu", "demo", "mnist"]
    words += [word for name in target.classes for word in ("--class", name)] or ["--feature", target.plain["feature"]]
    named = ("method", "compat", "precision", "retrained")
    given = {"from": settings.source, **{name: getattr(settings, name) for name in named}}
    for name, value in given.items():
        words += [] if value is None else [f"--{name}", str(value)]
    words += [] if settings.judge is None else ["--judge", settings.judge]
    words += ["--marks", str(settings.negatives), "--seed", str(settings.seed)]
    words += ["--no-oracle"] * (not settings.oracle) + ["--audit"] * settings.audited
    return shlex.join([*words, "--out", "DIR"])


def _notes(target: targets.Target, marked: int, looked: int, settings: MnistDemo) -> list[str]:
    who = "the bundled classifier" if target.classes else "the feature's measure"
    again = "It also answered for generated samples during the run."
    asked = again if settings.oracle else "It was not asked again in the run."
    if settings.judge is not None:
        measured = f"{parse(settings.judge).recorded}, which never answered, judges the outcome"
    elif target.classes:
        measured = "Another network, which never answered, judges the outcome"
    else:
        measured = "It judges the outcome"
    notes = [f"{marked} negatives, marked by {who} among {looked:,} samples. {asked} {measured} on other latents."]
    if not target.classes:
        unit = FEATURES[target.plain["feature"]].unit
        notes.append(
            f"A sample is negative above {target.plain['threshold']:.3g} {unit}, which {100 * SHARE:g} % of the "
            "bundled GAN's samples exceed."
        )
    return notes


def _measures(settings: MnistDemo, target: targets.Target, classifier: Classifier, gan: GAN) -> dict[str, Any]:
    """Of `evaluate`: who judges, what stands beside it, who answered, and the real images."""
    answered = [classifier.name if target.classes else target.plain["feature"]] if settings.oracle else []
    if settings.judge is not None:
        return {**_given_judge(settings.judge, target, gan), "real": mnist()[0], "answered": answered}
    return dict(
        classifier=mnist_judge().to(gan.device),
        negative_classes=target.classes,
        is_negative=None if target.classes else target.is_negative,
        judges=beside_the_judge(gan.device) if target.classes else None,
        answered=answered,
        real=mnist(),
    )


def _given_judge(text: str, target: targets.Target, gan: GAN) -> dict[str, Any]:
    """The judge that a spec names, which must not be the classifier that marked."""
    spec = parse(text)
    knows = target.classes and (spec.source == "mnist" or Path(spec.source).is_file()) and "class" not in spec.options
    judge = find(text, gan, {"class": ",".join(target.classes)} if knows else {})
    if target.classes:
        check_independent(find("mnist", gan, {"class": target.classes[0]}), judge)
    return judge.judge_arguments()


def parameter_path_of(
    gan: GAN, result: Result, evaluation: Evaluation, score: Callable[[Tensor], Scores], seed: int
) -> ParameterPath | None:
    """The picture of the line to the first adapted generator; None for methods that adapt none."""
    if not result.adapted:
        return None
    judged = evaluation.models["before"]
    n = min(len(judged.negative), 400)
    kept = judged.features[~judged.negative]
    return parameter_path(gan, result.adapted[0], score, kept, n=n, seed=stream_seed(seed, Stream.PARAMETER_PATH))


def still_unlearned(subject: str, evaluation: Evaluation) -> dict[str, Any]:
    """Counts of an earlier target in the first GAN, before this run and after it, from an evaluation that asked for it.

    stays_unlearned: the percentage unlearned since the first GAN fell by no more than one point in this run.
    """
    flags = {name: judged.attributes[subject] for name, judged in evaluation.models.items()}
    since = {name: unlearning(flags["first"], flags[name]) for name in ("before", "after")}
    counts = {"original": flags["first"], "before": flags["before"], "after": flags["after"]}
    row: dict[str, Any] = {"subject": subject, **{name: int(flag.sum()) for name, flag in counts.items()}}
    for name, numbers in since.items():
        row.update({f"pul_{name}": numbers["pul"], f"pul_ci95_{name}": numbers["pul_ci95"]})
    known = since["after"]["pul"] is not None
    row["stays_unlearned"] = since["after"]["pul"] >= since["before"]["pul"] - 1 if known else None
    return row
