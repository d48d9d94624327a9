"""Tensors that lie in a file: where, of which dtype and layout; reading them and replacing them in place.

torch pickles a tensor as a call of `torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...)`. Inside a
plain pickle the storage is itself a call, `torch.storage._load_from_bytes(bytes)`, whose bytes are a small file of
torch's older format: five pickles (magic number, version, system, object, keys), then the count of elements and raw
data. Both are only located here; no byte of tensor data is read before `StoredTensor.read`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .pickle_machine import (
    Admitted,
    Budget,
    GlobalName,
    Handler,
    PickleMachine,
    RefusedPickle,
    Span,
    refuse_call,
    shown,
)

MAX_ELEMENTS = 2**40
MAX_DIMENSIONS = 8
_REBUILDING = 20  # opcodes that a tensor is worth
_LOCATING = 100  # opcodes that finding a storage is worth, beside those of its five pickles
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001

STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class StoredStorage:
    """`count` elements of `dtype` that begin at byte `start` of the file."""

    start: int
    count: int
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor:
    """A tensor inside a storage of the file. Its bounds have been checked against the storage."""

    storage: StoredStorage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    @property
    def numel(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def read(self, stream: BinaryIO) -> Tensor:
        """Return the tensor, in memory of its own."""
        window = self._window(stream)
        return window if self._range()[1] == self.numel else window.clone()

    def write(self, stream: BinaryIO, value: Tensor) -> None:
        """Replace the tensor's bytes in a file opened for update; `value` is cast to the file's dtype."""
        if tuple(value.shape) != self.shape:
            raise ValueError(f"value: expected shape {self.shape}, got {tuple(value.shape)}")
        if self.numel == 0:
            return
        window = self._window(stream)
        window.copy_(value.detach())
        first, count = self._range()
        data = torch.as_strided(window, (count,), (1,), 0)
        stream.seek(self.storage.start + first * self.dtype.itemsize)
        stream.write(_bytes_of(data))

    def _range(self) -> tuple[int, int]:
        """First element and count of the smallest stretch of the storage that holds the tensor."""
        if self.numel == 0:
            return self.offset, 0
        return self.offset, 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))

    def _window(self, stream: BinaryIO) -> Tensor:
        first, count = self._range()
        data = torch.empty(count, dtype=self.dtype)
        if count:
            stream.seek(self.storage.start + first * self.dtype.itemsize)
            view = _bytes_of(data)
            read = 0
            while read < len(view):
                step = stream.readinto(view[read:])  # type: ignore[attr-defined]
                if not step:
                    raise RefusedPickle("the file ended inside a tensor")
                read += step
        return torch.as_strided(data, self.shape, self.stride, 0)


def _bytes_of(data: Tensor) -> memoryview:
    """The memory of a one-dimensional contiguous tensor."""
    return data.view(torch.uint8).numpy().data.cast("B")


def stored_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, requires_grad: Any = False, *_: Any
) -> StoredTensor:
    """Handler of torch's tensor rebuilding: check every number against the storage."""
    if not isinstance(storage, StoredStorage):
        raise RefusedPickle(f"a tensor of {type(storage).__name__}; expected a storage")
    numbers = [offset, *_tuple(shape, "size"), *_tuple(stride, "stride")]
    if any(not isinstance(n, int) or isinstance(n, bool) or not 0 <= n <= MAX_ELEMENTS for n in numbers):
        raise RefusedPickle(f"a tensor with offset {shown(offset)}, size {shown(shape)}, stride {shown(stride)}")
    if len(shape) != len(stride) or len(shape) > MAX_DIMENSIONS:
        raise RefusedPickle(f"a tensor of {len(shape)} dimensions with {len(stride)} strides")
    tensor = StoredTensor(storage, offset, tuple(shape), tuple(stride), bool(requires_grad))
    first, count = tensor._range()
    # Zero strides would let a few bytes stand for any number of elements.
    if first + count > storage.count or tensor.numel > max(count, 0):
        raise RefusedPickle(
            f"a tensor of size {tuple(shape)}, stride {tuple(stride)}, offset {offset} does not fit its storage of "
            f"{storage.count} elements"
        )
    return tensor


def _tuple(value: Any, what: str) -> tuple[Any, ...]:
    if not isinstance(value, tuple):
        raise RefusedPickle(f"a tensor whose {what} is {type(value).__name__}; expected a tuple")
    return value


