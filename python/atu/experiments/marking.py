"""What a user does before a run: marking negatives. (And, from api.py, what a report needs after it.)"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..api import adapted_generators, stage_seconds
from ..gan import GAN
from ..support.seeding import mix_seed

__all__ = ["adapted_generators", "mark_negatives", "stage_seconds"]


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
