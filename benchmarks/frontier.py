"""The frontier of each method on the digit 8: its one strength over a decade or two, the default on the same axes.

    python -m benchmarks.frontier OUT [METHOD ...]    OUT/cells/METHOD-STRENGTH.json, pictures, table.md, frontier.png

What is there is not computed again. One seed, 200 negatives, the bundled classifier as the oracle, and the bundled
judge of MNIST, which answers in no run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atu.experiments.cells import picture_path, run_cell
from atu.experiments.recipes import mnist_plan
from atu.experiments.reproduced_table import summarise
from atu.support import progress
from atu.support.environment import keep_freed_memory
from atu.support.files import write_atomic, write_json, write_text

from .render import table

DIGIT, SEED = "8", 0
# Norm of the repulsion's gradient over the adversarial one's at the start (the preset's is 4), and so of l1-sparse; how
# far extrapolate goes; the weight of the default's guide (4).
STRENGTHS = {
    "atu": (1.0, 4.0, 12.0),
    "el2": (1.0, 4.0, 20.0, 80.0),
    "nl2": (4.0, 20.0, 80.0),
    "il2": (1.0, 4.0, 20.0),
    "extrapolate": (0.25, 0.5, 1.0, 2.0),
    "l1-sparse": (0.1, 1.0),
}
NAMES = {"atu": "the default"}
Cell = dict[str, Any]


def settings(method: str, strength: float) -> dict[str, Any]:
    if method == "atu":
        return {"repel": {"guide_weight": strength}}
    if method in ("el2", "nl2", "il2"):
        return {"repel": {"strength": strength}}
    return {"methods": {method: {"s" if method == "extrapolate" else "strength": strength}}}


def path_of(out: Path, method: str, strength: float) -> Path:
    return out / "cells" / f"{method}-{strength:g}.json"


def compute(out: Path, methods: list[str]) -> None:
    wanted = [(method, strength) for method in methods for strength in STRENGTHS[method]]
    missing = [pair for pair in wanted if not path_of(out, *pair).is_file()]
    with progress.bar("frontier", len(wanted), len(wanted) - len(missing)) as bar:
        for method, strength in missing:
            plan = mnist_plan([DIGIT], methods=[method], seeds=1, config=settings(method, strength))
            folder = out / "work" / f"{method}-{strength:g}"
            cell = run_cell(plan, plan.tasks[0], SEED, method, folder)
            picture = picture_path(folder, plan.tasks[0], SEED, method)
            (out / "pictures").mkdir(parents=True, exist_ok=True)
            picture.replace(out / "pictures" / f"{method}-{strength:g}.png")
            write_json(path_of(out, method, strength), {**cell, "strength": strength})
            write(out)
            bar.update()


def cells(out: Path) -> Iterator[Cell]:
    """Those that are there, in order."""
    for method, strengths in STRENGTHS.items():
        for strength in strengths:
            path = path_of(out, method, strength)
            if path.is_file():
                yield json.loads(path.read_text(encoding="utf-8"))


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
                NAMES.get(cell["method"], cell["method"]),
                f"{cell['strength']:g}",
                f"{one['pul']:.1f} ({one['pul_corrected']:.1f})",
                f"{one['good_changed']:.1f}",
                f"{one['frechet_kept']:.1f}",
                f"{one['landing']:.2f}",
                f"{one['tv_kept']:.3f}",
                f"{one['seconds']:.0f}",
            ]
        )
    return table(head, rows)


def draw(found: list[Cell], path: Path) -> None:
    """PUL against both costs, one curve a method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.2), layout="constrained", dpi=120)
    costs = {
        "good_changed": "good latents changed, %",
        "frechet_kept": "Fréchet distance to what is kept, times chance",
    }
    for axes, (cost, label) in zip(figure.subplots(1, 2, sharey=True), costs.items(), strict=True):
        for index, method in enumerate(STRENGTHS):
            points = [figures(cell) for cell in found if cell["method"] == method]
            x, y = [one[cost] for one in points], [one["pul"] for one in points]
            name = NAMES.get(method, method) if cost == "good_changed" else None
            axes.plot(x, y, "osD^vP"[index % 6] + "-", ms=6, lw=1.2, color=f"C{index}", label=name)
        axes.set(xlabel=label, xscale="log")
        axes.grid(alpha=0.25, which="both")
        axes.set_ylim(min(0, *axes.get_ylim()), 101)
    figure.axes[0].set_ylabel("PUL, %, by the judge")
    figure.legend(loc="outside right upper", frameon=False)
    write_atomic(path, lambda temporary: FigureCanvasAgg(figure).print_png(temporary))


def write(out: Path) -> None:
    found = list(cells(out))
    about, marks = found[0]["machine"], found[0]["negatives"]
    text = f"Digit {DIGIT}, seed {SEED}, {marks} negatives, an oracle; {about['cpu']}, {about['cores']} cores."
    write_text(out / "table.md", f"{text}\n\n{cells_table(found)}\n")
    draw(found, out / "frontier.png")


def main(arguments: list[str]) -> int:
    if not arguments or (unknown := [name for name in arguments[1:] if name not in STRENGTHS]):
        print(__doc__ if not arguments else f"method: expected one of {', '.join(STRENGTHS)}, got {unknown[0]}")
        return 2
    keep_freed_memory()
    progress.show_messages()
    compute(Path(arguments[0]), arguments[1:] or list(STRENGTHS))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
