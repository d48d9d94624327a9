"""The structure of NVIDIA's network pickles (stylegan2-ada-pytorch, stylegan3), read without executing any of it.

Such a file is one pickle of a dictionary with the networks G, D and G_ema (and often the training set's options and the
augmentation pipe). Each module is stored as a call of `torch_utils.persistence._reconstruct_persistent_obj(meta)`: meta
holds the class name, the module's `__dict__` as its state, and the Python source of its class, which the original
loader executes. Here the source is left unread in the file, and the call only keeps name and state.
"""

from __future__ import annotations

import argparse
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from .pickle_machine import (
    Admitted,
    Budget,
    Buildable,
    GlobalName,
    Handler,
    PickleMachine,
    RefusedPickle,
    Span,
    refuse_call,
    shown,
)
from .stored_tensors import StoredTensor, locate_legacy_storage, tensor_handlers

MAX_DEPTH = 32  # of nested modules
MAX_MODULES = 20_000
MAX_TENSORS = 20_000
_MAX_SMALL = 4096  # bytes of a NumPy array that is read; larger ones stay in the file
_MAX_SHOWN = 10_000  # values of the options that are shown
_SCALARS = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b"} | {
    "u8": "Q",
    "u4": "I",
    "u2": "H",
    "u1": "B",
    "b1": "?",
}


