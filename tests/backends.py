"""The backends that the op tests run over: native-cpu, cuda, and emulated (the CUDA kernels, compiled for the CPU).

The emulated backend takes CPU tensors. Where an op hands addresses of CPU tensors to the compiled module, it hands them
to the emulated module instead; the memory of exactly these tensors is what the kernels may touch. Tensors made by
torch.empty and its kin count as uninitialised until a kernel wrote them, and must be written in full.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tests.emulation.build import ROOT, build


class EmulationFault(AssertionError):
    """A kernel did what it must not do, under emulation."""


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("begin", ctypes.c_size_t),
        ("bytes", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        ("fresh", ctypes.c_int),
    ]


def extent(t: Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last one."""
    if t.numel() == 0:
        return 0
    return (sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + 1) * t.element_size()


@dataclass
class Operation:
    """Runs kernels of one emulated library with the memory of given tensors and no other."""

    library: ctypes.CDLL

    def __post_init__(self) -> None:
        self.library.atu_emulation_end.restype = ctypes.c_char_p

    @contextmanager
    def memory(self, tensors: list[tuple[str, Tensor, bool]]) -> Iterator[None]:
        """tensors: (name, tensor, fresh); a fresh one is poisoned first and must be written in full."""
        buffers = (_Buffer * max(len(tensors), 1))()
        for buffer, (name, t, fresh) in zip(buffers, tensors, strict=False):
            buffer.begin, buffer.bytes = Tensor.data_ptr(t), extent(t)
            buffer.name, buffer.fresh = name.encode(), int(fresh)
        self.library.atu_emulation_begin(buffers, len(tensors))
        try:
            yield
        except BaseException:
            self.library.atu_emulation_end(0)
            raise
        message = self.library.atu_emulation_end(1)
        if message is not None:
            raise EmulationFault(message.decode())


def emulated_library(sources_root: Path = ROOT, name: str = "_C") -> Path:
    """Build the project's CUDA kernels and bindings for the CPU. sources_root: the tree that csrc is taken from."""
    csrc = sources_root / "csrc"
    sources = [*sorted(csrc.glob("bindings/*.cpp")), csrc / "kernels" / "cpu_isa.cpp"]
    sources += sorted(csrc.glob("kernels/*_cuda.cu"))
    return build(name, sources, [csrc])


def load_lazily(path: Path, name: str = "_C") -> ModuleType:
    """Import an extension module whose CPU kernels are left out: they are declared, and never called."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_LAZY)
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.setdlopenflags(flags)
    return module


def _addresses(args: tuple) -> Iterator[int]:
    for a in args:
        if isinstance(a, tuple):
            yield from _addresses(a)
        elif type(a) is int:
            yield a


@dataclass
class EmulatedModule:
    """Stands in for atu_ext._C: calls that would run on the CPU run the CUDA kernels under emulation."""

    module: ModuleType
    library: ctypes.CDLL
    # Tensors whose address was asked for. They are kept, so that no address comes up twice within a test.
    known: dict[int, Tensor] = field(default_factory=dict)
    fresh: dict[int, Tensor] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.module, name)
        if name in ("build_info", "cuda_devices", "cpu_isa", "cpu_isas", "set_cpu_isa") or name.startswith("__"):
            return function

        def call(*args: Any) -> Any:
            tensors = self._tensors(name, args)
            self.calls.append(name)
            try:
                with Operation(self.library).memory(tensors):
                    return function(*args[:-1], 0)  # the last argument is the stream; -1 would mean the CPU
            except RuntimeError as error:
                raise EmulationFault(str(error)) from error
            finally:
                for _, t, _ in tensors:
                    self.fresh.pop(Tensor.data_ptr(t), None)

        return call

    def _tensors(self, name: str, args: tuple) -> list[tuple[str, Tensor, bool]]:
        """The tensors whose addresses are among the arguments, and those in tables of addresses among these."""
        found: dict[int, Tensor] = {}
        for address in _addresses(args):
            t = self.known.get(address)
            if t is None:
                continue
            found[address] = t
            if t.dtype == torch.int64 and t.numel() < 4096 and address not in self.fresh:
                found.update((a, self.known[a]) for a in t.flatten().tolist() if a in self.known)
        result = []
        for i, (address, t) in enumerate(found.items()):
            shape = "x".join(map(str, t.shape))
            fresh = any(
                Tensor.data_ptr(f) <= address and address + extent(t) <= Tensor.data_ptr(f) + extent(f)
                for f in self.fresh.values()
                if f._version == 0  # torch has not written it since
            )
            result.append((f"{name}.{i}[{shape}]", t, fresh))
        return result

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Take note of tensors whose address is asked for, and of uninitialised ones."""
        original = torch.Tensor.data_ptr

        def data_ptr(t: Tensor) -> int:
            address = original(t)
            if address and type(t) in (Tensor, torch.nn.Parameter) and t.device.type == "cpu":
                known = self.known.get(address)
                if known is None or extent(known) < extent(t) or known.dtype != t.dtype:
                    self.known[address] = t.detach()
            return address

        def recording(make: Callable) -> Callable:
            def wrapped(*args: Any, **kwargs: Any) -> Tensor:
                t = make(*args, **kwargs)
                if type(t) is Tensor and t.device.type == "cpu" and t.numel():
                    self.fresh[original(t)] = t
                return t

            return wrapped

        with (
            mock.patch.object(torch.Tensor, "data_ptr", data_ptr),
            mock.patch.object(torch.Tensor, "new_empty", recording(torch.Tensor.new_empty)),
            mock.patch.object(torch, "empty", recording(torch.empty)),
            mock.patch.object(torch, "empty_like", recording(torch.empty_like)),
            mock.patch.object(torch, "empty_strided", recording(torch.empty_strided)),
        ):
            try:
                yield
            finally:
                self.known.clear()
                self.fresh.clear()


def _op_modules() -> list[ModuleType]:
    return [m for name, m in sys.modules.items() if name.startswith("atu_ext.ops.") or name == "atu_ext._native"]


def _clear_caches() -> None:
    """Forget what the ops keep between calls: addresses seen by one backend are unknown to another."""
    for module in _op_modules():
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


@contextmanager
def run_emulated(module: EmulatedModule) -> Iterator[None]:
    """Let the ops run the emulated CUDA kernels on CPU tensors, of every dtype that the CUDA kernels take."""
    replaced: dict[str, Any] = {
        "_C": module,
        "CPU_DTYPES": BACKENDS["emulated"].dtypes,
        "_sums_bias": lambda x: False,  # as for CUDA tensors
        "on_cuda": lambda x: True,
        "_capability": lambda device: (9, 0),
        "_device_name": lambda device: "emulated",
    }
    _clear_caches()
    with ExitStack() as stack:
        stack.enter_context(module.watch())
        for op in _op_modules():
            for name, value in replaced.items():
                if hasattr(op, name):
                    stack.enter_context(mock.patch.object(op, name, value))
        yield
    _clear_caches()


@dataclass(frozen=True)
class Backend:
    """name: native-cpu, emulated or cuda; device: where its tensors lie; dtypes: what its kernels take.

    calls: names of the kernels run, under emulation only.
    """

    name: str
    device: str
    dtypes: tuple[torch.dtype, ...]
    calls: list[str] | None = None


_CUDA_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
BACKENDS = {
    "native-cpu": Backend("native-cpu", "cpu", (torch.float32, torch.float64, torch.bfloat16)),
    "emulated": Backend("emulated", "cpu", _CUDA_DTYPES),
    "cuda": Backend("cuda", "cuda", _CUDA_DTYPES),
}
