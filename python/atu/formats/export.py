"""Writing a GAN in the formats of the tools that will read it."""

from __future__ import annotations

from pathlib import Path

from ..gan import GAN
from ..support.modules import state_of
from . import nvidia
from .recognise import recognise
from .registry import FORMATS, NVIDIA
from .tensors import CheckpointError


def format_of(path: str | Path) -> str:
    """The format that a file's ending asks for: .pkl, .pt, .pth, .onnx, .safetensors, or what other packages add.

    Raises:
        ValueError: it has another ending.
    """
    suffix = Path(path).suffix.lower()
    found = next((name for name in FORMATS if suffix in FORMATS.get(name).suffixes), None)
    if found is None:
        known = [one for name in FORMATS for one in FORMATS.get(name).suffixes]
        raise ValueError(f"path: {path}: expected a file ending in {', '.join(known)}, or a format")
    return found


def check_target(path: str | Path, overwrite: bool = False) -> None:
    """Raise ValueError for a file that is there already, unless it may be overwritten."""
    if Path(path).exists() and not overwrite:
        raise ValueError(f"{path}: there already; give another name, or --force to overwrite it")


def export(
    gan: GAN,
    path: str | Path,
    format: str | None = None,
    template: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write `gan` to `path`, atomically.

    Args:
        format: nvidia-pkl, rosinality-pt, safetensors, onnx (the sampling generator, checked against torch by
            onnxruntime) or one of another package; by default what the suffix says.
        template: for nvidia-pkl, the pickle whose tensors are replaced; by default the file that the GAN was loaded
            from.
        overwrite: also over the file that the GAN was loaded from, or the template.

    Returns:
        The path.

    Raises:
        CheckpointError: the networks do not fit the format or the template.
        ValueError: the format or ending is unknown, or the user's original would be overwritten.
    """
    format = format_of(path) if format is None else format
    path = Path(path)
    for original in (template, (gan.origin or {}).get("path")):
        if not overwrite and original is not None and path.exists() and path.resolve() == Path(original).resolve():
            raise ValueError(f"path: {path} is the file that the GAN came from; give another name, or overwrite=True")
    if format == NVIDIA:
        return write_nvidia(gan, path, template)
    write = FORMATS.get(format).export
    if write is None:
        raise ValueError(f"format: {format} can be read but not written")
    return write(gan, path)


def write_nvidia(gan: GAN, path: Path, template: str | Path | None = None) -> Path:
    """Write an NVIDIA pickle: the template, or the file that the GAN was loaded from, with the GAN's tensors."""
    states = {name: state_of(module) for name, module in gan.modules().items()}
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
