"""Which format a checkpoint file has, told by its content and never by its name."""

from __future__ import annotations

import zipfile
from pathlib import Path

from .tensors import CheckpointError
from .torch_file import LEGACY_START

SAFETENSORS, NVIDIA, TORCH = "safetensors", "nvidia-pkl", "torch"

_KNOWN_OTHERS = [
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)"),
    (b"\x1f\x8b", "a gzip file; unpack it first"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"<", "an HTML or XML page, perhaps a download that failed"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself"),
]


def recognise(path: str | Path) -> str:
    """Return "safetensors", "nvidia-pkl" (a plain pickle) or "torch" (written by torch.save).

    Raises:
        CheckpointError: missing, empty, or none of these; the message says what the file looks like.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: a directory; expected a checkpoint file")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError(f"{path}: the file is empty")
    with path.open("rb") as stream:
        start = stream.read(64)
    if start.startswith(LEGACY_START):
        return TORCH
    if start.startswith(b"PK"):
        if zipfile.is_zipfile(path):
            return TORCH
        raise CheckpointError(f"{path}: a zip file without its directory: it is truncated or damaged")
    if len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        return SAFETENSORS
    if start[:1] == b"\x80":
        return NVIDIA
    for magic, what in _KNOWN_OTHERS:
        if start.startswith(magic):
            raise CheckpointError(f"{path}: {what}; {_EXPECTED}")
    raise CheckpointError(f"{path}: begins with {start[:16]!r}; {_EXPECTED}")


_EXPECTED = (
    "expected a StyleGAN2 or StyleGAN3 network pickle (.pkl), a StyleGAN2 checkpoint of torch.save (.pt), or atu's own "
    "safetensors"
)
