"""Building a network from stored options and tensors, with every size checked before memory is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .tensors import CheckpointError

MAX_RESOLUTION = 4096
MAX_WIDTH = 2**16  # of latents, labels and feature maps
MAX_LAYERS = 64
_MAX_OPTIONS = 64  # of one mapping
_MAX_NESTED = 3  # mappings in mappings


class TensorLike(Protocol):
    """Shape and size of a tensor that is still in its file."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...


def check_options(options: Mapping[str, Any], where: str = "", depth: int = 0) -> None:
    """Refuse options whose sizes no real network has, so that building even its skeleton stays cheap.

    Raises:
        CheckpointError: naming the option, what was expected and what came.
    """
    if len(options) > _MAX_OPTIONS or depth > _MAX_NESTED:
        what = where.rstrip(".")[:200] or "options"
        raise CheckpointError(
            f"{what}: expected at most {_MAX_OPTIONS} options, nested {_MAX_NESTED} deep, got {len(options)}, "
            f"{depth} deep"
        )
    for name, value in options.items():
        if isinstance(value, Mapping):
            check_options(value, f"{where}{name}.", depth + 1)
            continue
        if isinstance(value, list | tuple):
            if len(value) > 256 or not all(isinstance(v, int | float) for v in value):
                raise CheckpointError(f"{where}{name}: expected a short list of numbers")
            continue
        if not (value is None or isinstance(value, bool | int | float | str)):
            raise CheckpointError(f"{where}{name}: expected a number or a word, got {type(value).__name__}")
        if isinstance(value, str | bool) or value is None:
            continue
        low, high = _LIMITS.get(name, (-(2.0**40), 2.0**40))
        if not low <= value <= high:
            raise CheckpointError(f"{where}{name}: expected a number from {low:g} to {high:g}, got {value!r}")


_LIMITS: dict[str, tuple[float, float]] = {
    "img_resolution": (4, MAX_RESOLUTION),
    "img_channels": (1, 1024),
    "num_layers": (0, MAX_LAYERS),
    "filter_size": (1, 64),
    "lrelu_upsampling": (1, 16),
    "conv_kernel": (1, 31),
    "kernel_size": (1, 31),
    "margin_size": (0, 1024),
    "channel_base": (1, 2**26),
    **dict.fromkeys(["z_dim", "c_dim", "cmap_dim"], (0, MAX_WIDTH)),
    **dict.fromkeys(["w_dim", "channel_max", "embed_features", "layer_features"], (1, MAX_WIDTH)),
}


def assemble(
    network: type[nn.Module],
    options: dict[str, Any],
    stored: Mapping[str, TensorLike],
    read: Callable[[str], Tensor],
    file_size: int,
) -> nn.Module:
    """Build `network(**options)` and fill it with stored tensors, each read once by its name.

    The network is first built without memory, its names and shapes are compared with the stored ones, and only then
    are tensors read; they become the network's own, so that no second copy exists. float16 and bfloat16 become float32.
    The network is in eval mode, in which calling it changes no buffer.

    Raises:
        CheckpointError: options out of bounds, names or shapes that do not fit, tensors larger than the file, or
            values that are not finite.
    """
    check_options(options)
    try:
        with torch.device("meta"):
            module = network(**options)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError, ArithmeticError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"its options do not describe a {network.__name__}: {error}") from error
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    floats = {name for name, value in module.state_dict().items() if value.is_floating_point()}
    problems = [f"missing {name}" for name in own.keys() - stored.keys()]
    problems += [f"unexpected {name}" for name in stored.keys() - own.keys()]
    problems += [
        f"{name}: expected shape {list(own[name])}, got {list(stored[name].shape)}"
        for name in own.keys() & stored.keys()
        if own[name] != tuple(stored[name].shape)
    ]
    if problems:
        more = f" (and {len(problems) - 8} more)" if len(problems) > 8 else ""
        raise CheckpointError(f"the tensors do not fit the network: {'; '.join(sorted(problems)[:8])}{more}")
    if sum(tensor.nbytes for tensor in stored.values()) > file_size:
        raise CheckpointError("the tensors claim more bytes than the file has")
    values = {name: _finite(name, read(name)) for name in stored}
    for name in sorted(floats):
        if not values[name].is_floating_point():
            raise CheckpointError(f"{name}: expected floats, got {str(values[name].dtype).removeprefix('torch.')}")
    module.load_state_dict(values, assign=True)
    return module.requires_grad_(True).eval()


def _finite(name: str, value: Tensor) -> Tensor:
    if value.dtype in (torch.float16, torch.bfloat16):
        value = value.to(torch.float32)
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise CheckpointError(f"{name}: holds values that are not finite")
    return value
