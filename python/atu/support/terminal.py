"""What may reach a terminal: text, and never its commands.

A file's name, a key in a checkpoint or the word after an option is somebody else's text. Escape sequences in it would
change the window's title, hide lines or make links; controls of writing direction make one name look like another.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

_KEPT = "\n\t\xa0\u200c\u200d"  # beside what is printable: space between words, and the joiners of scripts and emoji


def printable(text: str) -> str:
    """The text with every control character (C0, C1, of direction, invisible ones, lone surrogates) as an escape."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in _KEPT else repr(one)[1:-1] for one in text)


def one_line(text: str) -> str:
    """As `printable`, with line ends as escapes too: a name must not make lines of its own."""
    return printable(text).replace("\n", "\\n")


class _Printable:
    """A text stream that writes `printable` text. rich, whose text is made printable before it is coloured, finds the
    stream itself in `rich_proxied_file`."""

    encoding = "utf-8"  # else click goes round this, to the bytes beneath

    def __init__(self, stream: TextIO):
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        return self.rich_proxied_file.write(printable(text))

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


@contextmanager
def guarded() -> Iterator[None]:
    """Within it whatever is written to stdout and stderr is `printable`, whoever writes it."""
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Unicode is no reason to stop
    sys.stdout, sys.stderr = (_Printable(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def show_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As Python shows an error that nobody caught, but `printable`: for sys.excepthook."""
    sys.stderr.write(printable("".join(traceback.format_exception(kind, error, trace))))
