"""Files of torch.save (.pt, .pth), both the zip format and the older one, read in two steps.

First the structure, by this package's own pickle machine: what the file holds, with every size checked against the
file. Then, when that stands, the values, by torch.load(weights_only=True).
"""

from __future__ import annotations

import argparse
import re
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .nvidia_pickle import option_handlers
from .pickle_machine import Budget, Buildable, Handler, PickleMachine, RefusedPickle
from .stored_tensors import (
    LEGACY_MAGIC,
    LEGACY_VERSION,
    StoredStorage,
    StoredTensor,
    check_system,
    parse_storage_id,
    tensor_handlers,
)
from .tensors import CheckpointError

LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_MAX_RECORDS = 100_000


def read_structure(path: Path) -> Any:
    """The object in the file, with `StoredTensor` in the place of tensors.

    Raises:
        CheckpointError: not a file of torch.save, damaged, or holding anything but tensors and plain values.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        if stream.read(len(LEGACY_START)) == LEGACY_START:
            return _read_legacy(stream, size)
        return _read_zip(stream, size)


def is_mapped(path: Path) -> bool:
    """Whether the tensors of `load_values` lie in the mapped file (the zip format) rather than in memory."""
    return zipfile.is_zipfile(path)


def load_values(path: Path) -> Any:
    """The object in the file with its tensors, by torch's weights-only loader; call after `read_structure`."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace, *_STAND_INS]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped(path))
    except Exception as error:  # torch raises many kinds here
        raise CheckpointError(f"{path}: torch cannot read it: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What torch's loader stumbled over, without terminal colours and its advice to load the file unchecked."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    culprit = text.rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0].partition(" Please use ")[0]
    return culprit[:300] or type(error).__name__


class _LeftOut:
    """What stands for a NumPy value, a type or empty bytes among torch's values: the structure has told what they are,
    nothing asks for them again, and NumPy's own functions see nothing of the file."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _mapping(*_: Any) -> dict[Any, Any]:
    return {}


# Names that the structure may hold and torch's weights-only loader does not know, and what it calls for them.
_STAND_INS: list[tuple[Any, str]] = [
    (_mapping, "collections.defaultdict"),
    *((_LeftOut, f"builtins.{name}") for name in ("bytes", "dict", "list", "int", "float")),
    *((_LeftOut, f"numpy.{name}") for name in ("dtype", "ndarray")),
    *(
        (_LeftOut, f"numpy.{core}.{name}")
        for core in ("core", "_core")
        for name in ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
    ),
]


def tensors_at(structure: Any, prefix: str = "") -> dict[str, StoredTensor]:
    """The tensors directly in a mapping, less the prefix of DistributedDataParallel."""
    if not isinstance(structure, dict):
        return {}
    found = {str(k).removeprefix("module."): v for k, v in structure.items() if isinstance(v, StoredTensor)}
    return {prefix + name: tensor for name, tensor in found.items()}


def values_at(values: Any) -> dict[str, Tensor]:
    """As `tensors_at`, of the loaded file."""
    return {str(k).removeprefix("module."): v for k, v in values.items() if isinstance(v, Tensor)}


def _handlers(stream: BinaryIO, budget: Budget) -> dict[tuple[str, str], Handler]:
    return {**tensor_handlers(budget), **option_handlers(stream, budget), ("argparse", "Namespace"): _namespace}


def _namespace(*arguments: Any) -> Buildable:
    if arguments:
        raise RefusedPickle("an argparse.Namespace that is built from arguments")

    def build(state: Any) -> None:
        if not isinstance(state, dict):
            raise RefusedPickle("an argparse.Namespace whose state is no mapping")
        options.value = state

    options = Buildable(build, {})
    return options


def _read_zip(stream: BinaryIO, size: int) -> Any:
    try:
        archive = zipfile.ZipFile(stream)
        records = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, struct.error, EOFError) as error:
        raise CheckpointError(f"a damaged zip file: {error}") from error
    if len(records) > _MAX_RECORDS or sum(record.file_size for record in records) > size:
        raise RefusedPickle("a zip file whose records claim more bytes than the file has")
    if any(
        record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size for record in records
    ):
        raise RefusedPickle("a zip file with compressed records; torch.save stores them plain")
    mains = [record for record in records if record.filename.count("/") == 1 and record.filename.endswith("/data.pkl")]
    if len(mains) != 1 or len({record.filename for record in records}) != len(records):
        names = ", ".join(record.filename[:60] for record in records[:5])
        raise CheckpointError(f"a zip file that torch.save did not write; it holds {names or 'nothing'}")
    prefix = mains[0].filename.removesuffix("data.pkl")
    by_name = {record.filename: record for record in records}
    order = by_name.get(f"{prefix}byteorder")
    start = {record.filename: _data_start(stream, record, size) for record in records}
    if order is not None:
        stream.seek(start[order.filename])
        if stream.read(min(order.file_size, 16)) != b"little":
            raise CheckpointError("a file written on a big-endian machine")

    def persistent(pid: Any) -> StoredStorage:
        dtype, key, count = parse_storage_id(pid)
        record = by_name.get(f"{prefix}data/{key}")
        if record is None or record.file_size < count * dtype.itemsize:
            held = "no" if record is None else record.file_size
            raise RefusedPickle(
                f"storage {key[:40]} claims {count} elements of {dtype}; the file has {held} bytes of it"
            )
        return StoredStorage(start[record.filename], count, dtype)

    main, budget = mains[0], Budget()
    stream.seek(start[main.filename])
    end = start[main.filename] + main.file_size
    return PickleMachine(stream, end, _handlers(stream, budget), persistent, budget).run()


def _data_start(stream: BinaryIO, record: zipfile.ZipInfo, size: int) -> int:
    """Where a stored record's bytes begin: behind its local header of 30 bytes, name and extra field."""
    if not 0 <= record.header_offset <= size:
        raise RefusedPickle(f"zip record {record.filename[:60]} lies outside the file")
    stream.seek(record.header_offset)
    header = stream.read(30)
    if len(header) != 30 or header[:4] != b"PK\x03\x04":
        raise RefusedPickle(f"zip record {record.filename[:60]} has no header where the directory says")
    name, extra = struct.unpack("<HH", header[26:30])
    start = record.header_offset + 30 + name + extra
    if start + record.file_size > size:
        raise RefusedPickle(f"zip record {record.filename[:60]} ends behind the end of the file")
    return start


