"""rich's console for text from anywhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, Any

import rich.console
from rich.segment import Segment

from .terminal import printable


class Console(rich.console.Console):
    """A console that takes text for text: no markup, no emoji by name, no highlights, and nothing but `printable`.

    Colours come from styles that the caller names.
    """

    def __init__(self, **options: Any):
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def render(self, *what: Any, **options: Any) -> Iterable[Segment]:
        for segment in super().render(*what, **options):
            # Control segments are rich's own: they move the cursor.
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    @property
    def file(self) -> IO[str]:
        """The stream itself, beneath those that make text printable or put it above a progress bar."""
        stream = super().file
        while getattr(stream, "rich_proxied_file", None) is not None:
            stream = stream.rich_proxied_file  # type: ignore[attr-defined]
        return stream

    @file.setter
    def file(self, stream: IO[str]) -> None:
        self._file = stream
