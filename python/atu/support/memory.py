"""How much memory a piece of work takes and how much there is, so that batches of big samples fit.

CPU: the process's peak resident size, which Linux can forget and count anew; elsewhere it is not known. CUDA: torch's
own count.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CGROUP = Path("/sys/fs/cgroup")  # of a container
MOST = 2**30  # bytes a batch may take: a fixed figure, so that batches are the same on most machines


def measure(work: Callable[[], Any], device: torch.device) -> tuple[int | None, float]:
    """(bytes that `work` needs beyond what is held now, at its peak; seconds). None where that cannot be measured."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before, start = torch.cuda.memory_allocated(device), time.monotonic()
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before, time.monotonic() - start
    known = device.type == "cpu" and _forget_peak()
    before, start = _status("VmRSS"), time.monotonic()
    work()
    seconds = time.monotonic() - start
    return (max(_status("VmHWM") - before, 0) if known else None), seconds


def free(device: torch.device) -> int | None:
    """Bytes that can still be taken; None where that is not known."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    found = [_number(Path("/proc/meminfo"), "MemAvailable")]
    try:
        most, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        # Files that were read count as used, and give way.
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        found.append(max(most - used + int(stat.get("inactive_file", 0)), 1))
    except (OSError, ValueError):  # no such group, or no limit ("max")
        pass
    return min((value for value in found if value), default=None)


def fitting(wanted: int, bytes_each: int | None, device: torch.device) -> int:
    """How many samples to take at once: `wanted`, or the largest of its halves, quarters ... that fits the budget.

    The budget is MOST, or half of what is free where that is less.
    """
    if bytes_each is None:
        return wanted
    there = free(device)
    budget = MOST if there is None else min(MOST, there // 2)
    while wanted > 1 and wanted * bytes_each > budget:
        wanted //= 2
    return wanted


def _forget_peak() -> bool:
    """Give freed memory back and count the peak from here; whether that was possible."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (AttributeError, OSError):
        return False
    return _status("VmHWM") > 0


def _status(key: str) -> int:
    return _number(Path("/proc/self/status"), key)


def _number(path: Path, key: str) -> int:
    """Bytes of a line "Key:  123 kB"; 0 without one."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)
