"""Safetensors files, and filling modules from them: what every format needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..support.files import write_atomic
from ..support.modules import plain_name, state_of

COUNT = "num_batches_tracked"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit."""


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Within it errors name the file. A hostile one can make other code raise almost anything: that is a
    CheckpointError too."""
    try:
        yield
    except CheckpointError as error:
        if str(error).startswith(str(path)):
            raise
        raise CheckpointError(f"{path}: {error}") from error
    except (OSError, MemoryError, ImportError):
        raise
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be read ({type(error).__name__}: {str(error)[:200]})") from error


def module_tensors(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """A module's state dict as contiguous CPU tensors that share no storage, under `prefix.`."""
    state = state_of(module)
    return {f"{prefix}.{name}": value.detach().cpu().contiguous().clone() for name, value in state.items()}


def save_tensors(
    path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str], previous: Path | None = None
) -> Path:
    """Write a safetensors file atomically; previous: where the file that was there before is kept."""
    return write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata), previous)


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


def load_format(path: str | Path, expected: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `load_tensors` gives, of a file whose metadata name the format `expected`.

    Raises:
        CheckpointError: as of `load_tensors`; the file is of another format.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("format") != expected:
        raise CheckpointError(f"{path}: expected a file of format {expected}, got {metadata.get('format', 'another')}")
    return tensors, metadata


def misfits(module: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """What does not fit in filling a module with `state`: keys missing and unexpected, other shapes, values that are
    not finite. Batch norm's count of batches may be missing: files of older versions of torch lack it."""
    own = state_of(module)
    missing = [name for name in own.keys() - state.keys() if not name.endswith(COUNT)]
    problems = [f"missing {name}" for name in missing]
    problems += [f"unexpected {name}" for name in state.keys() - own.keys()]
    for name in own.keys() & state.keys():
        if own[name].shape != state[name].shape:
            problems.append(f"{name}: expected shape {list(own[name].shape)}, got {list(state[name].shape)}")
        elif state[name].is_floating_point() and not torch.isfinite(state[name]).all():
            problems.append(f"{name}: holds values that are not finite")
    return sorted(problems)


def fill(module: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Load `state` strictly, with an error that names every key or shape that does not fit; see `misfits`."""
    problems = misfits(module, state)
    if problems:
        shown = "; ".join(problems[:8])
        more = f" (and {len(problems) - 8} more)" if len(problems) > 8 else ""
        raise CheckpointError(f"{what}: the weights do not fit the network: {shown}{more}")
    counts = {name: value for name, value in state_of(module).items() if name.endswith(COUNT)}
    filled = {**counts, **state}
    module.load_state_dict({name: filled[plain_name(name)] for name in module.state_dict()})
