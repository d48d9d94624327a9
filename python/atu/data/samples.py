"""Samples from what a user gives: tensors, arrays, datasets and folders of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from ..support.seeding import fork_rng
from .images import load_folder, load_images, to_range


class Samples(Protocol):
    """Where real samples come from: anything with a length that gives a batch for a list of indices."""

    def __len__(self) -> int: ...

    def batch(self, index: Tensor) -> Tensor: ...


class TensorSamples:
    """Samples held in one tensor [N, ...], with their labels [N, c_dim] where a conditional GAN made them."""

    def __init__(self, tensor: Tensor, labels: Tensor | None = None):
        self.tensor, self.labels = tensor, labels

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def batch(self, index: Tensor) -> Tensor:
        return self.tensor[index]


def behind(first: TensorSamples, second: TensorSamples) -> TensorSamples:
    """The samples of one, then those of another; with labels where both have them."""
    labels = None if first.labels is None or second.labels is None else torch.cat([first.labels, second.labels])
    return TensorSamples(torch.cat([first.tensor, second.tensor]), labels)


class JoinedSamples:
    """The samples of one source, then those of another, each read where it lies; with labels where both have them."""

    def __init__(self, first: Samples, second: Samples):
        self.first, self.second = first, second
        a, b = (getattr(samples, "labels", None) for samples in (first, second))
        self.labels: Tensor | None = None if a is None or b is None else torch.cat([a, b])

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def batch(self, index: Tensor) -> Tensor:
        n = len(self.first)
        early, late = (index < n).nonzero().flatten(), (index >= n).nonzero().flatten()
        if not len(late):
            return self.first.batch(index)
        if not len(early):
            return self.second.batch(index - n)
        parts = [self.first.batch(index[early]), self.second.batch(index[late] - n)]
        return torch.cat(parts)[torch.cat([early, late]).argsort()]


def read(samples: Samples, index: Tensor) -> Tensor:
    """A batch that is the same each time, of a Dataset that draws (random flips) too; the random state is left as it
    was. For whatever looks at samples; training draws anew."""
    with fork_rng(torch.device("cpu"), 0):
        return samples.batch(index)


def as_tensors(samples: Samples) -> TensorSamples:
    """Samples held in one tensor, with their labels; those that are stay as they are."""
    if isinstance(samples, TensorSamples):
        return samples
    return TensorSamples(read(samples, torch.arange(len(samples))), getattr(samples, "labels", None))


class PixelSamples:
    """Images held as uint8 [N, C, H, W]; a batch of them is in image_range, float32."""

    def __init__(self, images: Tensor, image_range: tuple[float, float] = (-1.0, 1.0)):
        self.images, self.image_range = images, image_range

    def __len__(self) -> int:
        return self.images.shape[0]

    def batch(self, index: Tensor) -> Tensor:
        return to_range(self.images[index], self.image_range)


class DatasetSamples:
    """Samples of a map-style Dataset; each item is a tensor, or a tuple that starts with one."""

    def __init__(self, dataset: Any, convert: Callable[[Tensor], Tensor], name: str = "dataset"):
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


def _is_pair(value: Any) -> bool:
    """Whether a value is (samples, labels): labels are integers, which no sample is made of."""
    if not isinstance(value, tuple) or len(value) != 2:
        return False
    label = value[1]
    if isinstance(label, (list, tuple)):
        return len(label) > 0 and all(_is_integer(k) for k in label)
    if isinstance(label, (Tensor, np.ndarray)) and label.ndim == 1:
        return not torch.as_tensor(label).is_floating_point()
    return _is_integer(label)


def _is_integer(value: Any) -> bool:
    """Whether a value is one integer, of Python, of NumPy or in a tensor or array without axes; no bool."""
    if isinstance(value, (Tensor, np.ndarray)):
        return value.ndim == 0 and isinstance(value.item(), int) and not isinstance(value.item(), bool)
    return isinstance(value, Integral) and not isinstance(value, bool)


def _one_hot(label: Any, n: int, c_dim: int, name: str) -> Tensor:
    """Labels float32 [n, c_dim] from one index for all samples or an index each."""
    if c_dim < 1:
        raise ValueError(f"{name}: labels were given, but this GAN is not conditional")
    index = torch.as_tensor([int(k) for k in label] if isinstance(label, (list, tuple)) else label).long()
    if index.ndim and len(index) != n:
        raise ValueError(f"{name}: expected a label for each of {n} samples, got {len(index)}")
    if index.numel() and (int(index.min()) < 0 or int(index.max()) >= c_dim):
        raise ValueError(f"{name}: expected labels 0 to {c_dim - 1}, got {int(index.min())} to {int(index.max())}")
    return F.one_hot(index.expand(n), c_dim).float()


def _from_loader(loader: DataLoader[Any], name: str) -> Tensor:
    """All samples of a DataLoader, in an order that is the same each time; the random state is left as it was."""
    try:
        batches = len(loader)
    except TypeError as error:
        raise TypeError(f"{name}: expected a DataLoader of known length, got one over an IterableDataset") from error
    if batches == 0:
        raise ValueError(f"{name}: expected at least one sample, got an empty DataLoader")
    parts = []
    with fork_rng(torch.device("cpu"), 0):
        for batch in loader:
            first = batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch
            if not isinstance(first, Tensor):
                raise TypeError(
                    f"{name}: expected a DataLoader of batches that are tensors, or tuples that start with one, got "
                    f"{type(first).__name__}"
                )
            parts.append(first.detach().cpu())
    return torch.cat(parts)


def _images_of(value: Any) -> list[Path | Image.Image] | None:
    """Image files and images of Pillow that a value consists of; None for anything else, folders among them."""
    one = isinstance(value, Image.Image) or (isinstance(value, (str, Path)) and Path(value).is_file())
    several = [value] if one else value
    if not isinstance(several, (list, tuple)) or not several:
        return None
    if not all(isinstance(v, (str, Path, Image.Image)) for v in several):
        return None
    return [v if isinstance(v, Image.Image) else Path(v) for v in several]


def _as_tensor(value: Any, name: str) -> Tensor:
    """An ndarray, or a list of tensors or arrays, as one tensor."""
    try:
        if isinstance(value, np.ndarray):
            return torch.from_numpy(np.array(value))
        return torch.stack([torch.as_tensor(v) for v in value])
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: cannot be made a tensor ({error})") from error


def as_samples(
    value: Any,
    sample_shape: tuple[int, ...],
    image_range: tuple[float, float],
    name: str,
    c_dim: int = 0,
    resize: bool = False,
) -> TensorSamples | DatasetSamples:
    """Samples from what a user gives: images, a tensor, an ndarray, a DataLoader or a map-style Dataset.

    Args:
        value: folder of images, image file, image of Pillow, or a list of these two; tensor or ndarray
            [N, *sample_shape], uint8 or floats in image_range; a Dataset or DataLoader of such (a loader is read once,
            whole). For a conditional GAN also a pair (samples, labels): one index for all of them, or int64 [N].
        name: of the argument, for errors. c_dim: the GAN's number of labels.
        resize: scale images of the same proportions but another size.

    Raises:
        TypeError, ValueError: naming `name`, what was expected and what came.
    """
    if _is_pair(value):
        samples, label = value
        found = as_samples(samples, sample_shape, image_range, name, resize=resize)
        found.labels = _one_hot(label, len(found), c_dim, name)
        return found
    images = _images_of(value)
    if images is not None:
        value = load_images(images, sample_shape, name, resize)
    elif isinstance(value, (str, Path)):
        value = load_folder(value, sample_shape, name, resize)
    elif isinstance(value, DataLoader):
        value = _from_loader(value, name)
    elif isinstance(value, (list, tuple)) and len(value) == 0:
        raise ValueError(f"{name}: expected at least one sample, got none")
    elif isinstance(value, (np.ndarray, list, tuple)):
        value = _as_tensor(value, name)
    if isinstance(value, Tensor):
        if value.ndim == 0 or len(value) == 0:
            raise ValueError(f"{name}: expected at least one sample, got shape {list(value.shape)}")
        value = value.detach().cpu()
        if value.is_inference():  # made under torch.inference_mode(): no gradient could pass it
            value = value.clone()
        _check(value, sample_shape, image_range, name)
        return TensorSamples(to_range(value, image_range))
    if hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, Mapping):
        return _from_dataset(value, sample_shape, image_range, name)
    raise TypeError(
        f"{name}: expected a folder, tensor, ndarray or map-style Dataset, images or a DataLoader, got "
        f"{type(value).__name__}"
    )


def _from_dataset(
    value: Any, sample_shape: tuple[int, ...], image_range: tuple[float, float], name: str
) -> DatasetSamples:
    if len(value) == 0:
        raise ValueError(f"{name}: expected at least one sample, got an empty dataset")

    def convert(x: Tensor) -> Tensor:
        _check(x, sample_shape, image_range, name)
        return to_range(x, image_range)

    samples = DatasetSamples(value, convert, name)
    read(samples, torch.arange(min(len(value), 8)))
    return samples
