"""Put the numbers of benchmarks/results into README.md, the docs and benchmarks/README.md, and write the JSON schema of
report.json.

    python -m benchmarks.numbers     write; with --check only look, and exit 1 if a page is stale

A page marks where a number goes: <!-- numbers: NAME ARGUMENTS -->...<!-- /numbers -->, a table or a part of a sentence.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import mean, median, stdev

from atu.report.report import schema
from benchmarks.tables import RESULTS, Row, Value, number, percent, ratio, read_rows, select

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCHEMA = ROOT / "docs" / "report.schema.json"
NONE = "–"
rows_of = cache(lambda name: read_rows(RESULTS / f"{name}.csv"))


# --- figures of one cell


SPECIES = ("dog", "cat", "deer")  # their judge knows two classes, so that no good sample changes between others
Figure = Callable[[Row], float | None]
FIGURES: dict[str, tuple[str, Figure]] = {  # name -> digits after the point, figure of a cell
    "gone": (".1f", lambda row: number(row, "pul")),
    "agreed": (".1f", lambda row: number(row, "agreed.pul")),
    "corrected": (".1f", lambda row: number(row, "judge.corrected.pul")),
    "by the classifier": (".1f", lambda row: number(row, "classifier.pul")),
    "changed": (".1f", lambda row: None if row["target"] in SPECIES else percent(row, "good_changed.share")),
    "sure": (".1f", lambda row: None if row["target"] in SPECIES else percent(row, "good_changed.sure.share")),
    "pixel": (".1f", lambda row: None if row["target"] in SPECIES else percent(row, "good_changed.by_a_pixel.share")),
    "lands": (".2f", lambda row: ratio(row, "landing.precision", "landing.precision_chance")),
    "distance": (".1f", lambda row: ratio(row, "kept.frechet", "kept.frechet_chance")),
    "made": (".0f", lambda row: number(row, "negatives_before")),
    "left": (".0f", lambda row: number(row, "negatives_after")),
}


def over_seeds(cells: Iterable[Row], name: str) -> str:
    """Mean of a figure over the cells."""
    digits, figure = FIGURES[name]
    there = [value for row in cells if (value := figure(row)) is not None]
    return f"{mean(there):{digits}}" if there else NONE


def deviation(cells: Iterable[Row], name: str) -> str:
    digits, figure = FIGURES[name]
    there = [value for row in cells if (value := figure(row)) is not None]
    return f"{stdev(there):{digits}}" if len(there) > 1 else NONE


# --- tables of unlearning

# table of results, GAN, target, given, words
Case = tuple[str, str, Value, str, str]
GANS = {"mnist": "digits", "animals": "drawn animals", "mlp": "fully connected", "dcgan": "small DCGAN"}
GIVEN = {"oracle": "200 marks, a classifier", "marks": "100 marks"}


def cases(table: str, gan: str, given: str, targets: Sequence[Value]) -> list[Case]:
    return [(table, gan, target, given, name_of(target)) for target in targets]


def name_of(target: Value) -> str:
    return f"digit {target}" if isinstance(target, int) else str(target).replace("-", " ")


ANIMALS = ("antlers", "floppy-ears", "dog", "cat", "deer", "whiskers", "nose-ring")
ALL = [
    *cases("mnist-default", "mnist", "oracle", (1, 4, 8)),
    *cases("mnist-marks", "mnist", "marks", (1, 4, 8)),
    *cases("animals", "animals", "oracle", ANIMALS),
    *cases("animals-marks", "animals", "marks", ANIMALS),
    *cases("others", "mlp", "oracle", (1, 5)),
    *cases("others", "mlp", "marks", (1, 5)),
    *cases("others", "dcgan", "oracle", (8,)),
    *cases("others", "dcgan", "marks", (8,)),
]
SHOWN = [  # in README
    *ALL[1:3],
    *cases("animals-marks", "animals", "marks", ("antlers", "whiskers")),
    *cases("others", "dcgan", "oracle", (8,)),
]


def cells_of(case: Case) -> list[Row]:
    table, gan, target, given, _ = case
    found = select(rows_of(table), gan=gan, target=target, given=given, method="atu")
    if not found:
        raise LookupError(f"{table}: no cell of {gan}, {target}, {given}")
    return found


def unlearned(shown: Sequence[Case], columns: dict[str, Callable[[list[Row]], str]]) -> str:
    """One row a case, one number a column."""
    rows = [
        [
            words,
            GANS[gan],
            GIVEN[given],
            *(column(cells_of((table, gan, target, given, words))) for column in columns.values()),
        ]
        for table, gan, target, given, words in shown
    ]
    return markdown(["unwanted", "GAN", "given", *columns], rows)


def readme() -> str:
    columns = {"gone, %": "gone", "sure good samples changed, %": "sure"}
    return unlearned(SHOWN, {head: partial(over_seeds, name=name) for head, name in columns.items()})


def default() -> str:
    columns: dict[str, Callable[[list[Row]], str]] = {
        "seeds": lambda cells: str(len(cells)),
        "gone, %": partial(over_seeds, name="gone"),
        "±": partial(deviation, name="gone"),
        "corrected, %": partial(over_seeds, name="corrected"),
        "by the classifier, %": partial(over_seeds, name="by the classifier"),
        "good changed, %": partial(over_seeds, name="changed"),
        "of sure ones, %": partial(over_seeds, name="sure"),
        "lands": partial(over_seeds, name="lands"),
        "distance": partial(over_seeds, name="distance"),
    }
    return unlearned(ALL, columns)


METHODS = ["atu", "el2", "nl2", "il2", "extrapolate", "ewc", "cdc", "rssa", "l1-sparse", "cf-k", "eu-k", "retrain"]


def methods(figure: str) -> str:
    """One figure of every method (rows) on every target (columns)."""
    targets = [("mnist-default", digit) for digit in (1, 4, 8)] + [("animals", target) for target in ANIMALS]
    rows = [
        [
            method,
            *(over_seeds(select(rows_of(table), target=target, method=method), figure) for table, target in targets),
        ]
        for method in METHODS
    ]
    return markdown(["method", *(name_of(target) for _, target in targets)], rows)


def cell(figure: str, table: str, target: str, *more: str) -> str:
    """One number: FIGURE TABLE TARGET [NAME=VALUE ...]; the method is atu unless it is given."""
    rows = rows_of(table)
    wanted: dict[str, Value] = {"method": "atu"} if "method" in rows[0] else {}
    wanted |= dict(pair.split("=") for pair in more)
    found = select(rows, target=int(target) if target.isdigit() else target, **wanted)
    if not found:
        raise LookupError(f"{table}: no cell of {target}, {wanted}")
    return over_seeds(found, figure)


# --- the audit


def audit(target: str, gan: str, part: str, figure: str, by: str = "") -> str:
    """One share of audit.csv, in %, by the judge unless BY is given. Relearning: the curve's end."""
    found = select(
        rows_of("audit"), target=target, gan=gan, part=part.replace("-", " "), figure=figure.replace("-", " ")
    )
    kept = [row for row in found if by in str(row.get("by") or "")]
    if figure == "rate":
        return f"{mean_rate(kept[-1], target):.0f}"
    return f"{100 * float(str(kept[0]['value'])):.1f}"


