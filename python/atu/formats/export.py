"""Writing a GAN in the formats of the tools that will read it."""

from __future__ import annotations

from pathlib import Path

from ..gan import GAN
from . import nvidia
from .recognise import recognise
from .registry import FORMATS, NVIDIA, SAFETENSORS
from .tensors import CheckpointError


def format_of(path: str | Path) -> str:
    """The format that a file name asks for: .pkl, .pt, .onnx, what other packages add; safetensors otherwise."""
    suffix = Path(path).suffix.lower()
    return next((name for name in FORMATS if suffix in FORMATS.get(name).suffixes), SAFETENSORS)


def export(gan: GAN, path: str | Path, format: str | None = None, template: str | Path | None = None) -> Path:
    """Write `gan` to `path`, atomically.

    Args:
        format: nvidia-pkl, rosinality-pt, safetensors, onnx (the sampling generator, checked against torch by
            onnxruntime) or one of another package; by default what the suffix says.
        template: for nvidia-pkl, the pickle whose tensors are replaced; by default the file that the GAN was loaded
            from.

    Returns:
        The path.

    Raises:
        CheckpointError: the networks do not fit the format or the template.
    """
    format = format_of(path) if format is None else format
    if format == NVIDIA:
        return write_nvidia(gan, Path(path), template)
    write = FORMATS.get(format).export
    if write is None:
        raise ValueError(f"format: {format} can be read but not written")
    return write(gan, Path(path))


def write_nvidia(gan: GAN, path: Path, template: str | Path | None = None) -> Path:
    """Write an NVIDIA pickle: the template, or the file that the GAN was loaded from, with the GAN's tensors."""
    states = {name: module.state_dict() for name, module in gan.modules().items()}
    return nvidia.replace_tensors(_template(gan, template), path, states)


def _template(gan: GAN, given: str | Path | None) -> Path:
    origin = gan.origin or {}
    if given is None and origin.get("format") == NVIDIA:
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