def _parameter(data: Any, requires_grad: Any = True, *_: Any) -> StoredTensor:
    if not isinstance(data, StoredTensor):
        raise RefusedPickle(f"a parameter of {type(data).__name__}; expected a tensor")
    return StoredTensor(data.storage, data.offset, data.shape, data.stride, bool(requires_grad))


def _size(value: Any = ()) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list):
        raise RefusedPickle(f"a size of {type(value).__name__}; expected a tuple")
    return tuple(value)


_REBUILT: dict[GlobalName, Handler] = {
    ("torch._utils", "_rebuild_tensor_v2"): stored_tensor,
    ("torch._utils", "_rebuild_tensor"): stored_tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
}
_PARTS: dict[GlobalName, Handler] = {
    ("torch", "Size"): _size,
    ("torch", "device"): lambda *arguments: ":".join(shown(a, 20) for a in arguments),
    ("torch.storage", "UntypedStorage"): refuse_call,
    **{("torch", f"{name}"): refuse_call for name in STORAGE_DTYPES},
    **{("torch.cuda", f"{name}"): refuse_call for name in STORAGE_DTYPES},
    **{
        ("torch", str(dtype).removeprefix("torch.")): refuse_call
        for dtype in (*STORAGE_DTYPES.values(), torch.complex64, torch.complex128)
    },
}


def tensor_handlers(budget: Budget) -> dict[GlobalName, Handler]:
    """Admitted globals of tensors and of what they are made of; tensors are charged to the budget."""

    def charged(rebuild: Handler) -> Handler:
        def handler(*arguments: Any) -> Any:
            budget.spend(_REBUILDING)
            return rebuild(*arguments)

        return handler

    return {**_PARTS, **{name: charged(rebuild) for name, rebuild in _REBUILT.items()}}


def parse_storage_id(pid: Any) -> tuple[torch.dtype, str, int]:
    """dtype, key and element count of torch's persistent id ('storage', class, key, location, count, ...)."""
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
        raise RefusedPickle(f"a persistent id that is no storage: {shown(pid)}")
    _, kind, key, _, count = pid[:5]
    if not isinstance(kind, Admitted) or kind.name not in STORAGE_DTYPES:
        raise RefusedPickle(f"a storage of an unknown class: {shown(kind)}")
    if not isinstance(key, str) or not isinstance(count, int) or not 0 <= count <= MAX_ELEMENTS:
        raise RefusedPickle(f"a storage of key {shown(key, 50)!r} and {shown(count, 50)} elements")
    if len(pid) > 5 and pid[5] is not None:
        raise RefusedPickle("a storage that is a view of another one")
    return STORAGE_DTYPES[kind.name], key, count


def check_system(system: Any) -> None:
    """Refuse anything but little-endian in the system section of torch's older format."""
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise RefusedPickle("a file that was not written on a little-endian machine")


def locate_legacy_storage(stream: BinaryIO, span: Any, budget: Budget) -> StoredStorage:
    """Find the raw data of a storage that torch wrote in its older format into `span` of the stream.

    Its five pickles are charged to the budget of the file: a pickle may name the same span a million times.
    """
    if not isinstance(span, Span):
        raise RefusedPickle("a storage's bytes are not where torch puts them")
    budget.spend(_LOCATING)
    position = stream.tell()
    end = span.start + span.length
    stream.seek(span.start)
    found: dict[str, StoredStorage] = {}

    def persistent(pid: Any) -> StoredStorage:
        dtype, key, count = parse_storage_id(pid)
        return found.setdefault(key, StoredStorage(-1, count, dtype))

    def section() -> Any:
        return PickleMachine(stream, end, _PARTS, persistent, budget).run()

    magic, version, system, storage, keys = (section() for _ in range(5))
    if magic != LEGACY_MAGIC or version != LEGACY_VERSION:
        raise RefusedPickle(f"a storage whose file begins with {shown(magic, 40)}, version {shown(version, 40)}")
    check_system(system)
    if not isinstance(storage, StoredStorage) or keys != list(found) or len(found) != 1:
        raise RefusedPickle("a storage's bytes hold something other than one storage")
    if end - stream.tell() < 8:
        raise RefusedPickle("a storage is truncated before its length")
    (count,) = struct.unpack("<q", stream.read(8))
    located = StoredStorage(stream.tell(), storage.count, storage.dtype)
    if count != storage.count or located.start + located.nbytes > end:
        raise RefusedPickle(
            f"a storage claims {storage.count} elements and {count}, and has {end - located.start} bytes of data"
        )
    stream.seek(position)
    return located
