"""Lists of parameters as the kernels take them: checks, tables of addresses, and the layout of chunks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import is_dense, is_in_memory

# Elements of a chunk, the unit of work of a thread (CPU) or block (CUDA) and of the ordered sum.
_CHUNK = 16384


@dataclass(frozen=True)
class ChunkLayout:
    """What the kernels need to know of the shapes, on the device. `args` is what the binding takes."""

    arrays: tuple[Tensor, ...]  # numel [T], chunk_tensor [C], chunk_begin [C], first_chunk [T + 1]; int64
    args: tuple[int, ...]
    tensors: int
    chunks: int


@functools.lru_cache(maxsize=64)
def _chunk_layout(numels: tuple[int, ...], device: torch.device) -> ChunkLayout:
    chunk_tensor: list[int] = []
    chunk_begin: list[int] = []
    first_chunk = [0]
    for t, numel in enumerate(numels):
        begins = range(0, numel, _CHUNK)
        chunk_tensor += [t] * len(begins)
        chunk_begin += begins
        first_chunk.append(len(chunk_begin))
    columns = (numels, chunk_tensor, chunk_begin, first_chunk)
    arrays = tuple(torch.tensor(column, dtype=torch.int64, device=device) for column in columns)
    chunks = len(chunk_begin)
    args = (*(a.data_ptr() for a in arrays), len(numels), chunks, _CHUNK)
    return ChunkLayout(arrays, args, len(numels), chunks)


def chunk_layout(params: Sequence[Tensor], left_out: Sequence[bool] = ()) -> ChunkLayout:
    """The layout of these, of which those left out count as empty."""
    if any(left_out):
        numels = tuple(0 if out else p.numel() for p, out in zip(params, left_out, strict=True))
    else:
        numels = tuple(p.numel() for p in params)
    return _chunk_layout(numels, params[0].device)


@dataclass(frozen=True)
class AddressTable:
    """A table of addresses (int64 [T], on the device) and what it holds."""

    values: list[int]
    table: Tensor | None


def address_table(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Addresses of the tensors' first elements, int64 [T]."""
    return torch.tensor([t.data_ptr() for t in tensors], dtype=torch.int64, device=device)


def check_list(name: str, tensors: Sequence[Tensor], params: Sequence[Tensor]) -> list[Tensor]:
    tensors = list(tensors)
    if len(tensors) != len(params):
        raise ValueError(f"{name}: expected {len(params)} tensors, one for each parameter, got {len(tensors)}")
    for i, (t, p) in enumerate(zip(tensors, params, strict=True)):
        if t.shape != p.shape:
            raise ValueError(f"{name}[{i}]: expected shape {tuple(p.shape)}, got {tuple(t.shape)}")
        if t.dtype != p.dtype or t.device != p.device:
            raise ValueError(f"{name}[{i}]: expected {p.dtype} on {p.device}, got {t.dtype} on {t.device}")
    return tensors


def check_in_memory(name: str, t: Tensor) -> None:
    if not is_in_memory(t):
        raise ValueError(f"{name}: expected a tensor whose memory holds its values, got a negative bit: clone() it")


def check_params(params: Sequence[Tensor]) -> list[Tensor]:
    params = list(params)
    for i, p in enumerate(params):
        if not isinstance(p, Tensor):
            raise TypeError(f"params[{i}]: expected a tensor, got {type(p).__name__}")
        if not p.is_floating_point():
            raise TypeError(f"params[{i}]: expected a floating-point tensor, got {p.dtype}")
        check_in_memory(f"params[{i}]", p)
        if p.dtype != params[0].dtype or p.device != params[0].device:
            raise ValueError(
                f"params: expected one dtype and device, got {params[0].dtype} on {params[0].device} (params[0]) and "
                f"{p.dtype} on {p.device} (params[{i}])"
            )
        if p.layout != torch.strided or not is_dense(p):
            raise ValueError(
                f"params[{i}]: expected a dense tensor (contiguous or with permuted dimensions), got shape "
                f"{tuple(p.shape)} with strides {p.stride() if p.layout == torch.strided else p.layout}"
            )
    return params
