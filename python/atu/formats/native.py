"""The project's own checkpoints: one safetensors file with the weights, and the config as JSON in its metadata.

Nothing is unpickled.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..gan import GAN, LatentSampler
from ..networks.registry import NETWORKS
from ..support.modules import copied
from .assemble import assemble
from .tensors import CheckpointError, fill, load_tensors, module_tensors, save_tensors

FORMAT = "atu-gan"
MAX_LATENT = 2**22  # elements of a latent


def _describe(module: nn.Module) -> dict[str, Any]:
    name = NETWORKS.name_of(type(module))
    if name is not None:
        return {"network": name, "kwargs": module.init_kwargs}
    return {"network": None, "class": f"{type(module).__module__}.{type(module).__qualname__}"}


def save(gan: GAN, path: str | Path) -> Path:
    """Write `gan` atomically; returns the path."""
    config: dict[str, Any] = {"latent_dim": gan.latent_dim, "image_range": list(gan.image_range), "modules": {}}
    config.update(discriminator_output=gan.discriminator_output, c_dim=gan.c_dim, label_format=gan.label_format)
    config["origin"] = gan.origin
    tensors: dict[str, Tensor] = {}
    for name, module in gan.modules().items():
        config["modules"][name] = _describe(module)
        tensors.update(module_tensors(name, module))
    metadata = {"format": FORMAT, "version": "1", "config": json.dumps(config)}
    return save_tensors(path, tensors, metadata)


def _build(entry: dict[str, Any], given: nn.Module | None, state: dict[str, Tensor], what: str, size: int) -> nn.Module:
    """The module of one entry, filled: the given one, or one of ours."""
    if given is not None:
        fill(given, state, what)
        return given
    if entry.get("network") is None:
        argument = what.rsplit(" ", 1)[-1]
        raise CheckpointError(
            f"{what} is a {entry.get('class')}, which atu does not build itself; pass {argument}=<an instance>, "
            "or on the command line --model FILE.py:FUNCTION"
        )
    network, kwargs = entry["network"], entry.get("kwargs")
    if not isinstance(network, str) or network not in NETWORKS:
        raise CheckpointError(f"{what}: unknown network {network!r}, expected one of {', '.join(NETWORKS)}")
    if not isinstance(kwargs, dict):
        raise CheckpointError(f"{what}: kwargs: expected the network's options by name, got {type(kwargs).__name__}")
    try:
        # The tensors lie in a mapped file: the network gets copies, so that the file may change.
        return assemble(NETWORKS[network], kwargs, state, lambda name: state[name].clone(), size)
    except CheckpointError as error:
        raise CheckpointError(f"{what}: {error}") from error


def load_native(
    path: Path,
    generator: nn.Module | None = None,
    discriminator: nn.Module | None = None,
    latent_sampler: LatentSampler | None = None,
    label_sampler: LatentSampler | None = None,
) -> GAN:
    """Load a file that `save` wrote; arguments and errors as of `atu.formats.load.load`."""
    tensors, metadata = load_tensors(path)
    if metadata.get("format") != FORMAT:
        found = ", ".join(sorted(tensors)[:5])
        raise CheckpointError(f"{path}: a safetensors file, but not of format {FORMAT}; it holds {found} ...")
    try:
        config = json.loads(metadata["config"])
        entries = config["modules"]
        latent_dim, image_range = config["latent_dim"], tuple(config["image_range"])
        names = [name for name, entry in entries.items() if isinstance(entry, dict)]
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its config cannot be read ({error!r})") from error
    given = {"generator": generator, "discriminator": discriminator, "generator_ema": None}
    if "generator" not in names or not set(names) == set(entries) <= set(given):
        raise CheckpointError(
            f"{path}: expected a generator among {', '.join(given)}, got {', '.join(entries) or 'none'}"
        )
    stray = sorted(key for key in tensors if key.partition(".")[0] not in entries)
    if stray:
        raise CheckpointError(f"{path}: holds {stray[0]}, which belongs to none of its {', '.join(entries)}")
    del tensors
    modules: dict[str, nn.Module] = {}
    for name, entry in entries.items():
        template = given[name]
        if name == "generator_ema" and generator is not None:
            template = copied(generator)
        # Mapped anew for each: what was read of a mapped file counts as memory until its mapping goes.
        state = {key.removeprefix(f"{name}."): t for key, t in load_tensors(path, f"{name}.")[0].items()}
        modules[name] = _build(entry, template, state, f"{path}: {name}", path.stat().st_size)
    if latent_dim is None and latent_sampler is None:
        raise CheckpointError(f"{path}: its GAN drew latents by a function of its own; pass latent_sampler=")
    try:
        gan = GAN(
            **modules,
            latent_dim=latent_dim,
            latent_sampler=latent_sampler,
            label_sampler=label_sampler,
            image_range=image_range,
            discriminator_output=config.get("discriminator_output", "auto"),
            c_dim=None if hasattr(modules["generator"], "c_dim") else config.get("c_dim"),
            label_format=config.get("label_format", "auto"),
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its config does not fit a GAN ({error})") from error
    sizes = gan.latent_dim if isinstance(gan.latent_dim, tuple) else (gan.latent_dim or 1,)
    if math.prod(sizes) > MAX_LATENT:
        raise CheckpointError(f"{path}: latent_dim: expected at most {MAX_LATENT:,} elements, got {latent_dim}")
    gan.origin = _origin(path, config.get("origin"))
    return gan


def _origin(path: Path, origin: Any) -> dict[str, Any] | None:
    if origin is None or (isinstance(origin, dict) and all(isinstance(origin.get(k), str) for k in ("format", "path"))):
        return origin
    raise CheckpointError(f"{path}: origin: expected a format and a path, got {str(origin)[:100]}")
