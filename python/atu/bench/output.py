"""What a run of the suite found: tables on the terminal, comparison with an earlier run, and a picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from ..support.console import Console

SLOWER = 1.25  # a case that took so much longer in relation to its limit is pointed out
OTHERS = ("reference", "compiled", "library")
LOW = ("bfloat16", "float16")


def duration(seconds: float | None) -> str:
    """3 digits in a fitting unit."""
    if seconds is None:
        return "-"
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1 or unit == "µs":
            return f"{seconds * scale:.3g} {unit}"
    return "-"


def size(count: float) -> str:
    """Bytes in a fitting unit."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def _factor(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=i == 0)
    for row in rows:
        table.add_row(*row)
    return table


def _rates(found: dict[str, Any]) -> list[str]:
    return [
        f"{name}: copy {rates['copy'] / 1e9:.1f} GB/s (read and written), read {rates['read'] / 1e9:.1f} GB/s, "
        f"matmul {rates['matmul'] / 1e9:.0f} Gflop/s, conv {rates['conv'] / 1e9:.0f} Gflop/s"
        for name, rates in found.get("limits_of", {found["dtype"]: found["limits"]}).items()
    ]


def _ops_tables(found: dict[str, Any]) -> list[Table]:
    first = found["dtype"]
    shown = [*OTHERS, *([first] if len(found.get("dtypes", ())) > 1 else [])]
    columns = ["case", "ours", "± iqr", "memory", "limit", "of limit", *(f"{o} / ours" for o in shown)]
    rows = []
    for row in found["rows"]:
        ours = row["times"]["ours"]
        cells = [f"{row['name']} {row['direction']}", duration(ours["median"]), duration(ours["iqr"])]
        cells += [size(ours["peak_bytes"]), f"{duration(row['limit'])} {row['bound']}", _factor(row["of_limit"])]
        rows.append([*cells, *(_factor(row["speedup"].get(other)) for other in shown)])
    tables = [_table("ops", columns, rows)]
    if found.get("growth"):
        grown = [
            [g["name"], g["over"], ", ".join(map(str, g["sizes"])), ", ".join(map(duration, g["seconds"])),
             f"{g['exponent']:.2f}"]
            for g in found["growth"]
        ]  # fmt: skip
        tables.append(_table("growth", ["op", "over", "sizes", "time", "exponent"], grown))
    return tables


def _step_tables(found: dict[str, Any]) -> list[Table]:
    low = [name for name in LOW if name in found["rows"][0]["times"]]
    columns = ["part", "ours", "± iqr", "memory", "reference / ours", "compiled / ours", *low]
    columns += [f"ours / {name}" for name in low] + [f"reference / {name}" for name in low]
    rows = []
    for row in found["rows"]:
        times = row["times"]
        ours = times["ours"]
        cells = [row["name"], duration(ours["median"]), duration(ours["iqr"]), size(ours["peak_bytes"])]
        cells += [_factor(row["speedup"].get(other)) for other in OTHERS[:2]]
        cells += [duration(times[name]["median"]) for name in low]
        pairs = [times[kind]["median"] / times[name]["median"] for kind in ("ours", "reference") for name in low]
        rows.append([*cells, *map(_factor, pairs)])
    tables = [_table(f"step: {found['gan']}, batch {found['batch']}", columns, rows)]
    if "memory" in found:
        memory = found["memory"]
        kept = [["plain fine-tuning step", size(memory["plain"]), "-"]]
        kept += [[f"stage 2, N={n}", size(m["peak"]), size(m["kept"])] for n, m in memory["stage_2"].items()]
        title = f"memory (generator {size(memory['generator'])})"
        tables.append(_table(title, ["step", "peak", "kept by penalty"], kept))
    if "overhead" in found:
        over = [[name, duration(seconds)] for name, seconds in found["overhead"].items()]
        tables.append(_table("stage-2 step that computes next to nothing", ["implementation", "time"], over))
    return tables


def _job_tables(found: dict[str, Any]) -> list[Table]:
    columns = ["job", "implementation", "seconds", "PUL 95 after", "PUL 99 after", "negatives before", "after"]
    rows = []
    for row in found["rows"]:
        reached = [duration(row["to_pul"][level]) if row["to_pul"][level] else "not" for level in ("95", "99")]
        rates = ["-" if row[key] is None else f"{100 * row[key]:.1f} %" for key in ("before", "after")]
        rows.append([row["name"], row["impl"], f"{row['seconds']:.1f}", *reached, *rates])
    return [_table(f"job: {found['gan']}", columns, rows)]


_TABLES: dict[str, Callable[[dict[str, Any]], list[Table]]] = {
    "ops": _ops_tables,
    "step": _step_tables,
    "job": _job_tables,
}


def _console() -> Console:
    """The terminal; wide enough for the tables where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=190)


def show(found: dict[str, Any], console: Console | None = None) -> None:
    """Print a result of the suite."""
    console = console or _console()
    machine = found["machine"]
    console.print(
        f"{machine.get('gpu', machine['cpu'])}, {found['threads']} of {machine['cores']} cores, {found['dtype']}"
    )
    if "limits" in found:
        for line in _rates(found):
            console.print(line)
    for table in _TABLES[found["what"]](found):
        console.print(table)


def read(path: str | Path) -> dict[str, Any]:
    """A JSON file that the suite wrote.

    Raises:
        ValueError: it is none.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as a result of atu bench ({error})") from error
    if not isinstance(found, dict) or found.get("what") not in _TABLES:
        raise ValueError(f"{path}: expected a result written by atu bench --save")
    return found


