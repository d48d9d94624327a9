"""What a user does before a run: marking negatives."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..gan import GAN
from ..support import progress
from ..support.seeding import mix_seed
from .feedback import pool_size


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
    size = pool_size(gan, 500)
    with progress.bar("marking", wanted) as bar:
        for part in range(-(-most // size)):
            x = gan.sample(size, seed=mix_seed(seed, part))
            chosen = x[is_negative(x)].cpu()[: wanted - count]
            found.append(chosen)
            count, looked = count + len(chosen), looked + len(x)
            bar.update(steps=len(chosen))
            if count >= wanted:
                break
    if not count:
        raise ValueError(f"negatives: expected some among {looked:,} generated samples, found none")
    return torch.cat(found), looked
