"""Modes, parameters, names, arguments and moving averages of modules; and what torch.compile makes of them."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.optim.swa_utils import AveragedModel


@contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Put modules into eval mode and back, each submodule as it was."""
    before = [(m, m.training) for module in modules for m in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for m, training in before:
            m.training = training


def copied(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy. What a pass with gradients left in attributes (hooks of spectral_norm and weight_norm, activations
    that are kept) is copied without its graph, with which torch refuses to.

    Raises:
        TypeError: an attribute cannot be copied.
    """
    memo = {} if memo is None else memo
    for each in module.modules():
        own = {name: value for name, value in vars(each).items() if name not in ("_parameters", "_buffers", "_modules")}
        for value in tensors_in(own, depth=4):  # an attribute may lead back to its module
            if not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(module, memo)
    except TypeError as error:
        raise TypeError(
            f"{type(module).__name__} cannot be copied, which a run does ({error}): keep what is no weight out of it"
        ) from error


def still(module: nn.Module) -> nn.Module:
    """A copy without gradients that gives the same after any pass: in training mode, as what it is compared with, but
    for what keeps statistics or spectral norms' vectors in buffers, and for the top of a StyleGAN, whose mode says
    whether its layers' magnitudes follow (StyleGAN3)."""
    found = copied(module).train().requires_grad_(False)
    for each in found.modules():
        keeps = any(True for _ in each.buffers(recurse=False)) and not isinstance(each, _InstanceNorm)
        each.training = not (keeps or is_stylegan(each))
    return found


def is_stylegan(module: nn.Module) -> bool:
    """Whether a generator splits into mapping and synthesis networks."""
    return hasattr(module, "mapping") and hasattr(module, "synthesis")


def tensors_in(value: Any, depth: float = float("inf")) -> Iterator[Tensor]:
    """Tensors in a value that is one, or in lists, tuples and dicts in each other, so deep."""
    if isinstance(value, Tensor):
        yield value
    elif depth > 0 and isinstance(value, (list, tuple, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(one, depth - 1)


def unwrapped(module: nn.Module) -> nn.Module:
    """What DataParallel, DistributedDataParallel or AveragedModel wraps; else the module itself."""
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)):
        inner: nn.Module = module.module
        return inner
    return module


def plain(module: nn.Module) -> nn.Module:
    """What `torch.compile` wrapped; the module itself where it wrapped nothing."""
    wrapped = getattr(module, "_orig_mod", None)
    return wrapped if isinstance(wrapped, nn.Module) else module


def plain_name(name: str) -> str:
    """A parameter's or buffer's name as it is without torch.compile."""
    return name.replace("_orig_mod.", "")


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """The module's state dict, under the names that it has without torch.compile."""
    return {plain_name(name): value for name, value in module.state_dict().items()}


def uncompiled() -> AbstractContextManager[Any]:
    """Within it compiled modules run as they were written.

    For hooks, which compiled code may pass over, and for gradients of gradients, which it has none of.
    """
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and its import takes a second
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def ema_beta(batch_size: int, half_life_images: float) -> float:
    """EMA decay of one step, from a half life in images."""
    return 0.5 ** (batch_size / half_life_images) if half_life_images > 0 else 0.0


@torch.no_grad()
def update_ema(ema: nn.Module, module: nn.Module, beta: float) -> None:
    """Move ema's parameters towards module's; copy its buffers."""
    for average, parameter in zip(ema.parameters(), module.parameters(), strict=True):
        average.lerp_(parameter, 1 - beta)
    for mine, theirs in zip(ema.buffers(), module.buffers(), strict=True):
        mine.copy_(theirs)


def trainable(module: nn.Module) -> list[Tensor]:
    """The parameters that require grad; all of them (made to) where none does, as in networks kept for sampling."""
    if not any(p.requires_grad for p in module.parameters()):
        module.requires_grad_(True)
    return [p for p in module.parameters() if p.requires_grad]


def _options(module: nn.Module) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # compiled code shows no signature
        return [inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)]


def required_arguments(module: nn.Module) -> list[str]:
    """Names of the arguments without which `module.forward` cannot be called."""
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [o.name for o in _options(module) if o.default is o.empty and o.kind not in optional]


def takes_two(module: nn.Module) -> bool:
    """Whether `module.forward` takes a second argument by its place."""
    options = _options(module)
    if any(o.kind is o.VAR_POSITIONAL for o in options):
        return True
    return sum(o.kind in (o.POSITIONAL_ONLY, o.POSITIONAL_OR_KEYWORD) for o in options) > 1


def parameter_dtype(module: nn.Module) -> torch.dtype | None:
    """The dtype of all floating-point parameters; None where there are none, or of several dtypes."""
    dtypes = {p.dtype for p in module.parameters() if p.dtype.is_floating_point}
    return dtypes.pop() if len(dtypes) == 1 else None


def unless_16_bit(x: Tensor) -> Tensor:
    """x, in float32 where it has 16 bits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
