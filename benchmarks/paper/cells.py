"""What a reproduced table is made of: targets, the plan, and one cell: a method, a target and a seed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atu.api import stage_seconds, unlearn
from atu.data.images import save_grid, to_uint8
from atu.evaluation.evaluate import Evaluation, Original, evaluate
from atu.evaluation.figures import Figures
from atu.formats.tensors import load_tensors, save_tensors
from atu.gan import GAN
from atu.judging.classifier import Classifier
from atu.judging.marking import mark_negatives
from atu.judging.pool import pool_size
from atu.judging.rule import class_rule
from atu.measures.frechet import frechet, frechet_distance, moments
from atu.measures.intervals import difference
from atu.report import report
from atu.support import environment
from atu.support.seeding import Stream, stream_seed
from benchmarks.tables import Row, flatten, read_rows

CELLS = "cells.csv"
SAMPLES_FOR_EXTRACTOR = 5000
COLUMNS, SHOWN = 20, 40  # of a cell's picture, and latents of either kind in it
KEPT = 4096  # samples to choose these from


@dataclass(frozen=True)
class Task:
    """One column of the table. name: of the target ("8", "cat"). judge, classes: what is negative. real: (images,
    labels [M]), uint8 or in the GAN's range, with labels of the judge's classes. oracle: marks the negatives and
    answers during the runs; the judge itself where there is no other."""

    name: str
    judge: Classifier
    classes: tuple[str, ...]
    real: tuple[Tensor, Tensor]
    oracle: Classifier | None = None

    @property
    def asked(self) -> Classifier:
        return self.judge if self.oracle is None else self.oracle


@dataclass
class Plan:
    """What to compute. methods run with config (nested dicts over each method's own settings). extractor: further
    features of images in [0, 255], see measures/extractors.py; extractor_sha256: of its file. oracle: whether what
    marks the negatives answers during the runs too."""

    dataset: str
    gan: GAN
    tasks: Sequence[Task]
    methods: Sequence[str]
    seeds: int
    negatives: int = 200
    samples: int = 10_000
    config: Mapping[str, Any] = field(default_factory=dict)
    extractor: Callable[[Tensor], Tensor] | None = None
    oracle: bool = True
    extractor_sha256: str | None = None
    originals: dict[tuple[str, int], Original] = field(default_factory=dict)

    @property
    def judges(self) -> str:
        """The names of those whose figures the table's are."""
        return ", ".join(dict.fromkeys(task.judge.name for task in self.tasks))

    def cells(self) -> Iterator[tuple[Task, int, str]]:
        """Task, seed, method: retraining before the others, as Ret-FID measures the distance to it."""
        ordered = sorted(self.methods, key=lambda method: method != "retrain")
        for task in self.tasks:
            for seed in range(self.seeds):
                for method in ordered:
                    yield task, seed, method


Key = tuple[str, str, int]  # method, target, seed


def read_cells(out: Path) -> dict[Key, Row]:
    """The finished cells of a folder."""
    return {(str(row["method"]), str(row["target"]), int(str(row["seed"]))): row for row in read_rows(out / CELLS)}


def work_path(out: Path, kind: str, task: Task, seed: int, method: str, suffix: str = "") -> Path:
    """Where what is big of a cell lies: its run, picture and moments, or the retrained GAN."""
    return out / "work" / kind / f"{method}-{task.name}-{seed}{suffix}"


def beside_retrained(plan: Plan, out: Path, task: Task, seed: int, method: str, left: int | None) -> Row:
    """A cell compared with a GAN that was retrained: of the same seed, else of the first seed there is.

    ret_fid_cls: distance of their samples in the judge's features. over_removal: true if fewer negatives are left than
    the retrained GAN makes (the 95 % interval of the difference is below 0). Both are absent without a retrained GAN.
    """
    cells = read_cells(out)
    seeds = [one for one in (seed, *range(plan.seeds)) if ("retrain", task.name, one) in cells]
    if method == "retrain" or not seeds:
        return {}
    retrained, own = (read_moments(out, task, *cell) for cell in ((seeds[0], "retrain"), (seed, method)))
    row: Row = {}
    if retrained and own:
        row["ret_fid_cls"] = frechet_distance(retrained, own)
    made = cells["retrain", task.name, seeds[0]].get("negatives_after")
    if isinstance(made, int) and left is not None:
        row["over_removal"] = difference(left, plan.samples, made, plan.samples)[1] < 0
    return row


def read_moments(out: Path, task: Task, seed: int, method: str) -> tuple[Tensor, Tensor] | None:
    """Mean and covariance of the judge's features of a cell's samples."""
    path = work_path(out, "moments", task, seed, method, ".safetensors")
    if not path.is_file():
        return None
    saved, _ = load_tensors(path)
    return saved["mean"].double(), saved["cov"].double()


def save_picture(path: Path, evaluation: Evaluation) -> None:
    """The first samples that were negative, a row before and a row after, and beneath them the first that were good."""
    before, after = (evaluation.models[name] for name in ("before", "after"))
    flags = before.negative[: len(before.first)]
    there = min(SHOWN, int(flags.sum()), int((~flags).sum()))
    columns = min(COLUMNS, there)
    if columns:
        picks = [torch.nonzero(wanted).flatten()[: there - there % columns] for wanted in (flags, ~flags)]
        rows = [judged.first[row] for pick in picks for row in pick.split(columns) for judged in (before, after)]
        path.parent.mkdir(parents=True, exist_ok=True)
        save_grid(torch.cat(rows), evaluation.image_range, path, columns)


def run_cell(plan: Plan, task: Task, seed: int, method: str, out: Path) -> Row:
    """Unlearn one target with one method and seed, and evaluate it: a row of the table."""
    began, gan, judge = time.monotonic(), plan.gan, task.judge
    rule = class_rule(task.asked, task.classes, gan.image_range)
    marked, looked = mark_negatives(gan, rule, plan.negatives, stream_seed(seed, Stream.MARKS))
    folder = work_path(out, "runs", task, seed, method)
    images, labels = task.real
    kept = torch.nonzero(~torch.isin(labels, torch.tensor(judge.class_indices(task.classes)))).flatten()
    result = unlearn(
        gan,
        marked,
        # From scratch it learns from real samples, as the published row does; the others have none.
        positives=images[kept] if method == "retrain" else None,
        is_negative=rule if plan.oracle else None,
        config=dict(plan.config),
        out=folder,
        seed=seed,
        method=method,
    )
    evaluation = evaluate(
        gan,
        result.gan,
        judge,
        task.classes,
        task.real,
        judges={} if task.oracle is None else {task.oracle.name: task.oracle},
        answered=[task.asked.name] if plan.oracle else [],
        n=plan.samples,
        seed=stream_seed(seed, Stream.EVALUATION),
        keep=pool_size(gan, KEPT, 2**28),
        original=plan.originals.get((task.name, seed)),
    )
    plan.originals.clear()
    plan.originals[task.name, seed] = evaluation.original
    save_picture(work_path(out, "pictures", task, seed, method, ".png"), evaluation)
    seconds = sum(stage_seconds(result).values())  # those before a stop among them
    mean, cov = moments(evaluation.models["after"].features)
    moments_path = work_path(out, "moments", task, seed, method, ".safetensors")
    save_tensors(moments_path, {"mean": mean.float(), "cov": cov.float()}, {})
    retrained = work_path(out, "retrained", task, seed, "retrain", ".safetensors")
    if method == "retrain":
        result.gan.save(retrained)
    given = "oracle" if plan.oracle else "marks"
    row: Row = dict(gan=plan.dataset, target=task.name, method=method, given=given, seed=seed)
    row.update(marks=len(marked), looked=looked, **figures_of(evaluation.figures))
    row.update(beside_retrained(plan, out, task, seed, method, evaluation.figures.negatives_after))
    if plan.extractor is not None:
        row.update(_extracted(plan, images, kept, result.gan, retrained, method, seed))
    in_all = seconds + time.monotonic() - began - result.seconds
    row.update(flatten({"decisions": report.plain(result.decisions)}))
    row.update(seconds=round(seconds, 1), seconds_in_all=round(in_all, 1))
    about = environment.machine(gan.device)
    row.update({"machine.cpu": about["cpu"], "machine.threads": about["threads"]})
    row.update(flatten({"versions": environment.versions()}))
    shutil.rmtree(folder, ignore_errors=True)
    return row


OF_THE_EVALUATION = {"pul", "pul_ci95", "negatives_before", "negatives_after", "answered"}
UNTABLED = ("models.", "landing.transitions")  # but for the distances to real images


def figures_of(figures: Figures) -> Row:
    """The scalars of an evaluation: judge.* by the judge, classifier.* by the other one, which marked the negatives."""
    found = asdict(figures)
    judges, own = found.pop("judges"), figures.judge
    row: Row = {"latents": found.pop("n")}
    found.pop("seed")  # the row has the run's
    found["metrics"] = {name: one["value"] for name, one in found["metrics"].items()}
    row.update(flatten(found))
    row.update(
        flatten({key: value for key, value in judges.pop(own).items() if key not in OF_THE_EVALUATION}, "judge.")
    )
    for name, one in judges.items():
        row.update({"classifier": name, **dict(flatten(one, "classifier."))})
    return {
        name: value
        for name, value in row.items()
        if not name.startswith(UNTABLED) or name.endswith((".fid_cls", ".kid_cls", ".confident"))
    }


def _extracted(plan: Plan, images: Tensor, kept: Tensor, after: GAN, retrained: Path, method: str, seed: int) -> Row:
    """FID to images[kept] and Ret-FID in the extractor's features, of up to SAMPLES_FOR_EXTRACTOR samples each."""
    assert plan.extractor is not None
    extract, n = plan.extractor, min(plan.samples, SAMPLES_FOR_EXTRACTOR)

    def of(gan: GAN) -> Tensor:
        x = gan.sample(n, stream_seed(seed, Stream.EVALUATION), plan.gan.fitting()).cpu()
        return extract(to_uint8(x, gan.image_range))

    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))  # they come sorted by class
    real = images[kept[order[:n]]]
    own = of(after)
    reference = extract(real if real.dtype == torch.uint8 else to_uint8(real, plan.gan.image_range))
    found: Row = {"fid_before": frechet(reference, of(plan.gan)), "fid_after": frechet(reference, own)}
    if method != "retrain" and retrained.is_file():
        found["ret_fid"] = frechet(of(GAN.load(retrained)), own)
    return found
