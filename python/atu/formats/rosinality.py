"""Checkpoints of the rosinality-style StyleGAN2 trainer: dictionaries of state dicts g, d and g_ema.

The architecture is StyleGAN2's with skip connections in the generator and residual blocks in the discriminator; only
names and shapes differ from ours, and resampling filters are stored with their gain of 4. Size, latent size, mapping
depth and channels are read off the shapes. The format keeps no running mean of w: `latent_avg` is used where a file has
it, else the mean is estimated from samples.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atu_ext.ops import setup_filter

from ..networks import stylegan2
from ..support.files import write_atomic
from .assemble import MAX_LAYERS, MAX_RESOLUTION, TensorLike, assemble
from .tensors import CheckpointError
from .torch_file import is_mapped, load_torch, tensors_at

log = logging.getLogger("atu")

NETWORK_KEYS = {"g": "generator", "d": "discriminator", "g_ema": "generator_ema"}
W_AVG_SAMPLES = 16384
MAPPING_LR = 0.01  # fixed in the trainer, not stored
_FILTER_GAIN = 4.0


def _modulated(theirs: str, ours: str) -> list[tuple[str, str]]:
    return [
        (f"{theirs}.conv.weight", f"{ours}.weight"),
        (f"{theirs}.conv.modulation.weight", f"{ours}.affine.weight"),
        (f"{theirs}.conv.modulation.bias", f"{ours}.affine.bias"),
    ]


def generator_names(size: int, mapping_layers: int) -> list[tuple[str, str]]:
    """(their name, our name) of every tensor of a generator."""
    names = []
    for i in range(mapping_layers):
        names += [(f"style.{i + 1}.{part}", f"mapping.fc{i}.{part}") for part in ("weight", "bias")]
    names += [("input.input", "synthesis.b4.const")]
    layers = [("conv1", "synthesis.b4.conv1")]
    images = [("to_rgb1", "synthesis.b4.torgb")]
    for i, res in enumerate(_resolutions(size)[1:]):
        layers += [(f"convs.{2 * i}", f"synthesis.b{res}.conv0"), (f"convs.{2 * i + 1}", f"synthesis.b{res}.conv1")]
        images += [(f"to_rgbs.{i}", f"synthesis.b{res}.torgb")]
        names += [(f"convs.{2 * i}.conv.blur.kernel", f"synthesis.b{res}.conv0.resample_filter")]
        names += [(f"to_rgbs.{i}.upsample.kernel", f"synthesis.b{res}.resample_filter")]
    for i, (theirs, ours) in enumerate(layers):
        names += _modulated(theirs, ours)
        names += [(f"{theirs}.noise.weight", f"{ours}.noise_strength"), (f"{theirs}.activate.bias", f"{ours}.bias")]
        names += [(f"noises.noise_{i}", f"{ours}.noise_const")]
    for theirs, ours in images:
        names += [*_modulated(theirs, ours), (f"{theirs}.bias", f"{ours}.bias")]
    return names


def discriminator_names(size: int) -> list[tuple[str, str]]:
    """(their name, our name) of every tensor of a discriminator."""
    names = [("convs.0.0.weight", f"b{size}.fromrgb.weight"), ("convs.0.1.bias", f"b{size}.fromrgb.bias")]
    for i, res in enumerate(reversed(_resolutions(size)[1:]), start=1):
        names += [
            (f"convs.{i}.conv1.0.weight", f"b{res}.conv0.weight"),
            (f"convs.{i}.conv1.1.bias", f"b{res}.conv0.bias"),
            (f"convs.{i}.conv2.0.kernel", f"b{res}.conv1.resample_filter"),
            (f"convs.{i}.conv2.1.weight", f"b{res}.conv1.weight"),
            (f"convs.{i}.conv2.2.bias", f"b{res}.conv1.bias"),
            (f"convs.{i}.skip.0.kernel", f"b{res}.skip.resample_filter"),
            (f"convs.{i}.skip.1.weight", f"b{res}.skip.weight"),
        ]
    ends = [("final_conv.0.weight", "b4.conv.weight"), ("final_conv.1.bias", "b4.conv.bias")]
    ends += [(f"final_linear.0.{part}", f"b4.fc.{part}") for part in ("weight", "bias")]
    return names + ends + [(f"final_linear.1.{part}", f"b4.out.{part}") for part in ("weight", "bias")]


def _resolutions(size: int) -> list[int]:
    return [2**i for i in range(2, size.bit_length())]


def is_rosinality(structure: Any) -> bool:
    """Whether a file's structure is of this kind."""
    return isinstance(structure, dict) and any(_is_network(key, structure.get(key)) for key in NETWORK_KEYS)


