"""A picture of the user's own as a hint: which samples are like it, by the discriminator's features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..data.images import open_image, to_range

MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def read_picture(path: Path, sample_shape: tuple[int, ...], image_range: tuple[float, float]) -> Tensor:
    """A picture of any size and colour as a sample [C, H, W]: its middle, in the samples' proportions, scaled.

    Transparent parts become white where the samples have no alpha; colour becomes grey where they have one channel.

    Raises:
        ValueError: it cannot be read as an image.
    """
    channels, height, width = sample_shape
    image = open_image(path, f"like: {path}")
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip at 255
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if channels != 4 and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = ImageOps.fit(image.convert(MODES[channels]), (width, height), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(image).copy()).reshape(height, width, channels)
    return to_range(pixels.permute(2, 0, 1), image_range)


def nearest(features: np.ndarray, pictures: np.ndarray, free: np.ndarray, n: int) -> list[int]:
    """Indices of the samples that point most nearly the way one of the pictures does, of those that are `free`.

    By the angle, not the distance: a picture from elsewhere lies farther out than any sample.

    Args:
        features: [N, F], whitened. pictures: [M, F] likewise.
    """
    index = np.flatnonzero(free)
    x, y = features[index], pictures
    x = x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)
    y = y / np.linalg.norm(y, axis=1, keepdims=True).clip(1e-12)
    closeness = (x @ y.T).max(1) if len(index) else np.zeros(0)
    return index[np.argsort(-closeness, kind="stable")][:n].tolist()
