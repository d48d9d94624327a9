"""A GAN's samples by index: thumbnails, features, full images; made block by block, again when asked for."""

from __future__ import annotations

import contextlib
import io
from collections import OrderedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.images import are_pictures, to_uint8
from ..gan import GAN
from ..measures.features import DiscriminatorFeatures, Whitening, kinds
from ..support.seeding import mix_seed

LARGEST = 128  # pixels of a thumbnail's longer side
CACHE_BYTES = 256 * 2**20
COMPONENTS = 64


def block_size(gan: GAN) -> int:
    """Samples made at once: few where they are large, so that memory stays bounded. A power of 2."""
    shape = gan.sample_shape
    if not are_pictures(shape):
        raise ValueError(f"CKPT: its samples have shape {list(shape)}; the page shows images of 1, 3 or 4 channels")
    pixels = shape[1] * shape[2]
    return 64 if pixels <= 128 * 128 else 16 if pixels <= 512 * 512 else 4


class Space:
    """Where samples are compared: the first GAN's features (`DiscriminatorFeatures`), whitened on its first samples."""

    def __init__(self, gan: GAN, block: int, samples: int):
        self.gan, self.wanted = gan, min(max(8 * block, 128), samples)
        self.features = None if gan.discriminator is None else DiscriminatorFeatures(gan)
        self.whiten: Whitening | None = None
        self.first: list[Tensor] = []

    def raw(self, x: Tensor) -> Tensor | None:
        """Features float32 [n, F]; None for a GAN without a discriminator."""
        return None if self.features is None else self.features.to_tell_apart([x])

    def learn(self, raw: Tensor) -> bool:
        """Add samples to those that whitening is fitted on; True when that is done."""
        if self.whiten is None:
            self.first.append(raw)
            if sum(map(len, self.first)) >= self.wanted:
                first = torch.cat(self.first)
                self.whiten, self.first = Whitening(first, COMPONENTS, kinds(self.gan, first)), []
        return self.whiten is not None


class Pool:
    """Sample i is row i % block of `gan.sample(block, seed=mix_seed(seed, i // block), batch_size=block)`.

    One thread makes blocks; any may read. Thumbnails are kept encoded, the last used ones up to `cache_bytes`.
    """

    def __init__(self, gan: GAN, space: Space, seed: int, block: int, size: int, cache_bytes: int = CACHE_BYTES):
        self.gan, self.space, self.seed, self.block, self.size = gan, space, seed, block, size
        self.cache_bytes, self.cached = cache_bytes, 0
        self._thumbs: OrderedDict[int, list[bytes]] = OrderedDict()
        self._early: dict[int, Tensor] = {}  # raw features from before the whitening
        self.made = np.zeros(-(-size // block), bool)  # blocks whose features are there
        self.features = np.zeros((0, 0), np.float32)
        self.ranks = np.full(size, -np.inf, np.float32)  # of an oracle, where there is one; higher is likelier unwanted
        self.called = np.zeros(size, bool)  # unwanted by the oracle

    def seed_of(self, index: int) -> tuple[int, int]:
        """(seed, row) of a sample, for `GAN.sample(block, seed)` and `GAN.inputs(block, seed)`."""
        return mix_seed(self.seed, index // self.block), index % self.block

    def images(self, block: int) -> Tensor:
        """Samples [block, C, H, W] of one block, in the GAN's range, on its device."""
        return self.gan.sample(self.block, seed=mix_seed(self.seed, block), batch_size=self.block)

    def thumb(self, index: int) -> bytes | None:
        """An encoded thumbnail; None where it has to be made first."""
        found = self._thumbs.get(index // self.block)
        if found is None:
            return None
        with contextlib.suppress(KeyError):  # just dropped by the thread that makes them
            self._thumbs.move_to_end(index // self.block)
        return found[index % self.block]

    def make(self, block: int) -> Tensor:
        """Make one block's thumbnails and features; returns its images."""
        x = self.images(block)
        if block not in self._thumbs:
            thumbs = [encode(image) for image in to_uint8(x, self.gan.image_range).cpu()]
            self._thumbs[block] = thumbs
            self.cached += sum(map(len, thumbs))
            while self.cached > self.cache_bytes and len(self._thumbs) > 1:
                self.cached -= sum(map(len, self._thumbs.popitem(last=False)[1]))
        if block < len(self.made) and not self.made[block]:
            raw = self.space.raw(x)
            if raw is not None:
                self._add(block, raw)
            self.made[block] = True
        return x

    def _add(self, block: int, raw: Tensor) -> None:
        self._early[block] = raw
        if not self.space.learn(raw):
            return
        assert self.space.whiten is not None
        self._allot()
        for key, value in self._early.items():
            white = self.space.whiten(value).float().numpy()
            self.features[key * self.block : (key + 1) * self.block] = white
        self._early.clear()

    def _allot(self) -> None:
        """Make room for the features, once it is known how many there are of each sample."""
        if self.space.whiten is not None and self.features.shape[1] == 0:
            self.features = np.zeros((len(self.made) * self.block, self.space.whiten.components), np.float32)

    def known(self) -> np.ndarray:
        """Bool [size]: samples whose features are there."""
        self._allot()
        if self.features.shape[1] == 0:
            return np.zeros(self.size, bool)
        known = np.repeat(self.made, self.block)
        for block in list(self._early):
            known[block * self.block : (block + 1) * self.block] = False
        return known[: self.size]


def encode(image: Tensor) -> bytes:
    """uint8 [C, H, W] as a PNG file, or as JPEG where it is larger than a thumbnail and in colour or grey."""
    channels, height, width = image.shape
    array = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[..., 0] if channels == 1 else array)
    large = max(height, width) > LARGEST
    if large:
        picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if large and channels != 4:
        picture.save(file, "JPEG", quality=88)
    else:
        picture.save(file, "PNG", compress_level=1)
    return file.getvalue()
