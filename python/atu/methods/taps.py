"""Inputs of a generator's layers during a pass: its feature maps, or hidden activations if it has no maps."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..gan import GAN
from ..support.modules import eval_mode, still, unless_16_bit
from ..support.seeding import fork_rng
from .layers import layers_in_order


def _pass(gan: GAN, module: nn.Module, z: Tensor, c: Tensor | None, names: Sequence[str]) -> dict[str, Tensor]:
    """First positional argument of the named modules, in the order in which they run."""
    seen: dict[str, Tensor] = {}

    def remember(name: str):
        def hook(_: nn.Module, args: tuple) -> None:
            if args and isinstance(args[0], Tensor):
                seen.setdefault(name, args[0])

        return hook

    hooks = [module.get_submodule(name).register_forward_pre_hook(remember(name)) for name in names]
    try:
        gan.fake(z, c, generator=module)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@torch.no_grad()
def tapped_layers(gan: GAN, patterns: Sequence[str], setting: str, maps_only: bool = False) -> list[str]:
    """Names of the generator's layers whose inputs are compared.

    These are the layers with feature maps [N, C, H, W] of more than one place as input, but not intermediate images
    (maps with as many channels as a sample). If there are none, the layers with hidden activations [N, F] as input.
    Layers with the same input count once; latents, and inputs that do not depend on them, do not count.

    Args:
        patterns: regular expressions (searched); if given, only matching layers. setting: its name, for errors.
        maps_only: refuse a generator without feature maps.

    Raises:
        ValueError: nothing is left to compare, or there are no maps and `maps_only`.
    """
    z, c = gan.inputs(2)
    names = [layer.name for layer in layers_in_order(gan) if layer.name]
    with eval_mode(gan.generator), fork_rng(gan.device, 0):
        seen = _pass(gan, gan.generator, z, c, names)
    channels = gan.sample_shape[0] if len(gan.sample_shape) == 3 else 0
    maps, hidden, visited = [], [], [z]
    for name, x in seen.items():
        if any(x is other for other in visited) or len(x) != len(z) or x.ndim < 2 or torch.equal(x[0], x[1]):
            continue  # a second time, not a batch, or the same for every latent
        visited.append(x)
        if x.ndim == 4 and x.shape[2] * x.shape[3] > 1 and x.shape[1] != channels:
            maps.append(name)
        elif x.ndim == 2:
            hidden.append(name)
    if maps_only and not maps:
        raise ValueError(
            f"generator: {type(gan.generator).__name__} has no feature maps [N, C, H, W] whose spatial structure "
            "could be aligned; choose another method, cdc for one"
        )
    candidates = maps or hidden
    chosen = [name for name in candidates if not patterns or any(re.search(p, name) for p in patterns)]
    if not chosen:
        raise ValueError(
            f"{setting}: expected some of {', '.join(candidates) or 'the layers'} to match, got {patterns}"
        )
    return chosen


class Taps:
    """Runs a GAN's generator, and a copy of it made here, before training, on the same latents and noise.

    names: layers whose inputs are returned, from `tapped_layers`. Both run in training mode.
    """

    def __init__(self, gan: GAN, names: Sequence[str]):
        self.source = still(gan.generator)
        for module in self.source.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()  # its batches' statistics, as in the generator
        self.gan, self.names = gan, names

    def __call__(self, z: Tensor, c: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        """(features of the copy, features of the generator), float32 or better, layer by layer."""
        with torch.no_grad(), fork_rng(self.gan.device):
            before = _pass(self.gan, self.source, z, c, self.names)
        after = _pass(self.gan, self.gan.generator, z, c, self.names)
        return [unless_16_bit(before[n]) for n in self.names], [unless_16_bit(after[n]) for n in self.names]
