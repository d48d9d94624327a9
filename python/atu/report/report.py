"""report.json and report.html of an unlearning: one HTML file, without scripts, that holds its pictures itself."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..evaluation.audit import rows as attack_rows
from ..evaluation.evaluate import Evaluation
from ..evaluation.judges import Judged
from ..evaluation.parameter_path import ParameterPath
from ..methods.registry import METHODS
from ..presets import DEFAULT
from ..support import environment
from ..support.files import write_json, write_text
from . import plots

CURVES: list[dict[str, Any]] = [
    dict(stage="adapt", title="losses", keys={"loss_d": "discriminator", "loss_g": "generator"}),
    dict(stage="adapt", title="EWC penalty", keys={"ewc": "EWC"}),
    dict(stage="repel", title="losses", keys={"loss_d": "discriminator", "loss_g": "generator"}),
    dict(
        stage="repel",
        title="mean logits",
        keys={"logit_real": "positives", "logit_fake": "generated", "logit_negative": "negatives"},
    ),
    dict(stage="repel", title="distance from the adapted weights", keys={"distance": "distance"}),
    dict(stage="repel", title="repulsion loss", keys={"repulsion": "repulsion"}),
    dict(
        stage="repel",
        title="penalty",
        keys={
            "ewc": "EWC",
            "l1": "l1",
            "correspondence": "correspondence",
            "self_correlation": "self-correlation",
            "disturbance": "disturbance",
        },
    ),
    dict(stage="repel", title="negatives, % of samples", keys={"negative_rate": "negatives"}, percent=True),
    dict(stage="repel", title="drift of the kept samples (Fréchet)", keys={"drift": "drift"}),
]
LABELS = {
    "first": "first GAN",
    "before": "original",
    "adapted": "adapted (stage 1)",
    "after": "unlearned",
    "retrained": "retrained without it",
}


@dataclass
class Context:
    """What a report tells beside the evaluation.

    subject: what was unlearned, in words ("the digit 8"). seconds: by stage. history: rows of `unlearn`. command:
    how to run it again. notes: sentences shown under the headline. figures: further (title, caption, SVG). targets:
    what was unlearned, as plain data, so that a later run can go on from here. attacks: of `attack`. path: of
    `parameter_path`. earlier: one dict (subject, counts) a thing that an earlier run had unlearned.
    """

    subject: str
    seconds: Mapping[str, float]
    command: str
    config: Mapping[str, Any]
    seed: int
    device: str = "cpu"
    history: Sequence[Mapping[str, Any]] = ()
    decisions: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    figures: Sequence[tuple[str, str, str]] = ()
    targets: Sequence[Mapping[str, Any]] = ()
    attacks: Mapping[str, Any] | None = None
    path: ParameterPath | None = None
    earlier: Sequence[Mapping[str, Any]] = ()


def report_data(evaluation: Evaluation, context: Context) -> dict[str, Any]:
    """The content of report.json: `evaluate`'s numbers, and what they were made with."""
    total = sum(value for name, value in context.seconds.items() if name not in ("evaluate", "attacks"))
    return dict(
        subject=context.subject,
        **evaluation.numbers,
        seconds=round(total, 2),
        seconds_by_stage={name: round(value, 2) for name, value in context.seconds.items()},
        run_seed=context.seed,
        command=context.command,
        decisions=_plain(context.decisions),
        targets=_plain(context.targets),
        attacks=_plain(context.attacks),
        parameter_path=None if context.path is None else _plain(context.path.points),
        earlier=_plain(context.earlier),
        config=_plain(context.config),
        machine=environment.machine(context.device),
        versions=environment.versions(),
        made=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def _plain(value: Any) -> Any:
    """Numbers, strings, lists and dicts only, so that JSON takes it; NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return value if isinstance(value, (int, str, bool)) or value is None else str(value)


# --- the page


def number(value: Any, digits: int = 3) -> str:
    """A number as people write it; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        return f"{value:.2e}"
    return f"{value:,.{max(digits - len(str(int(abs(value)))), 0) if abs(value) >= 1 else digits}f}"


def duration(seconds: float) -> str:
    """Seconds as "42 s" or "3 min 5 s"."""
    whole = round(seconds)
    return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60} s"


def _ratio(after: float | None, before: float | None) -> float | None:
    return after / before if after is not None and before else None


