"""Images as tensors: reading and writing files, value ranges, grids."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from ..support.files import write_atomic

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
# What may open a file, whatever its name says. Others of Pillow's readers start programs (Ghostscript, for EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
THUMBNAIL = 128  # most pixels a side of an image among others in a picture


def are_pictures(shape: Sequence[int]) -> bool:
    """Whether samples of a shape [C, H, W] can be written as pictures."""
    return len(shape) == 3 and shape[0] in (1, 3, 4)


def is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _to_channels(image: Image.Image, channels: int, what: str) -> np.ndarray[Any, Any]:
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if channels not in modes:
        raise ValueError(f"{what}: image files hold 1, 3 or 4 channels, and the GAN makes {channels}")
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip at 255
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if channels == 1 and image.mode not in ("1", "L"):
        bands = np.asarray(image.convert("RGB"))
        if (bands != bands[..., :1]).any():
            raise ValueError(f"{what} is in colour, and the GAN makes images of 1 channel; convert it to grey first")
    return np.asarray(image.convert(modes[channels]))


def _pixels(image: Image.Image, sample_shape: tuple[int, ...], what: str, resize: bool) -> Tensor:
    """uint8 [C, H, W] of an image; `what` names it in errors."""
    channels, height, width = sample_shape
    alike = image.size[0] * height == image.size[1] * width
    if resize and alike and image.size != (width, height):
        if channels in (1, 3) and image.mode in ("1", "P", "PA", "LA", "RGBA"):
            image = image.convert("RGB")  # Pillow takes single pixels of palettes, and black for what is transparent
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    if image.size != (width, height):
        remedy = "; resize=True (--resize) scales it" if alike else ": other proportions, crop it first"
        raise ValueError(
            f"{what} is {image.size[0]} x {image.size[1]}, and the GAN's images are {width} x {height}{remedy}"
        )
    return (
        torch.from_numpy(_to_channels(image, channels, what).copy()).reshape(height, width, channels).permute(2, 0, 1)
    )


def open_image(source: Path | Image.Image, what: str) -> Image.Image:
    """An image file, read whole, or an image of Pillow, turned upright. Whatever opens pictures asks here.

    Raises:
        ValueError: with `what` before it: no file, not of FORMATS, or damaged.
    """
    try:
        if isinstance(source, Image.Image):
            source.load()
            return _upright(source)
        if not source.is_file():  # a pipe would be waited for
            raise ValueError("there is no such file")
        with Image.open(source, formats=FORMATS) as image:
            image.load()
            return _upright(image)
    except Exception as error:  # decoders raise many kinds
        raise ValueError(f"{what} cannot be read as an image ({error})") from error


def _upright(image: Image.Image) -> Image.Image:
    """As viewers show it: cameras store pictures sideways, and say so in the file.

    Raises:
        ValueError: its values have no known range.
    """
    if image.mode == "F":
        raise ValueError("it holds floats, whose range is not known: save it with 8 or 16 bits a value")
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, OSError, ValueError, TypeError, KeyError, struct.error):  # metadata that cannot be read
        return image


def load_folder(
    folder: str | Path, sample_shape: tuple[int, ...], name: str = "negatives", resize: bool = False
) -> Tensor:
    """All images below a folder, in the order of their paths: uint8 [N, C, H, W].

    resize: scale images of the same proportions but another size.

    Raises:
        ValueError: the folder is missing or holds no image, an image cannot be read, or its size or channels do not
            fit `sample_shape` (C, H, W); `name` names the argument.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{name}: expected a folder of images, but {folder} is not a folder")
    if len(sample_shape) != 3:
        raise ValueError(f"{name}: a folder of images was given, but the GAN's samples have shape {list(sample_shape)}")
    paths = sorted(path for path in folder.rglob("*") if is_image(path))
    if not paths:
        raise ValueError(f"{name}: {folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return load_images(paths, sample_shape, name, resize)


def load_images(
    images: Sequence[Path | Image.Image], sample_shape: tuple[int, ...], name: str, resize: bool = False
) -> Tensor:
    """Image files, or images of Pillow, as uint8 [N, C, H, W] of `sample_shape`; errors as of `load_folder`."""
    if len(sample_shape) != 3:
        raise ValueError(f"{name}: images were given, but the GAN's samples have shape {list(sample_shape)}")
    pixels = []
    for index, image in enumerate(images):
        what = f"{name}: {f'image {index}' if isinstance(image, Image.Image) else image}"
        pixels.append(_pixels(open_image(image, what), sample_shape, what, resize))
    return torch.stack(pixels)


def to_range(x: Tensor, image_range: tuple[float, float]) -> Tensor:
    """uint8 to float32 in image_range; floats pass as float32."""
    if x.dtype == torch.uint8:
        low, high = image_range
        return x.float() / 255 * (high - low) + low
    return x.float()


def to_uint8(x: Tensor, image_range: tuple[float, float]) -> Tensor:
    """Floats in image_range to uint8, clamped and rounded."""
    low, high = image_range
    return ((x - low) / (high - low) * 255).round().clamp(0, 255).to(torch.uint8)


def map_range(x: Tensor, source: tuple[float, float], target: tuple[float, float]) -> Tensor:
    """Images [N, C, H, W] clamped to `source` and mapped to `target`; other samples as they are."""
    if x.ndim != 4:
        return x
    x = x.clamp(*source)
    if source == target:
        return x
    return (x - source[0]) / (source[1] - source[0]) * (target[1] - target[0]) + target[0]


def thumbnails(x: Tensor, most: int = THUMBNAIL) -> Tensor:
    """Images [N, C, H, W] scaled down to at most `most` pixels a side; smaller ones, and other samples, as they are."""
    if x.ndim != 4 or max(x.shape[2:]) <= most or not len(x):
        return x
    scale = most / max(x.shape[2:])
    size = [max(round(side * scale), 1) for side in x.shape[2:]]
    return F.interpolate(x.float(), size, mode="bilinear", antialias=True)


def image_grid(images: Tensor, image_range: tuple[float, float], columns: int, gap: int = 1) -> Image.Image:
    """[n, C, H, W] (C = 1, 3 or 4) as one picture, row by row."""
    x = to_uint8(images, image_range)
    n, channels, height, width = x.shape
    if channels not in (1, 3, 4):
        raise ValueError(f"images: expected 1, 3 or 4 channels, got {channels}")
    rows = -(-n // columns)
    canvas = torch.zeros(channels, rows * (height + gap), columns * (width + gap), dtype=torch.uint8)
    for index in range(n):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        canvas[:, top : top + height, left : left + width] = x[index]
    array = canvas.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if channels == 1 else array)


def grid(images: Tensor, image_range: tuple[float, float], columns: int = 10) -> Image.Image:
    """One picture of thumbnails of images [N, 1 or 3, H, W], row by row, without gaps."""
    return image_grid(thumbnails(images.detach().cpu()), image_range, columns, gap=0)


def check_images(x: Tensor) -> None:
    """Raise ValueError unless x is [N, C, H, W]."""
    if x.ndim != 4:
        raise ValueError(f"images: expected [N, C, H, W], got {list(x.shape)}; these samples are no images")


def save_folder(images: Tensor, image_range: tuple[float, float], folder: str | Path, seed: int = 0) -> Path:
    """Write images [n, C, H, W] as FOLDER/seedS-000000.png and so on; returns the folder.

    Names carry the seed, so that samples of several seeds can share a folder.

    Raises:
        ValueError: the samples are no images of 1, 3 or 4 channels.
    """
    folder = Path(folder)
    check_images(images)
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        image_grid(image[None], image_range, 1, gap=0).save(folder / f"seed{seed}-{index:06d}.png")
    return folder


def save_grid(images: Tensor, image_range: tuple[float, float], path: str | Path, columns: int = 10) -> Path:
    """Write images [n, C, H, W] as one picture of thumbnails; returns its path."""
    picture = image_grid(thumbnails(images), image_range, columns)
    return write_atomic(path, lambda temporary: picture.save(temporary, "PNG"))
