"""What a user does before a run and a report needs after it: marking negatives, times, the adapted generator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..api import Result
from ..gan import GAN
from ..support.seeding import mix_seed


def mark_negatives(
    gan: GAN, is_negative: Callable[[Tensor], Tensor], wanted: int, seed: int, most: int = 100_000
) -> tuple[Tensor, int]:
    """Sample the GAN until `wanted` samples are called negative: what a user who marks them does.

    Returns:
        (negatives [wanted or fewer, ...], samples looked at). Fewer when `most` samples hold no more.

    Raises:
        ValueError: none was found.
    """
    found: list[Tensor] = []
    count = looked = 0
    for part in range(-(-most // 500)):
        x = gan.sample(500, seed=mix_seed(seed, part))
        chosen = x[is_negative(x)].cpu()
        found.append(chosen)
        count, looked = count + len(chosen), looked + len(x)
        if count >= wanted:
            break
    if not count:
        raise ValueError(f"negatives: expected some among {looked:,} generated samples, found none")
    return torch.cat(found)[:wanted], looked


def stage_seconds(result: Result) -> dict[str, float]:
    """Seconds of each stage, from the history, so that a resumed run counts in full."""
    seconds: dict[str, float] = {}
    for row in result.history:
        seconds[row["stage"]] = max(seconds.get(row["stage"], 0.0), row["seconds"])
    return {"prepare": max(result.seconds - sum(seconds.values()), 0.0), **seconds}


def adapted_generators(gan: GAN, result: Result) -> dict[str, torch.nn.Module]:
    """The first adapted generator, under its name in the report; nothing for methods that adapt none."""
    if not result.adapted:
        return {}
    twin = gan.copy().generator
    twin.load_state_dict(result.adapted[0])
    return {"adapted": twin}
