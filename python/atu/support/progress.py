"""Progress bars: rich's on a terminal, one line a tenth of the way elsewhere, nothing when quiet."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

log = logging.getLogger("atu")
console = Console(stderr=True)
_quiet = False


def set_quiet(quiet: bool) -> None:
    """Switch all progress output off (or on again)."""
    global _quiet
    _quiet = quiet


class Bar:
    """A running bar; `update` moves it on by one step and shows the step's numbers."""

    def __init__(self, name: str, total: int, done: int, progress: Progress | None):
        self.name, self.total, self.done, self.progress = name, total, done, progress
        if progress is not None:
            self.task = progress.add_task(name, total=total, completed=done, numbers="")

    def update(self, numbers: Mapping[str, float] | None = None) -> None:
        self.done += 1
        text = "  ".join(f"{key} {value:.3g}" for key, value in (numbers or {}).items())
        if self.progress is not None:
            self.progress.update(self.task, advance=1, numbers=text)
        elif not _quiet and self.done % max(self.total // 10, 1) == 0:
            print(f"{self.name}: {self.done}/{self.total}  {text}", file=sys.stderr, flush=True)


@contextmanager
def bar(name: str, total: int, done: int = 0) -> Iterator[Bar]:
    """A progress bar over `total` steps, `done` of which are behind us."""
    if _quiet or not console.is_terminal:
        yield Bar(name, total, done, None)
        return
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(
        *columns, TimeRemainingColumn(), TextColumn("{task.fields[numbers]}"), console=console, transient=False
    ) as progress:
        yield Bar(name, total, done, progress)
