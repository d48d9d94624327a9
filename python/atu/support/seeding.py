"""Seeds, and random state left as it was found."""

from __future__ import annotations

from contextlib import contextmanager

import torch


def mix_seed(seed: int, index: int) -> int:
    """A seed for part `index` of a run seeded with `seed`."""
    return (seed * 1_000_003 + index * 7919 + 12345) % 2**63


@contextmanager
def fork_rng(device: torch.device, seed: int | None = None):
    """Leave the CPU's (and the device's) random state as it was found; `seed` both inside."""
    cuda = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        if seed is not None:  # not torch.manual_seed: it would seed every other device for good
            torch.default_generator.manual_seed(seed)
            for index in cuda:
                torch.cuda.default_generators[index].manual_seed(seed)
        yield
