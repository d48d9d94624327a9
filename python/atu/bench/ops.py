"""Runs the micro cases: checks that the implementations agree, then times them and takes their peak memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .case import Case
from .limits import traffic_run
from .measure import Plan, peak_memory, times

KINDS = ("ours", "reference", "compiled", "library")


def _tensors(result: Any) -> list[Tensor]:
    """The tensors of a result; a gradient that is None is zero."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, (tuple, list)):
        return [t for part in result for t in _tensors(part)]
    return [torch.tensor(0.0 if result is None else result, dtype=torch.float64)]


def disagreement(case: Case) -> float:
    """Largest difference between ours and reference, over the largest value of each result."""
    errors = []
    for mine, theirs in zip(_tensors(case.ours()), _tensors(case.reference()), strict=True):
        if mine.numel() or theirs.numel():
            scale = float(theirs.abs().max())
            error = float((mine.double() - theirs.double()).abs().max())
            errors.append(error / scale if scale > 0 else error)
    return _worst(errors)


def _worst(errors: list[float]) -> float:
    """The largest; nan where one is (which Python's max passes over)."""
    return float(torch.tensor([0.0, *errors], dtype=torch.float64).max())


def _distance(found: Any, exact: Any) -> float:
    """Norm of the difference over that of the exact result, the worst of all results.

    A norm, since single values of 16-bit gradients mean little: rounding moves an input over an activation's kink.
    """
    errors = []
    for mine, wanted in zip(_tensors(found), _tensors(exact), strict=True):
        scale = float(wanted.double().norm())
        error = float((mine.double() - wanted.double()).norm())
        errors.append(error / scale if scale > 0 else error)
    return _worst(errors)


def _checked(case: Case, dtype: torch.dtype) -> float:
    """How far ours is from the reference, or of 16 bits from the reference in float64.

    Raises:
        RuntimeError: too far. Of 16 bits: farther than twice torch's own error, or than eight roundings.
    """
    what, tolerance = "ours and reference differ by", case.tolerance
    if dtype in (torch.float16, torch.bfloat16):
        assert case.exact is not None
        exact = case.exact()
        worst = _distance(case.ours(), exact)
        tolerance = max(2 * _distance(case.reference(), exact), 4 * torch.finfo(dtype).eps)
        what = "ours and the reference in float64 differ by"
    else:
        worst = disagreement(case)
    if not worst <= tolerance:
        raise RuntimeError(f"{case.name} {case.direction}: {what} {worst:.2g}, relative")
    return worst


def _implementations(case: Case, compile: bool) -> tuple[dict[str, Callable[[], Any]], str]:
    """The runs by kind, and why there is no compiled one."""
    runs = {"ours": case.ours, "reference": case.reference}
    why = ""
    if case.compile is not None and compile:
        try:
            runs["compiled"] = case.compile()
            runs["compiled"]()
        except Exception as error:  # whatever the compiler cannot do is a finding, not a failure of the run
            runs.pop("compiled", None)
            why = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
    if case.library is not None:
        runs["library"] = case.library
    return runs, why


def run_case(
    made: Mapping[torch.dtype, Case], plan: Plan, rates: Mapping[torch.dtype, dict[str, float]], compile: bool
) -> list[dict[str, Any]]:
    """One row a dtype: time and memory of every implementation, the limit, and ratios.

    made: the same case in one or several dtypes, which take turns. Only the first is compiled; the others' rows have
    its time too, over theirs.

    Raises:
        RuntimeError: ours and reference do not compute the same.
    """
    rows: list[dict[str, Any]] = []
    runs: dict[tuple[torch.dtype, str], Callable[[], Any]] = {}
    for dtype, case in made.items():
        row: dict[str, Any] = dict(name=case.name, op=case.op, direction=case.direction, dtype=name_of(dtype))
        row.update(bytes=case.traffic.bytes, flops=case.traffic.flops, nearest=case.nearest)
        row["disagreement"] = _checked(case, dtype)
        own, why = _implementations(case, compile and not rows)
        row["times"] = {kind: {"peak_bytes": peak_memory(run, plan.device)} for kind, run in own.items()}
        if why:
            row["not_compiled"] = why
        runs.update({(dtype, kind): run for kind, run in own.items()})
        runs[dtype, "limit"] = traffic_run(case.traffic, plan.device, dtype)
        rows.append(row)
    found = times(runs, plan)
    first = next(iter(made))
    for (dtype, case), row in zip(made.items(), rows, strict=True):
        flops_limit = case.traffic.flops / max(rates[dtype]["matmul"], rates[dtype]["conv"])
        bytes_limit = found[dtype, "limit"]["median"]
        limit, ours = max(bytes_limit, flops_limit), found[dtype, "ours"]["median"]
        row.update(limit=limit, bound="bytes" if bytes_limit >= flops_limit else "flops", of_limit=ours / limit)
        row["times"] = {kind: {**found[dtype, kind], **entry} for kind, entry in row["times"].items()}
        row["speedup"] = {kind: entry["median"] / ours for kind, entry in row["times"].items() if kind != "ours"}
        if dtype != first:
            row["name"] += f" {name_of(dtype)}"
            row["speedup"][name_of(first)] = found[first, "ours"]["median"] / ours
    return rows


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def run_ops(
    cases: Iterable[Mapping[torch.dtype, Case]],
    plan: Plan,
    rates: Mapping[torch.dtype, dict[str, float]],
    compile: bool,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Rows of all cases; `say` is told each case's name as it begins."""
    rows = []
    for made in cases:
        one = next(iter(made.values()))
        say(f"{one.name} {one.direction}")
        rows += run_case(made, plan, rates, compile)
    return rows
