"""The generator as an ONNX graph, checked with onnxruntime against torch. Needs the optional extra `atu-ext[onnx]`."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atu_ext.ops import default_impl

from ..gan import GAN
from ..support.files import write_atomic
from ..support.modules import copied
from .tensors import CheckpointError

log = logging.getLogger("atu")
TOLERANCE = 1e-4  # largest difference from torch, of images whose range is about [-1, 1]
OPSET = 18


class _Exported(nn.Module):
    """z (and labels) to images with constant noise: a function of its inputs alone."""

    def __init__(self, generator: nn.Module, takes_noise_mode: bool):
        super().__init__()
        self.generator, self.options = generator, {"noise_mode": "const"} if takes_noise_mode else {}

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        return self.generator(z, **self.options) if c is None else self.generator(z, c, **self.options)


def write_onnx(gan: GAN, path: Path) -> Path:
    """Write the sampling generator as ONNX: inputs z [N, latent_dim] and, if conditional, c [N, c_dim] (or
    int64 [N], see `GAN`); output image.

    StyleGAN kinds are written with noise_mode "const" and no truncation. The graph is run by onnxruntime on two batch
    sizes and compared with torch before the file takes its name.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is missing.
        CheckpointError: onnxruntime's images differ from torch's by more than 1e-4.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx needs it)
    except ImportError as error:
        raise ImportError(f"ONNX export needs the optional packages of atu-ext[onnx]: {error}") from error
    generator = copied(gan.sampling_generator).cpu().eval().requires_grad_(False)
    model = _Exported(generator, gan.is_stylegan).eval()
    rng = torch.Generator().manual_seed(0)
    inputs = _inputs(gan, 2, rng)

    def write(temporary: Path) -> None:
        _trace(model, inputs, temporary)
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        for n in (1, 3):
            _compare(session, model, _inputs(gan, n, rng), path)

    return write_atomic(path, write)


def _inputs(gan: GAN, n: int, rng: torch.Generator) -> dict[str, Tensor]:
    found = gan.arguments(gan.sampling_generator, gan.latents(n, rng), gan.labels(n, rng))
    return {name: value.cpu() for name, value in zip("zc", found, strict=False)}


def _trace(model: nn.Module, inputs: dict[str, Tensor], path: Path) -> None:
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings(), default_impl("reference"):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=["image"],
            dynamic_shapes={name: {0: batch} for name in inputs},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _compare(session: Any, model: nn.Module, inputs: dict[str, Tensor], path: Path) -> None:
    with torch.no_grad():
        expected = model(**inputs).numpy()
    (image,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    difference = float(np.abs(image - expected).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise CheckpointError(f"{path}: onnxruntime's images differ from torch's by {difference:.3g}")
    log.info("onnxruntime agrees with torch within %.2g", difference)
