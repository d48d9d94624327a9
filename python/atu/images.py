"""Writing samples as image files."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from .files import write_atomic
from .plots import image_grid


def save_folder(images: Tensor, image_range: tuple[float, float], folder: str | Path, start: int = 0) -> Path:
    """Write images [n, C, H, W] as FOLDER/000000.png and so on, numbered from `start`; returns the folder.

    Raises:
        ValueError: the samples are no images of 1, 3 or 4 channels.
    """
    folder = Path(folder)
    if images.ndim != 4:
        raise ValueError(f"images: expected [N, C, H, W], got {list(images.shape)}; these samples are no images")
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        image_grid(image[None], image_range, 1, gap=0).save(folder / f"{start + index:06d}.png")
    return folder


def save_grid(images: Tensor, image_range: tuple[float, float], path: str | Path, columns: int = 10) -> Path:
    """Write images [n, C, H, W] as one picture; returns its path."""
    return write_atomic(path, lambda temporary: image_grid(images, image_range, columns).save(temporary, "PNG"))