def _is_network(key: str, state: Any) -> bool:
    return ("final_conv.0.weight" if key == "d" else "input.input") in tensors_at(state)


# In


def build_networks(path: Path, structure: dict[str, Any]) -> dict[str, nn.Module]:
    """Rebuild the networks of a checkpoint: generator, discriminator, generator_ema, those that are there.

    Raises:
        CheckpointError: naming the network and what does not fit.
    """
    plans: dict[str, dict[str, Any]] = {}
    for key in NETWORK_KEYS:
        stored = tensors_at(structure.get(key))
        if not stored:
            continue
        try:
            plans[key] = plan(key, stored)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {key}: {error}") from error
    optimisers = [key for key in ("g_optim", "d_optim") if key in structure]
    if optimisers:
        log.info("%s: optimiser states (%s) are not used; training starts with fresh ones", path, ", ".join(optimisers))
    built: dict[str, nn.Module] = {}
    mapped = is_mapped(path)
    values: dict[str, Any] = {}
    for key, options in plans.items():
        if mapped or not values:  # pages that were read count as memory until their mapping goes
            values = load_torch(path)
        try:
            stored, own = tensors_at(structure[key]), tensors_at(values[key])
            built[NETWORK_KEYS[key]] = _fill(key, options, stored, own, path.stat().st_size, mapped)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {key}: {error}") from error
    average = tensors_at(values).get("latent_avg")
    del values
    for module in built.values():
        if isinstance(module, stylegan2.Generator):
            _set_w_avg(module, average)
    return built


def _fill(
    key: str,
    options: dict[str, Any],
    stored: Mapping[str, TensorLike],
    values: Mapping[str, Tensor],
    size: int,
    mapped: bool,
) -> nn.Module:
    """Build one network, reading its tensors out of `values` under our names."""
    network = stylegan2.Discriminator if key == "d" else stylegan2.Generator
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in network(**options).state_dict().items()}
    names = _names(key, options)
    drawn = _noise_maps(names, stored)
    unknown = sorted(stored.keys() - {theirs for theirs, _ in names})
    missing = sorted({theirs for theirs, _ in names} - stored.keys() - drawn.keys())
    if unknown or missing:
        listed = [f"missing {n}" for n in missing] + [f"unexpected {n}" for n in unknown]
        raise CheckpointError(f"the tensors do not fit the network: {'; '.join(listed[:8])}")
    ours: dict[str, TensorLike] = {}
    read: dict[str, Callable[[], Tensor]] = {}
    rng = torch.Generator().manual_seed(0)
    for name in drawn.values():
        ours[name] = _Reshaped(shapes[name], 0)
        read[name] = partial(torch.randn, shapes[name], generator=rng)
    for theirs, name in names:
        if theirs in drawn:
            continue
        shape = shapes.get(name, ())
        ours[name] = _Reshaped.of(stored[theirs], shape)
        if theirs not in values:
            raise CheckpointError(f"{theirs}: torch finds no such tensor")
        read[name] = partial(_ours, values[theirs], shape, _scale(name), mapped)
    for name in _constants(shapes):
        ours[name] = _Reshaped(shapes[name], 0)
        read[name] = partial(_default, name, shapes[name])
    return assemble(network, options, ours, lambda name: read[name](), size)


