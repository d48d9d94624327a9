"""Several processes that train one GAN together (torchrun, torch.distributed); one process is a world of its own.

All processes run the same program from the same seeds, so that all they draw and decide is the same. Of each batch
every one computes its part; gradients, buffers and metrics are averaged, and only the first writes files. One process
that torchrun started calls all that several would, and gets the same bits as without.
"""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from . import torchrun
from .seeding import fork_rng, mix_seed

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # for the slowest process: the first one writes alone
_joined = False  # by `join`, and not yet left


class WorldError(RuntimeError):
    """Another process of the world is gone."""


def size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_joined() -> bool:
    """Whether there is a world: of several processes, or of the one that torchrun started."""
    return _joined or size() > 1


def rank() -> int:
    return dist.get_rank() if size() > 1 else 0


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def join(device: str | None) -> str | None:
    """Join the processes that torchrun started, if it did: by NCCL on CUDA, else by gloo. Returns this one's device.

    Raises:
        ValueError: fewer CUDA devices than processes.
    """
    global _joined
    if is_joined() or not (torchrun.is_launched() or int(os.environ.get("WORLD_SIZE", "1")) > 1):
        return device
    cuda = device is not None and torch.device(device).type == "cuda"
    if cuda:
        here, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if here >= count:
            raise ValueError(f"device: expected a CUDA device for each process, got {count} for {here + 1} or more")
        device = f"cuda:{here}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    atexit.register(dist.destroy_process_group)
    _joined = True
    return device


def leave() -> bool:
    """Go on alone, once all have come here; whether this process is the one that writes.

    What is computed by one process must come after this: libraries of metrics gather from all there are.
    """
    global _joined
    first = is_first()
    if is_joined():
        with _told():
            dist.barrier()
        atexit.unregister(dist.destroy_process_group)
        dist.destroy_process_group()
        _joined = False
    return first


@contextmanager
def _told() -> Iterator[None]:
    """An error of torch.distributed as a `WorldError`, in words."""
    try:
        yield
    except RuntimeError as error:
        why = re.sub(r"^\[\S+\] *", "", str(error).splitlines()[0])[:120]  # without the line of gloo's source
        raise WorldError(
            f"another process of this run has stopped, so that process {rank()} of {size()} stops too; the same "
            f"command goes on from the last saved state ({why})"
        ) from error


def mean_(tensors: Sequence[Tensor]) -> None:
    """Replace each by its mean over all processes, in place."""
    if not is_joined() or not tensors:
        return
    for dtype in dict.fromkeys(t.dtype for t in tensors):  # the order of a set differs between processes
        same = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.reshape(-1) for t in same])
        with _told():
            dist.all_reduce(flat)
        flat /= size()
        for t, value in zip(same, flat.split([t.numel() for t in same]), strict=True):
            t.copy_(value.view_as(t))


def mean_of(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """Each number's mean over all processes, which give the same names."""
    if not is_joined():
        return values
    together = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    mean_([together])
    return dict(zip(values, together.tolist(), strict=True))


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether it is true in any process."""
    return flag if not is_joined() else mean_of({"": float(flag)}, device)[""] > 0


def gather(own: Tensor, group: int | None = 1) -> Tensor:
    """The whole batch [n, ...] of which each process has what `part(n, group)` says; without gradients."""
    if not is_joined():
        return own
    parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(size())]
    with _told():
        dist.all_gather(parts, own.detach().contiguous())
    n = len(own) * size()
    order = torch.cat([_part(n, group, other) for other in range(size())])
    whole = torch.empty_like(torch.cat(parts))
    whole[order.to(own.device)] = torch.cat(parts)
    return whole


def from_first(make: Callable[[], T]) -> T:
    """What `make` gives in the first process, in all of them."""
    if not is_joined():
        return make()
    box: list[Any] = [make() if is_first() else None]
    with _told():
        dist.broadcast_object_list(box, src=0)
    found: T = box[0]
    return found


def part(n: int, group: int | None = 1) -> slice | Tensor:
    """Which of a batch of n are this process's.

    group: samples n / group apart are looked at together (the minibatch deviation's groups), and stay together; None:
    all of them.

    Raises:
        ValueError: the batch cannot be divided so.
    """
    return slice(None) if size() == 1 else _part(n, group, rank())


def _part(n: int, group: int | None, of: int) -> Tensor:
    group = n if group is None else min(group, n)
    while n % group:
        group -= 1
    columns, left = divmod(n // group, size())
    if left or not columns:
        raise ValueError(
            f"adversarial.batch_size: expected a multiple of {size()} processes times {group} samples that the "
            f"discriminator looks at together, got {n}"
        )
    return torch.arange(n).view(group, -1)[:, of * columns : (of + 1) * columns].reshape(-1)


@contextmanager
def own_rng(device: torch.device, salt: int = 0) -> Iterator[None]:
    """Random numbers of this process's own (noise, augmentation), so that no two draw the same.

    They follow from the state that all share, which is left as it was, and from `salt`.
    """
    if size() == 1:
        yield
        return
    with fork_rng(device):
        seed = int(torch.randint(2**40, ()))
    with fork_rng(device, mix_seed(seed + salt, rank())):
        yield
