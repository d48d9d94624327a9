"""Checkpoint formats by name; other packages add theirs (entry point group `atu.formats`, or the decorator).

`GAN.load`, `GAN.save`, `atu inspect` and `atu export` find a format here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..gan import GAN
from ..support.registry import Registry


@dataclass(frozen=True)
class Format:
    """A checkpoint format; what is None cannot be done with it.

    sniff: (path, the file's first 64 bytes) -> whether the content is of this format; the name says nothing. Formats of
    other packages are asked before the built-in ones, in which theirs may be wrapped (a zip, a pickle).
    load: path -> GAN; raises `atu.formats.tensors.CheckpointError`. It must not execute anything in the file.
    export: (gan, path) -> path; writes atomically.
    inspect: (path, description) adds to what `inspect_checkpoint` returns; without it the file is loaded and described.
    suffixes: file names that ask for this format when a GAN is saved (".pkl").
    """

    sniff: Callable[[Path, bytes], bool] | None = None
    load: Callable[[Path], GAN] | None = None
    export: Callable[[GAN, Path], Path] | None = None
    inspect: Callable[[Path, dict[str, Any]], None] | None = None
    suffixes: tuple[str, ...] = ()


SAFETENSORS, NVIDIA, ROSINALITY = "safetensors", "nvidia-pkl", "rosinality-pt"
FORMATS: Registry[Format] = Registry(
    "atu.formats",
    {  # in the order in which they are asked: a pickle is known by one byte, which the others may begin with too
        ROSINALITY: "atu.formats.builtin:ROSINALITY_PT",
        SAFETENSORS: "atu.formats.builtin:NATIVE",
        NVIDIA: "atu.formats.builtin:NVIDIA_PKL",
        "onnx": "atu.formats.builtin:ONNX",
        "state-dict": "atu.formats.builtin:STATE_DICT",
    },
)
