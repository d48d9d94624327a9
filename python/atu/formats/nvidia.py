"""NVIDIA network pickles in and out: stylegan2-ada-pytorch and stylegan3 (StyleGAN2, StyleGAN3-T and -R).

Networks are rebuilt from the stored options on the project's own modules and filled from the stored tensors; see
`nvidia_pickle` for why nothing in the file runs. Writing puts new values into a copy of the user's own file: every byte
that is not a tensor's stays as it was, so that the programs that read the original read the copy.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor, nn

from ..networks import stylegan2, stylegan3
from ..support.files import write_atomic
from .assemble import assemble
from .nvidia_pickle import StoredModule, read_network_pickle
from .stored_tensors import StoredTensor
from .tensors import CheckpointError

log = logging.getLogger("atu")

NETWORK_KEYS = {"G": "generator", "D": "discriminator", "G_ema": "generator_ema"}
# Options that change how the original computes, not what.
_WITHOUT_EFFECT = {"fp16_channels_last", "fused_modconv_default"}
_GENERATOR_ARGS = ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels")
_DISCRIMINATOR_ARGS = ("c_dim", "img_resolution", "img_channels")
_SYNTHESIS = {"channel_base", "channel_max", "num_fp16_res", "architecture", "resample_filter", "conv_clamp"} | {
    "use_noise",
    "activation",
    "kernel_size",
}
_MAPPING = {"num_layers", "embed_features", "layer_features", "activation", "lr_multiplier", "w_avg_beta"}
_DISCRIMINATOR = {
    "activation",
    "architecture",
    "channel_base",
    "channel_max",
    "num_fp16_res",
    "conv_clamp",
    "cmap_dim",
} | {
    "block_kwargs",
    "mapping_kwargs",
    "epilogue_kwargs",
}
_SYNTHESIS3 = {"channel_base", "channel_max", "num_layers", "num_critical", "first_cutoff", "first_stopband"} | {
    "last_stopband_rel",
    "margin_size",
    "output_scale",
    "num_fp16_res",
    "conv_kernel",
    "filter_size",
    "lrelu_upsampling",
    "use_radial_filters",
    "conv_clamp",
    "magnitude_ema_beta",
}


@dataclass
class NvidiaSnapshot:
    """What an NVIDIA pickle holds, tensors unread: networks by their key in the file, and the other entries."""

    networks: dict[str, StoredModule]
    rest: dict[str, Any]


def read_snapshot(path: Path) -> NvidiaSnapshot:
    """Read the structure of a network pickle.

    Raises:
        CheckpointError: the file is no such pickle; the message lists what was found.
    """
    with path.open("rb") as stream:
        value = read_network_pickle(stream, path.stat().st_size)
    if isinstance(value, StoredModule):  # a network pickled on its own
        value = {"D" if kind_of(value) == "discriminator" else "G_ema": value}
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: a pickle of {type(value).__name__}; expected networks G, D, G_ema")
    networks = {key: value[key] for key in NETWORK_KEYS if isinstance(value.get(key), StoredModule)}
    rest = {str(key): entry for key, entry in value.items() if key not in networks}
    if not networks:
        raise CheckpointError(f"{path}: a pickle without networks; it holds {', '.join(map(str, rest)) or 'nothing'}")
    return NvidiaSnapshot(networks, rest)


def kind_of(stored: StoredModule) -> str:
    """The kind of a stored network: stylegan2, stylegan3 or discriminator; unknown for anything else."""
    if stored.find("synthesis.input") is not None and stored.find("mapping") is not None:
        return "stylegan3"
    if stored.find("synthesis.b4.conv1") is not None and stored.find("mapping") is not None:
        return "stylegan2"
    if stored.find("b4.out") is not None and stored.find("b4.conv") is not None:
        return "discriminator"
    return "unknown"


def describe(stored: StoredModule) -> tuple[type[nn.Module], dict[str, Any]]:
    """The class of ours and its options for a stored network.

    Raises:
        CheckpointError: an architecture or an option that the project's modules do not have.
    """
    kind = kind_of(stored)
    if kind == "stylegan2":
        return stylegan2.Generator, _stylegan2_options(stored)
    if kind == "stylegan3":
        return stylegan3.Generator, _stylegan3_options(stored)
    if kind == "discriminator":
        return stylegan2.Discriminator, _discriminator_options(stored)
    parts = ", ".join(stored.children()) or "none"
    raise CheckpointError(
        f"a network of class {stored.class_name} with parts {parts}; known are the StyleGAN2 and StyleGAN3 generators "
        "and the StyleGAN2 discriminator"
    )


def _options(stored: StoredModule, positional: tuple[str, ...]) -> dict[str, Any]:
    """Constructor options as they were given."""
    args = stored.init_args
    if len(args) > len(positional):
        raise CheckpointError(
            f"{stored.class_name}: {len(args)} positional options; expected at most {len(positional)}"
        )
    return {**dict(zip(positional, args, strict=False)), **stored.init_kwargs}


def _keep(options: Any, known: set[str], what: str) -> dict[str, Any]:
    """The known options of a mapping; an unknown one may change the images, so it is an error."""
    if not isinstance(options, dict):
        raise CheckpointError(f"{what}: expected a mapping, got {type(options).__name__}")
    unknown = sorted(str(name) for name in options.keys() - known - _WITHOUT_EFFECT)
    if unknown:
        raise CheckpointError(f"{what}: unknown option {unknown[0]!r}; known are {', '.join(sorted(known))}")
    return {name: value for name, value in options.items() if name in known}


def _stylegan2_options(stored: StoredModule) -> dict[str, Any]:
    options = _options(stored, (*_GENERATOR_ARGS, "mapping_kwargs", "synthesis_kwargs"))
    sizes = {name: stored.attributes.get(name, options.pop(name, None)) for name in _GENERATOR_ARGS}
    options = {name: value for name, value in options.items() if name not in sizes}
    mapping = _keep(options.pop("mapping_kwargs", {}), _MAPPING, "mapping_kwargs")
    # One of the two code bases nests the synthesis options, the other has them flat.
    nested = _keep(options.pop("synthesis_kwargs", {}), _SYNTHESIS, "synthesis_kwargs")
    synthesis = {**nested, **_keep(options, _SYNTHESIS, "synthesis_kwargs")}
    # Options left out have other defaults in the two code bases; the instance knows what it was built with.
    mapping["w_avg_beta"] = stored.attribute("mapping", "w_avg_beta", mapping.get("w_avg_beta", 0.995))
    synthesis["conv_clamp"] = stored.attribute("synthesis.b4.conv1", "conv_clamp", synthesis.get("conv_clamp"))
    synthesis["num_fp16_res"] = _fp16_blocks(stored.find("synthesis"), synthesis.get("num_fp16_res", 0))
    return {**sizes, "mapping_kwargs": mapping, "synthesis_kwargs": synthesis}


def _discriminator_options(stored: StoredModule) -> dict[str, Any]:
    options = _options(stored, (*_DISCRIMINATOR_ARGS, "architecture", "channel_base", "channel_max"))
    sizes = {name: stored.attributes.get(name, options.get(name)) for name in _DISCRIMINATOR_ARGS}
    options = {name: value for name, value in options.items() if name not in sizes}
    kept = _keep(options, _DISCRIMINATOR, "discriminator options")
    kept["block_kwargs"] = _keep(
        kept.get("block_kwargs", {}), {"activation", "resample_filter", "freeze_layers"}, "block_kwargs"
    )
    kept["mapping_kwargs"] = _keep(kept.get("mapping_kwargs", {}), _MAPPING - {"w_avg_beta"}, "mapping_kwargs")
    kept["epilogue_kwargs"] = _keep(
        kept.get("epilogue_kwargs", {}), {"mbstd_group_size", "mbstd_num_channels", "activation"}, "epilogue_kwargs"
    )
    kept["conv_clamp"] = stored.attribute("b4.conv", "conv_clamp", kept.get("conv_clamp"))
    kept["num_fp16_res"] = _fp16_blocks(stored, kept.get("num_fp16_res", 0))
    return {**sizes, **kept}


def _stylegan3_options(stored: StoredModule) -> dict[str, Any]:
    options = _options(stored, (*_GENERATOR_ARGS, "mapping_kwargs"))
    sizes = {name: stored.attributes.get(name, options.get(name)) for name in _GENERATOR_ARGS}
    options = {name: value for name, value in options.items() if name not in sizes}
    mapping = _keep(options.pop("mapping_kwargs", {}), {"num_layers", "lr_multiplier", "w_avg_beta"}, "mapping_kwargs")
    synthesis = _keep(options, _SYNTHESIS3, "synthesis options")
    return {**sizes, "mapping_kwargs": mapping, **synthesis}


def _fp16_blocks(stored: StoredModule | None, given: Any) -> Any:
    blocks = [] if stored is None else [b for name, b in stored.children().items() if name.startswith("b")]
    flags = [b.attributes["use_fp16"] for b in blocks if "use_fp16" in b.attributes]
    return sum(bool(flag) for flag in flags) if flags else given


def build_networks(path: Path, snapshot: NvidiaSnapshot) -> dict[str, nn.Module]:
    """Rebuild the networks of a pickle: generator, discriminator, generator_ema, those that are there.

    Raises:
        CheckpointError: naming the network and what does not fit.
    """
    size = path.stat().st_size
    built: dict[str, nn.Module] = {}
    with path.open("rb", buffering=0) as stream:
        for key, stored in snapshot.networks.items():
            try:
                built[NETWORK_KEYS[key]] = _build(stored, stream, size)
            except CheckpointError as error:
                raise CheckpointError(f"{path}: {key}: {error}") from error
    return built


def _build(stored: StoredModule, stream: BinaryIO, size: int) -> nn.Module:
    network, options = describe(stored)
    tensors = stored.tensors()
    return assemble(network, options, tensors, lambda name: tensors[name].read(stream), size)


def replace_tensors(template: Path, target: Path, states: dict[str, dict[str, Tensor]]) -> Path:
    """Write a copy of the pickle `template` with the given networks' tensors in place of its own.

    Args:
        states: state dicts by network name (generator, discriminator, generator_ema). Networks of the file that are
            not among them keep their values. A file without G_ema gets the averaged generator as its G.

    Raises:
        CheckpointError: names or shapes that differ from the template's.
    """
    snapshot = read_snapshot(template)
    keys = {name: key for key, name in NETWORK_KEYS.items()}
    if "G_ema" not in snapshot.networks and "generator_ema" in states:
        log.info(
            "%s has no G_ema: its G becomes the averaged generator, which is the one to sample from", template.name
        )
        averaged = states["generator_ema"]
        states = {name: state for name, state in states.items() if name != "generator_ema"} | {"generator": averaged}
    patches: list[tuple[StoredTensor, Tensor]] = []
    for name, state in states.items():
        stored = snapshot.networks.get(keys[name])
        if stored is None:
            log.warning("%s has no %s: not written", template.name, keys[name])
            continue
        patches += _pair(stored.tensors(), state, f"{template}: {keys[name]}")

    def write(temporary: Path) -> None:
        shutil.copyfile(template, temporary)
        with temporary.open("r+b", buffering=0) as stream:
            for place, value in patches:
                place.write(stream, value.cpu())

    return write_atomic(target, write)


def _pair(places: dict[str, StoredTensor], state: dict[str, Tensor], what: str) -> list[tuple[StoredTensor, Tensor]]:
    missing = sorted(places.keys() ^ state.keys())
    if missing:
        raise CheckpointError(f"{what}: not the same network as the one to write: {', '.join(missing[:5])} differ")
    for name, place in places.items():
        if place.shape != tuple(state[name].shape):
            raise CheckpointError(
                f"{what}: {name}: expected shape {list(place.shape)}, got {list(state[name].shape)} to write"
            )
    return [(place, state[name]) for name, place in places.items()]
