"""Cells over their seeds, as the table beside the paper's rows and as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from atu.report import report
from atu.support import environment
from atu.support.files import write_atomic, write_json, write_text
from atu.support.markdown import markdown_table

from .cells import Plan, beside_retrained, cell_path, read_cell
from .published import PRETRAINED_FID, PUBLISHED


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
    "sure_changed",
    "landing",
    "sure_landing",
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
        "good_changed": [_percent(one.get("good_changed")) for one in numbers],
        "sure_changed": [_percent((one.get("good_changed") or {}).get("sure")) for one in numbers],
        "landing": [_ratio(one.get("landing") or {}, "precision", "precision_chance") for one in numbers],
        "sure_landing": [_ratio(one.get("landing") or {}, "sure", "sure_chance") for one in numbers],
        "frechet_kept": [_ratio(one, "frechet_kept", "frechet_kept_chance") for one in numbers],
        "fid": [cell.get("fid_after") for cell in cells],
        "ret_fid": [cell.get("ret_fid") for cell in cells],
        "seconds": [cell["seconds"] for cell in cells],
    }
    found: dict[str, Any] = {name: spread(columns[name]) for name in FIGURES}
    metrics = dict.fromkeys(name for one in numbers for name in one.get("metrics") or {})
    found["over_removal"] = sum(bool(cell.get("over_removal")) for cell in cells)
    found["metrics"] = {name: spread([(one.get("metrics") or {}).get(name) for one in numbers]) for name in metrics}
    return found


def _ratio(numbers: Mapping[str, Any], value: str, chance: str) -> float | None:
    return numbers[value] / numbers[chance] if numbers.get(value) is not None and numbers.get(chance) else None


def _percent(share: Mapping[str, Any] | None) -> float | None:
    return 100 * share["share"] if share and share.get("share") is not None else None


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
            cells = []
            for seed in range(plan.seeds):
                cell = read_cell(cell_path(out, task, seed, method))
                if cell is not None:
                    cells.append({**cell, **beside_retrained(plan, out, task, seed, method)})
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
    published = plan.dataset in PUBLISHED
    size = f"{plan.negatives} negatives, {plan.samples:,} latents"
    done = sum(row["seconds"]["n"] for rows in table.values() for row in rows.values())
    lines = [
        f"# {'The published table again' if published else 'Every method'}: {plan.dataset}",
        "",
        f"One seed, {size}."
        if plan.seeds == 1
        else f"Mean ± standard deviation over up to {plan.seeds} seeds (one alone has none), {size}.",
        f"{done} of {len(list(plan.cells()))} cells are computed.",
        "",
        *_who_judged(plan),
        *(_beside_the_paper(PRETRAINED_FID[plan.dataset]) if published else []),
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
            "of sure ones, %",
            "landing, of chance",
            "sure of it, of chance",
        ]
        head += ["FID", "Ret-FID"] * extracted + metrics + ["seconds"]
        head += ["published PUL / FID / Ret-FID"] * published
        rows = []
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
            cells += [_cell(row["good_changed"], 1), _cell(row["sure_changed"], 1)]
            cells += [_cell(row["landing"], 2), _cell(row["sure_landing"], 2)]
            cells += [_cell(row["fid"], 2), _cell(row["ret_fid"], 2)] * extracted
            cells += [_cell(row["metrics"].get(name), 3) for name in metrics]
            cells += [_cell(row["seconds"], 0)] + [_published(plan.dataset, method, task.name)] * published
            rows.append([method, *cells])
        lines += ["", f"## {task.name}", "", markdown_table(head, rows)]
    return "\n".join(lines) + "\n"


def _who_judged(plan: Plan) -> list[str]:
    """Whose figures these are, in lines of text."""
    names = plan.judges
    if not plan.oracle:
        who = [f"Judge: {names}. No oracle: nothing but the marked negatives was given to the runs."]
    elif any(task.oracle is None for task in plan.tasks):
        who = [f"Judge: {names}, which marked the negatives and answered during the runs too."]
    else:
        who = [f"Judge: {names}, which answered in no run; its figures are all of these but PUL by the oracle."]
    return [
        *who,
        "Corrected: for the judge's errors on real images it has not seen. Negatives: what it still finds; a star",
        "marks fewer than a GAN makes that was retrained without them (over-removal: the 95 % interval of the",
        "difference is below 0 with at least one seed). FD kept: from the samples that are to stay to the original's",
        "good ones of other latents, over that of two halves of these. Good changed: good latents whose samples the",
        "judge gives another class; where it knows two alone (a species, and all else), those that became negative.",
        "Sure: the judge's probability of a class is 0.9 or more.",
        "FID_cls: a Fréchet distance in the judge's features to real samples without the target. Ret-FID_cls: to a GAN",
        "retrained without it, of the same seed or the first there is. Landing: precision of what negatives' latents",
        "give, over that of good samples.",
    ]


def _beside_the_paper(fid: float) -> list[str]:
    """What may be compared with the published rows, in lines of text; fid: theirs before unlearning."""
    return [
        "",
        "The published rows are PUL / FID / Ret-FID in Inception features, on the authors' GAN, trained on the whole",
        f"data set (FID {fid} before unlearning). Here the GAN, the amount of data and",
        "the feature extractor differ: FID_cls is a Fréchet distance in the features of this task's own classifier.",
        "Compare the columns within one side of the table, and only PUL and the ratio after / before across it.",
    ]


def figure_of(table: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Figure:
    """PUL against FID_cls after / before: a panel a target, as what is hard of one is easy of another; in it a point a
    method."""
    targets = list(dict.fromkeys(target for rows in table.values() for target in rows))
    columns = max(min(len(targets), 3), 1)
    lines = max(-(-len(targets) // columns), 1)
    figure = Figure(figsize=(1.6 + 3.0 * columns, 0.6 + 2.9 * lines), layout="constrained", dpi=120)
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    named: dict[str, Any] = {}
    for axes, target in zip(panels, targets, strict=False):
        for index, (method, rows) in enumerate(table.items()):
            row = rows.get(target)
            if row is not None and row["ratio"] and row["pul"]:
                x, y, style = row["ratio"]["mean"], row["pul"]["mean"], f"C{index % 10}"
                named[method] = axes.plot(x, y, "osD^vP"[index % 6], ms=7, color=style)[0]
        axes.axvline(1, color="0.7", lw=1)
        axes.set_title(target)
        axes.margins(0.08)
        axes.grid(alpha=0.25)
    for axes in panels[max(len(targets) - columns, 0) :]:
        axes.tick_params(labelbottom=True)
    for axes in panels[len(targets) :]:
        axes.set_axis_off()
    figure.supxlabel("FID_cls after / before (1 = unchanged; lower is better)", fontsize="medium")
    figure.supylabel("PUL, %", fontsize="medium")
    figure.legend(named.values(), named.keys(), loc="outside right upper", frameon=False)
    return figure


def write_table(plan: Plan, out: Path) -> dict[str, Any]:
    """Write table.md, table.json and figure.png from the cells that are there."""
    table = collect(plan, out)
    total = len(list(plan.cells()))
    done = sum(cell_path(out, *cell).is_file() for cell in plan.cells())
    found: dict[str, Any] = dict(dataset=plan.dataset, cells_done=done, cells=total, seeds=plan.seeds, table=table)
    found.update(negatives=plan.negatives, samples=plan.samples, config=report.plain(plan.config))
    found["published"] = {method: PUBLISHED.get(plan.dataset, {}).get(method) for method in plan.methods}
    found.update(machine=environment.machine(plan.gan.device), versions=environment.versions())
    write_text(out / "table.md", markdown(plan, table))
    write_json(out / "table.json", found)
    write_atomic(out / "figure.png", lambda temporary: FigureCanvasAgg(figure_of(table)).print_png(temporary))
    return found
