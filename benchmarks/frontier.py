"""The frontier of each method on the digit 8: its one strength over a decade or two, the default on the same axes.

    python -m benchmarks.frontier OUT [CURVE ...]    OUT/cells/CURVE-STRENGTH.json, pictures, table.md, frontier.png

What is there is not computed again. One seed, 200 negatives, the bundled classifier as the oracle, and the bundled
judge of MNIST, which answers in no run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from atu.support import progress
from atu.support.environment import keep_freed_memory
from atu.support.files import write_atomic, write_json, write_text
from atu.support.markdown import markdown_table
from benchmarks.paper.cells import picture_path, run_cell
from benchmarks.paper.recipes import mnist_plan
from benchmarks.paper.table import summarise

DIGIT, SEED = "8", 0
Cell = dict[str, Any]


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


def path_of(out: Path, name: str, strength: float) -> Path:
    return out / "cells" / f"{name}-{strength:g}.json"


def compute(out: Path, names: list[str]) -> None:
    wanted = [(name, strength) for name in names for strength in CURVES[name].strengths]
    missing = [pair for pair in wanted if not path_of(out, *pair).is_file()]
    plan = mnist_plan([DIGIT], methods=sorted({CURVES[name].method for name in names}), seeds=1)
    with progress.bar("frontier", len(wanted), len(wanted) - len(missing)) as bar:
        for name, strength in missing:
            curve = CURVES[name]
            folder = out / "work" / f"{name}-{strength:g}"
            cell = run_cell(replace(plan, config=curve.settings(strength)), plan.tasks[0], SEED, curve.method, folder)
            picture = picture_path(folder, plan.tasks[0], SEED, curve.method)
            (out / "pictures").mkdir(parents=True, exist_ok=True)
            picture.replace(out / "pictures" / f"{name}-{strength:g}.png")
            write_json(path_of(out, name, strength), {**cell, "curve": name, "strength": strength})
            write(out)
            bar.update()


def cells(out: Path) -> Iterator[Cell]:
    """Those that are there, in order."""
    for name, curve in CURVES.items():
        for strength in curve.strengths:
            path = path_of(out, name, strength)
            if path.is_file():
                yield json.loads(path.read_text(encoding="utf-8"))


def label(name: str) -> str:
    return CURVES[name].label or CURVES[name].method


def figures(cell: Cell) -> dict[str, float]:
    """By the judge: what the reproduced table has of this cell."""
    return {name: one["mean"] for name, one in summarise([cell]).items() if isinstance(one, dict) and "mean" in one}


def cells_table(found: list[Cell]) -> str:
    head = ["method", "strength", "PUL % (corrected)", "good changed, %", "FD kept, x chance", "landing, of chance"]
    head += ["TV kept", "seconds"]
    rows = []
    for cell in found:
        one = figures(cell)
        rows.append(
            [
                label(cell["curve"]),
                f"{cell['strength']:g}",
                f"{one['pul']:.1f} ({one['pul_corrected']:.1f})",
                f"{one['good_changed']:.1f}",
                f"{one['frechet_kept']:.1f}",
                f"{one['landing']:.2f}",
                f"{one['tv_kept']:.3f}",
                f"{one['seconds']:.0f}",
            ]
        )
    return markdown_table(head, rows)


def draw(found: list[Cell], path: Path) -> None:
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
            own = [cell for cell in found if cell["curve"] == name]
            points = [figures(cell) for cell in own]
            x, y = [one[cost] for one in points], [one["pul"] for one in points]
            shown = label(name) if points and cost == "good_changed" else None
            axes.plot(x, y, "osD^vPX"[index % 7] + "-", ms=6, lw=1.2, color=f"C{index}", label=shown)
            for cell, *at in zip(own, x, y, strict=True):
                axes.annotate(f"{cell['strength']:g}", at, (5, 3), textcoords="offset points", fontsize=7)
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
    found = list(cells(out))
    about, marks = found[0]["machine"], found[0]["negatives"]
    text = f"Digit {DIGIT}, seed {SEED}, {marks} negatives, an oracle; {about['cpu']}, {about['cores']} cores."
    write_text(out / "table.md", f"{text}\n\n{cells_table(found)}\n")
    draw(found, out / "frontier.png")


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
