"""The layers of any generator in the order in which they run, and new weights for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..gan import GAN
from ..networks.registry import NETWORKS
from ..support.modules import eval_mode, tensors_in
from ..support.seeding import fork_rng


@dataclass(frozen=True)
class Layer:
    """A module with parameters that are not in a submodule: its name, and theirs."""

    name: str
    parameters: tuple[str, ...]


def owner(parameter: str) -> str:
    """Name of the module that a parameter belongs to; a parametrization's parameters belong to the module it is on."""
    path = parameter.split(".")[:-1]
    return ".".join(path[: path.index("parametrizations")] if "parametrizations" in path else path)


class _Uses(TorchFunctionMode):
    """Records at which call to torch each of some tensors was last used."""

    def __init__(self, tensors: Iterable[Tensor]):
        super().__init__()
        self.watched = {id(t) for t in tensors}
        self.last: dict[int, int] = {}
        self.calls = 0

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        if getattr(func, "__name__", "") != "__get__":  # reading a shape or dtype is no use
            for t in tensors_in((args, kwargs)):
                if id(t) in self.watched:
                    self.last[id(t)] = self.calls
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def layers_in_order(gan: GAN) -> list[Layer]:
    """The generator's layers, first to last.

    A layer is a module with parameters that are not in a submodule; normalisations with weights are layers too. The
    order is that in which one pass uses them for the last time, so it does not depend on how modules are nested or
    registered. Layers that the pass does not use are left out.

    Raises:
        ValueError: no use of a parameter is visible, as in a scripted generator.
    """
    named = dict(gan.generator.named_parameters())
    z, c = gan.inputs(2)
    with eval_mode(gan.generator), fork_rng(gan.device, 0), _Uses(named.values()) as uses:
        gan.fake(z, c)
    members: dict[str, list[str]] = {}
    for name in named:
        members.setdefault(owner(name), []).append(name)
    last = {layer: max(uses.last.get(id(named[n]), 0) for n in names) for layer, names in members.items()}
    used = sorted((layer for layer in members if last[layer]), key=lambda layer: last[layer])
    if not used:
        raise ValueError(
            f"generator: {type(gan.generator).__name__} does not show which parameters its pass uses, so its last "
            "layers cannot be determined; give it as a plain nn.Module"
        )
    return [Layer(layer, tuple(members[layer])) for layer in used]


def last_layers(gan: GAN, k: int | None, name: str) -> list[Layer]:
    """The last k of `layers_in_order`, half of them (rounded up) for None.

    Raises:
        ValueError: naming the setting `name`, when there are fewer.
    """
    layers = layers_in_order(gan)
    count = -(-len(layers) // 2) if k is None else k
    if count > len(layers):
        raise ValueError(f"{name}: expected at most {len(layers)}, the layers of this generator, got {count}")
    return layers[-count:]


@torch.no_grad()
def reinitialise(module: nn.Module, layers: set[str] | None = None) -> list[str]:
    """Give the named layers of a network (all when None) new weights in place, from torch's global random state.

    Networks of this package get the weights of new ones. In others each layer uses its `reset_parameters`. A tensor
    without such a rule is drawn from a normal distribution with the trained tensor's mean and deviation (a scalar
    stays).

    Returns:
        The names of the tensors without a rule.
    """
    chosen = {n: p for n, p in module.named_parameters() if layers is None or owner(n) in layers}
    if NETWORKS.name_of(type(module)) is not None:
        fresh = type(module)(**module.init_kwargs)  # type: ignore[arg-type]
        state = fresh.state_dict()
        for name, tensor in module.state_dict().items():
            if layers is None or owner(name) in layers:
                tensor.copy_(state[name])
        return []
    before = {n: p.clone() for n, p in chosen.items()}
    for name in dict.fromkeys(owner(n) for n in chosen):
        reset = getattr(module.get_submodule(name), "reset_parameters", None)
        if callable(reset):
            reset()
    # A reset does not reach the tensors of a parametrization.
    left = [n for n, p in chosen.items() if torch.equal(p, before[n]) and (p.numel() < 2 or p.std() > 0)]
    for name in left:
        p = chosen[name]
        p.copy_(p.mean() + p.std(correction=0) * torch.randn_like(p))
    return left