def mean_rate(row: Row, target: str) -> float:
    """A rate of relearning in % of the original's share of negatives, by the judge."""
    before = select(rows_of("audit"), target=target, gan="before", part="rate")
    return 100 * float(str(row["value"])) / float(str(before[0]["value"]))


# --- ops, steps and jobs


def ops() -> str:
    """One row an op: float32 and one thread, the median over its cases."""
    rows = []
    cases_of_run = select(rows_of("ops"), run="ops-1")
    for op in dict.fromkeys(str(row["op"]) for row in cases_of_run):
        of_op = select(cases_of_run, op=op)
        figures = [[ratio(row, f"{kind}.median", "ours.median") for row in of_op] for kind in ("reference", "compiled")]
        limits = [number(row, "of_limit") for row in of_op]
        shares = [*figures, limits]
        texts = [f"{median(there):.1f}" if (there := [x for x in some if x is not None]) else NONE for some in shares]
        worst = max(x for x in limits if x is not None)
        rows.append([f"`{op}`", str(len(of_op)), *texts, f"{worst:.1f}"])
    head = ["op", "cases", "eager / ours", "torch.compile / ours", "ours / limit", "ours / limit, worst"]
    return markdown(head, rows)


RUNS = {
    "step-1": "digits, 32 x 32",
    "step-2": "digits, 32 x 32",
    "step-64": "animals, 64 x 64",
    "step-256": "untrained, 256 x 256",
}


