"""Networks of other programs: TorchScript and ONNX files, and functions of the user's.

TorchScript is a program: it runs in torch's own interpreter, which executes no Python and unpickles nothing, but whose
operators can read and write files. ONNX is a graph of fixed operators, run by onnxruntime.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .view import Shape, View


@dataclass(frozen=True)
class Foreign:
    """A network of which only the outputs are known.

    run: images [N, C, H, W], float32 -> outputs, float32 or float64, on the CPU. shape: (C, H, W) that it takes, None
    where it does not say. values: the range of its input, where its type says so.
    """

    run: Callable[[Tensor], Tensor]
    shape: Shape = (None, None, None)
    values: tuple[float, float] | None = None


class Outputs(nn.Module):
    """Samples [N, ...] in the GAN's range -> the outputs [N, K] of a foreign network, float32 on the CPU, checked.

    what: names the network in errors.
    """

    differentiable = False

    def __init__(self, run: Callable[[Tensor], Tensor], view: View, what: str):
        super().__init__()
        self.run, self.view, self.what = run, view, what

    def forward(self, x: Tensor) -> Tensor:
        """
        Raises:
            ValueError: the network cannot take the samples, or does not give one row of finite numbers a sample.
        """
        seen = self.view(x)
        try:
            y = self.run(seen.float())
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(
                f"{self.what}: cannot take images {list(seen.shape)} ({type(error).__name__}: {_last_line(error)}); "
                "say size=, channels= as it expects them"
            ) from error
        if len(x) == 1:  # networks that squeeze lose the batch axis here
            y = y.reshape(1, -1)
        if y.ndim == 0 or len(y) != len(x) or y.numel() == 0:
            raise ValueError(
                f"{self.what}: expected a row of numbers for each of {len(x)} samples, got {list(y.shape)}"
            )
        y = y.reshape(len(y), -1).float()
        if not torch.isfinite(y).all():
            raise ValueError(f"{self.what}: gives values that are not finite")
        return y


def kind_of(path: Path) -> str:
    """ "safetensors", "torchscript" or "onnx", by the content.

    Raises:
        ValueError: there is no such file, or it is none of these; what to do is said.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with path.open("rb") as stream:
        start = stream.read(16)
    if start.startswith(b"PK") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
        if "constants.pkl" in names and any(name.startswith("code/") for name in names):
            return "torchscript"
    if start.startswith((b"PK", b"\x80")):
        raise ValueError(
            f"{path}: holds weights, but no network that could be run; save it as TorchScript (torch.jit.trace(net, "
            "example).save(...)) or ONNX, or give the Python that makes it: file.py:function"
        )
    if start[8:9] == b"{":
        return "safetensors"
    if start[:1] == b"\x08" or path.suffix.lower() == ".onnx":  # field 1, ir_version, comes first in ONNX's protobuf
        return "onnx"
    raise ValueError(f"{path}: expected a file of atu train-classifier, TorchScript or ONNX; it begins with {start!r}")


def torchscript(path: Path, device: torch.device) -> Foreign:
    """A TorchScript file, in eval mode, on `device`. It is a program, and runs.

    Raises:
        ValueError: torch cannot read it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(str(path), map_location=device).eval()
    except Exception as error:
        raise ValueError(f"{path}: not a readable TorchScript file ({_last_line(error)})") from error

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            return _tensor(module(x.to(device)), str(path))

    return Foreign(run)


def onnx(path: Path, device: torch.device) -> Foreign:
    """An ONNX file with one input of images, NCHW or NHWC, run by onnxruntime; its first output counts.

    Raises:
        ImportError: without onnxruntime. ValueError: it cannot be read, or takes something else than images.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"{path}: ONNX files need onnxruntime: pip install 'atu-ext[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    there = onnxruntime.get_available_providers()
    gpu = ["CUDAExecutionProvider"] if device.type == "cuda" else []
    try:
        providers = [name for name in [*gpu, "CPUExecutionProvider"] if name in there]
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        raise ValueError(f"{path}: not a readable ONNX file ({_last_line(error)})") from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _TYPES:
        got = "; ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
        raise ValueError(f"{path}: expected one input of images, four axes, got {got or 'none'}")
    batch, *axes = (size if isinstance(size, int) and size > 0 else None for size in inputs[0].shape)
    last = axes[2] in (1, 3) and axes[0] not in (1, 3)
    dtype = _TYPES[inputs[0].type]

    def run(x: Tensor) -> Tensor:
        array = (x.permute(0, 2, 3, 1) if last else x).cpu().numpy()
        array = np.rint(array).astype(dtype) if dtype is np.uint8 else array.astype(dtype)
        array = np.ascontiguousarray(array)
        step = batch or max(len(array), 1)
        parts = []
        for start in range(0, len(array), step):
            part = array[start : start + step]
            missing = 0 if batch is None else batch - len(part)
            if missing:
                part = np.concatenate([part, np.repeat(part[-1:], missing, 0)])
            out = _tensor(torch.from_numpy(np.asarray(session.run(None, {inputs[0].name: part})[0])), str(path))
            parts.append(out[: step - missing] if batch else out)
        return torch.cat(parts)

    shape = (axes[2], axes[0], axes[1]) if last else (axes[0], axes[1], axes[2])
    return Foreign(run, shape, (0.0, 255.0) if dtype is np.uint8 else None)


_TYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
_TYPES |= {"tensor(uint8)": np.uint8}


def _tensor(value: Any, what: str) -> Tensor:
    """The tensor that a network gave, on the CPU: the first of several, `logits` of a dictionary."""
    if isinstance(value, dict) and value:
        value = value.get("logits", next(iter(value.values())))
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    if not isinstance(value, Tensor) or value.is_complex():
        raise ValueError(f"{what}: expected a tensor of numbers for images, got {type(value).__name__}")
    return value.detach().cpu()


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