def _noise_maps(names: list[tuple[str, str]], stored: Mapping[str, TensorLike]) -> dict[str, str]:
    """(their name: our name) of the noise maps, where a file has none: the trainer's first versions, and the checkpoint
    that its author published, drew noise anew each time. The maps are what noise_mode="const" adds."""
    maps = {theirs: ours for theirs, ours in names if theirs.startswith("noises.")}
    if not maps or maps.keys() & stored.keys():
        return {}
    log.info("the file has no noise maps: they are drawn")
    return maps


def _ours(value: Tensor, shape: tuple[int, ...], scale: float, mapped: bool) -> Tensor:
    """A tensor in memory of its own, not a mapped file's, under our shape and without the filter's gain."""
    shares = mapped or not value.is_contiguous() or value.untyped_storage().nbytes() != value.nbytes
    if scale != 1:
        value = value / scale
    return (value.clone() if shares else value).reshape(shape)


@dataclass(frozen=True)
class _Reshaped:
    """A stored tensor under another shape of as many elements."""

    shape: tuple[int, ...]
    nbytes: int

    @classmethod
    def of(cls, stored: TensorLike, shape: tuple[int, ...]) -> _Reshaped:
        squeezed = tuple(n for n in stored.shape if n != 1) == tuple(n for n in shape if n != 1)
        return cls(shape if squeezed else tuple(stored.shape), stored.nbytes)


def _scale(ours: str) -> float:
    upsampling = re.fullmatch(r"synthesis\.b\d+\.(conv0\.)?resample_filter", ours)
    return _FILTER_GAIN if upsampling else 1.0


def _constants(shapes: Mapping[str, Any]) -> list[str]:
    """Our tensors without a counterpart: filters that nothing uses, and w_avg."""
    return [
        name
        for name in shapes
        if name == "mapping.w_avg"
        or re.fullmatch(r"(synthesis\.b4\.|synthesis\.b\d+\.conv1\.)resample_filter", name)
        or re.fullmatch(r"b\d+\.((fromrgb|conv0|conv)\.)?resample_filter", name)
    ]


def _default(name: str, shape: tuple[int, ...]) -> Tensor:
    if name == "mapping.w_avg":
        return torch.zeros(shape)
    return setup_filter([1, 3, 3, 1])


def _names(key: str, options: dict[str, Any]) -> list[tuple[str, str]]:
    if key == "d":
        return discriminator_names(options["img_resolution"])
    return generator_names(options["img_resolution"], options["mapping_kwargs"]["num_layers"])


def plan(key: str, stored: Mapping[str, TensorLike]) -> dict[str, Any]:
    """The options of our network for a state dict of theirs, read off its shapes; key is g, d or g_ema.

    Raises:
        CheckpointError: shapes that no such network has.
    """
    return _plan_discriminator(stored) if key == "d" else _plan_generator(stored)


def _plan_generator(stored: Mapping[str, TensorLike]) -> dict[str, Any]:
    depth = len([name for name in stored if re.fullmatch(r"style\.\d+\.weight", name)])
    blocks = len([name for name in stored if re.fullmatch(r"to_rgbs\.\d+\.bias", name)])
    size = 4 * 2**blocks
    if depth > MAX_LAYERS or size > MAX_RESOLUTION:
        raise CheckpointError(f"a generator of {depth} mapping layers and {size} pixels")
    style = _shape(stored, "style.1.weight", 2)[1] if depth else _shape(stored, "conv1.conv.modulation.weight", 2)[1]
    channels = {4: _shape(stored, "input.input", 4)[1]}
    for i, res in enumerate(_resolutions(size)[1:]):
        channels[res] = _shape(stored, f"convs.{2 * i}.conv.weight", 5)[1]
    base, most = _channel_table(channels)
    image = _shape(stored, "to_rgb1.bias", 4)[1]
    options: dict[str, Any] = dict(z_dim=style, c_dim=0, w_dim=style, img_resolution=size, img_channels=image)
    options["mapping_kwargs"] = {"num_layers": depth, "lr_multiplier": MAPPING_LR}
    options["synthesis_kwargs"] = {"channel_base": base, "channel_max": most}
    return options