def _read_legacy(stream: BinaryIO, size: int) -> Any:
    """Five pickles, then each storage as a count and its elements, in the order of the fifth."""
    stream.seek(0)
    storages: dict[str, tuple[torch.dtype, int]] = {}

    def note(pid: Any) -> StoredStorage:
        dtype, key, count = parse_storage_id(pid)
        if storages.setdefault(key, (dtype, count)) != (dtype, count):
            raise RefusedPickle(f"storage {key[:40]} is claimed with two sizes")
        return StoredStorage(0, count, dtype)

    def section(persistent: Handler, budget: Budget) -> Any:
        return PickleMachine(stream, size, _handlers(stream, budget), persistent, budget).run()

    budget = Budget()
    magic, version, system = (section(note, budget) for _ in range(3))
    if magic != LEGACY_MAGIC or version != LEGACY_VERSION:
        raise CheckpointError("not a file of torch.save")
    check_system(system)
    main = stream.tell()
    section(note, budget)
    keys = section(note, budget)
    if not _are_texts(keys) or sorted(keys) != sorted(storages):
        raise RefusedPickle("the list of storages differs from the storages in use")
    start: dict[str, int] = {}
    for key in keys:
        dtype, count = storages[key]
        header = stream.read(8)
        if len(header) != 8 or struct.unpack("<q", header)[0] != count:
            raise RefusedPickle(f"storage {key[:40]}: expected {count} elements")
        start[key] = stream.tell()
        if start[key] + count * dtype.itemsize > size:
            raise RefusedPickle(f"storage {key[:40]} claims {count} elements of {dtype}, behind the end of the file")
        stream.seek(start[key] + count * dtype.itemsize)

    def place(pid: Any) -> StoredStorage:
        dtype, key, count = parse_storage_id(pid)
        return StoredStorage(start[key], count, dtype)

    stream.seek(main)  # the same pickle once more, at the same cost, now that the places are known
    return section(place, Budget())


def _are_texts(keys: Any) -> bool:
    return isinstance(keys, list) and all(isinstance(key, str) for key in keys)
