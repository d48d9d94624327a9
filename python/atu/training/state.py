"""State that a run resumes from: nested dicts of tensors and plain data, and the file format for them.

Objects with state have `state_dict()` and `load_state_dict(state)`, as torch's modules do. A file is safetensors: each
tensor under the path of its keys, joined by "/"; the rest is JSON in the metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from atu_ext import __version__

from ..formats.tensors import CheckpointError, load_tensors, save_tensors
from ..support.digest import digest

FORMAT = 3  # of run folders and their state files


def written_by(format: Any, version: Any) -> str:
    """The part of an error that says which version wrote a file or folder of another format."""
    who = f"atu {version}" if version else "an earlier version of atu"
    which = f"format {format}" if format else "an unknown format"
    return f"was written by {who} in {which}, and this is atu {__version__}, which reads format {FORMAT}"


def flatten(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of nested dicts by path (contiguous copies on the CPU), and the same dicts without them.

    Keys are strings; a "~" or "/" in one is written "~0" or "~1", as in JSON pointers (RFC 6901).

    Raises:
        TypeError: a key is not a string.
    """
    tensors: dict[str, Tensor] = {}

    def without_tensors(node: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
        rest = {}
        for key, value in node.items():
            if not isinstance(key, str):
                raise TypeError(f"state: expected keys that are strings, got {key!r}")
            here = (*path, key.replace("~", "~0").replace("/", "~1"))
            if isinstance(value, Tensor):
                tensors["/".join(here)] = value.detach().cpu().contiguous().clone()
            elif isinstance(value, Mapping):
                rest[key] = without_tensors(value, here)
            else:
                rest[key] = value
        return rest

    return tensors, without_tensors(state, ())


def unflatten(tensors: Mapping[str, Tensor], data: dict[str, Any]) -> dict[str, Any]:
    """Put the tensors back into the nested dicts that `flatten` made; `data` is filled in place."""
    for path, tensor in tensors.items():
        *parents, last = (key.replace("~1", "/").replace("~0", "~") for key in path.split("/"))
        node = data
        for key in parents:
            node = node[key]
        node[last] = tensor
    return data


def optimizer_state(optim: Optimizer) -> dict[str, Any]:
    """An optimizer's state, by the index of the parameter; its settings are the caller's."""
    return {str(index): slots for index, slots in optim.state_dict()["state"].items()}


def load_optimizer_state(optim: Optimizer, state: dict[str, Any]) -> None:
    """Load what `optimizer_state` gave."""
    slots = {int(index): value for index, value in state.items()}
    optim.load_state_dict({"state": slots, "param_groups": optim.state_dict()["param_groups"]})


def save_state(path: Path, state: Mapping[str, Any], previous: Path | None = None) -> Path:
    """Write a state atomically. previous: path that an existing file is moved to."""
    tensors, data = flatten(state)
    text = json.dumps(data)
    metadata = dict(format=str(FORMAT), atu=__version__, digest=digest(tensors, text), data=text)
    return save_tensors(path, tensors, metadata, previous)


def load_state(path: Path) -> dict[str, Any]:
    """Read a file of `save_state`.

    Raises:
        CheckpointError: the file cannot be read, was changed, or is of another format.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("format") != str(FORMAT):
        raise CheckpointError(f"{path} {written_by(metadata.get('format'), metadata.get('atu'))}")
    if metadata.get("digest") != digest(tensors, metadata.get("data", "")):
        raise CheckpointError(f"{path}: its content was changed after it was written (another digest)")
    try:
        return unflatten(tensors, json.loads(metadata["data"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its state cannot be read ({error!r})") from error
