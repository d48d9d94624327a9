"""report.json and report.html of an unlearning: one HTML file, without scripts, that holds its pictures itself."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup
from pydantic import TypeAdapter
from torch import Tensor

from ..evaluation.audit import probe_table
from ..evaluation.audit import rows as audit_rows
from ..evaluation.evaluate import Evaluation
from ..evaluation.figures import Figures
from ..evaluation.parameter_path import ParameterPath
from ..presets import DEFAULT
from ..support import environment
from ..support.digest import sha256, sha256_of
from ..support.files import write_json, write_text
from . import plots
from .judged import corrected_card, judge_cautions, judges_table, who_judged
from .person import kept_person, section
from .pictures import MAIN, curve_figures, found_samples, grids, relearning_curves, survivors
from .tables import distances_tables, flatten, kept_table, landing_table, shares_table, table
from .words import (
    LABELS,
    SHORT,
    cards,
    cautions,
    duration,
    explain,
    landed,
    no_proof,
    outcome,
    summary,
    unbreakable,
    verdict,
)


@dataclass
class Context:
    """What a report tells beside the evaluation.

    subject: what was unlearned, in words ("the digit 8"). seconds: by stage. history: rows of `unlearn`. command:
    how to run it again. notes: sentences shown under the headline. figures: further (title, caption, SVG). targets:
    what was unlearned, as plain data, so that a later run can go on from here. audit: of
    `atu.evaluation.audit.run`. path: of `parameter_path`. earlier: one dict (subject, counts) a thing that an earlier
    run had unlearned. negatives: a folder or a tensor, whose hash is written down.
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
    audit: Mapping[str, Any] | None = None
    path: ParameterPath | None = None
    earlier: Sequence[Mapping[str, Any]] = ()
    negatives: Path | Tensor | None = None


VERSION = 1  # of report.json; raised when a key changes its meaning or goes


@dataclass(frozen=True, kw_only=True)
class Report(Figures):
    """What report.json holds: the figures, what they were made with, and what the page says in words.

    seconds: of the unlearning, without the evaluation. run_seed: of the run; `seed` is that of the latents compared.
    decisions: of the run, its warnings among them. targets: what was unlearned, earlier runs included. earlier: of each
    target of an earlier run, what is left of it. parameter_path, audit, person: None where there is none. sha256: of
    both GANs' weights, of the result's file, and of the negatives.
    """

    version: int
    subject: str
    verdict: str
    warnings: list[str]
    seconds: float
    seconds_by_stage: dict[str, float]
    decisions: dict[str, Any]
    targets: list[dict[str, Any]]
    earlier: list[dict[str, Any]]
    parameter_path: list[dict[str, Any]] | None
    audit: dict[str, Any] | None
    person: dict[str, Any] | None
    config: dict[str, Any]
    run_seed: int
    command: str
    machine: dict[str, Any]
    versions: dict[str, str]
    sha256: dict[str, str]
    made: str


def schema() -> dict[str, Any]:
    """The JSON schema of report.json."""
    return TypeAdapter(Report).json_schema(mode="serialization")


