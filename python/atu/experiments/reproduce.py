"""The published table again: every method on every target with several seeds, cell by cell, beside the paper's rows.

OUT/cells/METHOD-TARGET-SEED.json   one finished cell; what is there is not computed again
OUT/runs/...                        the run folder of a cell, from which a stopped one goes on
OUT/pictures/METHOD-TARGET-SEED.png samples before and after: two rows that were negative, two that were good
OUT/table.md, table.json, figure.png
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from .. import presets
from ..api import unlearn
from ..config import Config, tomllib
from ..data.images import map_range, save_grid, to_uint8
from ..data.samples import TensorSamples
from ..evaluation.classifier import Classifier
from ..evaluation.evaluate import Evaluation, evaluate
from ..evaluation.goals import class_goal
from ..evaluation.parts import PartsView
from ..gan import GAN
from ..measures.frechet import frechet
from ..methods.adapt_then_unlearn.repel import default_steps
from ..report import report
from ..report.words import duration
from ..support import environment, progress
from ..support.files import write_atomic, write_json, write_text
from ..support.seeding import Stream, fork_rng, stream_seed
from ..training.run_folder import gan_digest
from ..training.trainer import AdversarialTrainer
from .marking import mark_negatives
from .published import PRETRAINED_FID, PUBLISHED

SAMPLES_FOR_EXTRACTOR = 5000
COLUMNS = 20  # of a cell's picture


@dataclass(frozen=True)
class Task:
    """One column of the table. name: of the target ("8", "cat"). judge, classes: what is negative. real: (images,
    labels [M]) in the GAN's range, with labels of the judge's classes. oracle: marks the negatives and answers during
    the runs; the judge itself where there is no other."""

    name: str
    judge: Classifier | PartsView
    classes: tuple[str, ...]
    real: tuple[Tensor, Tensor]
    oracle: Classifier | PartsView | None = None

    @property
    def asked(self) -> Classifier | PartsView:
        return self.judge if self.oracle is None else self.oracle


@dataclass
class Plan:
    """What to compute. methods run with config (nested dicts over each method's own settings). extractor: further
    features of images in [0, 255], see measures/extractors.py."""

    dataset: str
    gan: GAN
    tasks: Sequence[Task]
    methods: Sequence[str]
    seeds: int
    negatives: int = 200
    samples: int = 10_000
    config: Mapping[str, Any] = field(default_factory=dict)
    extractor: Callable[[Tensor], Tensor] | None = None

    def cells(self) -> Iterator[tuple[Task, int, str]]:
        """Task, seed, method: retraining before the others, as Ret-FID measures the distance to it."""
        ordered = sorted(self.methods, key=lambda method: method != "retrain")
        for task in self.tasks:
            for seed in range(self.seeds):
                for method in ordered:
                    yield task, seed, method


def check_methods(methods: Sequence[str]) -> list[str]:
    """The methods, or all of them when none is given.

    Raises:
        ValueError: there is none of a name.
    """
    return [presets.check_method(method) for method in methods] or list(presets.METHODS)


def read_config(path: Path | None) -> dict[str, Any]:
    """The settings in a TOML file as nested dicts, checked; each method's own defaults lie beneath them."""
    if path is None:
        return {}
    Config.load(path)
    return tomllib.loads(path.read_text(encoding="utf-8"))


# --- cells


def cell_path(out: Path, task: Task, seed: int, method: str) -> Path:
    return out / "cells" / f"{method}-{task.name}-{seed}.json"


def picture_path(out: Path, task: Task, seed: int, method: str) -> Path:
    return out / "pictures" / f"{method}-{task.name}-{seed}.png"


def save_picture(path: Path, evaluation: Evaluation) -> None:
    """The first samples that were negative, before and after, and beneath them the first that were good."""
    before, after = (evaluation.models[name] for name in ("before", "after"))
    flags = before.negative[: len(before.first)]
    columns = min(COLUMNS, int(flags.sum()), int((~flags).sum()))
    if columns:
        picks = [torch.nonzero(wanted).flatten()[:columns] for wanted in (flags, ~flags)]
        rows = [judged.first[pick] for pick in picks for judged in (before, after)]
        path.parent.mkdir(parents=True, exist_ok=True)
        save_grid(torch.cat(rows), evaluation.image_range, path, columns)


def run_cell(plan: Plan, task: Task, seed: int, method: str, out: Path) -> dict[str, Any]:
    """Unlearn one target with one method and seed, evaluate it, and remember the retrained GAN for the others."""
    gan, judge = plan.gan, task.judge
    is_negative = class_goal(task.asked, task.classes, gan.image_range).is_negative
    marked, looked = mark_negatives(gan, is_negative, plan.negatives, stream_seed(seed, Stream.MARKS))
    folder = out / "runs" / f"{method}-{task.name}-{seed}"
    images, labels = task.real
    wanted = torch.tensor(judge.class_indices(task.classes))
    kept = images[~torch.isin(labels, wanted)]
    result = unlearn(
        gan,
        marked,
        # From scratch it learns from real samples, as the published row does; the others have none.
        positives=kept if method == "retrain" else None,
        is_negative=is_negative,
        config=dict(plan.config),
        out=folder,
        seed=seed,
        method=method,
    )
    retrained = out / "retrained" / f"{task.name}-{seed}.safetensors"
    there = method != "retrain" and retrained.is_file()
    evaluation = evaluate(
        gan,
        result.gan,
        judge,
        task.classes,
        task.real,
        judges={} if task.oracle is None else {task.oracle.name: task.oracle},
        answered=[task.asked.name],
        retrained=GAN.load(retrained) if there else None,
        n=plan.samples,
        seed=stream_seed(seed, Stream.EVALUATION),
    )
    save_picture(picture_path(out, task, seed, method), evaluation)
    numbers = {name: value for name, value in evaluation.numbers.items() if not name.startswith("class_histogram")}
    found: dict[str, Any] = dict(method=method, target=task.name, seed=seed, negatives=len(marked), looked=looked)
    found.update(numbers=numbers, decisions=report._plain(result.decisions), seconds=round(result.seconds, 1))
    if method == "retrain":
        result.gan.save(retrained)
    elif there:
        features = {name: evaluation.models[name].features for name in ("retrained", "after")}
        found["ret_fid_cls"] = frechet(features["retrained"], features["after"])
    if plan.extractor is not None:
        found.update(_extracted(plan, kept, result.gan, retrained, method, seed))
    found.update(machine=environment.machine(gan.device), versions=environment.versions())
    shutil.rmtree(folder, ignore_errors=True)
    return found


def _extracted(
    plan: Plan, real: Tensor, after: GAN, retrained: Path, method: str, seed: int
) -> dict[str, float | None]:
    """FID and Ret-FID in the extractor's features, of up to SAMPLES_FOR_EXTRACTOR samples each."""
    assert plan.extractor is not None
    extract, n = plan.extractor, min(plan.samples, SAMPLES_FOR_EXTRACTOR)

    def of(gan: GAN) -> Tensor:
        x = gan.sample(n, stream_seed(seed, Stream.EVALUATION), plan.gan.fitting()).cpu()
        return extract(to_uint8(x, gan.image_range))

    own, reference = of(after), extract(to_uint8(real[:n], plan.gan.image_range))
    found = {"fid_before": frechet(reference, of(plan.gan)), "fid_after": frechet(reference, own)}
    if method != "retrain" and retrained.is_file():
        found["ret_fid"] = frechet(of(GAN.load(retrained)), own)
    return found


def reproduce(plan: Plan, out: str | Path) -> dict[str, Any]:
    """Compute every cell that is not there yet, then write the table and the figure; returns table.json's content.

    The table is written anew after each cell, so that a stopped reproduction shows what it has.
    """
    out = Path(out)
    _check_identity(plan, out)
    cells = list(plan.cells())
    done = [cell for cell in cells if cell_path(out, *cell).is_file()]
    with progress.bar("reproduce", len(cells), len(done)) as bar:
        for task, seed, method in cells:
            path = cell_path(out, task, seed, method)
            if path.is_file():
                continue
            start = time.monotonic()
            found = run_cell(plan, task, seed, method, out)
            seconds = time.monotonic() - start
            write_json(path, {**found, "seconds_in_all": round(seconds, 1)})
            progress.log.info("%s, %s, seed %d: %s", method, task.name, seed, report.duration(seconds))
            bar.update()
            write_table(plan, out)
    return write_table(plan, out)


def _check_identity(plan: Plan, out: Path) -> None:
    """Raise ValueError where OUT holds cells of another plan; seeds, methods and targets may be added to."""
    own = dict(dataset=plan.dataset, gan=gan_digest(plan.gan), negatives=plan.negatives, samples=plan.samples)
    own.update(config=json.loads(json.dumps(dict(plan.config))), judge=_judge(plan))
    path = out / "plan.json"
    if not path.is_file():
        write_json(path, own)
        return
    there = json.loads(path.read_text(encoding="utf-8"))
    differs = [f"{k} ({there.get(k)} there, {value} now)" for k, value in own.items() if there.get(k) != value]
    if differs:
        raise ValueError(f"out: {out} holds a reproduction with another {'; '.join(differs)}; give another folder")


# --- how long it will take


def forecast(plan: Plan, out: str | Path) -> dict[str, dict[str, float]]:
    """method -> cells (to do), seconds (of one cell, about), steps (of training, at most, of one cell).

    Seconds are the mean of the method's cells that are there; else its steps by the time of one, measured here on a
    copy of the GAN, and its evaluation by the time of one batch.
    """
    out, measured = Path(out), None
    found: dict[str, dict[str, float]] = {}
    for method in dict.fromkeys(plan.methods):
        cells = [cell_path(out, task, seed, method) for task in plan.tasks for seed in range(plan.seeds)]
        done = [json.loads(path.read_text(encoding="utf-8")) for path in cells if path.is_file()]
        steps = _steps(plan, method)
        if done:
            seconds = mean(cell.get("seconds_in_all", cell["seconds"]) for cell in done)
        else:
            measured = measured or _measured(plan)
            seconds = steps * measured[0] + 3 * plan.samples * measured[1]
        found[method] = dict(cells=len(cells) - len(done), seconds=seconds, steps=steps)
    return found


def _steps(plan: Plan, method: str) -> int:
    """Steps of training of one cell, at most."""
    config = Config.of(method, data=dict(plan.config))
    own = config.methods.get(method)  # none, of a method without settings of its own
    if own is not None and hasattr(own, "steps"):
        return int(own.steps)
    second = default_steps(plan.gan) if config.repel.steps is None else config.repel.steps
    return config.adapt.models * config.adapt.steps + second


def _measured(plan: Plan, steps: int = 2, samples: int = 250) -> tuple[float, float]:
    """Seconds of one training step and of one sample made and judged."""
    gan, task = plan.gan.copy(), plan.tasks[0]
    settings = Config().repel.adversarial
    with fork_rng(gan.device, 0):
        x = gan.sample(settings.batch_size)
        trainer = AdversarialTrainer(gan, TensorSamples(x.cpu()), settings)
        trainer.step()  # the first takes longer: R1, and memory that is new
        start = time.monotonic()
        for _ in range(steps):
            trainer.step()
        step = (time.monotonic() - start) / steps
    start = time.monotonic()
    for x in gan.batches(samples, batch_size=samples):
        task.judge.logits_and_features(map_range(x, gan.image_range, task.judge.image_range))
    return step, (time.monotonic() - start) / samples


def told(forecast: Mapping[str, Mapping[str, float]]) -> str:
    """A forecast in words."""

    def time_of(seconds: float) -> str:
        return duration(seconds) if seconds < 7200 else f"{seconds / 3600:.1f} hours"

    lines = [
        f"{method}: {row['cells']} cells of up to {row['steps']:,} steps, about {time_of(row['seconds'])} each"
        for method, row in forecast.items()
    ]
    total = sum(row["cells"] * row["seconds"] for row in forecast.values())
    cells = sum(row["cells"] for row in forecast.values())
    return "\n".join([*lines, f"{cells} cells to do, about {time_of(total)} in all on this machine"])


def _judge(plan: Plan) -> str:
    return ", ".join(dict.fromkeys(task.judge.name for task in plan.tasks))


# --- table and figure


def spread(values: Sequence[float | None]) -> dict[str, Any] | None:
    """Mean, standard deviation (None of one value) and number of the values that are there."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    return dict(mean=mean(there), deviation=stdev(there) if len(there) > 1 else None, n=len(there))


FIGURES = (
    "pul",
    "pul_corrected",
    "pul_oracle",
    "negatives",
    "fid_cls",
    "ratio",
    "ret_fid_cls",
    "tv_kept",
    "frechet_kept",
    "good_changed",
    "landing",
    "fid",
    "ret_fid",
    "seconds",
)


def summarise(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The cells of one method and target, over the seeds."""
    numbers = [cell["numbers"] for cell in cells]
    columns: dict[str, list[float | None]] = {
        "pul": [one["pul"] for one in numbers],
        "pul_corrected": [(_first(one).get("corrected") or {}).get("pul") for one in numbers],
        "pul_oracle": [_oracle(one).get("pul") for one in numbers],
        "negatives": [one.get("negatives_after") for one in numbers],
        "fid_cls": [one["fid_cls_after"] for one in numbers],
        "ratio": [
            one["fid_cls_after"] / one["fid_cls_before"] if one["fid_cls_after"] and one["fid_cls_before"] else None
            for one in numbers
        ],
        "ret_fid_cls": [cell.get("ret_fid_cls") for cell in cells],
        "tv_kept": [one["tv_kept"] for one in numbers],
        "good_changed": [100 * one["good_changed"]["share"] if one.get("good_changed") else None for one in numbers],
        "landing": [_ratio(one.get("landing") or {}, "precision", "precision_chance") for one in numbers],
        "frechet_kept": [_ratio(one, "frechet_kept", "frechet_kept_chance") for one in numbers],
        "fid": [cell.get("fid_after") for cell in cells],
        "ret_fid": [cell.get("ret_fid") for cell in cells],
        "seconds": [cell["seconds"] for cell in cells],
    }
    found: dict[str, Any] = {name: spread(columns[name]) for name in FIGURES}
    metrics = dict.fromkeys(name for one in numbers for name in one.get("metrics") or {})
    found["over_removal"] = sum(bool((_first(one).get("over_removal") or {}).get("fewer")) for one in numbers)
    found["metrics"] = {name: spread([(one.get("metrics") or {}).get(name) for one in numbers]) for name in metrics}
    return found


def _ratio(numbers: Mapping[str, Any], value: str, chance: str) -> float | None:
    return numbers[value] / numbers[chance] if numbers.get(value) is not None and numbers.get(chance) else None


def _first(numbers: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the judge says whose figures these are; nothing in cells that were computed without further judges."""
    return (numbers.get("judges") or {}).get(numbers.get("judge"), {})


def _oracle(numbers: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the oracle of the run says."""
    return next((one for one in (numbers.get("judges") or {}).values() if one["answered"]), {})


def collect(plan: Plan, out: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """method -> target -> summary of the cells that are there."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for method in plan.methods:
        for task in plan.tasks:
            paths = [cell_path(out, task, seed, method) for seed in range(plan.seeds)]
            cells = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
            if cells:
                found.setdefault(method, {})[task.name] = summarise(cells)
    return found


def _cell(value: Mapping[str, Any] | None, digits: int) -> str:
    if value is None:
        return "–"
    text = f"{value['mean']:.{digits}f}"
    return text if value["deviation"] is None else f"{text} ± {value['deviation']:.{digits}f}"


def _published(dataset: str, method: str, target: str) -> str:
    row = PUBLISHED.get(dataset, {}).get(method, {}).get(target)
    return "–" if row is None else " / ".join("–" if value is None else f"{value:g}" for value in row)


def markdown(plan: Plan, table: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The table as markdown, one section a target."""
    extracted = any(row.get("fid") for rows in table.values() for row in rows.values())
    metrics = list(dict.fromkeys(m for rows in table.values() for row in rows.values() for m in row["metrics"]))
    before = PRETRAINED_FID.get(plan.dataset, "–")
    size = f"{plan.negatives} negatives, {plan.samples:,} latents"
    done = sum(row["seconds"]["n"] for rows in table.values() for row in rows.values())
    lines = [
        f"# The published table again: {plan.dataset}",
        "",
        f"Mean ± standard deviation over up to {plan.seeds} seeds (one alone has none), {size}.",
        f"{done} of {len(list(plan.cells()))} cells are computed.",
        "",
        *_who_judged(plan),
        "",
        "The published rows are PUL / FID / Ret-FID in Inception features, on the authors' GAN, trained on the whole",
        f"data set (FID {before} before unlearning). Here the GAN, the amount of data and",
        "the feature extractor differ: FID_cls is a Fréchet distance in the features of this task's own classifier.",
        "Compare the columns within one side of the table, and only PUL and the ratio after / before across it.",
    ]
    for task in plan.tasks:
        head = [
            "method",
            "PUL %",
            "corrected",
            "by the oracle",
            "negatives",
            "FID_cls",
            "after / before",
            "Ret-FID_cls",
            "TV kept",
            "FD kept, x chance",
            "good changed, %",
            "landing, of chance",
        ]
        head += ["FID", "Ret-FID"] * extracted + metrics + ["seconds", "published PUL / FID / Ret-FID"]
        lines += ["", f"## {task.name}", "", _line(head), _line(["---"] * len(head))]
        for method in plan.methods:
            row = table.get(method, {}).get(task.name)
            if row is None:
                continue
            cells = [
                _cell(row["pul"], 2),
                _cell(row["pul_corrected"], 2),
                _cell(row["pul_oracle"], 2),
                _cell(row["negatives"], 0) + " *" * bool(row["over_removal"]),
                _cell(row["fid_cls"], 2),
                _cell(row["ratio"], 2),
                _cell(row["ret_fid_cls"], 2),
            ]
            cells += [_cell(row["tv_kept"], 3), _cell(row["frechet_kept"], 1)]
            cells += [_cell(row["good_changed"], 1), _cell(row["landing"], 2)]
            cells += [_cell(row["fid"], 2), _cell(row["ret_fid"], 2)] * extracted
            cells += [_cell(row["metrics"].get(name), 3) for name in metrics]
            cells += [_cell(row["seconds"], 0), _published(plan.dataset, method, task.name)]
            lines.append(_line([method, *cells]))
    return "\n".join(lines) + "\n"


def _who_judged(plan: Plan) -> list[str]:
    """Whose figures these are, in lines of text."""
    names = _judge(plan)
    if any(task.oracle is None for task in plan.tasks):
        who = [f"Judge: {names}, which marked the negatives and answered during the runs too."]
    else:
        who = [f"Judge: {names}, which answered in no run; its figures are all of these but PUL by the oracle."]
    return [
        *who,
        "Corrected: for the judge's errors on real images it has not seen. Negatives: what it still finds; a star",
        "marks fewer than a GAN makes that was retrained without them (over-removal: the 95 % interval of the",
        "difference is below 0 with at least one seed). FD kept: from the samples that are to stay to the original's",
        "good ones of other latents, over that of two halves of these. Good changed: good latents whose samples the",
        "judge gives another class. Landing: precision of what negatives' latents give, over that of good samples.",
    ]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def save_figure(path: Path, table: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """PUL against FID_cls after / before, one point a method: the means over its targets."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.8, 4.2), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    for index, (method, rows) in enumerate(table.items()):
        points = [(r["ratio"]["mean"], r["pul"]["mean"]) for r in rows.values() if r["ratio"] and r["pul"]]
        if points:
            x, y = (mean(values) for values in zip(*points, strict=True))
            axes.plot(x, y, "osD^vP"[index % 6], ms=7, color=f"C{index % 10}", label=method)
    axes.axvline(1, color="0.7", lw=1)
    axes.set(xlabel="FID_cls after / before (1 = unchanged; lower is better)", ylabel="PUL, %")
    axes.margins(0.08)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", frameon=False)
    write_atomic(path, lambda temporary: FigureCanvasAgg(figure).print_png(temporary))


def write_table(plan: Plan, out: Path) -> dict[str, Any]:
    """Write table.md, table.json and figure.png from the cells that are there."""
    table = collect(plan, out)
    total = len(list(plan.cells()))
    done = sum(cell_path(out, *cell).is_file() for cell in plan.cells())
    found: dict[str, Any] = dict(dataset=plan.dataset, cells_done=done, cells=total, seeds=plan.seeds, table=table)
    found.update(negatives=plan.negatives, samples=plan.samples, config=report._plain(plan.config))
    found["published"] = {method: PUBLISHED.get(plan.dataset, {}).get(method) for method in plan.methods}
    found.update(machine=environment.machine(plan.gan.device), versions=environment.versions())
    write_text(out / "table.md", markdown(plan, table))
    write_json(out / "table.json", found)
    save_figure(out / "figure.png", table)
    return found
