"""Cells over their seeds, as the table beside the paper's rows and as a figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from atu.support.files import write_atomic, write_text
from atu.support.markdown import markdown_table
from benchmarks.tables import Row, flatten, number, percent, ratio, write_rows

from .cells import COLUMNS, Plan, read_cells, work_path
from .published import PRETRAINED_FID, PUBLISHED


def spread(values: Sequence[float | None]) -> dict[str, Any] | None:
    """Mean, standard deviation (None of one value) and number of the values that are there."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    return dict(mean=mean(there), deviation=stdev(there) if len(there) > 1 else None, n=len(there))


FIGURES: dict[str, Callable[[Row], float | None]] = {
    "pul": lambda row: number(row, "pul"),
    "pul_corrected": lambda row: number(row, "judge.corrected.pul"),
    "pul_oracle": lambda row: number(row, "classifier.pul") if row.get("classifier.answered") else None,
    "negatives": lambda row: number(row, "negatives_after"),
    "fid_cls": lambda row: number(row, "models.after.fid_cls"),
    "ratio": lambda row: ratio(row, "models.after.fid_cls", "models.before.fid_cls") or None,
    "ret_fid_cls": lambda row: number(row, "ret_fid_cls"),
    "tv_kept": lambda row: number(row, "kept.tv"),
    "frechet_kept": lambda row: ratio(row, "kept.frechet", "kept.frechet_chance"),
    "good_changed": lambda row: percent(row, "good_changed.share"),
    "sure_changed": lambda row: percent(row, "good_changed.sure.share"),
    "landing": lambda row: ratio(row, "landing.precision", "landing.precision_chance"),
    "sure_landing": lambda row: ratio(row, "landing.sure", "landing.sure_chance"),
    "fid": lambda row: number(row, "fid_after"),
    "ret_fid": lambda row: number(row, "ret_fid"),
    "seconds": lambda row: number(row, "seconds"),
}


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """The cells of one method and target, over the seeds."""
    metrics = dict.fromkeys(name for row in rows for name in row if name.startswith("metrics."))
    summary: dict[str, Any] = {name: spread([figure(row) for row in rows]) for name, figure in FIGURES.items()}
    summary["over_removal"] = sum(bool(row.get("over_removal")) for row in rows)
    summary["metrics"] = {
        name.removeprefix("metrics."): spread([number(row, name) for row in rows]) for name in metrics
    }
    return summary


Table = dict[str, dict[str, dict[str, Any]]]  # method -> target -> summary


def collect(plan: Plan, out: Path) -> Table:
    """method -> target -> summary of the cells that are there."""
    cells, table = read_cells(out), Table()
    for method in plan.methods:
        for task in plan.tasks:
            rows = [cells[key] for seed in range(plan.seeds) if (key := (method, task.name, seed)) in cells]
            if rows:
                table.setdefault(method, {})[task.name] = summarise(rows)
    return table


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
    """Write table.csv, table.md, figure.png and pictures.jpg from the cells that are there; returns how many are."""
    table = collect(plan, out)
    total, done = len(list(plan.cells())), sum(row["seconds"]["n"] for rows in table.values() for row in rows.values())
    write_rows(out / "table.csv", [_row(plan, method, target, table) for method in table for target in table[method]])
    write_text(out / "table.md", markdown(plan, table))
    write_atomic(out / "figure.png", lambda temporary: FigureCanvasAgg(figure_of(table)).print_png(temporary))
    write_sheet(plan, out)
    return dict(cells_done=done, cells=total, table=table)


def _row(plan: Plan, method: str, target: str, table: Table) -> Row:
    """One row of table.csv: mean, deviation and number of each figure, beside what was published."""
    summary = table[method][target]
    published = PUBLISHED.get(plan.dataset, {}).get(method, {}).get(target)
    names = ("pul", "fid", "ret_fid")
    beside = {} if published is None else {f"published.{name}": x for name, x in zip(names, published, strict=True)}
    return {"method": method, "target": target, **dict(flatten(summary)), **beside}


TILES, SIDE = 8, 26  # of a cell on the sheet: images in a row, and pixels of one


def write_sheet(plan: Plan, out: Path) -> None:
    """pictures.jpg: of each method (rows) and target, first seed, latents that were negative before and after, above
    good ones before and after."""
    from PIL import Image, ImageDraw

    width, height = TILES * SIDE + 6, 4 * SIDE + 6
    sheet = Image.new("RGB", (70 + len(plan.tasks) * width, 16 + len(plan.methods) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, task in enumerate(plan.tasks):
        draw.text((74 + column * width, 2), task.name, fill="black")
        for row, method in enumerate(plan.methods):
            draw.text((2, 18 + row * height), method, fill="black")
            path = work_path(out, "pictures", task, 0, method, ".png")
            if not path.is_file():
                continue
            with Image.open(path) as picture:
                half = 4 if 8 * picture.width == COLUMNS * picture.height else 2  # lines: two pairs of either, or one
                tile = picture.height // (2 * half)
                for place, line in enumerate((0, 1, half, half + 1)):
                    strip = picture.crop((0, line * tile, TILES * tile, (line + 1) * tile)).resize((TILES * SIDE, SIDE))
                    sheet.paste(strip, (70 + column * width, 16 + row * height + place * SIDE))
    write_atomic(
        out / "pictures.jpg", lambda temporary: sheet.save(temporary, format="jpeg", quality=65, optimize=True)
    )
