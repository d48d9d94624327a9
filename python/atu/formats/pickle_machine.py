"""A pickle reader that imports nothing and calls nothing but the handlers it is given.

A pickle is a program for a small stack machine. The standard unpickler runs it with the power to import any name and
call any object. This machine knows names only as keys of a table: `handlers[(module, name)]` is the function of ours
that stands for that global; a name without an entry is refused before anything else happens. Byte strings and long
texts stay in the file: the machine notes where they lie (`Span`), so that reading a network's structure costs memory
for the structure alone, and so that a tensor can later be replaced in place.

Bounds, all checked before memory is taken: every length against the bytes left in the stream, the number of opcodes and
of items that calls copy (one budget for all pickles of a file), the memo's indices (a dictionary, never an array), the
size of integers, and the kinds of dictionary keys (hashing a nest of shared tuples takes exponential time, and so does
writing it out: messages show scalars only).

Source: the opcodes are documented in Python's own `pickletools` module. Protocols 2 to 5 are read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from .tensors import CheckpointError

MAX_OPCODES = 2_000_000  # of a file, work counted along; a 1024-pixel snapshot of G, D and G_ema takes about 140,000
_CALL = 2  # opcodes that a call is worth beside its own
MAX_INT_BYTES = 64
MAX_INT_KEY = 2**32
MAX_TEXT_BYTES = 4096  # longer texts (embedded source) stay in the file, as all byte strings do

Handler = Callable[..., Any]
GlobalName = tuple[str, str]


class RefusedPickle(CheckpointError):
    """A pickle stream asks for something outside the admitted list, or breaks a bound."""


class Budget:
    """What reading one file may cost: opcodes, and the items that its calls copy. All pickles of a file share it."""

    def __init__(self, limit: int = MAX_OPCODES, what: str = "pickle opcodes and copied items"):
        self.limit = self.left = limit
        self.what = what

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise RefusedPickle(f"more than {self.limit} {self.what}")


@dataclass(frozen=True)
class Span:
    """Bytes that were left in the file: [start, start + length) of the stream."""

    start: int
    length: int


@dataclass
class Buildable:
    """An object whose state comes by a later BUILD opcode; `build` takes that state."""

    build: Callable[[Any], None]
    value: Any


@dataclass(frozen=True)
class Admitted:
    """A global of the admitted list, standing on the stack by name."""

    module: str
    name: str
    handler: Handler

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class _Mark:
    """The MARK opcode's place on the stack."""


_MARK = _Mark()


