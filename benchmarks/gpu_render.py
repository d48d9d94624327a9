"""The report of benchmarks/gpu.py as markdown, and which of its aims were met."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

# Share of the limit (or factor against the best other) that is aimed at on an H100.
COPY_AIM, NETWORK_AIM, CONV_AIM = 0.85, 1.5, 1.10
L2_BYTES = 50 << 20


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows), ""]


def us(seconds: float) -> str:
    return f"{seconds * 1e6:.1f}"


def ops_section(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "## Ops",
        "",
        "Times in microseconds, median ± interquartile range. `copy / ours`: the share of the rate of",
    ]
    lines += ["of a copy of the same bytes, or where flops bind, of the matrix product.", ""]
    cells = []
    for row in rows:
        if "rates" in row:
            continue
        name = [f"{row['name']} {row['direction']}", row["dtype"]]
        if "error" in row:
            cells.append([*name, f"failed: {row['error']}", "", "", ""])
            continue
        ours = row["times"]["ours"]
        share = f"{100 / row['of_limit']:.0f} % ({row['bound']})"
        gains = [row["speedup"].get(kind) for kind in ("reference", "compiled")]
        others = ["-" if gain is None else f"{gain:.2f}" for gain in gains]
        cells.append([*name, f"{us(ours['median'])} ± {us(ours['iqr'])}", share, *others])
    return lines + table(["case", "dtype", "ours", "copy / ours", "torch / ours", "compile / ours"], cells)


def engines_section(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["## Engines of the modulated convolution", ""]
    lines += ["Microseconds; `conv` is the plain convolution of that shape.", ""]
    cells = []
    for row in rows:
        if "not_measured" in row:
            lines += [f"Not measured: {row['not_measured']}.", ""]
            continue
        size = f"{row['batch']}x{row['channels_in']}x{row['height']}x{row['width']}"
        measured = [str(row.get(f"{kind}_us", "-")) for kind in ("library", "gemm", "conv")]
        cells.append([size, row["dtype"], row["layout"], row["direction"], *measured])
    return lines + (table(["shape", "dtype", "layout", "direction", "library", "gemm", "conv"], cells) if cells else [])


def times_section(title: str, rows: list[dict[str, Any]], label: Callable[[dict[str, Any]], str]) -> list[str]:
    cells = []
    for row in rows:
        for kind, entry in row["times"].items():
            cells.append([label(row), kind, f"{us(entry['median'])} ± {us(entry['iqr'])}"])
    return [f"## {title}", "", "Microseconds.", "", *table(["case", "implementation", "time"], cells)]


def network_label(row: dict[str, Any]) -> str:
    return f"{row['resolution']} pixels, batch {row['batch']}, {row['fp16_blocks']} blocks in float16"


def steps_section(runs: list[dict[str, Any]]) -> list[str]:
    lines = [
        "## Training steps",
        "",
        "Milliseconds, and MiB at the peak, of a step and of its parts. `ours` is float32.",
    ]
    for run in runs:
        kinds = list(dict.fromkeys(kind for row in run["rows"] for kind in row["times"]))
        lines += ["", f"### {run['gan']}, batch {run['batch']}", ""]
        lines += table(["part", *kinds], [[row["name"], *_step_cells(row, kinds)] for row in run["rows"]])
        why = next((row["not_compiled"] for row in run["rows"] if "not_compiled" in row), None)
        lines += [] if why is None else [f"torch.compile of the networks failed: {why}", ""]
    return lines


def _step_cells(row: dict[str, Any], kinds: list[str]) -> list[str]:
    found = [row["times"].get(kind) for kind in kinds]
    return [
        "-"
        if entry is None
        else f"{1e3 * entry['median']:.2f} ± {1e3 * entry['iqr']:.2f}, {entry['peak_bytes'] / 2**20:.0f}"
        for entry in found
    ]


def one_rank_section(found: dict[str, Any]) -> list[str]:
    seconds = found["seconds"]
    told = f"A short `atu unlearn` by torchrun with one process took {seconds['torchrun']} s, and {seconds['alone']} s "
    told += f"without; the largest difference of a weight is {found['largest_difference']:.3g}."
    return ["## torchrun with one process", "", told, ""]


def aims(found: dict[str, Any]) -> list[list[str]]:
    """What was aimed at, the worst that was measured, and whether that is enough."""
    measured: list[tuple[str, str, bool]] = []
    bound = [r for r in found.get("ops", []) if r.get("bound") == "bytes" and r["bytes"] > L2_BYTES]
    for op in ("upfirdn2d", "bias_act", "epilogue", "param_penalty"):
        share = min((1 / r["of_limit"] for r in bound if r["op"] == op), default=None)
        if share is not None:
            measured.append((f"{op} >= {COPY_AIM:.0%} of the copy", f"{share:.0%}", share >= COPY_AIM))
    gains = []
    for row in found.get("network", []):
        others = [entry["median"] for kind, entry in row["times"].items() if kind != "ours"]
        gains.append(min(others) / row["times"]["ours"]["median"])
    if gains:
        least = min(gains)
        measured.append((f"synthesis >= {NETWORK_AIM} x the best other", f"{least:.2f}", least >= NETWORK_AIM))
    forward = [r for r in found.get("engines", []) if r.get("direction") == "forward"]
    over = max((min(r["library_us"], r["gemm_us"]) / r["conv_us"] for r in forward), default=None)
    if over is not None:
        measured.append((f"modulated layer <= {CONV_AIM} x the plain convolution", f"{over:.2f}", over <= CONV_AIM))
    return [[aim, value, "met" if met else "not met"] for aim, value, met in measured]


def render(found: dict[str, Any]) -> str:
    machine = found.get("environment", {}).get("machine", {})
    device = machine.get("gpu", machine.get("cpu", "unknown device"))
    lines = [f"# GPU report: {device}", ""]
    if found["smoke"]:
        lines += ["**Smoke run with tiny shapes: the numbers mean nothing.**", ""]
    lines += ["Written by `python -m benchmarks.gpu`.", ""]
    lines += ["```", json.dumps(found.get("environment"), indent=1), "```", ""]
    for name, error in found["failed"].items():
        lines += [f"**{name} failed:** {error}", ""]
    if found.get("aims"):
        lines += ["## Aims (of an H100; the worst case of each)", "", *table(["aim", "measured", ""], found["aims"])]
    if "tests" in found:
        lines += ["## Tests", "", f"`{found['tests']['command']}`: {found['tests']['counts']}", ""]
    if "sanitizer" in found:
        lines += ["## compute-sanitizer", ""]
        for kind, result in found["sanitizer"].items():
            lines.append(f"- {kind}: {result if isinstance(result, str) else 'exit code ' + str(result['code'])}")
        lines.append("")
    if "ops" in found:
        lines += ops_section(found["ops"])
    if "engines" in found:
        lines += engines_section(found["engines"])
    if "network" in found:
        lines += times_section("Synthesis network, forward and backward", found["network"], network_label)
    if "adam" in found:
        lines += times_section("Adam with the penalty", found["adam"], lambda r: f"{r['weights'] / 1e6:.1f} M weights")
    if "steps" in found:
        lines += steps_section(found["steps"])
    if "one_rank" in found:
        lines += one_rank_section(found["one_rank"])
    return "\n".join(lines)
