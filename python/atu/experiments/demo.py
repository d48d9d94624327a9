"""What the demonstrations on a bundled GAN share: their settings, and the way from marking to the report."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..api import Result, stage_seconds, unlearn
from ..assets import CLASSIFIERS
from ..config import Config
from ..data.images import save_folder
from ..evaluation.audit import Budget, Rule, audited
from ..evaluation.evaluate import Evaluation, evaluate
from ..evaluation.goals import Goal
from ..evaluation.judges import Judge, Scores, as_judge
from ..evaluation.parameter_path import ParameterPath, parameter_path
from ..feedback.oracles import check_independent, find
from ..feedback.spec import parse
from ..gan import GAN
from ..measures.shares import unlearning
from ..report import plots, report
from ..support.seeding import Stream, stream_seed
from .marking import mark_negatives
from .targets import Oracle, any_of


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Settings of a demonstration.

    out: run folder. negatives: marked of each thing to unlearn. samples: fixed latents of the evaluation. oracle:
    whether what marks the negatives answers for generated samples during the run too. source: folder of an earlier run
    to go on from; what it had unlearned stays negative, and is counted before and after. audited: audit the result
    (audit.py). retrained: a GAN retrained without the negatives, to compare with. judge: spec
    (`feedback.oracles.find`) of what measures in place of the bundled judge. batch: samples to make at once, see
    `GAN.fitting`. seed, device, config, method, compat, precision: of `unlearn`.
    """

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
    source: str | Path | None = None
    audited: bool = False
    retrained: str | Path | None = None
    judge: str | None = None
    batch: int | None = None

    def command(self, *words: str) -> str:
        """The command line of this run; words: which demonstration, and of what."""
        names = ("method", "compat", "precision", "retrained", "judge", "batch")
        first = {"from": self.source, **{name: getattr(self, name) for name in names}}
        last = {
            "marks": self.negatives,
            **{name: getattr(self, name) for name in ("seed", "samples", "config", "device")},
        }
        switches = ["--no-oracle"] * (not self.oracle) + ["--audit"] * self.audited
        return shlex.join(["atu", "demo", *words, *as_options({**first, **last}), *switches, "--out", "DIR"])


def as_options(given: Mapping[str, Any]) -> list[str]:
    """Words of a command line for what is given; none for what is not, or for settings that are in no file."""
    found = []
    for name, value in given.items():
        found += [f"--{name}", str(value)] if isinstance(value, (str, int, Path)) else []
    return found


@dataclass(frozen=True)
class Gans:
    """first: before any unlearning. start: what this run begins with, the result of an earlier one where it goes on
    from that. retrained: to compare with, where given."""

    first: GAN
    start: GAN
    retrained: GAN | None


def gans_of(settings: Demo, path: str | Path) -> Gans:
    """The GANs of a demonstration on the one in `path`, on its device.

    Raises:
        ValueError: the retrained one makes samples of another shape.
    """

    def loaded(path: str | Path) -> GAN:
        gan = GAN.load(path)
        gan.batch = settings.batch
        return gan if settings.device is None else gan.to(settings.device)

    first = loaded(path)
    start = first if settings.source is None else loaded(Path(settings.source) / "result.safetensors")
    retrained = None if settings.retrained is None else loaded(settings.retrained)
    if retrained is not None and retrained.sample_shape != first.sample_shape:
        raise ValueError(
            f"retrained: expected samples of shape {list(first.sample_shape)}, got {list(retrained.sample_shape)}"
        )
    return Gans(first, start, retrained)


@dataclass(frozen=True)
class Marked:
    """samples: the negatives. looked: the most samples that were looked at for one thing. seconds: it took."""

    samples: Tensor
    looked: int
    seconds: float


def mark(gan: GAN, parts: Mapping[str, Oracle], settings: Demo) -> Marked:
    """Mark negatives of each part by its oracle, and keep them in OUT/negatives/PART. One of two parts counts once."""
    start = time.monotonic()
    marked, looked = [], 0
    for name, is_part in parts.items():
        chosen, seen = mark_negatives(gan, is_part, settings.negatives, stream_seed(settings.seed, Stream.MARKS))
        folder = Path(settings.out) / "negatives" / name.replace("=", "-")
        save_folder(chosen, gan.image_range, folder, settings.seed)
        marked.append(chosen)
        looked = max(looked, seen)
    return Marked(_each_once(torch.cat(marked)), looked, time.monotonic() - start)


