"""Metrics of other packages, by name: entry points of the group `atu.metrics`, or `@METRICS.register("name")`.

A metric is a function (before, after) -> number of the two models' `Judged` samples, which are of the same latents:
their features [n, F], which are negative, their classes, and the first samples themselves. The first line of its
docstring says what it is. `evaluate` computes every metric there is; report.json has it under `metrics`, and the report
and the reproduced table show it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ..support.registry import Registry
from .judged import Judged

Metric = Callable[[Judged, Judged], float]
METRICS: Registry[Metric] = Registry("atu.metrics", {})


def load_metrics() -> dict[str, Metric]:
    """Every metric there is; imports what gives them, so call it before any work."""
    return {name: METRICS.get(name) for name in METRICS}


def compute(metric: Metric, name: str, before: Judged, after: Judged) -> float | None:
    """A metric's number; None where it is not finite.

    Raises:
        TypeError: it gave no number.
    """
    value = metric(before, after)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"metric {name}: expected a number, got {type(value).__name__}") from None
    return number if math.isfinite(number) else None


def description(metric: Metric) -> str:
    """The first line of its docstring."""
    return (metric.__doc__ or "").strip().partition("\n")[0].removesuffix(".")