def headline(data: Mapping[str, Any]) -> list[dict[str, str]]:
    """The few numbers that answer: is it gone, what did it cost?"""
    cards = []
    n = data["n"]
    counts = f"{data['negatives_before']:,} → {data['negatives_after']:,} of {n:,} samples"
    if data["pul"] is not None:
        low, high = data["pul_ci95"]
        cards.append(
            dict(name="Negatives gone", value=f"{data['pul']:.1f} %", note=f"{counts}; 95 %: {low:.1f} to {high:.1f}")
        )
    else:
        cards.append(dict(name="Negatives", value=str(data["negatives_after"]), note=f"{counts}: none to begin with"))
    ratio = _ratio(data["fid_cls_after"], data["fid_cls_before"])
    if ratio is not None:
        note = f"FID_cls {number(data['fid_cls_before'])} → {number(data['fid_cls_after'])}, lower is better"
        cards.append(dict(name="Distance to real data", value=f"× {ratio:.2f}", note=note))
    if data["frechet_kept"] is not None:
        note = "Fréchet distance of the unlearned GAN's samples to the original's good ones"
        cards.append(dict(name="Drift of what is kept", value=number(data["frechet_kept"]), note=note))
    if data["tv_kept"] is not None:
        note = "of the kept samples changed class share (total variation)"
        cards.append(dict(name="Kept classes", value=f"{100 * data['tv_kept']:.1f} %", note=note))
    machine = data["machine"]
    where = machine.get("gpu") or f"{machine['threads']} CPU thread{'s' * (machine['threads'] > 1)}"
    if data["seconds"]:
        cards.append(dict(name="Time", value=duration(data["seconds"]), note=f"on {where}, without the evaluation"))
    return cards


def summary(data: Mapping[str, Any]) -> str:
    """The outcome in one plain paragraph."""
    n, before, after = data["n"], data["negatives_before"], data["negatives_after"]
    text = f"The original GAN showed {data['subject']} in {before:,} of {n:,} samples; "
    text += f"after unlearning, the same {n:,} latents show it in {after:,}."
    ratio = _ratio(data["fid_cls_after"], data["fid_cls_before"])
    if ratio is not None:
        closer = "closer to" if ratio < 1 else "further from"
        text += (
            f" Its samples are now {'as far from' if abs(ratio - 1) < 0.005 else closer} the real samples without it"
            f" ({ratio:.2f} times the distance before, which counted the unwanted samples too)."
        )
    return text


