"""Drawn animal faces as the package animal-avatar composes them, with the truth of every part.

A face is composed of parts, each picked at random: ears (or horns), muzzle, eyes, brows, and sometimes hair and a
patch, in one of six colours on one of five backgrounds. The labels are these picks, so they are exact.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from atu.support import progress
from atu.support.files import write_atomic

SIZE = 64

# What each part may be, in the order in which animal-avatar 0.0.5 lists its shapes; hair and patch may also be absent.
PARTS: Mapping[str, tuple[str, ...]] = {
    "background": ("cream", "rose-grey", "khaki", "mist", "mint"),
    "color": ("sand", "brown", "pink", "olive", "sage", "turquoise"),
    "patch": ("none", "cheek", "light-eye", "dark-eye"),
    "ears": (
        "cat",
        "folded",
        "pug",
        "calf",
        "seal",
        "bear",
        "moose-antlers",
        "beagle",
        "piglet",
        "fox",
        "deer-antlers",
        "giraffe-horns",
        "goat-horns",
        "mouse",
    ),
    "hair": ("none", "wool", "fringe", "sprig", "tuft"),
    "muzzle": (
        "husky",
        "polar-bear",
        "nose-ring",
        "terrier",
        "bear",
        "lynx",
        "smirk",
        "boar",
        "walrus",
        "heart",
        "cat",
        "smile",
        "mouse",
        "cub",
        "cow",
        "ape",
    ),
    "eyes": ("bright", "low-spark", "spark", "wide", "small", "tall", "close", "low"),
    "brows": ("raised", "flat", "arched"),
}
SPLITS = {"train": range(6), "judge": range(6, 9), "held-out": range(9, 10)}  # of the tenths of all faces

# A feature is what the named parts show; a species needs both ears and muzzle.
_FLOPPY, _POINTED = ("folded", "pug", "seal", "beagle"), ("cat", "fox")
_NOSES = ("husky", "polar-bear", "terrier", "bear", "lynx", "smirk", "heart", "smile", "cub")
FEATURES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "antlers": {"ears": ("moose-antlers", "deer-antlers")},
    "horns": {"ears": ("giraffe-horns", "goat-horns")},
    "floppy-ears": {"ears": _FLOPPY},
    "pointed-ears": {"ears": _POINTED},
    "wool": {"hair": ("wool",)},
    "fringe": {"hair": ("fringe",)},
    "whiskers": {"muzzle": ("cat", "mouse")},
    "tusks": {"muzzle": ("boar", "walrus")},
    "tongue": {"muzzle": ("husky", "terrier")},
    "nose-ring": {"muzzle": ("nose-ring",)},
    "white-muzzle": {"muzzle": ("husky", "polar-bear", "terrier", "lynx")},
    "spots": {"patch": ("cheek", "light-eye", "dark-eye")},
}
SPECIES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "dog": {"ears": _FLOPPY, "muzzle": _NOSES},
    "cat": {"ears": _POINTED, "muzzle": (*_NOSES, "cat", "mouse")},
    "deer": {"ears": ("moose-antlers", "deer-antlers"), "muzzle": _NOSES},
    "goat": {"ears": ("goat-horns", "giraffe-horns"), "muzzle": _NOSES},
    "boar": {"ears": ("calf", "piglet", "bear"), "muzzle": ("boar", "walrus")},
}


@dataclass
class Drawings:
    """Drawn faces.

    images: uint8 [N, 3, size, size]; labels: int64 [N, 8], a column a part of PARTS, the index of what it is.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, name: str) -> Tensor:
        """int64 [N]: what each face has for a part."""
        return self.labels[:, list(PARTS).index(name)]


def holds(labels: Tensor, wanted: Mapping[str, Iterable[str]]) -> Tensor:
    """bool [N]: whether labels [N, 8] have, for each part that `wanted` names, one of the values named."""
    found = torch.ones(len(labels), dtype=torch.bool)
    for part, values in wanted.items():
        index = torch.tensor([PARTS[part].index(value) for value in values])
        found &= torch.isin(labels[:, list(PARTS).index(part)], index)
    return found


def without_any(data: Drawings, rules: Iterable[Mapping[str, Iterable[str]]]) -> Drawings:
    """The faces for which none of these rules `holds`."""
    kept = torch.ones(len(data), dtype=torch.bool)
    for rule in rules:
        kept &= ~holds(data.labels, rule)
    return Drawings(data.images[kept], data.labels[kept])