def _plan_discriminator(stored: Mapping[str, TensorLike]) -> dict[str, Any]:
    blocks = len([name for name in stored if re.fullmatch(r"convs\.\d+\.skip\.1\.weight", name)])
    size = 4 * 2**blocks
    if not 8 <= size <= MAX_RESOLUTION:
        raise CheckpointError(f"a discriminator for {size} pixels")
    first = _shape(stored, "convs.0.0.weight", 4)
    channels = {size: first[0]}
    for i, res in enumerate(reversed(_resolutions(size)[1:]), start=1):
        channels[res // 2] = _shape(stored, f"convs.{i}.skip.1.weight", 4)[0]
    base, most = _channel_table(channels)
    return dict(c_dim=0, img_resolution=size, img_channels=first[1], channel_base=base, channel_max=most)


def _shape(stored: Mapping[str, TensorLike], name: str, dimensions: int) -> tuple[int, ...]:
    tensor = stored.get(name)
    if tensor is None or len(tensor.shape) != dimensions or min(tensor.shape) < 1:
        found = "nothing" if tensor is None else f"shape {list(tensor.shape)}"
        raise CheckpointError(f"{name}: expected {dimensions} dimensions, found {found}")
    return tuple(tensor.shape)


def _channel_table(channels: dict[int, int]) -> tuple[int, int]:
    """channel_base and channel_max that give the channels, min(base / resolution, max) at each resolution."""
    most = max(channels.values())
    base = max(res * count for res, count in channels.items())
    for res, count in sorted(channels.items()):
        if stylegan2.channels_at(res, base, most) != count:
            listed = ", ".join(f"{r}: {c}" for r, c in sorted(channels.items()))
            raise CheckpointError(f"feature maps by resolution ({listed}) do not follow min(base / resolution, max)")
    return base, most


@torch.no_grad()
def _set_w_avg(generator: stylegan2.Generator, average: Any) -> None:
    w_dim = generator.w_dim
    if isinstance(average, Tensor) and average.numel() == w_dim:
        if not torch.isfinite(average).all():
            raise CheckpointError("latent_avg: holds values that are not finite")
        generator.mapping.w_avg.copy_(average.reshape(w_dim))
        return
    log.info("the file has no latent_avg: w_avg is estimated from %d latents", W_AVG_SAMPLES)
    rng = torch.Generator().manual_seed(0)
    total = torch.zeros(w_dim, dtype=torch.float64)
    for _ in range(W_AVG_SAMPLES // 1024):
        z = torch.randn(1024, generator.z_dim, generator=rng)
        total += generator.mapping(z)[:, 0].to(torch.float64).sum(0)
    generator.mapping.w_avg.copy_(total / W_AVG_SAMPLES)


# Out


def write_checkpoint(path: Path, modules: Mapping[str, nn.Module]) -> Path:
    """Write a checkpoint that loads strictly there: g, d, g_ema, latent_avg and fresh optimiser states.

    Raises:
        CheckpointError: naming what that architecture does not have.
    """
    content: dict[str, Any] = {}
    for key, name in NETWORK_KEYS.items():
        module = modules.get(name)
        if module is None:
            log.warning("there is no %s: %s is left out", name, key)
            continue
        names = check_discriminator(module) if key == "d" else check_generator(module)
        state = module.state_dict()
        content[key] = {theirs: _theirs(theirs, ours, state[ours]) for theirs, ours in names}
    latest = modules.get("generator_ema", modules["generator"])
    content["latent_avg"] = latest.state_dict()["mapping.w_avg"].detach().cpu().clone()
    for key, every in (("g", 4), ("d", 16)):
        if key in content:
            content[f"{key}_optim"] = _fresh_adam(modules[NETWORK_KEYS[key]], every / (every + 1))
    return write_atomic(path, lambda temporary: torch.save(content, temporary))


def _theirs(theirs: str, ours: str, value: Tensor) -> Tensor:
    value = value.detach().cpu().contiguous().clone() * _scale(ours)
    if theirs.endswith("conv.weight") and value.ndim == 4:
        return value[None]  # modulated weights have a leading axis there
    if theirs == "input.input":
        return value[None]
    if theirs.startswith("noises."):
        return value[None, None]
    if theirs.endswith("noise.weight"):
        return value.reshape(1)
    if re.fullmatch(r"to_rgb(1|s\.\d+)\.bias", theirs):
        return value.reshape(1, -1, 1, 1)
    return value


def _fresh_adam(module: nn.Module, ratio: float) -> dict[str, Any]:
    """State of that trainer's Adam before its first step."""
    frozen = [torch.zeros(1, requires_grad=True) for _ in module.parameters()]
    return torch.optim.Adam(frozen, lr=0.002 * ratio, betas=(0.0, 0.99**ratio)).state_dict()


def check_generator(module: nn.Module) -> list[tuple[str, str]]:
    """The name table of a generator, if that architecture has it."""
    if type(module) is not stylegan2.Generator:
        raise CheckpointError(f"rosinality-pt holds StyleGAN2 networks; the generator is a {type(module).__name__}")
    options = module.init_kwargs
    mapping, synthesis = options["mapping_kwargs"], options["synthesis_kwargs"]
    _advise_sizes(options, synthesis)
    _require("c_dim", options["c_dim"], 0)
    _require("w_dim", options["w_dim"], options["z_dim"])
    _require("mapping lr_multiplier", mapping.get("lr_multiplier", 0.01), MAPPING_LR)
    _require("mapping activation", mapping.get("activation", "lrelu"), "lrelu")
    _require("mapping layer_features", mapping.get("layer_features") or options["w_dim"], options["w_dim"])
    _require("architecture", synthesis.get("architecture", "skip"), "skip")
    _require_plain(synthesis)
    _require("use_noise", synthesis.get("use_noise", True), True)
    _require("kernel_size", synthesis.get("kernel_size", 3), 3)
    return generator_names(options["img_resolution"], mapping.get("num_layers", 8))


def check_discriminator(module: nn.Module) -> list[tuple[str, str]]:
    """The name table of a discriminator, if that architecture has it."""
    if type(module) is not stylegan2.Discriminator:
        raise CheckpointError(f"rosinality-pt holds StyleGAN2 networks; the discriminator is a {type(module).__name__}")
    options = module.init_kwargs
    _advise_sizes(options, options)
    _require("c_dim", options["c_dim"], 0)
    _require("architecture", options["architecture"], "resnet")
    _require_plain({**options, **options["block_kwargs"]})
    _require("mbstd_group_size", options["epilogue_kwargs"].get("mbstd_group_size", 4), 4)
    _require("mbstd_num_channels", options["epilogue_kwargs"].get("mbstd_num_channels", 1), 1)
    return discriminator_names(options["img_resolution"])


def _advise_sizes(options: Mapping[str, Any], channels: Mapping[str, Any]) -> None:
    """That trainer's code has 3 image channels and fixed feature maps; forks have others, so this only warns."""
    base, most = channels.get("channel_base", 32768), channels.get("channel_max", 512)
    table = [stylegan2.channels_at(res, base, most) for res in _resolutions(options["img_resolution"])]
    usual = [[min(16384 * factor // res, 512) for res in _resolutions(options["img_resolution"])] for factor in (1, 2)]
    if options["img_channels"] != 3 or table not in usual:
        log.warning(
            "%d image channels and feature maps %s: the original trainer's code has 3 and %s; a fork of it must match",
            options["img_channels"],
            table,
            usual[1],
        )


def _require_plain(options: Mapping[str, Any]) -> None:
    _require("activation", options.get("activation", "lrelu"), "lrelu")
    _require("resample_filter", list(options.get("resample_filter", [1, 3, 3, 1])), [1, 3, 3, 1])
    if options.get("conv_clamp") is not None:
        log.warning(
            "conv_clamp %s has no counterpart in rosinality-pt: outputs are not clamped there", options["conv_clamp"]
        )


def _require(name: str, value: Any, expected: Any) -> None:
    if value != expected:
        raise CheckpointError(f"rosinality-pt: {name}: that architecture has {expected!r}, this network {value!r}")
