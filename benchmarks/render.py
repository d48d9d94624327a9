"""Write the tables of docs/performance.md from benchmarks/results/*.json, between the markers that the page has.

    python -m benchmarks.render           write        python -m benchmarks.render --check    exit 1 if it would change

A marker is <!-- table: NAME --> ... <!-- end -->. A table whose results are missing says which command makes them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from atu.bench.output import duration, size
from atu.support.markdown import markdown_table

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"
FILES = {
    "ops-1": "atu bench ops --threads 1 --dtype float32 --seconds 0.15 --save benchmarks/results/ops-1.json "
    "--plot docs/images/bench-ops.png",
    "ops-1-bfloat16": "atu bench ops --threads 1 --dtype bfloat16 --seconds 0.15 --no-compile --no-growth "
    "--save benchmarks/results/ops-1-bfloat16.json",
    "ops-2": "atu bench ops --threads 2 --seconds 0.15 --no-compile --no-growth --save benchmarks/results/ops-2.json",
    "step-1": "atu bench step --threads 1 --save benchmarks/results/step-1.json",
    "step-2": "atu bench step --threads 2 --save benchmarks/results/step-2.json",
    "step-64": "atu bench step --gan animals --threads 2 --save benchmarks/results/step-64.json",
    "step-256": "atu bench step --gan 256 --batch 4 --threads 2 --save benchmarks/results/step-256.json",
}
Row = list[str]


class Missing(Exception):
    """A result file that is not there."""


def load(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    if not path.exists():
        raise Missing(FILES[name])
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def machine_line(found: dict[str, Any]) -> str:
    about, rates, versions = found["machine"], found["limits"], found["versions"]
    load_average = about.get("load_average", "?")
    return (
        f"{about.get('gpu', about['cpu'])}, {found['threads']} of {about['cores']} cores, torch {versions['torch']}, "
        f"load {load_average}. Copy {rates['copy'] / 1e9:.1f} GB/s, read {rates['read'] / 1e9:.1f} GB/s, "
        f"matmul {rates['matmul'] / 1e9:.0f} and convolution {rates['conv'] / 1e9:.0f} Gflop/s."
    )


def _median(row: dict[str, Any], kind: str) -> str:
    return duration(row["times"].get(kind, {}).get("median"))


def ops(name: str) -> str:
    found = load(name)
    rows = []
    for row in found["rows"]:
        times = [
            duration(row["times"].get(kind, {}).get("median")) for kind in ("ours", "reference", "compiled", "library")
        ]
        memory = size(row["times"]["ours"]["peak_bytes"])
        label = f"{row['name']}, {row['direction']}"
        rows.append([label, *times, f"{duration(row['limit'])} ({row['bound']})", f"{row['of_limit']:.2f}", memory])
    head = ["case", "ours", "reference", "torch.compile", "nearest of torch", "limit", "ours / limit", "peak memory"]
    return f"{machine_line(found)}\n\n{markdown_table(head, rows)}"


def growth(name: str) -> str:
    rows = []
    for g in load(name).get("growth", []):
        sizes, seconds = ", ".join(map(str, g["sizes"])), ", ".join(map(duration, g["seconds"]))
        rows.append([g["name"], g["over"], sizes, seconds, f"{g['exponent']:.2f}"])
    text = markdown_table(["op", "over", "sizes", "times", "exponent"], rows)
    picture = PAGE.parent / "images" / "bench-ops.png"
    return f"{text}\n\n![Times over the limit, and growth](images/{picture.name})" if picture.exists() else text


def step(name: str) -> str:
    found = load(name)
    rows = []
    for row in found["rows"]:
        times = [duration(row["times"].get(kind, {}).get("median")) for kind in ("ours", "reference", "compiled")]
        ratios = [
            f"{row['speedup'][kind]:.2f}" if kind in row["speedup"] else "-" for kind in ("reference", "compiled")
        ]
        low = [_median(row, "bfloat16")] if "bfloat16" in row["times"] else []
        rows.append([row["name"], *times, *ratios, size(row["times"]["ours"]["peak_bytes"]), *low])
    head = ["part", "ours", "reference", "torch.compile", "reference / ours", "compiled / ours", "peak memory"]
    head += ["ours, bfloat16"] if "bfloat16" in found["rows"][0]["times"] else []
    why = next((row["not_compiled"] for row in found["rows"] if "not_compiled" in row), "")
    note = f"\n\ntorch.compile of the networks failed: {why}" if why else ""
    return f"{found['gan']}, batch {found['batch']}. {machine_line(found)}\n\n{markdown_table(head, rows)}{note}"


# --- the aims: (aim, measured, met)


def _worst(rows: list[dict[str, Any]], measure: Callable[[dict[str, Any]], float | None], largest: bool) -> str:
    found = [(value, row) for row in rows if (value := measure(row)) is not None]
    if not found:
        return "not measured"
    value, row = (max if largest else min)(found, key=lambda pair: pair[0])
    return f"{value:.2f} ({row['name']}, {row['direction']})"


def _aim(text: str, rows, measure, bound: float, largest: bool) -> Row:
    """largest: the aim is a ceiling, and the worst case the largest value."""
    values = [value for row in rows if (value := measure(row)) is not None]
    met = sum((value <= bound) if largest else (value >= bound) for value in values)
    return [text, _worst(rows, measure, largest), f"{met} of {len(values)} cases"]


def _over(kind: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda row: row["speedup"].get(kind)


def _ours_over(kind: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda row: 1 / row["speedup"][kind] if kind in row["speedup"] else None


def _ops_aims(threads: int) -> list[Row]:
    everything = load(f"ops-{threads}")["rows"] + (load("ops-1-bfloat16")["rows"] if threads == 1 else [])

    def rows(op: str, *directions: str, label: str = "", dtype: str = "float32") -> list[dict[str, Any]]:
        chosen = [r for r in everything if r["op"] == op and label in r["name"] and r.get("dtype", "float32") == dtype]
        return [r for r in chosen if not directions or r["direction"] in directions]

    def limit(row: dict[str, Any]) -> float:
        return float(row["of_limit"])

    note = f", {threads} thread{'s' if threads > 1 else ''}"
    layer = "modulated_conv2d"
    plain = [r for r in rows(layer, "forward") if "up 2" not in r["name"]]
    low = partial(rows, dtype="bfloat16")
    plain_low = [r for r in low(layer, "forward") if "up 2" not in r["name"]]
    up_low = low(layer, "forward", label="up 2")
    halves = [
        _aim(f"upfirdn2d in bfloat16 <= 2 x its copy{note}", low("upfirdn2d"), limit, 2, True),
        _aim(f"bias_act in bfloat16 <= 1.3 x its copy{note}", low("bias_act"), limit, 1.3, True),
        _aim(f"modulated layer in bfloat16 <= 1.3 x its conv2d{note}", plain_low, _ours_over("library"), 1.3, True),
        _aim(f"the same, up 2 <= 2.5 x{note}", up_low, _ours_over("library"), 2.5, True),
    ]
    return [
        _aim(f"upfirdn2d <= 2 x copy{note}", rows("upfirdn2d"), limit, 2, True),
        _aim(f"upfirdn2d >= 10 x eager{note}", rows("upfirdn2d"), _over("reference"), 10, False),
        _aim(f"upfirdn2d never slower than torch.compile{note}", rows("upfirdn2d"), _over("compiled"), 1, False),
        _aim(f"bias_act <= 1.25 x copy{note}", rows("bias_act"), limit, 1.25, True),
        _aim(f"bias_act <= 1.5 x copy{note}", rows("bias_act"), limit, 1.5, True),
        _aim(f"modulated layer, forward <= 1.1 x conv2d{note}", plain, _ours_over("library"), 1.1, True),
        _aim(f"the same, up 2 <= 2 x{note}", rows(layer, "forward", label="up 2"), _ours_over("library"), 2, True),
        _aim(f"its backward <= 1.15 x conv2d's{note}", rows(layer, "backward"), _ours_over("library"), 1.15, True),
        _aim(f"its second order <= reference{note}", rows(layer, "second"), _ours_over("reference"), 1, True),
        _aim(f"param_penalty <= 1.25 x bytes{note}", rows("param_penalty"), limit, 1.25, True),
        _aim(f"param_penalty >= 3 x eager loop{note}", rows("param_penalty"), _over("reference"), 3, False),
        *(halves if any(r.get("dtype") == "bfloat16" for r in everything) else []),
    ]


def _step_aims(threads: int) -> list[Row]:
    found = load(f"step-{threads}")
    row = next(r for r in found["rows"] if r["name"] == "stage 2: step")
    note = f", {threads} thread{'s' if threads > 1 else ''}"
    aims = []
    for kind, name, aim in (("reference", "reference", 2.5), ("compiled", "torch.compile", 1.3)):
        value = row["speedup"].get(kind)
        text = "not measured" if value is None else f"{value:.2f}"
        met = "yes" if value is not None and value >= aim else "no"
        aims.append([f"stage-2 step >= {aim} x {name}{note}", text, met])
    times = {kind: entry["median"] for kind, entry in row["times"].items()}
    if "bfloat16" in times:
        value = times["reference"] / times["bfloat16"]
        text = f"stage-2 step in bfloat16 >= 4 x the float32 reference{note}"
        aims.append([text, f"{value:.2f}", "yes" if value >= 4 else "no"])
    return aims


def _low_aim(name: str, what: str, factor: float) -> Row:
    """A stage-2 step: the reference in float32 over ours in bfloat16."""
    value = _seconds(name, "stage 2", "reference") / _seconds(name, "stage 2", "bfloat16")
    text = f"stage-2 step of {what} in bfloat16 >= {factor:.0f} x the float32 reference, 2 threads"
    return [text, f"{value:.2f}", "yes" if value >= factor else "no"]


def _scratch_aim(name: str, what: str, factor: float) -> Row:
    """As `_low_aim`, of training from scratch, with R1 and R2 in every 16th step."""
    before, after = (_seconds(name, "from scratch", kind, 2 / 16) for kind in ("reference", "bfloat16"))
    batch, value = load(name)["batch"], before / after
    rates = f"{value:.2f} ({batch / before:.0f} and {batch / after:.0f} images a second)"
    text = f"training of {what} from scratch in bfloat16 >= {factor:.0f} x the float32 reference, 2 threads"
    return [text, rates, "yes" if value >= factor else "no"]


def _seconds(name: str, stage: str, kind: str, penalties: float = 0) -> float:
    """Of a step, and a share of the time of R1."""
    medians = {row["name"]: row["times"][kind]["median"] for row in load(name)["rows"]}
    return float(medians[f"{stage}: step"] + (penalties * medians[f"{stage}: r1"] if penalties else 0))


def _memory_aim() -> Row:
    memory = load("step-1")["memory"]
    allowed = 1.1 * memory["plain"] + 2 * memory["generator"]
    worst = max(m["peak"] + m["kept"] for m in memory["stage_2"].values())
    text = "stage-2 peak <= 1.1 x plain step + 2 generators, N = 1, 2, 5"
    return [text, f"{size(worst)} of {size(allowed)}", "yes" if worst <= allowed else "no"]


def _thread_aims() -> list[Row]:
    aims = []
    for fit in load("ops-1").get("growth", []):
        if fit["over"] == "threads":
            gain = fit["seconds"][0] / fit["seconds"][1]
            aims.append([f"{fit['name']}: >= 1.8 x from 1 to 2 threads", f"{gain:.2f}", "yes" if gain >= 1.8 else "no"])
    return aims


def _overhead_aim() -> Row:
    over = load("step-1")["overhead"]
    text = f"{duration(over['ours'])} (reference {duration(over['reference'])}), all of torch's own calls included"
    return ["a step's overhead <= 5 ms", text, "yes" if over["ours"] <= 5e-3 else "no"]


def aims(_: str) -> str:
    parts: list[tuple[Callable[[], list[Row]], str]] = [
        *[(partial(_ops_aims, n), f"the ops, {n} threads") for n in (1, 2)],
        *[(partial(_step_aims, n), f"a stage-2 step, {n} threads") for n in (1, 2)],
        (lambda: [_low_aim("step-64", "64 px in colour", 5)], "a step of 64 px"),
        (lambda: [_low_aim("step-256", "256 px", 5)], "a step of 256 px"),
        (lambda: [_scratch_aim("step-64", "64 px in colour", 4)], "training of 64 px from scratch"),
        (lambda: [_overhead_aim(), _memory_aim()], "a step's overhead and memory"),
        (_thread_aims, "threads"),
    ]
    rows = []
    for make, name in parts:
        try:
            rows += make()
        except Missing as missing:
            rows.append([name, f"not measured yet: `{missing}`", "-"])
    return markdown_table(["aim", "worst case measured", "met"], rows)


TABLES: dict[str, tuple[Callable[[str], str], str]] = {
    "aims": (aims, ""),
    "ops-1": (ops, "ops-1"),
    "ops-1-bfloat16": (ops, "ops-1-bfloat16"),
    "ops-2": (ops, "ops-2"),
    "growth": (growth, "ops-1"),
    "step-1": (step, "step-1"),
    "step-2": (step, "step-2"),
    "step-64": (step, "step-64"),
    "step-256": (step, "step-256"),
}


def rendered(page: str) -> str:
    """The page with every table made anew."""

    def fill(match: re.Match[str]) -> str:
        function, argument = TABLES[match[1]]
        try:
            text = function(argument)
        except Missing as missing:
            text = f"Not measured yet: `{missing}`, then `python -m benchmarks.render`."
        return f"<!-- table: {match[1]} -->\n{text}\n<!-- end -->"

    return re.sub(r"<!-- table: (\S+) -->\n.*?<!-- end -->", fill, page, flags=re.S)


def main() -> int:
    before = PAGE.read_text(encoding="utf-8")
    after = rendered(before)
    if "--check" in sys.argv[1:]:
        return int(before != after)
    PAGE.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