def drawings(split: str = "train", n: int = 16_000, size: int = SIZE) -> Drawings:
    """n faces of one split, drawn once and kept in a cache: no face of one split is in another.

    Args:
        split: "train", "judge" (what only the judge learns from) or "held-out".
        n: how many; the first ones are the same whatever n is.

    Raises:
        ValueError: there is no such split. ImportError: without animal-avatar and resvg-py
            (`pip install atu-ext[demo]`).
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    name = f"animals-{_package_version()}-{split}-{size}px-{n}.safetensors"
    try:
        path = cache_folder() / name
    except RuntimeError as error:
        progress.log.warning("%s: the drawings cannot be kept (%s)", name, error)
        return _draw(split, n, size)
    found = _read(path)
    if found is None:
        found = _draw(split, n, size)
        tensors = {"images": found.images, "labels": found.labels}
        try:
            write_atomic(path, lambda temporary: save_file(tensors, temporary))
        except (OSError, SafetensorError) as error:  # of a full disk; it costs the time to draw again, no more
            progress.log.warning("%s: the drawings cannot be kept (%s)", path, error)
    return found


def cache_folder() -> Path:
    """Where drawings are kept: atu/ in $XDG_CACHE_HOME, or in ~/.cache.

    Raises:
        RuntimeError: there is no home folder.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atu"


def _read(path: Path) -> Drawings | None:
    """What was kept there, if it can be read."""
    try:
        with safe_open(path, "pt") as file:
            return Drawings(file.get_tensor("images"), file.get_tensor("labels"))
    except (SafetensorError, OSError):
        return None


def _package() -> Any:
    try:
        import animal_avatar
        import resvg_py  # noqa: F401
    except ImportError as error:
        raise ImportError("the drawn animals need animal-avatar and resvg-py: pip install 'atu-ext[demo]'") from error
    return animal_avatar


def _package_version() -> str:
    from importlib.metadata import version

    _package()
    return version("animal-avatar")


def _draw(split: str, n: int, size: int) -> Drawings:
    images = torch.empty(n, 3, size, size, dtype=torch.uint8)
    rows: list[tuple[int, ...]] = []
    with progress.bar(f"drawing {split}", n) as bar:
        seeds = (f"{split}/{index}" for index in range(2**62))
        while len(rows) < n:
            picks, svg = compose(next(seeds), size)
            if _tenth(picks) in SPLITS[split]:
                images[len(rows)] = render(svg)
                rows.append(picks)
                bar.update()
    return Drawings(images, torch.tensor(rows, dtype=torch.int64).reshape(n, len(PARTS)))


def _tenth(picks: Iterable[int]) -> int:
    """Which tenth of all faces this one belongs to, whatever seed it came from."""
    return hashlib.sha256(bytes(picks)).digest()[0] % 10


def compose(seed: str, size: int = SIZE) -> tuple[tuple[int, ...], str]:
    """(index of each part of PARTS, SVG) of the face of one seed, on a full square and without the shade of one half.

    Seeds are hashed first: neighbouring short ones give related faces.
    """
    package = _package()
    from animal_avatar import palette, shapes
    from animal_avatar.utils import array, svg

    avatar = package.Avatar(hashlib.sha256(seed.encode()).hexdigest(), size)
    order = (shapes.FACES, shapes.PATTERNS, shapes.EARS, shapes.HAIRS, shapes.MUZZLES, shapes.EYES, shapes.BROWS)
    picked = [array.pick(given, avatar.rng()) for given in avatar.shapes]
    parts = "".join(shape(avatar.avatar_color) for shape in picked)
    # Absent hair and patches are the first value of their part.
    index = [-1 if one is shapes.EMPTY_SHAPE else every.index(one) for one, every in zip(picked, order, strict=True)]
    _, patch, ears, hair, muzzle, eyes, brows = index
    background = palette.BACKGROUND_COLORS.index(avatar.background_color)
    color = palette.AVATAR_COLORS.index(avatar.avatar_color)
    picks = (background, color, patch + 1, ears, hair + 1, muzzle, eyes, brows)
    return picks, svg.create_svg(size, svg.create_background(False, avatar.background_color), parts)


def render(svg: str) -> Tensor:
    """uint8 [3, H, W] of an SVG."""
    import resvg_py

    with Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True)))) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
