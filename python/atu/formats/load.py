"""Loading a GAN of any known format, recognised by its content."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

from torch import Tensor, nn

from ..gan import GAN, LatentSampler
from . import nvidia, rosinality
from .native import load_native
from .recognise import recognise
from .registry import FORMATS, SAFETENSORS
from .tensors import CheckpointError, reading
from .torch_file import load_torch

log = logging.getLogger("atu")


def load(
    path: str | Path,
    generator: nn.Module | None = None,
    discriminator: nn.Module | None = None,
    *,
    latent_sampler: LatentSampler | None = None,
    label_sampler: LatentSampler | None = None,
) -> GAN:
    """Load a checkpoint: the project's own, or another project's recognised by content.

    A file with G_ema and no G gives its G_ema as both. One without a discriminator loads, and says how to get one. The
    GAN remembers another project's file in `origin`, which export needs to write an NVIDIA pickle.

    Args:
        generator, discriminator: modules to fill, for networks that atu does not build itself. They are filled in
            place.
        latent_sampler, label_sampler: as of `GAN`; a file holds no functions.

    Raises:
        CheckpointError: naming the file and what is wrong with it.
    """
    path = Path(path)
    name = recognise(path)
    if name == SAFETENSORS:
        return load_native(path, generator, discriminator, latent_sampler, label_sampler)
    if generator is not None or discriminator is not None:
        raise CheckpointError(f"{path}: generator and discriminator can be given for atu's own format only")
    read = FORMATS.get(name).load
    if read is None:
        raise CheckpointError(f"{path}: a file of the format {name}, which can be written but not read")
    with reading(path):
        gan = read(path)
    gan.origin = {"format": name, "path": str(path.resolve())}
    gan.latent_sampler = latent_sampler or gan.latent_sampler
    gan.label_sampler = label_sampler or gan.label_sampler
    return gan


def load_nvidia(path: Path) -> GAN:
    """Load an NVIDIA network pickle; nothing in it is executed."""
    return _pair(nvidia.build_networks(path, nvidia.read_snapshot(path)), path)


def load_rosinality(path: Path) -> GAN:
    """Load a rosinality-style .pt; nothing in it is executed. Any other file of torch.save is refused with a list of
    what it holds."""
    structure = load_torch(path)
    if not rosinality.is_rosinality(structure):
        raise CheckpointError(
            f"not a StyleGAN2 checkpoint: {list_content(structure)}; for a network of your own, say what builds it "
            "(--model FILE.py:FUNCTION)"
        )
    return _pair(rosinality.build_networks(path, structure), path)


def _pair(networks: dict[str, nn.Module], path: Path) -> GAN:
    generator, average = networks.get("generator"), networks.get("generator_ema")
    discriminator = networks.get("discriminator")
    if generator is None and average is None:
        raise CheckpointError(f"{path}: holds no generator, only {', '.join(networks)}")
    if generator is None and average is not None:
        log.info("%s has no G: its G_ema is used for both", path)
        generator = copy.deepcopy(average)
    assert generator is not None
    if discriminator is None:
        log.warning(
            "%s has no discriminator, which unlearning needs: fit one first with --train-discriminator STEPS "
            "(atu_ext.fit_discriminator)",
            path,
        )
    elif (discriminator.img_resolution, discriminator.img_channels) != (
        generator.img_resolution,
        generator.img_channels,
    ):
        raise CheckpointError(
            f"{path}: the generator makes {generator.img_channels} x {generator.img_resolution} pixels, the "
            f"discriminator takes {discriminator.img_channels} x {discriminator.img_resolution}"
        )
    elif discriminator.c_dim != generator.c_dim:
        raise CheckpointError(
            f"{path}: labels of {generator.c_dim} for the generator and {discriminator.c_dim} for the discriminator"
        )
    return GAN(generator, discriminator, generator_ema=average, image_range=(-1.0, 1.0))


def list_content(structure: object) -> str:
    """What a file holds, for an error message."""
    if not isinstance(structure, dict):
        return f"it holds a {type(structure).__name__}"
    entries = [f"{str(key)[:40]}: {_sort(value)}" for key, value in list(structure.items())[:12]]
    more = f" and {len(structure) - 12} more" if len(structure) > 12 else ""
    return f"it holds {'; '.join(entries) or 'nothing'}{more}"


def _sort(value: object) -> str:
    if isinstance(value, dict):
        return f"{len(value)} entries ({', '.join(str(key)[:30] for key in list(value)[:3])} ...)"
    return "tensor" if isinstance(value, Tensor) else type(value).__name__
