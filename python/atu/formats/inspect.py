"""What a checkpoint holds, found without building a network or reading a weight."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from safetensors import SafetensorError, safe_open

from ..networks import stylegan2
from ..support.console import Console
from ..support.terminal import one_line
from . import nvidia, rosinality
from .assemble import TensorLike
from .load import list_content
from .native import FORMAT
from .nvidia_pickle import plain
from .recognise import recognise
from .registry import FORMATS, SAFETENSORS, Format
from .tensors import CheckpointError, reading
from .torch_file import load_torch, tensors_at


def inspect_checkpoint(path: str | Path) -> dict[str, Any]:
    """Describe a checkpoint as plain data.

    Returns:
        {"path", "format", "bytes", "networks": {name: {"kind", "resolution", "channels", "latent", "labels",
        "parameters", "parts": {part: parameters}, "dtypes", "options"}}, "options": training options if present,
        "notes": [...]}

    Raises:
        CheckpointError: as of loading.
    """
    path = Path(path)
    name = recognise(path)
    found: dict[str, Any] = {"path": str(path), "format": name, "bytes": path.stat().st_size, "networks": {}}
    found |= {"options": {}, "notes": []}
    form = FORMATS.get(name)
    with reading(path):
        if form.inspect is not None:
            form.inspect(path, found)
        else:
            _inspect_loaded(path, form, found)
    held = found["networks"]
    if "discriminator" not in held:
        found["notes"].append("no discriminator: fit one with --train-discriminator STEPS")
    if "generator" not in held and "generator_ema" in held:
        found["notes"].append("no generator but the averaged one, which is used for both")
    return found


def _inspect_loaded(path: Path, form: Format, found: dict[str, Any]) -> None:
    """Describe a file of a format that has nothing to inspect it with: load it."""
    if form.load is None:
        raise CheckpointError("its format can be written but not read")
    for name, module in form.load(path).modules().items():
        buffers = {buffer for buffer, _ in module.named_buffers()}
        found["networks"][name] = _network(
            type(module).__name__, dict(vars(module).get("init_kwargs", {})), module.state_dict(), buffers
        )


def _network(kind: str, options: dict[str, Any], tensors: Mapping[str, Any], buffers: set[str]) -> dict[str, Any]:
    parameters = {name: t for name, t in tensors.items() if name not in buffers}
    parts: dict[str, int] = {}
    for name, tensor in parameters.items():
        part = ".".join(name.split(".")[: 2 if name.startswith("synthesis.") else 1])
        parts[part] = parts.get(part, 0) + _numel(tensor)
    dtypes = sorted({str(getattr(t, "dtype", "")).removeprefix("torch.") for t in tensors.values()})
    return {
        "kind": kind,
        "resolution": options.get("img_resolution"),
        "channels": options.get("img_channels"),
        "latent": options.get("z_dim"),
        "labels": options.get("c_dim"),
        "parameters": sum(parts.values()),
        "parts": parts,
        "dtypes": dtypes,
        "options": plain(options),
    }


def _numel(tensor: TensorLike) -> int:
    count = 1
    for size in tensor.shape:
        count *= size
    return count


def inspect_nvidia(path: Path, found: dict[str, Any]) -> None:
    snapshot = nvidia.read_snapshot(path)
    found["format"] = "nvidia-pkl"
    found["options"] = plain({key: value for key, value in snapshot.rest.items() if value is not None}, 7)
    for key, stored in snapshot.networks.items():
        kind = nvidia.kind_of(stored)
        try:
            options = nvidia.describe(stored)[1]
        except CheckpointError as error:
            options = plain(stored.init_kwargs)
            found["notes"].append(f"{key} cannot be rebuilt: {error}")
        name = "stylegan2 discriminator" if kind == "discriminator" else f"{kind} generator"
        found["networks"][nvidia.NETWORK_KEYS[key]] = _network(name, options, stored.tensors(), stored.buffers())


def inspect_torch(path: Path, found: dict[str, Any]) -> None:
    structure = load_torch(path)
    found["format"] = "torch"
    if not rosinality.is_rosinality(structure):
        found["notes"].append(f"not a StyleGAN2 checkpoint: {list_content(structure)}")
        return
    found["format"] = "rosinality-pt"
    skipped = rosinality.NETWORK_KEYS
    rest = {key: value for key, value in structure.items() if key not in skipped and "optim" not in str(key)}
    found["options"] = plain(rest, 7)
    found["notes"] += [f"{key}: optimiser state, not used" for key in ("g_optim", "d_optim") if key in structure]
    for key, name in rosinality.NETWORK_KEYS.items():
        stored = tensors_at(structure.get(key))
        if not stored:
            continue
        options = rosinality.plan(key, stored)
        kind = "stylegan2 discriminator" if key == "d" else "stylegan2 generator"
        buffers = {n for n in stored if n.startswith("noises.") or n.endswith("kernel")}
        found["networks"][name] = _network(kind, options, stored, buffers)


def inspect_native(path: Path, found: dict[str, Any]) -> None:
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: _Slice(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
    if metadata.get("format") != FORMAT:
        found["format"] = SAFETENSORS
        found["notes"].append(
            f"not written by atu; it holds {len(tensors)} tensors: {', '.join(sorted(tensors)[:5])} ..."
        )
        return
    found["format"] = FORMAT
    try:
        config = json.loads(metadata["config"])
        for name, entry in config["modules"].items():
            own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
            kind = (entry.get("network") or entry.get("class", "unknown")).replace(".", " ").lower()
            buffers = {n for n in own if n.endswith(stylegan2.BUFFERS)}
            found["networks"][name] = _network(kind, entry.get("kwargs", {}), own, buffers)
        rest = {key: value for key, value in config.items() if key != "modules" and value is not None}
        found["options"] = plain(rest, 7)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its config cannot be read ({error})") from error


class _Slice:
    """Shape and dtype of a safetensors entry."""

    def __init__(self, entry: Any):
        self.shape: tuple[int, ...] = tuple(entry.get_shape())
        self.dtype = re.sub(r"^(b?)f(\d+)$", r"\1float\2", str(entry.get_dtype()).lower())
        self.nbytes = 0


def _weights_dtypes(net: dict[str, Any]) -> str:
    """Those of weights, not of counters beside them."""
    return ", ".join([name for name in net["dtypes"] if "float" in name] or net["dtypes"])


def print_inspection(found: dict[str, Any], console: Console | None = None) -> None:
    """Print the result of `inspect_checkpoint`."""
    console = Console() if console is None else console

    def tell(text: str) -> None:
        console.print(one_line(text), soft_wrap=True)

    tell(f"{found['path']}: {found['format']}, {found['bytes'] / 2**20:.1f} MiB")
    table = Table(box=None, pad_edge=False, padding=(0, 1), collapse_padding=True)  # fits into 80 columns
    networks = found["networks"].values()
    shown = [key for key in ("kind", "resolution", "channels", "latent", "labels") if any(net[key] for net in networks)]
    titles = ["pixels" if key == "resolution" else key for key in shown]
    for column in ("", *titles, "parameters", "dtype"):
        right = column in ("pixels", "parameters")
        table.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=column == "")
    for name, net in found["networks"].items():
        cells = ["" if net[key] is None else one_line(str(net[key])) for key in shown]
        cells[0] = cells[0].removesuffix(" generator").removesuffix(" discriminator")  # the name says that
        table.add_row(name, *cells, f"{net['parameters']:,}", _weights_dtypes(net))
    if found["networks"]:
        console.print(table)
    for name, net in found["networks"].items():
        parts = ", ".join(f"{part} {count:,}" for part, count in net["parts"].items())
        tell(f"{name}: {parts}")
    for key, value in found.get("gan", {}).items():
        tell(f"{key}: {value}")
    for name, weights in found.get("weights", {}).items():
        problems = weights["problems"]
        more = f"; and {len(problems) - 20} more (--json has all)" if len(problems) > 20 else ""
        told = f"not filled: {'; '.join(problems[:20])}{more}" if problems else f"{weights['from']} fits"
        tell(f"weights of {name}: {told}")
    if found["options"]:
        tell(f"options: {json.dumps(found['options'], default=str)}")
    for note in found["notes"]:
        tell(f"note: {note}")
