"""Progress bars: rich's on a terminal, a line every few seconds elsewhere, nothing when quiet."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from .console import Console
from .remarks import InputWarning
from .terminal import guarded

log = logging.getLogger("atu")
console = Console(stderr=True)
_quiet = False
_open: list[Progress] = []  # the one on the terminal, where bars within bars become further lines

# What says most about a step, and its short name. Two are shown, so that a line of 80 holds all; the log has the rest.
SHOWN = {"negative_rate": "negative", "score": "score", "loss_d": "D", "loss_g": "G", "loss": "loss"}
LINE_SECONDS = 5.0  # between lines where there is no terminal
T = TypeVar("T")


def set_quiet(quiet: bool) -> None:
    """Switch all progress output off (or on again)."""
    global _quiet
    _quiet = quiet


def say(text: str) -> None:
    """Tell the user something about how the work goes on, unless quiet."""
    if not _quiet:
        console.print(text, soft_wrap=True)


class _Messages(logging.Handler):
    """Tells on the terminal, above a running bar, what the package logs."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **rest: Any) -> None:
    """A warning about the input as one paragraph; any other as Python shows it."""
    if issubclass(category, InputWarning):
        console.print(f"Warning: {message}")
    else:
        _plain_warning(message, category, *place, **rest)


_plain_warning = warnings.showwarning


def show_messages() -> None:
    """Have what the package logs and warns of told on the terminal: for a process that is the `atu` command's own."""
    if not any(isinstance(handler, _Messages) for handler in log.handlers):
        log.addHandler(_Messages())
    log.setLevel(logging.INFO)
    warnings.showwarning = _show_warning


def shown(numbers: Mapping[str, float]) -> str:
    """Two of a step's numbers, in less than 40 characters."""
    return "  ".join([f"{label} {numbers[name]:.3g}" for name, label in SHOWN.items() if name in numbers][:2])


class Bar:
    """A running bar; `update` moves it on and shows two of the numbers last given."""

    def __init__(self, name: str, total: int, done: int, progress: Progress | None):
        self.name, self.total, self.done, self.progress = name, total, done, progress
        self.numbers: dict[str, float] = {}
        self.printed = time.monotonic()
        if progress is not None:
            self.task = progress.add_task(name, total=total, completed=done, numbers="")

    def update(self, numbers: Mapping[str, float] | None = None, steps: int = 1) -> None:
        self.done += steps
        self.numbers.update(numbers or {})
        if self.progress is not None:
            self.progress.update(self.task, completed=self.done, numbers=shown(self.numbers))
        elif self.done >= self.total or time.monotonic() - self.printed >= LINE_SECONDS:
            self.printed = time.monotonic()
            say(f"{self.name}: {self.done}/{self.total}  {shown(self.numbers)}".rstrip())


@contextmanager
def bar(name: str, total: int, done: int = 0) -> Iterator[Bar]:
    """A progress bar over `total` steps, `done` of which are behind us. Within another one it is shown below that."""
    if _quiet or not console.is_terminal:
        yield Bar(name, total, done, None)
        return
    if _open:
        inner = Bar(name, total, done, _open[0])
        try:
            yield inner
        finally:
            _open[0].remove_task(inner.task)
        return
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, max_width=20)),
        BarColumn(bar_width=12),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True, table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[numbers]}", markup=False, table_column=Column(no_wrap=True)),
    )
    with Progress(*columns, console=console) as progress, guarded():  # rich would take escapes for colours and links
        _open.append(progress)
        try:
            yield Bar(name, total, done, progress)
        finally:
            _open.clear()


def track(name: str, items: Iterable[T], total: int) -> Iterator[T]:
    """Pass `items` through, with a bar over `total` of them: samples of a batch (things with a length) count each."""
    with bar(name, total) as shown_bar:
        for item in items:
            yield item
            shown_bar.update(steps=len(item) if hasattr(item, "__len__") else 1)
