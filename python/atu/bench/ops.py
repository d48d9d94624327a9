"""Runs the micro cases: checks that the implementations agree, then times them and takes their peak memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    worst = 0.0
    for mine, theirs in zip(_tensors(case.ours()), _tensors(case.reference()), strict=True):
        if mine.numel() or theirs.numel():
            scale = float(theirs.abs().max())
            error = float((mine.double() - theirs.double()).abs().max())
            worst = max(worst, error / scale if scale > 0 else error)
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


def run_case(case: Case, plan: Plan, rates: dict[str, float], compile: bool, dtype: torch.dtype) -> dict[str, Any]:
    """One row: time and memory of every implementation, the limit, and ratios.

    Raises:
        RuntimeError: ours and reference do not compute the same.
    """
    worst = disagreement(case)
    tolerance = case.tolerance if dtype in (torch.float32, torch.float64) else 5e-2
    if not worst <= tolerance:
        raise RuntimeError(f"{case.name} {case.direction}: ours and reference differ by {worst:.2g}, relative")
    runs, why = _implementations(case, compile)
    memory = {kind: peak_memory(run, plan.device) for kind, run in runs.items()}
    found = times({**runs, "limit": traffic_run(case.traffic, plan.device, dtype)}, plan)
    bytes_limit = found.pop("limit")["median"]
    flops_limit = case.traffic.flops / max(rates["matmul"], rates["conv"])
    limit = max(bytes_limit, flops_limit)
    ours = found["ours"]["median"]
    row: dict[str, Any] = dict(name=case.name, op=case.op, direction=case.direction, bytes=case.traffic.bytes)
    row.update(flops=case.traffic.flops, disagreement=worst, nearest=case.nearest)
    row.update(limit=limit, bound="bytes" if bytes_limit >= flops_limit else "flops", of_limit=ours / limit)
    row["times"] = {kind: {**entry, "peak_bytes": memory[kind]} for kind, entry in found.items()}
    row["speedup"] = {kind: entry["median"] / ours for kind, entry in found.items() if kind != "ours"}
    if why:
        row["not_compiled"] = why
    return row


def run_ops(cases: Iterator[Case], plan: Plan, rates: dict[str, float], compile: bool, dtype: torch.dtype, say):
    """Rows of all cases; `say` is told each case's name as it begins."""
    rows = []
    for case in cases:
        say(f"{case.name} {case.direction}")
        rows.append(run_case(case, plan, rates, compile, dtype))
    return rows
