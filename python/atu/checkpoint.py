"""The project's own checkpoints: one safetensors file with the weights, and the config as JSON in its metadata.

Nothing is unpickled. Other formats are recognised by content in `atu.interop`.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .files import write_atomic
from .gan import GAN, LatentSampler
from .networks import dcgan, mlp, stylegan2, stylegan3

FORMAT = "atu-gan"
NETWORKS: dict[str, type[nn.Module]] = {
    "stylegan2.Generator": stylegan2.Generator,
    "stylegan2.Discriminator": stylegan2.Discriminator,
    "stylegan3.Generator": stylegan3.Generator,
    "dcgan.DCGANGenerator": dcgan.DCGANGenerator,
    "dcgan.DCGANDiscriminator": dcgan.DCGANDiscriminator,
    "mlp.MLPGenerator": mlp.MLPGenerator,
    "mlp.MLPDiscriminator": mlp.MLPDiscriminator,
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit."""


def _describe(module: nn.Module) -> dict[str, Any]:
    for name, cls in NETWORKS.items():
        if type(module) is cls:
            return {"network": name, "kwargs": module.init_kwargs}
    return {"network": None, "class": f"{type(module).__module__}.{type(module).__qualname__}"}


def module_tensors(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """A module's state dict as contiguous CPU tensors that share no storage, under `prefix.`."""
    state = module.state_dict()
    return {f"{prefix}.{name}": value.detach().cpu().contiguous().clone() for name, value in state.items()}


def save_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """Write a safetensors file atomically."""
    return write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata))


def save(gan: GAN, path: str | Path) -> Path:
    """Write `gan` atomically; returns the path."""
    config: dict[str, Any] = {"latent_dim": gan.latent_dim, "image_range": list(gan.image_range), "modules": {}}
    config["discriminator_output"] = gan.discriminator_output
    config["origin"] = gan.origin
    tensors: dict[str, Tensor] = {}
    for name, module in gan.modules().items():
        config["modules"][name] = _describe(module)
        tensors.update(module_tensors(name, module))
    metadata = {"format": FORMAT, "version": "1", "config": json.dumps(config)}
    return save_tensors(path, tensors, metadata)


def load_tensors(path: str | Path, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (those whose names begin with `prefix`) and metadata of a safetensors file.

    Raises:
        CheckpointError: the file is missing, truncated or no safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error


def fill(module: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Load `state` strictly, with an error that names every key or shape that does not fit."""
    own = module.state_dict()
    problems = [f"missing {name}" for name in own.keys() - state.keys()]
    problems += [f"unexpected {name}" for name in state.keys() - own.keys()]
    for name in own.keys() & state.keys():
        if own[name].shape != state[name].shape:
            problems.append(f"{name}: expected shape {list(own[name].shape)}, got {list(state[name].shape)}")
        elif state[name].is_floating_point() and not torch.isfinite(state[name]).all():
            problems.append(f"{name}: holds values that are not finite")
    if problems:
        shown = "; ".join(sorted(problems)[:8])
        more = f" (and {len(problems) - 8} more)" if len(problems) > 8 else ""
        raise CheckpointError(f"{what}: the weights do not fit the network: {shown}{more}")
    module.load_state_dict(state)


def _build(entry: dict[str, Any], given: nn.Module | None, state: dict[str, Tensor], what: str, size: int) -> nn.Module:
    """The module of one entry, filled: the given one, or one of ours."""
    from .interop.assemble import assemble

    if given is not None:
        fill(given, state, what)
        return given
    if entry.get("network") is None:
        argument = what.rsplit(" ", 1)[-1]
        raise CheckpointError(
            f"{what} is a {entry.get('class')}, which atu does not build itself; pass {argument}=<an instance>"
        )
    if entry["network"] not in NETWORKS:
        raise CheckpointError(f"{what}: unknown network {entry['network']!r}, expected one of {', '.join(NETWORKS)}")
    try:
        # The tensors lie in a mapped file: the network gets copies, so that the file may change.
        return assemble(NETWORKS[entry["network"]], entry["kwargs"], state, lambda name: state[name].clone(), size)
    except CheckpointError as error:
        raise CheckpointError(f"{what}: {error}") from error


def load(
    path: str | Path,
    generator: nn.Module | None = None,
    discriminator: nn.Module | None = None,
    *,
    latent_sampler: LatentSampler | None = None,
    label_sampler: LatentSampler | None = None,
) -> GAN:
    """Load a checkpoint: the project's own, or another project's (see `atu.interop`), recognised by content.

    Args:
        generator, discriminator: modules to fill, for networks that atu does not build itself. They are filled in
            place.
        latent_sampler, label_sampler: as of `GAN`; a file holds no functions.

    Raises:
        CheckpointError: naming the file and what is wrong with it.
    """
    from .interop import load_foreign, recognise

    path = Path(path)
    if recognise(path) != "safetensors":
        if generator is not None or discriminator is not None:
            raise CheckpointError(f"{path}: generator and discriminator can be given for atu's own format only")
        foreign = load_foreign(path)
        foreign.latent_sampler, foreign.label_sampler = latent_sampler, label_sampler
        return foreign
    tensors, metadata = load_tensors(path)
    if metadata.get("format") != FORMAT:
        found = ", ".join(sorted(tensors)[:5])
        raise CheckpointError(f"{path}: a safetensors file, but not of format {FORMAT}; it holds {found} ...")
    try:
        config = json.loads(metadata["config"])
        entries = config["modules"]
        latent_dim, image_range = config["latent_dim"], tuple(config["image_range"])
        names = [name for name, entry in entries.items() if isinstance(entry, dict)]
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
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
            template = copy.deepcopy(generator)
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
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its config does not fit a GAN ({error})") from error
    gan.origin = config.get("origin")
    return gan
