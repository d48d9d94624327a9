"""Which format a checkpoint file has, told by its content and never by its name."""

from __future__ import annotations

import zipfile
from pathlib import Path

from .registry import FORMATS
from .tensors import CheckpointError
from .torch_file import LEGACY_START

_KNOWN_OTHERS = [
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)"),
    (b"\x1f\x8b", "a gzip file; unpack it first"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"<", "an HTML or XML page, perhaps a download that failed"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself"),
]


def recognise(path: str | Path) -> str:
    """The name in FORMATS of a file's format: of another package, "safetensors", "nvidia-pkl" (a plain pickle) or
    "rosinality-pt" (written by torch.save).

    Raises:
        CheckpointError: missing, empty, or none of these; the message says what the file looks like.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: a directory; expected a checkpoint file")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: the file is empty")
    with path.open("rb") as stream:
        start = stream.read(64)
    for name in [*FORMATS.added(), *FORMATS.builtin]:
        sniff = FORMATS.get(name).sniff
        if sniff is not None and sniff(path, start):
            return name
    for magic, what in _KNOWN_OTHERS:
        if start.startswith(magic):
            raise CheckpointError(f"{path}: {what}; {_EXPECTED}")
    raise CheckpointError(f"{path}: begins with {start[:16]!r}; {_EXPECTED}")


def is_torch(path: Path, start: bytes) -> bool:
    """Whether torch.save wrote the file, before its version 1.6 or since."""
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: a zip file without its directory: it is truncated or damaged")
    return start.startswith((LEGACY_START, b"PK"))


def is_safetensors(path: Path, start: bytes) -> bool:
    length = int.from_bytes(start[:8], "little")
    return len(start) > 8 and start[8:9] == b"{" and length <= path.stat().st_size - 8


def is_pickle(path: Path, start: bytes) -> bool:
    return start[:1] == b"\x80" and not start.startswith(LEGACY_START)


_EXPECTED = (
    "expected a StyleGAN2 or StyleGAN3 network pickle (.pkl), a StyleGAN2 checkpoint of torch.save (.pt), or atu's own "
    "safetensors"
)
