"""A finished run to go on from: its unlearned GAN and its marks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..data.marks import kept_marks
from ..data.samples import TensorSamples
from ..formats.own_model import load_like
from ..gan import GAN


@dataclass(frozen=True)
class Earlier:
    """A finished run.

    folder: of the run. gan: its unlearned pair. negatives, positives: its marks and those of the rounds before it.
    round: its number, from 1.
    """

    folder: Path
    gan: GAN
    negatives: TensorSamples
    positives: TensorSamples | None
    round: int


def read_run(folder: str | Path) -> tuple[str, int]:
    """(digest of the GAN that the finished run in a folder began from, number of its round).

    Raises:
        ValueError: the folder holds no finished run.
    """
    folder = Path(folder)
    try:
        identity = json.loads((folder / "run.json").read_text(encoding="utf-8"))["identity"]
        start = identity["gan"], int(identity.get("round") or 1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"from_run: expected the folder of a run, and {folder} holds no run.json of one") from None
    if not (folder / "result.safetensors").is_file():
        raise ValueError(f"from_run: the run in {folder} is not finished; go on with it first, by its own command")
    return start


def earlier_run(folder: str | Path, gan: GAN, digest: str) -> Earlier:
    """The run in a folder, which began from `gan`, or from a run that did.

    Args:
        gan: the original. digest: of it, as run.json tells it.

    Raises:
        ValueError: the folder holds no finished run, one of another GAN, or not the marks.
    """
    folder, (began, number) = Path(folder), read_run(folder)
    if began != digest:
        raise ValueError(
            f"from_run: the run in {folder} began from another GAN ({began}) than the one given ({digest}); give the "
            "original, from before any round: outcomes are measured against that"
        )
    result = load_like(folder / "result.safetensors", gan)
    return Earlier(folder, result, *kept_marks(folder, gan.image_range, "from_run"), number)
