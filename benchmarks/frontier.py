"""The frontier of each method on the digit 8: its one strength over a decade or two, the default on the same axes.

    python -m benchmarks.frontier OUT [CURVE ...]    OUT/cells.csv, table.md, frontier.png; pictures in OUT/work

What is in cells.csv is not computed again. One seed, 200 negatives, the bundled classifier as the oracle, and the
bundled judge of MNIST, which answers in no run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from atu.support import progress
from atu.support.environment import keep_freed_memory
from atu.support.files import write_atomic, write_text
from atu.support.markdown import markdown_table
from benchmarks.paper.cells import CELLS, run_cell
from benchmarks.paper.recipes import mnist_plan
from benchmarks.paper.table import FIGURES
from benchmarks.tables import Row, add_row, read_rows

DIGIT, SEED = "8", 0


class Curve(NamedTuple):
    """A method, strengths of it, and what the config of one is; the name in table and picture, if it is another's."""

    method: str
    strengths: tuple[float, ...]
    settings: Callable[[float], dict[str, Any]]
    label: str = ""


def _repelled(strength: float, **more: Any) -> dict[str, Any]:
    """strength: norm of the repulsion's gradient over the adversarial one's at the start; the preset's is 4."""
    return {"repel": {"strength": strength, **more}}


CURVES = {
    "atu": Curve(
        "atu", (1.0, 4.0, 12.0), lambda weight: {"repel": {"guide_weight": weight}}, "the default (weight of its guide)"
    ),
    "el2": Curve("el2", (0.0, 1.0, 4.0, 20.0, 80.0), _repelled),
    "el2-long": Curve("el2", (0.0, 4.0), partial(_repelled, steps=3200), "el2, 3,200 steps for 800"),
    "nl2": Curve("nl2", (4.0, 20.0, 80.0), _repelled),
    "il2": Curve("il2", (1.0, 4.0, 20.0), _repelled),
    "extrapolate": Curve("extrapolate", (0.25, 0.5, 1.0, 2.0), lambda s: {"methods": {"extrapolate": {"s": s}}}),
    "l1-sparse": Curve("l1-sparse", (0.1, 1.0), lambda s: {"methods": {"l1-sparse": {"strength": s}}}),
}


def compute(out: Path, names: list[str]) -> None:
    points = [(name, strength) for name in names for strength in CURVES[name].strengths]
    there = {(row["curve"], row["strength"]) for row in read_rows(out / CELLS)}
    missing = [point for point in points if point not in there]
    plan = mnist_plan([DIGIT], methods=sorted({CURVES[name].method for name in names}), seeds=1)
    with progress.bar("frontier", len(points), len(points) - len(missing)) as bar:
        for name, strength in missing:
            curve = CURVES[name]
            folder = out / "work" / f"{name}-{strength:g}"
            row = run_cell(replace(plan, config=curve.settings(strength)), plan.tasks[0], SEED, curve.method, folder)
            add_row(out / CELLS, {**row, "curve": name, "strength": strength})
            write(out)
            bar.update()


def cells(out: Path) -> list[Row]:
    """Those that are there, in the order of CURVES."""
    there = {(row["curve"], row["strength"]): row for row in read_rows(out / CELLS)}
    points = [(name, strength) for name, curve in CURVES.items() for strength in curve.strengths]
    return [there[point] for point in points if point in there]


def label(name: str) -> str:
    return CURVES[name].label or CURVES[name].method


def figures(row: Row) -> dict[str, float]:
    """By the judge: what the reproduced table has of this cell."""
    return {name: value for name, figure in FIGURES.items() if (value := figure(row)) is not None}


SHOWN = {
    "pul": ("gone, %", ".1f"),
    "pul_corrected": ("corrected, %", ".1f"),
    "good_changed": ("good changed, %", ".1f"),
    "frechet_kept": ("distance kept, x chance", ".1f"),
    "landing": ("landing, of chance", ".2f"),
    "tv_kept": ("TV kept", ".3f"),
    "seconds": ("seconds", ".0f"),
}


def cells_table(rows: list[Row]) -> str:
    def line(row: Row) -> list[str]:
        own = figures(row)
        return [label(str(row["curve"])), f"{row['strength']:g}", *(f"{own[name]:{SHOWN[name][1]}}" for name in SHOWN)]

    return markdown_table(["method", "strength", *(head for head, _ in SHOWN.values())], map(line, rows))


def draw(rows: list[Row], path: Path) -> None:
    """PUL against both costs, one curve a method, strengths beside its points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(9.0, 4.8), layout="constrained", dpi=120)
    costs = {
        "good_changed": "good latents changed, %",
        "frechet_kept": "Fréchet distance to what is kept, times chance",
    }
    for axes, (cost, unit) in zip(figure.subplots(1, 2, sharey=True), costs.items(), strict=True):
        for index, name in enumerate(CURVES):
            own = [row for row in rows if row["curve"] == name]
            points = [figures(row) for row in own]
            x, y = [one[cost] for one in points], [one["pul"] for one in points]
            shown = label(name) if points and cost == "good_changed" else None
            axes.plot(x, y, "osD^vPX"[index % 7] + "-", ms=6, lw=1.2, color=f"C{index}", label=shown)
            for row, *at in zip(own, x, y, strict=True):
                axes.annotate(f"{row['strength']:g}", at, (5, 3), textcoords="offset points", fontsize=7)
        axes.set(xlabel=unit, xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.25, which="both")
        axes.set_ylim(min(0, *axes.get_ylim()), 105)
    figure.axes[0].set_ylabel("PUL, %, by the judge")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    write_atomic(path, lambda temporary: FigureCanvasAgg(figure).print_png(temporary))


def write(out: Path) -> None:
    rows = cells(out)
    text = f"Digit {DIGIT}, seed {SEED}, {rows[0]['marks']} negatives, an oracle; {rows[0]['machine.cpu']}."
    write_text(out / "table.md", f"{text}\n\n{cells_table(rows)}\n")
    draw(rows, out / "frontier.png")


def main(arguments: list[str]) -> int:
    if not arguments or (unknown := [name for name in arguments[1:] if name not in CURVES]):
        print(__doc__ if not arguments else f"curve: expected one of {', '.join(CURVES)}, got {unknown[0]}")
        return 2
    keep_freed_memory()
    progress.show_messages()
    compute(Path(arguments[0]), arguments[1:] or list(CURVES))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
