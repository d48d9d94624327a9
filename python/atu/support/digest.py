"""Hashes that identify what a run was made with."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of named tensors, as 16 hexadecimal digits."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]
