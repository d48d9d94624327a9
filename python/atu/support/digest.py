"""Hashes that identify what a run was made with."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def digest(tensors: dict[str, Tensor], text: str = "") -> str:
    """SHA-256 of named tensors, and of a text beside them, as 16 hexadecimal digits."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    sha.update(text.encode())
    return sha.hexdigest()[:16]