def table(data: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
    """Rows of the results table, one column a model; the first row is the header."""
    rows = [["", *(LABELS.get(name, name) for name in names)]]
    n = data["n"]
    counts = [data["negatives"][name] for name in names]
    rows.append(["negatives", *(f"{count:,} ({100 * count / n:.2f} %)" for count in counts)])
    for key, label in (
        ("fid_cls", "FID_cls to real samples without it"),
        ("confident", "judged with ≥ 90 % confidence"),
    ):
        values = [data.get(f"{key}_{name}") for name in names]
        if any(value is not None for value in values):
            as_share = key == "confident"
            cells = ["–" if v is None else f"{100 * v:.1f} %" if as_share else number(v) for v in values]
            rows.append([label, *cells])
    for what, label in (("precision", "precision on what is kept"), ("recall", "recall of what is kept")):
        values = [data.get(f"{what}_kept_{name}") for name in names]
        if any(value is not None for value in values):
            rows.append([label, *("–" if v is None else f"{v:.3f}" for v in values)])
    for name, value in (data.get("metrics") or {}).items():
        told = (data.get("metric_descriptions") or {}).get(name)
        rows.append([f"{name}: {told}" if told else name, *(number(value if m == "after" else None) for m in names)])
    return rows


def shares_table(data: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
    """Share of every class and measured feature with its 95 % interval, one column a model."""
    rows = [["% of samples", *(LABELS.get(name, name) for name in names)]]
    for key in ("class_histogram", "attributes"):
        found = [data.get(f"{key}_{name}") or {} for name in names]
        for title in found[0]:
            rows.append([title, *(_percent(column[title]) if title in column else "–" for column in found)])
    return rows if len(rows) > 1 else []


def _percent(row: Mapping[str, Any]) -> str:
    low, high = (100 * bound for bound in row["ci95"])
    return f"{100 * row['share']:.2f} ({low:.2f} to {high:.2f})"


def relearning_curve(attacks: Mapping[str, Any]) -> str | None:
    """Negative rate over the steps of fine-tuning on a few negatives, one line a model, as SVG."""
    found = attacks["relearn"]
    curve = [{"step": step, name: rate} for name, one in found.items() for step, rate in one["curve"]]
    keys = {name: LABELS.get(name, name) for name in found}
    return plots.curves("Relearning", curve, keys, percent=True)


def _marks(flags: Tensor, columns: int, rows: int) -> list[dict[str, float]]:
    """Where a mark goes on a grid, in percent of its size."""
    width, height = 100 / columns, 100 / rows
    return [
        dict(left=index % columns * width, top=index // columns * height, width=width, height=height)
        for index in torch.nonzero(flags).flatten().tolist()
    ]


def _grid(judged: Judged, pick: Tensor, image_range: tuple[float, float], label: str) -> dict[str, Any]:
    columns = 8
    picture = plots.image_grid(judged.first[pick], image_range, columns)
    flags = judged.negative[: len(judged.first)][pick]
    rows = -(-len(pick) // columns)
    return dict(
        label=label,
        count=int(flags.sum()),
        n=len(pick),
        src=plots.data_url(picture),
        marks=_marks(flags, columns, rows),
    )


def grids(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Same-latent grids: the first latents as they come, and the first whose original sample is negative."""
    models = evaluation.models
    before = models["before"]
    if before.first.ndim != 4 or before.first.shape[1] not in (1, 3, 4):
        return []
    flags = before.negative[: len(before.first)]
    picks = [
        ("The first 64 latents, unselected", torch.arange(min(64, len(before.first)))),
        ("Latents whose original sample is a negative", torch.nonzero(flags).flatten()[:24]),
    ]
    rows = []
    for title, pick in picks:
        if len(pick):
            columns = [
                _grid(judged, pick, evaluation.image_range, LABELS.get(name, name)) for name, judged in models.items()
            ]
            rows.append(dict(title=title, grids=columns))
    return rows


def curve_figures(history: Sequence[Mapping[str, Any]], method: str = DEFAULT) -> list[dict[str, str]]:
    """Curves of the first adapted model and of the stage after it (or a method's only one), as SVG.

    method: says how its stages are called; a stage that it does not name keeps its name in the history.
    """
    called = METHODS.get(method).stages if method in METHODS else {}
    stages = list(dict.fromkeys(str(row["stage"]) for row in history))
    adapted = next((stage for stage in stages if stage.startswith("adapt")), None)
    second = next((stage for stage in stages if not stage.startswith("adapt")), None)
    figures = []
    for spec in CURVES:
        name = second if spec["stage"] == "repel" else adapted
        if name is None:
            continue
        title = f"{called.get(name.partition('-')[0] if name == adapted else name, name)}: {spec['title']}"
        rows = [row for row in history if row["stage"] == name]
        svg = plots.curves(title, rows, spec["keys"], percent=spec.get("percent", False))
        if svg is not None:
            figures.append(dict(title=title, svg=svg))
    return figures


def flatten(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value) rows."""
    rows: list[tuple[str, str]] = []
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows += flatten(value, f"{name}.")
        elif isinstance(value, (list, tuple)):
            rows.append((name, ", ".join(number(item) for item in value) or "–"))
        else:
            rows.append((name, number(value)))
    return rows


def render(data: Mapping[str, Any], evaluation: Evaluation, context: Context) -> str:
    """The HTML page."""
    histograms = {
        LABELS.get(name, name): data[f"class_histogram_{name}"]
        for name in ("before", "after")
        if data.get(f"class_histogram_{name}")
    }
    negative = [evaluation.classes[index] for index in evaluation.negative_classes]
    names = list(evaluation.models)
    return _template("report.html").render(
        data=data,
        context=context,
        cards=headline(data),
        summary=summary(data),
        table=table(data, names),
        grid_rows=grids(evaluation),
        curves=curve_figures(context.history, context.decisions.get("method", DEFAULT)),
        shares=shares_table(data, names),
        attacks=None if context.attacks is None else attack_rows(context.attacks, LABELS),
        relearning=None if context.attacks is None else relearning_curve(context.attacks),
        path=None if context.path is None or context.path.images.ndim != 5 else plots.path_figure(context.path),
        bars=plots.class_bars(histograms, negative) if histograms else None,
        unlearned=negative,
        decisions=flatten(data["decisions"]),
        config=flatten(data["config"]),
        machine=flatten({**data["machine"], **{f"version of {k}": v for k, v in data["versions"].items()}}),
        stages=[(name, duration(value)) for name, value in data["seconds_by_stage"].items()],
    )


def _template(name: str) -> Any:
    import jinja2

    loader = jinja2.PackageLoader("atu", "report/templates")
    settings = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return settings.get_template(name)


def write_attacks(out: str | Path, found: Mapping[str, Any]) -> list[list[str]]:
    """Write OUT/attacks.json and OUT/attacks.html of `atu.evaluation.audit.attack`; returns the table."""
    table = attack_rows(found, LABELS)
    page = _template("attacks.html").render(found=found, table=table, curve=relearning_curve(found))
    write_text(Path(out) / "attacks.html", page)
    write_json(Path(out) / "attacks.json", _plain(found))
    return table


def write(out: str | Path, evaluation: Evaluation, context: Context) -> dict[str, Any]:
    """Write OUT/report.json and OUT/report.html atomically; returns the JSON's content."""
    data = report_data(evaluation, context)
    write_text(Path(out) / "report.html", render(data, evaluation, context))
    write_json(Path(out) / "report.json", data)
    return data


def print_table(data: Mapping[str, Any]) -> None:
    """The results on the terminal."""
    from rich.console import Console
    from rich.table import Table

    names = list(data["negatives"])
    header, *rows = table(data, names)
    grid = Table(title=f"Unlearning {data['subject']}", title_justify="left")
    for index, title in enumerate(header):
        grid.add_column(title, justify="left" if index == 0 else "right")
    for row in rows:
        grid.add_row(*row)
    console = Console()
    console.print(grid)
    for card in headline(data):
        console.print(f"{card['name']}: [bold]{card['value']}[/bold]  [dim]({card['note']})[/dim]")
