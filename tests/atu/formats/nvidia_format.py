"""Writes network pickles with the structure of the NVIDIA repositories' files, from the project's own modules.

The persistence wrapper and EasyDict are stand-ins of these tests; only their qualified names and the shape of what they
pickle are those of the format.
"""

from __future__ import annotations

import io
import math
import pickle
import sys
import types
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

# In place of the embedded source: long enough to be left unread, and visible if anything ever ran it.
SOURCE = "EXECUTED = True\n" + "# padding of the embedded source\n" * 200
executed: list[str] = []


class EasyDict(dict):
    """A mapping with attribute access."""


EasyDict.__module__, EasyDict.__qualname__ = "dnnlib.util", "EasyDict"


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> types.SimpleNamespace:
    """What the original does, without the source: the object with its attributes."""
    executed.append(meta["module_src"])
    return types.SimpleNamespace(class_name=meta["class_name"], **meta["state"])


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


@contextmanager
def original_packages():
    """The stand-ins, importable under the originals' names: for writing, and for loading as the originals would."""
    made = {
        name: types.ModuleType(name) for name in ("dnnlib", "dnnlib.util", "torch_utils", "torch_utils.persistence")
    }
    made["dnnlib.util"].EasyDict = EasyDict  # type: ignore[attr-defined]
    made["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    before = {name: sys.modules.get(name) for name in made}
    sys.modules.update(made)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, nn.Module):
            state = {key: value for key, value in obj.__dict__.items() if key != "init_kwargs"}
            state |= {"_init_args": (), "_init_kwargs": _easy(getattr(obj, "init_kwargs", {}))}
            if "weight_gain" in state:
                state["weight_gain"] = np.float64(state["weight_gain"])
            state["size"] = np.array([3, 4])
            meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": type(obj).__name__}
            return _reconstruct_persistent_obj, ({**meta, "state": state},)
        return NotImplemented


def _easy(value: Any) -> Any:
    return EasyDict({k: _easy(v) for k, v in value.items()}) if isinstance(value, dict) else value


def dumps(content: Any, protocol: int = 4) -> bytes:
    """Pickle, with modules as persistent objects."""
    buffer = io.BytesIO()
    with original_packages():
        _Pickler(buffer, protocol).dump(content)
    return buffer.getvalue()


def snapshot(generator: nn.Module | None, discriminator: nn.Module | None, average: nn.Module | None) -> dict[str, Any]:
    """The dictionary of a training snapshot."""
    found: dict[str, Any] = {
        "training_set_kwargs": EasyDict(path="/data/x.zip", max_size=np.int64(10), use_labels=False)
    }
    networks = {"G": generator, "D": discriminator, "G_ema": average}
    found |= {key: module.eval().requires_grad_(False) for key, module in networks.items() if module is not None}
    return {**found, "augment_pipe": None}


def original_loads(data: bytes) -> Any:
    """Load as the original programs do: the standard unpickler, with the packages there."""
    with original_packages():
        return pickle.loads(data)


def is_close_to(value: float, expected: float) -> bool:
    return math.isclose(value, expected, rel_tol=0, abs_tol=1e-4)


def small_pair(c_dim: int = 0, seed: int = 0, img_channels: int = 3) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Generator, discriminator and averaged generator of a few thousand weights."""
    from atu.networks import stylegan2

    torch.manual_seed(seed)
    options: dict[str, Any] = dict(z_dim=8, c_dim=c_dim, w_dim=8, img_resolution=8, img_channels=img_channels)
    options |= dict(mapping_kwargs={"num_layers": 2}, synthesis_kwargs={"channel_base": 64, "channel_max": 8})
    pair = [stylegan2.Generator(**options) for _ in range(2)]
    network = stylegan2.Discriminator(c_dim, 8, img_channels, channel_base=64, channel_max=8)
    for module in pair:
        for name, value in module.state_dict().items():
            if name.endswith(("bias", "noise_strength", "w_avg")):
                value += 0.1 * torch.randn_like(value)
    return pair[0], network, pair[1]
