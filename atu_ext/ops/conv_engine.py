"""Which engine runs a modulated convolution on CUDA: the library's convolution between fused passes ("library"), or
one implicit GEMM that modulates while loading and finishes in its epilogue ("gemm").

The choice is read from measurements: conv_engines.json beside this file, or the file that ATU_CONV_ENGINES names.
benchmarks/gpu.py writes it. A shape that the table does not hold for this device takes the library. The
environment variable ATU_CONV_ENGINE=library|gemm overrules the table; the argument `engine` of `modulated_conv2d`
overrules both.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .dispatch import constant_when_compiled

ENGINES = ("auto", "library", "gemm")
DIRECTIONS = ("forward", "input_gradient")
TABLE = Path(__file__).with_name("conv_engines.json")

_log = logging.getLogger("atu_ext.conv_engine")
_warned: set[str] = set()


class Layer(NamedTuple):
    """What the choice depends on. Height and width are those of the layer's x."""

    dtype: str  # "float16", "bfloat16", "float32"
    layout: str  # of x: "channels_last", or "contiguous": the GEMM copies it first
    direction: str  # one of DIRECTIONS
    kernel: int
    stride: int
    channels_in: int
    channels_out: int
    height: int
    width: int
    batch: int


@dataclass(frozen=True)
class Choice:
    engine: str  # "library" or "gemm"
    reason: str


# Device name -> all of a Layer but its batch -> [(batch, library_us, gemm_us)].
Table = dict[str, dict[tuple[Any, ...], list[tuple[int, float, float]]]]


def read_table(path: Path) -> Table:
    """Measurements from a file.

    Raises:
        ValueError: the file is no such table; the path, the row and the fault are named.
    """
    try:
        devices = json.loads(path.read_text(encoding="utf-8"))["devices"]
        table: Table = {}
        for device, entry in devices.items():
            known = table.setdefault(device, {})
            for row in entry["rows"]:
                layer = Layer(**{name: row[name] for name in Layer._fields})
                if layer.direction not in DIRECTIONS:
                    raise ValueError(f"direction: expected one of {', '.join(DIRECTIONS)}, got {layer.direction!r}")
                times = layer.batch, float(row["library_us"]), float(row["gemm_us"])
                known.setdefault(tuple(layer[:-1]), []).append(times)
    except (KeyError, TypeError, AttributeError, ValueError) as fault:
        raise ValueError(f"{path}: expected a table of convolution engines, got {fault!r}") from fault
    return table


@functools.lru_cache(maxsize=1)
def _table(path: str) -> Table:
    return read_table(Path(path))


def table_path() -> Path:
    return Path(os.environ.get("ATU_CONV_ENGINES", TABLE))


@functools.lru_cache(maxsize=4096)
def _measured(path: str, device: str, layer: Layer) -> Choice:
    known = _table(path).get(device)
    if known is None:
        return Choice("library", f"{path} has no measurements of {device}")
    rows = known.get(tuple(layer[:-1]))
    if rows is None:
        return Choice("library", f"{path} has no measurement of {layer} on {device}")
    batch, library, gemm = min(rows, key=lambda row: abs(row[0] - layer.batch))
    engine = "gemm" if gemm < library else "library"
    choice = Choice(engine, f"measured on {device} with a batch of {batch}: library {library} us, gemm {gemm} us")
    _log.info("%s: %s (%s)", layer, choice.engine, choice.reason)
    return choice


@constant_when_compiled  # a compiled graph keeps the choice of its shapes
def _looked_up(device: str, layer: tuple[Any, ...]) -> tuple[str, str]:
    choice = _measured(str(table_path()), device, Layer(*layer))
    return choice.engine, choice.reason


def choose(layer: Layer, device: str, obstacle: str | None = None, engine: str = "auto") -> Choice:
    """The engine of `layer` on `device` (its name), and why.

    Args:
        obstacle: why the GEMM cannot compute this layer at all; None where it can.
        engine: "library" or "gemm" to insist, "auto" for ATU_CONV_ENGINE or else the table.

    Raises:
        ValueError: engine or ATU_CONV_ENGINE is not one of ENGINES; a table that cannot be read.
        RuntimeError: engine is "gemm" and there is an obstacle.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine: expected one of {', '.join(ENGINES)}, got {engine!r}")
    if engine == "gemm" and obstacle is not None:
        raise RuntimeError(f"engine: 'gemm' is impossible: {obstacle}")
    if engine != "auto":
        return Choice(engine, "asked for by the argument engine")
    asked = os.environ.get("ATU_CONV_ENGINE", "auto")
    if asked not in ENGINES:
        raise ValueError(f"ATU_CONV_ENGINE: expected one of {', '.join(ENGINES)}, got {asked!r}")
    if obstacle is not None:
        if asked == "gemm" and obstacle not in _warned:
            _warned.add(obstacle)
            warnings.warn(f"ATU_CONV_ENGINE=gemm: the library runs instead: {obstacle}", RuntimeWarning, stacklevel=4)
        return Choice("library", obstacle)
    if asked != "auto":
        return Choice(asked, "asked for by ATU_CONV_ENGINE")
    return Choice(*_looked_up(device, tuple(layer)))