def report_data(evaluation: Evaluation, context: Context, result: Path | None = None) -> dict[str, Any]:
    """The content of report.json, as plain data.

    result: file of the unlearned GAN, whose hash is written down.
    """
    total = sum(value for name, value in context.seconds.items() if name not in ("evaluate", "audit"))
    report = Report(
        **vars(evaluation.figures),
        version=VERSION,
        subject=context.subject,
        verdict="",
        warnings=[],
        seconds=round(total, 2),
        seconds_by_stage={name: round(value, 2) for name, value in context.seconds.items()},
        decisions=dict(context.decisions),
        targets=[dict(target) for target in context.targets],
        earlier=[dict(one) for one in context.earlier],
        parameter_path=None if context.path is None else context.path.points,
        audit=None if context.audit is None else dict(context.audit),
        person=None if result is None else kept_person(result.parent),
        config=dict(context.config),
        run_seed=context.seed,
        command=context.command,
        machine=environment.machine(context.device),
        versions=environment.versions(),
        sha256=_hashes(evaluation, context, result),
        made=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
    data: dict[str, Any] = plain(asdict(report))
    data.update(verdict=verdict(data).text, warnings=[*cautions(data), *judge_cautions(data)])
    return data


def _hashes(evaluation: Evaluation, context: Context, result: Path | None) -> dict[str, str]:
    """SHA-256 of both GANs' weights, of the result's file, and of the negatives (a folder: of its names and hashes)."""
    found = dict(evaluation.sha256)
    if result is not None and result.is_file():
        found["result"] = sha256_of(result)
    if isinstance(context.negatives, Tensor):
        found["negatives"] = sha256({"samples": context.negatives})
    elif context.negatives is not None and Path(context.negatives).exists():
        found["negatives"] = sha256_of(Path(context.negatives))
    return found


def plain(value: Any) -> Any:
    """Numbers, strings, lists and dicts only, so that JSON takes it; NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return value if isinstance(value, (int, str, bool)) or value is None else str(value)


# --- the page


def render(data: Mapping[str, Any], evaluation: Evaluation, context: Context) -> str:
    """The HTML page."""
    names = list(evaluation.models)
    others = [name for name in names if name not in MAIN]
    audit, path = context.audit, context.path
    return _template("report.html").render(
        data=data,
        context=context,
        evaluation=evaluation,
        title=outcome(data),
        verdict=verdict(data),
        summary=summary(data),
        no_proof=no_proof(data),
        cautions=data["warnings"],
        cards=_cards(data),
        judge=who_judged(data),
        judges=judges_table(data),
        distances=distances_tables(data, [name for name in names if name != "adapted"]),
        grid_rows=grids(evaluation),
        survivors=survivors(evaluation),
        kept=kept_table(data),
        landing=None if data["landing"] is None else landing_table(data["landing"]),
        landed=landed((data["landing"] or {}).get("transitions") or {}),
        bars=_bars(data, evaluation),
        unlearned=[evaluation.classes[index] for index in evaluation.negative_classes],
        why=explain(data["decisions"]),
        table=table(data, MAIN),
        all_models=table(data, names) if others else None,
        other_grids=grids(evaluation, main=False),
        curves=curve_figures(context.history, context.decisions.get("method", DEFAULT)),
        shares=shares_table(data, MAIN),
        audit=None if audit is None else audit_rows(audit, SHORT),
        relearning=None if audit is None else relearning_curves(audit),
        path=None if path is None or path.images.ndim != 5 else plots.path_figure(path),
        decisions=flatten({key: value for key, value in data["decisions"].items() if key != "warnings"}),
        config=flatten(data["config"]),
        machine=flatten({**data["machine"], **{f"version of {k}": v for k, v in data["versions"].items()}}),
        stages=[(name, duration(value)) for name, value in data["seconds_by_stage"].items()],
        command=Markup.escape(data["command"]),
        person=None if data["person"] is None else section(data["person"]),
    )


def _cards(data: Mapping[str, Any]) -> list[dict[str, str]]:
    first, *rest = cards(data)
    return [first, *corrected_card(data), *rest]


def _bars(data: Mapping[str, Any], evaluation: Evaluation) -> str | None:
    histograms = {LABELS[name]: classes for name in MAIN if (classes := data["models"][name]["classes"])}
    negative = [evaluation.classes[index] for index in evaluation.negative_classes]
    return plots.class_bars(histograms, negative) if histograms else None


def _template(name: str) -> Any:
    import jinja2

    loader = jinja2.PackageLoader("atu", "report/templates")
    settings = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_finalize
    )
    return settings.get_template(name)


def _finalize(value: Any) -> Any:
    return unbreakable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def write_audit(out: str | Path, found: Mapping[str, Any]) -> list[list[str]]:
    """Write OUT/audit.json and OUT/audit.html of `atu.evaluation.audit.run`, whose parts are in OUT; returns the table.

    found: the outcome, with subject, command, machine and estimated_seconds beside it.
    """
    table = audit_rows(found, SHORT)
    page = _template("audit.html").render(
        found=found,
        table=table,
        curves=relearning_curves(found),
        pictures_found=found_samples(found, Path(out)),
        took=duration(found["seconds"]),
        thought=duration(found["estimated_seconds"]),
        stages=[(name, duration(value)) for name, value in found["seconds_by_part"].items()],
        probes=probe_table(found, SHORT),
        machine=flatten(found["machine"]),
    )
    write_text(Path(out) / "audit.html", page)
    write_json(Path(out) / "audit.json", plain(found))
    return table


def write(out: str | Path, evaluation: Evaluation, context: Context) -> dict[str, Any]:
    """Write OUT/report.json and OUT/report.html atomically; returns the JSON's content."""
    data = report_data(evaluation, context, Path(out) / "result.safetensors")
    write_text(Path(out) / "report.html", render(data, evaluation, context))
    write_json(Path(out) / "report.json", data)
    return data


def print_table(data: Mapping[str, Any]) -> None:
    """The results on the terminal."""
    from rich.table import Table
    from rich.text import Text

    from ..support.console import Console

    names = list(data["models"])
    header, *rows = table(data, names)
    grid = Table(title=f"Unlearning {data['subject']}", title_justify="left")
    for index, title in enumerate(header):
        grid.add_column(title, justify="left" if index == 0 else "right")
    for row in rows:
        grid.add_row(*row)
    console = Console()
    console.print(grid)
    console.print(outcome(data), style="bold")
    console.print(verdict(data).text)
    console.print(who_judged(data))
    for text in data["warnings"]:
        console.print(text, style="yellow")
    for card in _cards(data):
        console.print(Text.assemble(f"{card['name']}: ", (card["value"], "bold"), "  ", (f"({card['note']})", "dim")))
