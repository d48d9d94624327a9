"""Shared by all tests: what needs a CUDA device is skipped where there is none; the backends of the op tests."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from atu_ext import _native
from tests.backends import BACKENDS, Backend, EmulatedModule, emulated_library, load_lazily, run_emulated


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):  # not keywords: a folder named cuda is one too
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def emulated_module() -> EmulatedModule:
    """The CUDA kernels and bindings, compiled for the CPU."""
    path = emulated_library()
    return EmulatedModule(load_lazily(path), ctypes.CDLL(str(path)))


@pytest.fixture
def emulated(emulated_module: EmulatedModule) -> Iterator[EmulatedModule]:
    """The emulated module with its watch on: addresses of CPU tensors may be handed to its functions."""
    with emulated_module.watch():
        yield emulated_module


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend in turn. Tensors go to backend.device; in the test the ops run that backend's kernels."""
    yield from _run_on(request.param, request)


@pytest.fixture(params=[name for name in BACKENDS if name != "native-cpu"])
def cuda_kernels(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """As `backend`, but only those that run the CUDA kernels."""
    yield from _run_on(request.param, request)


def _run_on(name: str, request: pytest.FixtureRequest) -> Iterator[Backend]:
    if name == "native-cpu":
        yield BACKENDS[name]
    elif name == "cuda":
        if not torch.cuda.is_available() or _native._C is None or not _native._C.build_info()["cuda"]:
            pytest.skip("needs a CUDA device and a CUDA build")
        yield BACKENDS[name]
    else:
        module = request.getfixturevalue("emulated_module")
        module.calls.clear()
        with run_emulated(module):
            yield replace(BACKENDS[name], calls=module.calls)
