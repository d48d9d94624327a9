"""Turn what the benchmarks save (JSON) into the tables of benchmarks/results: ops, growth, step and runs.

python -m benchmarks.timings FOLDER      FOLDER holds the files of COMMANDS, as benchmarks/run.sh makes them
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.tables import RESULTS, Row, flatten, write_rows

COMMANDS = {
    "ops-1": "ops --threads 1 --dtype float32 --seconds 0.15",
    "ops-1-bfloat16": "ops --threads 1 --dtype bfloat16 --seconds 0.15 --no-compile --no-growth",
    "ops-2": "ops --threads 2 --seconds 0.15 --no-compile --no-growth",
    "step-1": "step --threads 1",
    "step-2": "step --threads 2",
    "step-64": "step --gan animals --threads 2",
    "step-256": "step --gan 256 --batch 4 --threads 2",
}
Saved = dict[str, Any]  # what one command saved


def run_row(name: str, saved: Saved) -> Row:
    """One run: machine, versions, rates, and what was measured once."""
    once = {key: value for key, value in saved.items() if key not in ("rows", "growth", "what", "dtypes", "limits_of")}
    once["machine"] = {key: value for key, value in saved["machine"].items() if key != "system"}
    return {"run": name, **dict(flatten(once))}


def case_rows(name: str, saved: Saved) -> Iterator[Row]:
    """One row a case; the times of each implementation are columns, in seconds."""
    for case in saved["rows"]:
        times = {kind: {key: entry[key] for key in ("median", "iqr", "peak_bytes")} for kind, entry in _timed(case)}
        rest = {key: value for key, value in case.items() if key not in ("times", "speedup")}
        yield {"run": name, "threads": saved["threads"], **dict(flatten(rest)), **dict(flatten(times))}


def _timed(case: Saved) -> Iterator[tuple[str, Saved]]:
    return ((kind, entry) for kind, entry in case["times"].items() if entry.get("median") is not None)


def growth_rows(name: str, saved: Saved) -> Iterator[Row]:
    """One row a size."""
    for series in saved.get("growth", []):
        for size, seconds in zip(series["sizes"], series["seconds"], strict=True):
            about = {key: series[key] for key in ("name", "over", "exponent")}
            yield {"run": name, **about, "size": size, "seconds": seconds}


def main(folder: str) -> None:
    saved = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).glob("*.json"))}
    saved = {name: one for name, one in saved.items() if name in COMMANDS}
    ops, steps = ({name: one for name, one in saved.items() if name.startswith(kind)} for kind in ("ops", "step"))
    write_rows(RESULTS / "runs.csv", [run_row(*item) for item in saved.items()])
    write_rows(RESULTS / "ops.csv", [row for item in ops.items() for row in case_rows(*item)])
    write_rows(RESULTS / "growth.csv", [row for item in ops.items() for row in growth_rows(*item)])
    write_rows(RESULTS / "step.csv", [row for item in steps.items() for row in case_rows(*item)])


if __name__ == "__main__":
    main(sys.argv[1])