def _key(row: dict[str, Any]) -> str:
    return " ".join(str(row[key]) for key in ("name", "direction", "impl") if key in row)


def _measure(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a row that are compared: against a limit or peer of the same run, and seconds."""
    if "of_limit" in row:
        ours = row["times"]["ours"]
        fastest = ours.get("fastest", ours["median"]) / ours["median"] * row["of_limit"]
        return {"of limit": row["of_limit"], "fastest": fastest, "seconds": ours["median"]}
    if "times" in row:
        ours, reference = row["times"]["ours"], row["times"]["reference"]
        fastest = ours["fastest"] / reference["fastest"]
        return {"of reference": ours["median"] / reference["median"], "fastest": fastest, "seconds": ours["median"]}
    return {"seconds": row["seconds"]}


def compare(before: dict[str, Any], now: dict[str, Any], console: Console | None = None) -> list[str]:
    """Print now over before, case by case; returns the cases whose in-run ratio (else time) grew by SLOWER, both in the
    median and in the fastest turn: other work on the machine moves the one easily, and both seldom.

    Raises:
        ValueError: the files hold different parts of the suite, or one of them that of --quick.
    """
    if before["what"] != now["what"]:
        raise ValueError(f"--compare: expected a result of atu bench {now['what']}, got one of {before['what']}")
    if before.get("quick", False) != now.get("quick", False):
        raise ValueError("--compare: one of the two results is of --quick, whose shapes are others")
    old = {_key(row): _measure(row) for row in before["rows"]}
    rows, worse = [], []
    for row in now["rows"]:
        key = _key(row)
        if key not in old:
            continue
        ratios = {name: value / old[key][name] for name, value in _measure(row).items() if old[key].get(name)}
        judged = [ratio for name, ratio in ratios.items() if name != "seconds"] or list(ratios.values())
        slower = min(judged, default=1.0) >= SLOWER
        if slower:
            worse.append(key)
        cells = [f"{name} {ratio:.2f}x" for name, ratio in ratios.items()]
        rows.append([key, *cells, "slower" if slower else ""])
    width = max((len(row) for row in rows), default=2)
    table = _table("now / before", ["case", *[""] * (width - 1)], rows)
    (console or _console()).print(table)
    return worse


# --- the picture


def plot(found: dict[str, Any], path: str | Path) -> Path:
    """The times of every case, over the limit where there is one, a panel an op; growth below the second column."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    from ..support.files import write_atomic

    growth = found.get("growth") or []
    panels: dict[str, list[dict[str, Any]]] = {}
    for row in found["rows"]:
        panels.setdefault(row.get("op", ""), []).append(row)
    columns: list[list[tuple[str, int]]] = [[], []]
    for op, rows in sorted(panels.items(), key=lambda item: -len(item[1])):
        min(columns, key=lambda column: sum(height for _, height in column)).append((op, len(rows) + 5))
    if growth:
        columns[1].append(("growth", 24))
    columns = [column for column in columns if column]
    height = 0.17 * max(sum(height for _, height in column) for column in columns)
    figure = Figure(figsize=(8 * len(columns), max(3.0, height)), layout="constrained")
    parts = figure.subfigures(1, len(columns), squeeze=False)[0]
    for part, column in zip(parts, columns, strict=True):
        axes = part.subplots(len(column), 1, squeeze=False, height_ratios=[height for _, height in column])[:, 0]
        for axis, (op, _) in zip(axes, column, strict=True):
            if op == "growth":
                _growth_lines(axis, growth)
            else:
                _points(axis, panels[op])
    suffix = Path(path).suffix.lstrip(".") or "png"
    return write_atomic(Path(path), lambda temporary: figure.savefig(temporary, format=suffix, dpi=110))


def _points(axis, rows: list[dict[str, Any]]) -> None:
    rows = rows[::-1]
    unit = "limit" if "limit" in rows[0] else "seconds"
    marks = {"ours": "o", "reference": "s", "compiled": "^", "library": "D"}
    for kind in ("ours", *OTHERS):
        points = []
        for y, row in enumerate(rows):
            value = row["times"].get(kind, {}).get("median") if "times" in row else None
            if value is None and kind == "ours" and "seconds" in row:
                value = row["seconds"]
            if value is not None:
                points.append((value / row.get("limit", 1.0), y))
        if points:
            axis.scatter(*zip(*points, strict=True), marker=marks[kind], label=kind, s=22, zorder=3)
    axis.set_xscale("log")
    axis.set_yticks(range(len(rows)), [_key(row) for row in rows], fontsize=7)
    axis.set_ylim(-1, len(rows))
    axis.set_xlabel("time / limit of this machine" if unit == "limit" else "seconds", fontsize=8)
    if unit == "limit":
        axis.axvline(1, color="black", linewidth=0.8)
    axis.grid(axis="both", alpha=0.3)
    axis.legend(loc="best", fontsize=7)


def _growth_lines(axis, growth: list[dict[str, Any]]) -> None:
    for fit in growth:
        start = fit["sizes"][0], fit["seconds"][0]
        x, y = [s / start[0] for s in fit["sizes"]], [s / start[1] for s in fit["seconds"]]
        axis.plot(x, y, marker="o", markersize=3, label=f"{fit['name']} over {fit['over']}: {fit['exponent']:.2f}")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set_xlabel("size, relative to the smallest")
    axis.set_ylabel("time, relative to the smallest")
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", fontsize=6, title="fitted exponents", title_fontsize=7)
