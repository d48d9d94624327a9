"""Hashes that identify what a run was made with."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor


def digest(tensors: dict[str, Tensor], text: str = "") -> str:
    """SHA-256 of named tensors, and of a text beside them, as 16 hexadecimal digits."""
    return sha256(tensors, text)[:16]


def sha256(tensors: dict[str, Tensor], text: str = "") -> str:
    """SHA-256 of named tensors (names, dtypes, shapes, values), and of a text, as 64 hexadecimal digits."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    sha.update(text.encode())
    return sha.hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as `sha256sum` gives it; of a folder, that of its files' names and hashes in order."""
    sha = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            sha.update(f"{sha256_of(file)}  {file.relative_to(path).as_posix()}\n".encode())
        return sha.hexdigest()
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            sha.update(block)
    return sha.hexdigest()
