"""Tables of results as CSV files: one row a cell, one scalar a column.

A nested figure gets a dotted name ("landing.precision"). A pair of numbers, which is an interval, gets two columns:
NAME.low and NAME.high. Text, counts and shares are written as they are, other numbers to six digits.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

Value = str | int | float | bool | None
Row = dict[str, Value]

RESULTS = Path(__file__).resolve().parent / "results"


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Value]]:
    """(dotted name, scalar) of nested dicts. Lists other than a pair of numbers are left out."""
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            if len(value) == 2 and all(isinstance(bound, int | float) for bound in value):
                low, high = value
                yield from ((f"{prefix}{name}.low", low), (f"{prefix}{name}.high", high))
        else:
            yield f"{prefix}{name}", value


def write_rows(path: Path, rows: Sequence[Mapping[str, Value]]) -> None:
    """Write the rows; a column that no row has a value of is left out."""
    columns = dict.fromkeys(name for row in rows for name, value in row.items() if value not in (None, ""))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(columns)
        lines.writerows([_text(row.get(name)) for name in columns] for row in rows)
    temporary.replace(path)


def read_rows(path: Path) -> list[Row]:
    """The rows of a table; none where there is no file. An empty field is None."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: _value(text) for name, text in row.items()} for row in csv.DictReader(file)]


def add_row(path: Path, row: Mapping[str, Value]) -> None:
    """Add a row to a table that other processes may add to as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        write_rows(path, [*read_rows(path), row])


def select(rows: Iterable[Row], **wanted: Value) -> list[Row]:
    """The rows that have these values."""
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def number(row: Row, name: str) -> float | None:
    """A figure of a row; None where it has none."""
    value = row.get(name)
    return None if value is None or isinstance(value, str) else float(value)


def ratio(row: Row, value: str, of: str) -> float | None:
    """One figure over another."""
    above, below = number(row, value), number(row, of)
    return None if above is None or not below else above / below


def percent(row: Row, name: str) -> float | None:
    """A share in %."""
    share = number(row, name)
    return None if share is None else 100 * share


def _text(value: Value) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _value(text: str) -> Value:
    if text in ("", "True", "False"):
        return None if not text else text == "True"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