def _each_once(x: Tensor) -> Tensor:
    """Samples [N, ...] without copies, in their order."""
    first: dict[bytes, int] = {}
    for index, one in enumerate(x):
        first.setdefault(one.numpy().tobytes(), index)
    return x[list(first.values())]


def unlearned(gan: GAN, marked: Marked, oracles: Sequence[Oracle], settings: Demo) -> Result:
    """Unlearn what was marked; the oracles answer in the run, unless the settings say otherwise."""
    return unlearn(
        gan,
        marked.samples,
        is_negative=any_of(oracles) if settings.oracle else None,
        config=settings.config,
        out=settings.out,
        seed=settings.seed,
        device=settings.device,
        method=settings.method,
        compat=settings.compat,
        precision=settings.precision,
    )


def given_judge(spec: str, gan: GAN, bundled: str, names: Sequence[str]) -> dict[str, Any]:
    """Of `evaluate`: what a spec says measures; it must not be the bundled classifier (its spec), which has marked.

    names: the classes that are unlearned, for a judge that may know them; none for what is no class.
    """
    parsed = parse(spec)
    knows = names and (parsed.source in CLASSIFIERS or Path(parsed.source).is_file()) and "class" not in parsed.options
    judge = find(spec, gan, {"class": ",".join(names)} if knows else {})
    if names:
        check_independent(find(bundled, gan, {"class": ",".join(names)}), judge)
    return judge.judge_arguments()


def judged_by(spec: str) -> str:
    return f"{parse(spec).recorded}, which never answered, judges the outcome"


def asked_again(settings: Demo) -> str:
    if settings.oracle:
        return "It also answered for generated samples during the run."
    return "It was not asked again in the run."


@dataclass(frozen=True, kw_only=True)
class Told:
    """What one demonstration knows of its outcome.

    subject: what was unlearned, in words. plain: the same as JSON; earlier: that of the runs before, whose subjects
    `before` are among the attributes. measures: arguments of `evaluate`. searched: for the audit, of the judge: the
    name of what is searched, the goal, the rules that judge, and what may be spent.
    """

    subject: str
    plain: Mapping[str, Any]
    earlier: Sequence[Mapping[str, Any]]
    before: Sequence[str]
    measures: Mapping[str, Any]
    attributes: Mapping[str, Callable[[Tensor], Tensor]]
    searched: Callable[[Judge], tuple[str, Goal, Mapping[str, Rule], Budget | None]]
    notes: list[str]
    command: str


def finish(settings: Demo, gans: Gans, marked: Marked, result: Result, told: Told, began: float) -> dict[str, Any]:
    """Evaluate, audit where asked for, and write the report; its content. began: `time.monotonic()` after the run."""
    gan, out, seed = gans.start, Path(settings.out), settings.seed
    evaluation = evaluate(
        gan,
        result.gan,
        **told.measures,
        retrained=gans.retrained,
        others={"first": gans.first.sampling_generator} if told.before else None,
        attributes=dict(told.attributes),
        n=settings.samples,
        seed=stream_seed(seed, Stream.EVALUATION),
    )
    measures = told.measures
    judge = as_judge(measures["classifier"], gan, measures["negative_classes"], measures.get("is_negative"))
    path = parameter_path_of(gan, result, evaluation, judge.score, seed)
    if path is not None:
        plots.save_path(out / "parameter-path.png", path)
    seconds = {"mark negatives": marked.seconds, **stage_seconds(result), "evaluate": time.monotonic() - began}
    found = None
    if settings.audited:
        start = time.monotonic()
        searched, goal, judges, budget = told.searched(judge)
        attacks = stream_seed(seed, Stream.ATTACKS)
        given = (gan, result.gan, goal, judges, budget, attacks, gans.retrained, marked.samples.cpu())
        found = audited(out, searched, *given)
        seconds["audit"] = time.monotonic() - start
    context = report.Context(
        subject=told.subject,
        seconds=seconds,
        command=told.command,
        config=result.config.to_dict(),
        seed=seed,
        device=str(gan.device),
        history=result.history,
        decisions=result.decisions,
        notes=told.notes,
        targets=[*told.earlier, told.plain],
        audit=found,
        path=path,
        earlier=[still_unlearned(subject, evaluation) for subject in told.before],
        negatives=out / "negatives",
    )
    return report.write(out, evaluation, context)


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
