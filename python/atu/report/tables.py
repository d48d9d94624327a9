"""Tables of a report: lists of rows of strings, the header first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..measures.manifold import MEASURES
from .words import LABELS, number


def table(data: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
    """The models side by side, one column each."""
    rows = [["", *(LABELS.get(name, name) for name in names)]]
    n = data["n"]
    models = [data["models"][name] for name in names]
    counts = [model["negatives"] for model in models]
    rows.append(["negatives", *(f"{count:,} ({100 * count / n:.2f} %)" for count in counts)])
    for key, label in (
        ("fid_cls", "FID_cls to real samples without it"),
        ("kid_cls", "KID_cls to real samples without it"),
        ("confident", "judged with ≥ 90 % confidence"),
    ):
        values = [model[key] for model in models]
        if any(value is not None for value in values):
            as_share = key == "confident"
            rows.append([label, *("–" if v is None else f"{100 * v:.1f} %" if as_share else number(v) for v in values)])
    for name, metric in data["metrics"].items():
        told = metric["description"]
        values = [metric["value"] if model == "after" else None for model in names]
        rows.append([f"{name}: {told}" if told else name, *map(number, values)])
    return rows


def kept_table(data: Mapping[str, Any]) -> list[list[str]]:
    """How near the unlearned GAN's good samples are to the original's, beside chance; empty where not measured."""
    rows, kept = [["", "by chance", "unlearned"]], data["kept"]
    if kept["frechet"] is not None:
        rows.append(["Fréchet distance", number(kept["frechet_chance"]), number(kept["frechet"])])
    if kept["kid"] is not None:
        rows.append(["kernel distance (KID)", _small(kept["kid_chance"]), _small(kept["kid"])])
    for what in MEASURES:
        if kept[what] is not None:
            rows.append([what, *(f"{kept[name]:.3f}" for name in (f"{what}_chance", what))])
    return rows if len(rows) > 1 else []


def distances_tables(data: Mapping[str, Any], names: Sequence[str]) -> list[list[list[str]]]:
    """Distances in the features of further networks, a row for each network and measure: of what was kept, and of all
    samples to real ones; tables that would be empty are left out."""
    kept, real = [["", "by chance", "unlearned"]], [["", *(LABELS.get(name, name) for name in names)]]
    for network, own in data["distances"].items():
        for measure, label in (("frechet", "Fréchet distance"), ("kid", "KID")):
            values = (_small(own[key]) for key in (f"{measure}_chance", measure))
            kept.append([f"{label} in {network} features, kept samples", *values])
        if own["real_fid"]:
            for measure in ("fid", "kid"):
                values = (_small(own[f"real_{measure}"].get(name)) for name in names)
                real.append([f"{measure.upper()} in {network} features, to real samples without it", *values])
    return [rows for rows in (kept, real) if len(rows) > 1]


def _small(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if abs(value) < 1 else number(value)


def landing_table(found: Mapping[str, Any]) -> list[list[str]]:
    """What formerly negative latents give now, beside as many good samples of the original; empty where none landed."""
    labels = dict(frechet="Fréchet distance", precision="precision", density="density", sure="share of a sure class")
    rows = [
        [label, *(number(found.get(f"{key}{suffix}")) for suffix in ("_chance", ""))]
        for key, label in labels.items()
        if found.get(key) is not None
    ]
    return [["", "by chance", "unlearned"], *rows] if rows else []


def shares_table(data: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
    """Share of every class and measured feature with its 95 % interval, one column a model."""
    rows = [["% of samples", *(LABELS.get(name, name) for name in names)]]
    for key in ("classes", "attributes"):
        found = [data["models"][name][key] or {} for name in names]
        for title in found[0]:
            rows.append([title, *(_share(column[title]) if title in column else "–" for column in found)])
    return rows if len(rows) > 1 else []


def _share(row: Mapping[str, Any]) -> str:
    low, high = (100 * bound for bound in row["ci95"])
    return f"{100 * row['share']:.2f} ({low:.2f} to {high:.2f})"


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
