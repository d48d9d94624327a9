"""How time grows with resolution, batch, channels, parameters and threads: power laws fitted to medians."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .case import forward_run
from .measure import Plan, times
from .micro import bias_act, modulated_conv2d, param_penalty, upfirdn2d


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of log(seconds) over log(sizes), by least squares."""
    x, y = [math.log(s) for s in sizes], [math.log(s) for s in seconds]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread


def _layer(op: str, batch: int, size: int, dtype: torch.dtype, device: str) -> Callable[[], Any]:
    if op == "upfirdn2d":
        made = upfirdn2d.layer("up 2", (batch, 32, size, size), upfirdn2d.UP, torch.contiguous_format, dtype, device)
    elif op == "bias_act":
        made = bias_act.layer((batch, 32, size, size), torch.contiguous_format, "lrelu", dtype, device)
    else:
        made = modulated_conv2d.layer(batch, 32, 32, size, 1, torch.channels_last, dtype, device)
    return forward_run(made.ours, made.inputs)


def _fit(name: str, over: str, sizes: Sequence[int], runs: Sequence[Callable[[], Any]], plan: Plan) -> dict[str, Any]:
    found = times({str(size): run for size, run in zip(sizes, runs, strict=True)}, plan)
    seconds = [found[str(size)]["median"] for size in sizes]
    return dict(name=name, over=over, sizes=list(sizes), seconds=seconds, exponent=exponent(sizes, seconds))


def run_growth(ops: Sequence[str], plan: Plan, dtype: torch.dtype, quick: bool, say) -> list[dict[str, Any]]:
    """One fit a row: {name, over, sizes, seconds, exponent}. Linear growth in pixels is an exponent of 2 in size."""
    device = plan.device
    rows = []
    sizes, batches = ([8, 16], [1, 2]) if quick else ([32, 64, 128, 256, 512], [1, 2, 4, 8, 16])
    for op in ops:
        if op == "param_penalty":
            continue
        say(f"{op}: growth")
        rows.append(_fit(op, "size", sizes, [_layer(op, 1, s, dtype, device) for s in sizes], plan))
        rows.append(_fit(op, "batch", batches, [_layer(op, b, sizes[1], dtype, device) for b in batches], plan))
    if "param_penalty" in ops and not quick:
        say("param_penalty: growth")
        made = [param_penalty.case(resolution, 1, dtype, device) for resolution in (32, 64, 256)]
        counts = [case.traffic.writes // torch.empty([], dtype=dtype).element_size() for case in made]
        rows.append(_fit("param_penalty", "parameters", counts, [case.ours for case in made], plan))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    if not plan.is_cuda and cores > 1:
        counts = [1, 2] if quick else [2**i for i in range(int(math.log2(cores)) + 1)]
        for op in ops:
            say(f"{op}: threads")
            rows.append(_thread_growth(op, counts, plan, dtype, quick))
    return rows


def _thread_growth(op: str, counts: Sequence[int], plan: Plan, dtype: torch.dtype, quick: bool) -> dict[str, Any]:
    if op == "param_penalty":
        run = param_penalty.case(32 if quick else 256, 1, dtype, plan.device).ours
    else:
        run = _layer(op, 8, 8 if quick else 128, dtype, plan.device)
    seconds = []
    for count in counts:
        narrow = Plan(plan.seconds, plan.rounds, count, plan.device)
        seconds.append(times({"ours": run}, narrow)["ours"]["median"])
    return dict(name=op, over="threads", sizes=list(counts), seconds=seconds, exponent=exponent(counts, seconds))
