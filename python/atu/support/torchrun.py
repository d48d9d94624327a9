"""What torchrun tells the processes that it starts, read without torch."""

from __future__ import annotations

import os


def is_launched() -> bool:
    """Whether torchrun started this process, alone or with others."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_one_of_several() -> bool:
    """Whether torchrun started this process beside others."""
    return is_launched() and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether no other process was started beside this one, or this is the one that speaks and writes."""
    return not is_one_of_several() or os.environ.get("RANK") == "0"


def command(*arguments: str) -> list[str]:
    """The words that start `atu` as this process was started."""
    if not is_one_of_several():
        return ["atu", *arguments]
    total, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    nodes = [] if total == here else ["--nnodes", str(total // here)]
    return ["torchrun", *nodes, "--nproc-per-node", str(here), "-m", "atu", *arguments]
