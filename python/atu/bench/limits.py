"""What this machine can do at best, measured in the same run: bytes a second, flops a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from .case import Traffic
from .measure import Plan, times


def traffic_run(traffic: Traffic, device: str, dtype: torch.dtype = torch.float32) -> Callable[[], Any]:
    """A call that moves the same bytes as a case and computes nothing to speak of: what is written is copied, the rest
    of what is read is summed up. So the limit is taken at the case's own size, in the caches it has."""
    kind = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    size = torch.empty([], dtype=kind).element_size()
    copied = min(traffic.reads, traffic.writes)
    source, target = (torch.ones(max(copied // size, 1), dtype=kind, device=device) for _ in range(2))
    left = (traffic.bytes - 2 * copied) // size // 2
    if left < 1:
        return lambda: target.copy_(source)
    one, two = (torch.ones(left, dtype=kind, device=device) for _ in range(2))
    if copied == 0:
        return lambda: torch.dot(one, two)
    return lambda: (target.copy_(source), torch.dot(one, two))


def machine_rates(plan: Plan, dtype: torch.dtype = torch.float32, quick: bool = False) -> dict[str, float]:
    """copy and read in bytes a second (a copy counts twice: read and written), matmul and conv in flops a second.

    At the plan's thread count: a copy and a dot product of arrays beyond the second-level caches, a square matrix
    product, and a 3x3 convolution of [8, 256, 32, 32] channels-last with 256 output channels.
    """
    device = plan.device
    count = (1 << 18) if quick else (1 << 24)
    n, channels, pixels = (64, 16, 8) if quick else (2048, 256, 32)
    a, b = (torch.ones(count, dtype=dtype, device=device) for _ in range(2))
    m = torch.randn(n, n, dtype=dtype, device=device)
    x = torch.randn(8, channels, pixels, pixels, dtype=dtype, device=device).to(memory_format=torch.channels_last)
    w = torch.randn(channels, channels, 3, 3, dtype=dtype, device=device).to(memory_format=torch.channels_last)
    with torch.no_grad():
        found = times(
            {
                "copy": lambda: a.copy_(b),
                "read": lambda: torch.dot(a, b),
                "matmul": lambda: m @ m,
                "conv": lambda: F.conv2d(x, w, padding=1),
            },
            plan,
        )
    work = dict(copy=2 * a.nbytes, read=2 * a.nbytes, matmul=2 * n**3, conv=2 * x.numel() * channels * 9)
    return {name: work[name] / entry["median"] for name, entry in found.items()}
