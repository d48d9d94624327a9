"""The formats that come with the package."""

from __future__ import annotations

from pathlib import Path

from ..gan import GAN
from . import native, onnx, rosinality
from .export import write_nvidia
from .inspect import inspect_native, inspect_nvidia, inspect_torch
from .load import load_nvidia, load_rosinality
from .recognise import is_pickle, is_safetensors, is_torch
from .registry import Format
from .state_dict import write_state_dict


def _write_rosinality(gan: GAN, path: Path) -> Path:
    return rosinality.write_checkpoint(path, gan.modules())


NVIDIA_PKL = Format(is_pickle, load_nvidia, write_nvidia, inspect_nvidia, (".pkl",))
ROSINALITY_PT = Format(is_torch, load_rosinality, _write_rosinality, inspect_torch, (".pt", ".pth"))
NATIVE = Format(is_safetensors, native.load_native, native.save, inspect_native, (".safetensors",))
STATE_DICT = Format(export=write_state_dict)
ONNX = Format(export=onnx.write_onnx, suffixes=(".onnx",))
