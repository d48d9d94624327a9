"""Marks: folders that `atu label` writes, and the samples that a run was made with, kept in its folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..support.files import write_atomic
from .images import is_image, to_range, to_uint8
from .samples import Samples, TensorSamples, as_tensors, behind, read

LABELS = "labels.json"
KEPT = "marks.safetensors"  # in a run folder
MOST_BYTES = 2**30  # of samples above which a run keeps none of them


# --- folders


def labels_file(value: Any) -> Path | None:
    """The labels.json that something given as negatives stands for: itself, or that of a folder of marks."""
    if not isinstance(value, (str, Path)):
        return None
    path = Path(value)
    if path.is_file():
        return path if path.suffix.lower() == ".json" else None
    return path / LABELS if (path / LABELS).is_file() else None


def marks_folder(path: str | Path) -> tuple[Path, Path | None]:
    """(negatives, positives) of a folder given as negatives: unwanted/ and good/ of a folder of marks.

    Any other folder is itself the negatives. Positives are None where nothing was marked good. A folder of marks in
    which no picture is unwanted stands for its labels.json, whose samples the GAN makes again.
    """
    path = Path(path)
    labels = labels_file(path)
    if labels is None or labels == path:
        return path, None
    if not _images(path / "unwanted"):
        return labels, None
    return path / "unwanted", path / "good" if _images(path / "good") else None


def _images(folder: Path) -> bool:
    return folder.is_dir() and any(is_image(file) for file in folder.iterdir())


# --- what a run keeps


def keep_marks(
    folder: Path, negatives: Samples, positives: Samples | None, image_range: tuple[float, float]
) -> Path | None:
    """Write the samples that a run was given to FOLDER/marks.safetensors, for a run that goes on from it.

    Returns:
        The file; None for samples that are read one by one, or that are more than a GiB.
    """
    tensors: dict[str, Tensor] = {}
    for name, samples in (("negatives", negatives), ("positives", positives)):
        if samples is None:
            continue
        if not isinstance(samples, TensorSamples) or samples.tensor.numel() > MOST_BYTES // 4:
            return None
        tensors[name] = _compact(samples.tensor, image_range)
        if samples.labels is not None:
            tensors[f"{name}.labels"] = samples.labels.cpu().contiguous()
    return write_atomic(folder / KEPT, lambda path: save_file(tensors, path))


def _compact(x: Tensor, image_range: tuple[float, float]) -> Tensor:
    """8 bits a value where nothing is lost by that: of what came from image files."""
    small = to_uint8(x, image_range)
    return small.contiguous() if torch.equal(to_range(small, image_range), x) else x.cpu().contiguous()


def kept_marks(folder: Path, image_range: tuple[float, float], name: str) -> tuple[TensorSamples, TensorSamples | None]:
    """(negatives, positives) that the run in FOLDER was given.

    Raises:
        ValueError: they are not there, naming the argument `name`.
    """
    path = folder / KEPT
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{name}: {folder} does not hold the negatives that it was made with ({KEPT}: {error}); runs of earlier "
            "versions, of a Dataset and of more than 1 GiB of samples keep none. Give that run's result as the GAN "
            "instead, and all of the negatives"
        ) from None
    if "negatives" not in found:
        raise ValueError(f"{name}: {path} holds no negatives")

    def samples(which: str) -> TensorSamples:
        return TensorSamples(to_range(found[which], image_range), found.get(f"{which}.labels"))

    return samples("negatives"), samples("positives") if "positives" in found else None


# --- rounds


def joined(
    now: Samples | None,
    earlier: TensorSamples | None,
    against: Samples | None,
    image_range: tuple[float, float],
    name: str = "negatives",
) -> Samples | None:
    """The marks of this round, then those of earlier rounds that are not among them and not among `against`, which were
    marked otherwise since.

    Raises:
        ValueError: of conditional samples, only one of the two has labels, naming the argument `name`.
    """
    if earlier is None or now is None:
        return now if earlier is None else _without(earlier, against, image_range)
    rest = _without(_without(earlier, now, image_range), against, image_range)
    if rest is None:
        return now
    mine = as_tensors(now)
    if (mine.labels is None) != (rest.labels is None):
        missing = "those given now" if mine.labels is None else "those of the earlier run"
        raise ValueError(f"{name}: expected labels for all or for none of them, and {missing} have none")
    return behind(mine, rest)


def _without(
    samples: TensorSamples | None, others: Samples | None, image_range: tuple[float, float]
) -> TensorSamples | None:
    """The samples that are not among others; None where none is left. Images are compared at 8 bits a value."""
    if samples is None or others is None:
        return samples
    known = set(_names(others, image_range))
    keep = [i for i, name in enumerate(_names(samples, image_range)) if name not in known]
    if not keep:
        return None
    return TensorSamples(samples.tensor[keep], None if samples.labels is None else samples.labels[keep])


def _names(samples: Samples, image_range: tuple[float, float]) -> list[bytes]:
    """A hash a sample."""
    found = []
    for index in torch.arange(len(samples)).split(100):
        x = read(samples, index)
        x = to_uint8(x, image_range) if x.ndim == 4 else x
        found += [hashlib.sha256(one.contiguous().numpy().tobytes()).digest() for one in x]
    return found
