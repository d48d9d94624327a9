"""Folders that `atu label` writes: what is unwanted, and what is good."""

from __future__ import annotations

from pathlib import Path

from .images import is_image


def marks_folder(path: str | Path) -> tuple[Path, Path | None]:
    """(negatives, positives) of a folder given as negatives: unwanted/ and good/ of a folder of marks.

    Any other folder is itself the negatives. Positives are None where nothing was marked good.

    Raises:
        ValueError: a folder of marks in which nothing is marked unwanted.
    """
    path = Path(path)
    if not ((path / "labels.json").is_file() and (path / "unwanted").is_dir()):
        return path, None
    if not _images(path / "unwanted"):
        raise ValueError(f"negatives: nothing in {path} is marked unwanted")
    return path / "unwanted", path / "good" if _images(path / "good") else None


def _images(folder: Path) -> bool:
    return folder.is_dir() and any(is_image(file) for file in folder.iterdir())
