"""How a run computes: the precision of its passes, its threads, and how many samples it makes at once."""

from __future__ import annotations

from contextvars import ContextVar, Token
from dataclasses import dataclass, field, replace

import torch

PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class RunContext:
    """Entered as torch.autocast is: `with RunContext(batch=8): ...`. What is None stays as it is outside.

    Args:
        precision: of the networks' passes in training: "float32", "bfloat16" or "float16" (CUDA).
        threads: of the CPU, as of torch.set_num_threads.
        batch: samples to make and judge at once; unset, 100 to 250, or what memory allows.

    Raises:
        ValueError: naming the argument, what was expected and what came.
    """

    precision: str | None = None
    threads: int | None = None
    batch: int | None = None
    _before: list[tuple[Token[RunContext | None], int]] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.precision not in (None, *PRECISIONS):
            raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        for name in ("threads", "batch"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name}: expected a positive int, got {value!r}")

    def __enter__(self) -> RunContext:
        names = ("precision", "threads", "batch")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        inner = replace(current(), **given, _before=[])
        self._before.append((_current.set(inner), torch.get_num_threads()))
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return inner

    def __exit__(self, *error: object) -> None:
        token, threads = self._before.pop()
        _current.reset(token)
        if self.threads is not None:
            torch.set_num_threads(threads)


_OUTERMOST = RunContext(precision="float32")
_current: ContextVar[RunContext | None] = ContextVar("atu_run_context", default=None)


def current() -> RunContext:
    """What is in force here; its precision is never None."""
    return _current.get() or _OUTERMOST
