"""Files of torch.save (.pt, .pth), in the zip format and the older one, by torch's weights-only loader.

It runs nothing of a file. What it does not know, and a training's options hold, is left out.
"""

from __future__ import annotations

import argparse
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .tensors import CheckpointError

LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


class NotRead:
    """What stands for a NumPy value, a type or bytes: nothing asks for them, and NumPy sees nothing of the file."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _mapping(*_: Any) -> dict[Any, Any]:
    return {}


# What is called for names that a training's options hold and the loader does not know.
_STAND_INS: list[tuple[Any, str]] = [
    (_mapping, "collections.defaultdict"),
    *((NotRead, f"builtins.{name}") for name in ("bytes", "dict", "list", "int", "float")),
    *((NotRead, f"numpy.{name}") for name in ("dtype", "ndarray")),
    *(
        (NotRead, f"numpy.{core}.{name}")
        for core in ("core", "_core")
        for name in ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
    ),
]


def is_mapped(path: Path) -> bool:
    """Whether the tensors of `load_torch` lie in the mapped file (the zip format) rather than in memory."""
    return zipfile.is_zipfile(path)


def load_torch(path: Path) -> Any:
    """The object in the file, its tensors on the CPU.

    Raises:
        CheckpointError: not a file of torch.save, damaged, or holding anything but tensors and plain values.
    """
    mapped = is_mapped(path)
    if mapped:
        _check_zip(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace, *_STAND_INS]):
            warnings.simplefilter("ignore")  # of other pickle protocols, which it may then refuse
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises many kinds here
        raise CheckpointError(f"torch cannot read it: {_reason(error)}") from error


def _check_zip(path: Path) -> None:
    """Refuse compressed records, which mapping the file would take for values, and other programs' zip files."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise CheckpointError(f"a damaged zip file: {error}") from error
    if not any(record.filename.endswith("data.pkl") for record in records):
        names = ", ".join(record.filename[:60] for record in records[:5])
        raise CheckpointError(f"a zip file that torch.save did not write; it holds {names or 'nothing'}")
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise CheckpointError("a zip file with compressed records; torch.save stores them plain")


def _reason(error: Exception) -> str:
    """What torch's loader stumbled over, without its advice to load the file unchecked."""
    first = str(error.__context__ or error).partition("\n")[0].partition(" Please use ")[0]
    return first[:300] or type(error).__name__


def tensors_at(value: Any) -> dict[str, Tensor]:
    """The tensors directly in a mapping, less the prefix of DistributedDataParallel.

    Raises:
        CheckpointError: one of them stands for more elements than the file holds, as strides of 0 allow.
    """
    if not isinstance(value, dict):
        return {}
    # Attributes that a file gives a mapping or a tensor could stand before its methods; a negative bit would be lost.
    pairs = [(key, Tensor.detach(item)) for key, item in dict.items(value) if isinstance(item, Tensor)]
    found = {str(key).removeprefix("module."): torch.resolve_neg(item) for key, item in pairs}
    for name, tensor in found.items():
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{name[:60]}: a tensor of size {tuple(tensor.shape)} does not fit its storage")
    return found