def steps() -> str:
    """A stage-2 step of the paper's, in milliseconds."""
    rows = []
    for run, words in RUNS.items():
        (row,) = select(rows_of("step"), run=run, name="stage 2: step")
        (about,) = select(rows_of("runs"), run=run)
        times = [number(row, f"{kind}.median") or 0.0 for kind in ("reference", "ours", "bfloat16")]
        rates = [f"{times[0] / time:.2f}" for time in times[1:]]
        rows.append(
            [words, str(about["batch"]), str(row["threads"]), *(f"{1000 * time:.0f}" for time in times), *rates]
        )
    head = [
        "GAN",
        "batch",
        "threads",
        "eager, ms",
        "ours, ms",
        "ours in bfloat16, ms",
        "eager / ours",
        "eager / bfloat16",
    ]
    return markdown(head, rows)


def jobs() -> str:
    """A whole unlearning, in seconds."""
    names = ["command", "seconds", "before_stage_1", "stage_1", "stage_2", "measuring"]
    rows = [[f"`{row['command']}`", *(str(row[name]) for name in names[1:])] for row in rows_of("jobs")]
    return markdown([name.replace("_", " ") for name in names], rows)


# --- marking


def marks_finding(folder: Path = RESULTS) -> str:
    """How many samples and clicks it takes to find so many unwanted ones: means over the seeds."""
    rows, there = [], read_rows(folder / "marks-finding.csv")
    for share, unwanted, found in dict.fromkeys((row["share"], row["unwanted"], row["found"]) for row in there):
        texts = []
        for key in ("looked", "clicks"):
            for order in ("suggestions", "random"):
                counts = [number(row, key) for row in select(there, share=share, found=found, order=order)]
                known = [count for count in counts if count is not None]  # not every seed finds as many
                texts.append(f"{mean(known):,.0f}" if known and known == counts else NONE)
        rows.append([str(share), str(unwanted), str(found), *texts])
    head = ["share", "unwanted", "found", "looked at, suggestions", "looked at, random"]
    return markdown([*head, "clicks, suggestions", "clicks, random"], rows)


def marks_unlearning(folder: Path = RESULTS) -> str:
    """What a number of clicks gives."""
    rows = []
    for row in read_rows(folder / "marks-unlearning.csv"):
        figures = [number(row, name) or 0.0 for name in ("judge.pul", "user.pul", "report.pul")]
        texts = [f"{value:.1f}" for value in (*figures, percent(row, "good_changed") or 0.0)]
        counts = [f"{int(number(row, name) or 0):,}" for name in ("rounds", "clicks", "looked", "counts.unwanted")]
        rows.append([str(row["share"]), str(row["unwanted"]), str(row["order"]), *counts, *texts])
    head = ["share", "unwanted", "order", "rounds", "clicks", "looked at", "marked unwanted", "gone by the judge, %"]
    return markdown([*head, "gone by the user's own, %", "gone by the probe, %", "good changed, %"], rows)


# --- pages


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


NUMBERS: dict[str, Callable[..., str]] = {
    "readme": readme,
    "default": default,
    "methods": methods,
    "cell": cell,
    "audit": audit,
    "ops": ops,
    "steps": steps,
    "jobs": jobs,
    "marks-finding": marks_finding,
    "marks-unlearning": marks_unlearning,
}
REGION = re.compile(r"<!-- numbers: ([^>]+?) -->(.*?)<!-- /numbers -->", re.DOTALL)


def filled(page: str) -> str:
    """The page with every number made anew."""

    def fill(match: re.Match[str]) -> str:
        name, *arguments = match[1].split()
        text = NUMBERS[name](*arguments)
        text = f"\n{text}\n" if "\n" in text else text
        return f"<!-- numbers: {match[1]} -->{text}<!-- /numbers -->"

    return REGION.sub(fill, page)


def main(arguments: Sequence[str]) -> int:
    stale = []
    for path in (*PAGES, SCHEMA):
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        after = filled(before) if path != SCHEMA else json.dumps(schema(), indent=1) + "\n"
        if before != after:
            stale.append(str(path.relative_to(ROOT)))
            if "--check" not in arguments:
                path.write_text(after, encoding="utf-8")
    if stale:
        print("stale:" if "--check" in arguments else "written:", *stale)
    return int("--check" in arguments and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
