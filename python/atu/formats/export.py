"""Writing a GAN in the formats of the tools that will read it."""

from __future__ import annotations

from pathlib import Path

from ..gan import GAN
from . import native, nvidia, rosinality
from .onnx import write_onnx
from .recognise import NVIDIA, recognise
from .tensors import CheckpointError

FORMATS = ("nvidia-pkl", "rosinality-pt", "safetensors", "onnx")
_SUFFIXES = {".pkl": "nvidia-pkl", ".pt": "rosinality-pt", ".pth": "rosinality-pt", ".onnx": "onnx"}


def format_of(path: str | Path) -> str:
    """The format that a file name asks for: .pkl, .pt, .onnx; safetensors otherwise."""
    return _SUFFIXES.get(Path(path).suffix.lower(), "safetensors")


def export(gan: GAN, path: str | Path, format: str | None = None, template: str | Path | None = None) -> Path:
    """Write `gan` to `path`, atomically.

    Args:
        format: nvidia-pkl, rosinality-pt, safetensors or onnx (the sampling generator, checked against torch by
            onnxruntime); by default what the suffix says.
        template: for nvidia-pkl, the pickle whose tensors are replaced; by default the file that the GAN was loaded
            from.

    Returns:
        The path.

    Raises:
        CheckpointError: the networks do not fit the format or the template.
    """
    format = format_of(path) if format is None else format
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    path = Path(path)
    if format == "safetensors":
        return native.save(gan, path)
    if format == "rosinality-pt":
        return rosinality.write_checkpoint(path, gan.modules())
    if format == "onnx":
        return write_onnx(gan, path)
    states = {name: module.state_dict() for name, module in gan.modules().items()}
    return nvidia.replace_tensors(_template(gan, template), path, states)


def _template(gan: GAN, given: str | Path | None) -> Path:
    origin = gan.origin or {}
    if given is None and origin.get("format") == "nvidia-pkl":
        given = origin["path"]
    if given is None:
        raise CheckpointError(
            "template: an NVIDIA pickle holds the source of its classes, so one is written by replacing the tensors of "
            "an existing file; this GAN was not loaded from one, so name the file to use"
        )
    path = Path(given)
    if not path.is_file():
        raise CheckpointError(f"template: {path}: no such file (the pickle that this GAN was loaded from)")
    if recognise(path) != NVIDIA:
        raise CheckpointError(f"template: {path}: not an NVIDIA network pickle")
    return path
