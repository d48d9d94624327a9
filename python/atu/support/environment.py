"""What a result was made on: machine and versions, for reports."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
USUAL_TRIM_THRESHOLD, USUAL_MMAP_MAX = 128 * 1024, 65536  # what glibc starts with


def keep_freed_memory() -> bool:
    """Have this process keep the memory of freed CPU tensors for the next ones; returns whether that was possible.

    By itself glibc gives blocks over 32 MiB back at once and clears new ones page by page, which for a pass over 32 MiB
    takes four times as long as the pass. Afterwards the process stays at its peak size. glibc only, for the whole
    process; ATU_KEEP_MEMORY=0 in the environment leaves everything as it is.
    """
    if os.environ.get("ATU_KEEP_MEMORY") == "0":
        return False
    return _set_malloc(2**31 - 1, 0)


def give_back_freed_memory() -> bool:
    """The contrary, for big samples: what a process keeps of their passes breaks into pieces that fit no other."""
    return _set_malloc(USUAL_TRIM_THRESHOLD, USUAL_MMAP_MAX)


def _set_malloc(trim_threshold: int, mmap_max: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is None or not hasattr(libc, "gnu_get_libc_version"):
        return False
    return bool(mallopt(M_MMAP_MAX, mmap_max)) and bool(mallopt(M_TRIM_THRESHOLD, trim_threshold))


def cpu_name() -> str:
    """The processor's own name, where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpu_flags() -> set[str]:
    """The processor's features as Linux names them ("avx512_bf16"); nothing where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return set(line.partition(":")[2].split())
    except OSError:
        pass
    return set()


def usable_cores() -> int:
    """How many this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Processor, cores usable and threads used, load at this moment, and the GPU where one was used."""
    found: dict[str, Any] = dict(
        system=platform.platform(), cpu=cpu_name(), cores=usable_cores(), threads=torch.get_num_threads()
    )
    if hasattr(os, "getloadavg"):
        found["load_average"] = round(os.getloadavg()[0], 2)
    if torch.device(device).type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in ("atu-ext", "torch", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
