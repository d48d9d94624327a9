"""Marking by a rule, as a user marks by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gan import GAN
from ..support import progress
from ..support.seeding import mix_seed
from .pool import pool_size
from .rule import Rule


def mark_negatives(gan: GAN, rule: Rule, count: int, seed: int, most: int = 100_000) -> tuple[Tensor, int]:
    """Sample the GAN until the rule calls `count` samples negative.

    Returns:
        (negatives [count or fewer, ...], samples looked at). Fewer when `most` samples hold no more.

    Raises:
        ValueError: there was none.
    """
    marked: list[Tensor] = []
    done = looked = 0
    size = pool_size(gan, 500)
    with progress.bar("marking", count) as bar:
        for part in range(-(-most // size)):
            x = gan.sample(size, seed=mix_seed(seed, part))
            chosen = x[rule(x).to(x.device)].cpu()[: count - done]
            marked.append(chosen)
            done, looked = done + len(chosen), looked + len(x)
            bar.update(steps=len(chosen))
            if done >= count:
                break
    if not done:
        raise ValueError(f"negatives: expected some among {looked:,} generated samples, got none")
    return torch.cat(marked), looked