@dataclass
class StoredModule:
    """A pickled module: its class name and its attributes, tensors unread."""

    class_name: str
    attributes: dict[Any, Any] = field(repr=False)

    def children(self) -> dict[str, StoredModule]:
        found = self.attributes.get("_modules")
        found = found if isinstance(found, dict) else {}
        return {str(name): child for name, child in found.items() if isinstance(child, StoredModule)}

    def tensors(self) -> dict[str, StoredTensor]:
        """Parameters and buffers by their state-dict names.

        Raises:
            RefusedPickle: modules nested in themselves, or too many modules or tensors.
        """
        found: dict[str, StoredTensor] = {}
        for name, _, tensor in self._walk():
            found[name] = tensor
            if len(found) > MAX_TENSORS:
                raise RefusedPickle(f"a network of more than {MAX_TENSORS} tensors")
        return found

    def buffers(self) -> set[str]:
        """State-dict names of the buffers, and of parameters of frozen layers."""
        return {name for name, group, _ in self._walk() if group == "_buffers"}

    def _walk(
        self, prefix: str = "", depth: int = 0, budget: Budget | None = None
    ) -> Iterator[tuple[str, str, StoredTensor]]:
        budget = Budget(MAX_MODULES, "modules in a network") if budget is None else budget
        budget.spend(1)  # the same module may be named again and again
        if depth > MAX_DEPTH:
            raise RefusedPickle(f"modules nested more than {MAX_DEPTH} deep")
        unsaved = self.attributes.get("_non_persistent_buffers_set")
        for group in ("_parameters", "_buffers"):
            entries = self.attributes.get(group)
            entries = entries if isinstance(entries, dict) else {}
            budget.spend(len(entries) // 100)  # of what is no tensor there may be any number
            for name, value in entries.items():
                kept = group == "_parameters" or not isinstance(unsaved, set) or name not in unsaved
                if isinstance(value, StoredTensor) and kept:
                    yield f"{prefix}{name}", group, value
        for name, child in self.children().items():
            yield from child._walk(f"{prefix}{name}.", depth + 1, budget)

    def find(self, path: str) -> StoredModule | None:
        """The submodule at a dotted path."""
        module: StoredModule | None = self
        for part in path.split("."):
            module = None if module is None else module.children().get(part)
        return module

    def attribute(self, path: str, name: str, default: Any = None) -> Any:
        """An attribute of the submodule at a dotted path, or the default where either is missing."""
        module = self.find(path)
        return default if module is None else module.attributes.get(name, default)

    @property
    def init_kwargs(self) -> dict[str, Any]:
        found = self.attributes.get("_init_kwargs")
        return dict(found) if isinstance(found, dict) else {}

    @property
    def init_args(self) -> tuple[Any, ...]:
        found = self.attributes.get("_init_args")
        return found if isinstance(found, tuple) else ()


@dataclass
class _NumpyType:
    """A NumPy dtype: its code without byte order."""

    code: str


def _numpy_dtype(code: Any, *_: Any) -> Buildable:
    if not isinstance(code, str) or code not in _SCALARS:
        raise RefusedPickle(f"a NumPy value of dtype {shown(code, 40)!r}; expected numbers or booleans")
    return Buildable(_check_order, _NumpyType(code))


def _check_order(state: Any) -> None:
    if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", "|", "="):
        raise RefusedPickle(f"a NumPy dtype with state {shown(state)}; expected little-endian numbers")


def _type_code(dtype: Any) -> str:
    if not isinstance(dtype, Buildable) or not isinstance(dtype.value, _NumpyType):
        raise RefusedPickle(f"a NumPy value whose dtype is {type(dtype).__name__}")
    return _SCALARS[dtype.value.code]


class _NumpyValues:
    """Handlers of NumPy scalars, which become Python numbers, and of arrays: small ones become flat lists, whose items
    are charged to the file's budget, and others stay in the file."""

    def __init__(self, stream: BinaryIO, budget: Budget):
        self.stream, self.budget = stream, budget

    def encode(self, text: Any, codec: Any) -> Any:
        """Bytes, which protocol 2 has as text."""
        if codec not in ("latin1", "latin-1"):
            raise RefusedPickle(f"bytes in the encoding {shown(codec, 40)}; expected latin1")
        return text

    def _small(self, data: Any) -> bytes:
        if isinstance(data, str) and len(data) <= _MAX_SMALL:  # protocol 2 has no byte strings: latin-1 text
            return data.encode("latin-1")
        if not isinstance(data, Span):
            raise RefusedPickle("a NumPy value without data")
        position = self.stream.tell()
        self.stream.seek(data.start)
        found = self.stream.read(data.length)
        self.stream.seek(position)
        return found

    def _values(self, dtype: Any, data: Any) -> list[Any] | Span:
        code = _type_code(dtype)
        if isinstance(data, Span) and data.length > _MAX_SMALL:
            return data
        raw = self._small(data)
        size = struct.calcsize(f"<{code}")
        if len(raw) % size:
            raise RefusedPickle(f"{len(raw)} bytes of NumPy values of {size} bytes each")
        self.budget.spend(len(raw) // size)
        return list(struct.unpack(f"<{len(raw) // size}{code}", raw))

    def scalar(self, dtype: Any, data: Any) -> Any:
        values = self._values(dtype, data)
        if isinstance(values, Span) or len(values) != 1:
            raise RefusedPickle(f"a NumPy scalar of {shown(values)}; expected one value")
        return values[0]

    def array(self, *_: Any) -> Buildable:
        def build(state: Any) -> None:
            if not isinstance(state, tuple) or len(state) != 5:
                raise RefusedPickle("a NumPy array with a state of another shape than NumPy's")
            array.value = self._values(state[2], state[4])

        array = Buildable(build, [])
        return array

    def from_buffer(self, data: Any, dtype: Any, *_: Any) -> list[Any] | Span:
        return self._values(dtype, data)


def option_handlers(stream: BinaryIO, budget: Budget) -> dict[GlobalName, Handler]:
    """Admitted globals of options: mappings, sets, NumPy scalars and arrays of numbers."""
    numpy = _NumpyValues(stream, budget)
    table: dict[GlobalName, Handler] = {
        ("collections", "OrderedDict"): _mapping,
        ("collections", "Counter"): _counter,
        ("collections", "defaultdict"): lambda *_: {},
        ("builtins", "set"): _set,
        ("__builtin__", "set"): _set,
        ("numpy", "dtype"): _numpy_dtype,
        ("numpy", "ndarray"): refuse_call,
        ("_codecs", "encode"): numpy.encode,
    }
    for package in ("builtins", "__builtin__"):
        table |= {(package, name): refuse_call for name in ("dict", "list", "int", "long", "float")}
        table[(package, "bytes")] = lambda: ""  # empty ones in protocol 2
    for package in ("numpy.core", "numpy._core"):
        table[(f"{package}.multiarray", "scalar")] = numpy.scalar
        table[(f"{package}.multiarray", "_reconstruct")] = numpy.array
        table[(f"{package}.numeric", "_frombuffer")] = numpy.from_buffer
    return table


def read_network_pickle(stream: BinaryIO, length: int) -> Any:
    """The pickled object: dictionaries, lists and scalars as they are, networks as `StoredModule`.

    Args:
        stream: the file, opened for reading bytes; seekable.
        length: of the file in bytes.

    Raises:
        RefusedPickle: naming the first thing in the stream that is not admitted.
    """
    budget = Budget()
    handlers: dict[GlobalName, Handler] = {
        **tensor_handlers(budget),
        **option_handlers(stream, budget),
        ("torch.storage", "_load_from_bytes"): lambda span: locate_legacy_storage(stream, span, budget),
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): _stored_module,
        ("dnnlib.util", "EasyDict"): _mapping,
        ("dnnlib", "EasyDict"): _mapping,
    }
    stream.seek(0)
    return PickleMachine(stream, length, handlers, budget=budget).run()


def _mapping(*arguments: Any) -> dict[Any, Any]:
    if arguments:
        raise RefusedPickle("a mapping that is built from arguments")
    return {}


def _counter(items: Any) -> dict[Any, Any]:
    if not isinstance(items, dict):
        raise RefusedPickle(f"a Counter of {type(items).__name__}; expected a mapping")
    return dict(items)


def _set(items: Any = ()) -> set[Any]:
    if not isinstance(items, list | tuple) or not all(isinstance(item, str | int | float) for item in items):
        raise RefusedPickle("a set of something other than plain values")
    return set(items)


def _stored_module(meta: Any) -> StoredModule:
    if not isinstance(meta, dict) or meta.get("type") != "class" or not isinstance(meta.get("class_name"), str):
        raise RefusedPickle("a persistent object that is no class instance")
    state = meta.get("state")
    if not isinstance(state, dict):
        raise RefusedPickle(f"{meta['class_name'][:100]}: a persistent object without attributes")
    return StoredModule(meta["class_name"], state)


def plain(value: Any, depth: int = 6, budget: Budget | None = None) -> Any:
    """Options as JSON-like data: mappings, lists and scalars; anything else, and what is too much, as a short text."""
    budget = Budget(_MAX_SHOWN) if budget is None else budget
    budget.left -= 1
    if isinstance(value, Buildable):
        value = value.value
    elif isinstance(value, argparse.Namespace):
        value = vars(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth == 0 or budget.left < 0:
        return "..."
    if isinstance(value, dict):
        return {str(k)[:100]: plain(v, depth - 1, budget) for k, v in list(value.items())[:200]}
    if isinstance(value, list | tuple | set):
        return [plain(item, depth - 1, budget) for item in list(value)[:200]]
    if isinstance(value, Admitted):
        return str(value)
    if isinstance(value, Span):
        return f"{value.length} bytes"
    return type(value).__name__