class PickleMachine:
    """Runs the pickle that starts at the stream's position.

    Args:
        stream: seekable binary stream.
        end: position behind the last byte that may be read.
        handlers: the admitted globals; each handler takes the arguments of the pickled call.
        persistent: handler of persistent ids (torch's files have them), None refuses them.
        budget: what the file's pickles may still cost; one of its own where None.
    Raises:
        RefusedPickle: from `run`, on anything outside the list, past a bound, or malformed.
    """

    def __init__(
        self,
        stream: BinaryIO,
        end: int,
        handlers: Mapping[GlobalName, Handler],
        persistent: Handler | None = None,
        budget: Budget | None = None,
    ):
        self.stream, self.end, self.handlers, self.persistent = stream, end, handlers, persistent
        self.budget = Budget() if budget is None else budget
        self.position = stream.tell()
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Return the pickled value; the stream stands behind the STOP opcode."""
        try:
            return self._run()
        except RefusedPickle:
            raise
        except (IndexError, KeyError, TypeError, ValueError, struct.error, OverflowError, AttributeError) as error:
            raise RefusedPickle(f"malformed pickle at byte {self.position}: {error}") from error

    def _run(self) -> Any:
        while True:
            self.budget.spend(1)
            code = self._take(1)
            if code == b".":
                return self._pop()
            step = _STEPS.get(code)
            if step is None:
                raise RefusedPickle(f"pickle opcode {code!r} at byte {self.position - 1} is not admitted")
            step(self)

    def _take(self, count: int) -> bytes:
        if count > self.end - self.position:
            raise RefusedPickle(
                f"the pickle is truncated: {count} bytes are claimed at byte {self.position}, "
                f"{self.end - self.position} are left"
            )
        data = self.stream.read(count)
        if len(data) != count:
            raise RefusedPickle(f"the file ends at byte {self.position + len(data)}, inside the pickle")
        self.position += count
        return data

    def _unpack(self, format: str) -> int:
        return struct.unpack(format, self._take(struct.calcsize(format)))[0]

    def _line(self) -> str:
        """A line of a GLOBAL opcode."""
        line = self.stream.readline(min(512, self.end - self.position))
        self.position += len(line)
        if not line.endswith(b"\n"):
            raise RefusedPickle(f"the name of a global at byte {self.position - len(line)} does not end")
        return line[:-1].decode("utf-8")

    def _text(self, length: int) -> str | Span:
        """A text: read when short, else left where it is."""
        return self._bytes(length) if length > MAX_TEXT_BYTES else self._take(length).decode("utf-8", "surrogatepass")

    def _bytes(self, length: int) -> Span:
        """A byte string, left where it is."""
        if length > self.end - self.position:
            self._take(length)  # raises, with the lengths
        span = Span(self.position, length)
        self.position += length
        self.stream.seek(self.position)
        return span

    def _integer(self, length: int) -> int:
        if not 0 <= length <= MAX_INT_BYTES:
            raise RefusedPickle(f"an integer of {length} bytes at byte {self.position}; at most {MAX_INT_BYTES}")
        return int.from_bytes(self._take(length), "little", signed=True)

    # Stack

    def _pop(self) -> Any:
        if not self.stack:
            raise RefusedPickle(f"the pickle's stack is empty at byte {self.position}")
        value = self.stack.pop()
        if value is _MARK:
            raise RefusedPickle(f"a mark where a value was expected at byte {self.position}")
        return value

    def _top(self) -> Any:
        value = self._pop()
        self.stack.append(value)
        return value

    def _pop_to_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise RefusedPickle(f"no mark on the pickle's stack at byte {self.position}")

    def _pop_many(self, count: int) -> tuple[Any, ...]:
        return tuple(reversed([self._pop() for _ in range(count)]))

    # Calls

    def _admit(self, module: Any, name: Any) -> None:
        handler = self.handlers.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
        if handler is None:
            raise RefusedPickle(
                f"the pickle asks for {shown(module, 200)}.{shown(name, 200)}, which is not on the list of admitted "
                "globals; nothing of it was imported or called"
            )
        self.stack.append(Admitted(module, name, handler))

    def _call(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, Admitted) or not isinstance(arguments, tuple):
            raise RefusedPickle(f"a call of something that is not an admitted global at byte {self.position}")
        # A call may copy what it is given; charged to the budget, lest one big list be copied a million times.
        self.budget.spend(_CALL + _items(arguments))
        self.stack.append(function.handler(*arguments))

    def _reduce(self) -> None:
        function, arguments = self._pop_many(2)
        self._call(function, arguments)

    def _newobj_ex(self) -> None:
        function, arguments, keywords = self._pop_many(3)
        if keywords != {}:
            raise RefusedPickle(f"keyword arguments for {shown(function)} at byte {self.position}")
        self._call(function, arguments)

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        self.budget.spend(_items((state,)))
        if isinstance(target, Buildable):
            target.build(state)
        elif isinstance(target, dict) and isinstance(state, dict):
            target.update(state)  # attributes of a dict subclass
        else:
            raise RefusedPickle(f"state for {type(target).__name__}, which takes none, at byte {self.position}")

    def _persistent_id(self) -> None:
        if self.persistent is None:
            raise RefusedPickle(f"a persistent id at byte {self.position} in a pickle that should have none")
        self.stack.append(self.persistent(self._pop()))

    # Containers

    def _append(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise RefusedPickle(f"items appended to {type(target).__name__} at byte {self.position}")
        target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(items) % 2:
            raise RefusedPickle(f"keys and values set on {type(target).__name__} at byte {self.position}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[plain_key(key)] = value

    def _add_items(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, set):
            raise RefusedPickle(f"items added to {type(target).__name__} at byte {self.position}")
        target.update(plain_key(item) for item in items)

    def _dict(self) -> None:
        items = self._pop_to_mark()
        self.stack.append({})
        self._set_items(items)

    # Memo and protocol

    def _put(self, index: int) -> None:
        self.memo[index] = self._top()

    def _get(self, index: int) -> None:
        if index not in self.memo:
            raise RefusedPickle(f"memo entry {index} is read before it is written, at byte {self.position}")
        self.stack.append(self.memo[index])

    def _protocol(self) -> None:
        version = self._unpack("<B")
        if not 2 <= version <= 5:
            raise RefusedPickle(f"pickle protocol {version}; expected 2, 3, 4 or 5")

    def _frame(self) -> None:
        length = self._unpack("<Q")
        if length > self.end - self.position:
            raise RefusedPickle(
                f"the pickle is truncated: a frame of {length} bytes at byte {self.position}, "
                f"{self.end - self.position} are left"
            )


def plain_key(key: Any) -> Any:
    """Return `key` if it is a plain scalar; anything deeper is refused as a dictionary key, and so are large integers:
    all multiples of 2^61 - 1 have the hash 0, and a dictionary of such keys takes quadratic time."""
    if isinstance(key, int) and abs(key) > MAX_INT_KEY:
        raise RefusedPickle(f"a dictionary key of {key.bit_length()} bits")
    if isinstance(key, str | int | float | bytes | bool) or key is None:
        return key
    raise RefusedPickle(f"a dictionary key of type {type(key).__name__}")


def shown(value: Any, limit: int = 100) -> str:
    """A value for a message: a scalar, or a few of them, as text, and anything else by its type."""
    scalar = str | int | float | bytes | Admitted | None
    few = isinstance(value, list | tuple) and len(value) <= 16 and all(isinstance(item, scalar) for item in value)
    return str(value)[:limit] if few or isinstance(value, scalar) else type(value).__name__


def _items(arguments: tuple[Any, ...]) -> int:
    """How many items there are in the containers among the arguments, and in those of a tuple among them."""
    containers = list | tuple | dict | set
    count = 0
    for argument in arguments:
        if isinstance(argument, str):
            count += len(argument) // 64  # a character is one byte, an item some tens
        elif isinstance(argument, containers):
            count += len(argument)
        if isinstance(argument, tuple):
            count += sum(len(item) for item in argument if isinstance(item, containers))
    return count


def refuse_call(*_arguments: Any) -> Any:
    """Handler of globals that are admitted as values (dtypes, storage classes) but never called."""
    raise RefusedPickle("a call of a global that is admitted as a value only")


def _push(make: Callable[[PickleMachine], Any]) -> Callable[[PickleMachine], None]:
    return lambda machine: machine.stack.append(make(machine))


_STEPS: dict[bytes, Callable[[PickleMachine], Any]] = {
    b"\x80": PickleMachine._protocol,
    b"\x95": PickleMachine._frame,
    b"(": _push(lambda m: _MARK),
    b"0": lambda m: m.stack.pop(),
    b"1": lambda m: m._pop_to_mark(),
    b"2": lambda m: m.stack.append(m._top()),
    b"N": _push(lambda m: None),
    b"\x88": _push(lambda m: True),
    b"\x89": _push(lambda m: False),
    b"J": _push(lambda m: m._unpack("<i")),
    b"K": _push(lambda m: m._unpack("<B")),
    b"M": _push(lambda m: m._unpack("<H")),
    b"\x8a": _push(lambda m: m._integer(m._unpack("<B"))),
    b"\x8b": _push(lambda m: m._integer(m._unpack("<i"))),
    b"G": _push(lambda m: m._unpack(">d")),
    b"\x8c": _push(lambda m: m._text(m._unpack("<B"))),
    b"X": _push(lambda m: m._text(m._unpack("<I"))),
    b"\x8d": _push(lambda m: m._text(m._unpack("<Q"))),
    b"C": _push(lambda m: m._bytes(m._unpack("<B"))),
    b"B": _push(lambda m: m._bytes(m._unpack("<I"))),
    b"\x8e": _push(lambda m: m._bytes(m._unpack("<Q"))),
    b"\x96": _push(lambda m: m._bytes(m._unpack("<Q"))),
    b"]": _push(lambda m: []),
    b"}": _push(lambda m: {}),
    b")": _push(lambda m: ()),
    b"\x8f": _push(lambda m: set()),
    b"a": lambda m: m._append([m._pop()]),
    b"e": lambda m: m._append(m._pop_to_mark()),
    b"s": lambda m: m._set_items(list(m._pop_many(2))),
    b"u": lambda m: m._set_items(m._pop_to_mark()),
    b"\x90": lambda m: m._add_items(m._pop_to_mark()),
    b"l": _push(lambda m: m._pop_to_mark()),
    b"d": PickleMachine._dict,
    b"t": _push(lambda m: tuple(m._pop_to_mark())),
    b"\x85": _push(lambda m: m._pop_many(1)),
    b"\x86": _push(lambda m: m._pop_many(2)),
    b"\x87": _push(lambda m: m._pop_many(3)),
    b"q": lambda m: m._put(m._unpack("<B")),
    b"r": lambda m: m._put(m._unpack("<I")),
    b"\x94": lambda m: m._put(len(m.memo)),
    b"h": lambda m: m._get(m._unpack("<B")),
    b"j": lambda m: m._get(m._unpack("<I")),
    b"c": lambda m: m._admit(m._line(), m._line()),
    b"\x93": lambda m: m._admit(*m._pop_many(2)),
    b"R": PickleMachine._reduce,
    b"\x81": PickleMachine._reduce,
    b"\x92": PickleMachine._newobj_ex,
    b"b": PickleMachine._build,
    b"Q": PickleMachine._persistent_id,
}
