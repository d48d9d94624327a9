"""Feature networks from files at hand, for distances beside those in the judge's features. Nothing is downloaded.

A feature network is a function, uint8 images [N, C, H, W] (C is 1 or 3) -> features [N, F] on the CPU. Distances in the
features of different networks are on scales of their own: each network gets a row of its own everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Extractor = Callable[[Tensor], Tensor]
KINDS = ("inception", "dinov2", "torchscript")
BATCH = 50  # images at once; Inception's maps of 299 x 299 are large
# Mean and standard deviation of ImageNet's channels, which DINOv2 takes its images whitened by.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DINO_SIZE = 224


def extractor(spec: str) -> tuple[str, Extractor]:
    """(kind, feature network) of "KIND:PATH".

    inception:FILE    the network that FID is defined by, by torch-fidelity, from its file of weights
                      (weights-inception-2015-12-05-6726825d.pth): the 2,048 features before the last layer
    dinov2:FOLDER     by transformers, from a folder that holds config.json and model.safetensors: the class token
    torchscript:FILE  any TorchScript module; see `torchscript`

    Raises:
        ValueError: an unknown kind, or nothing there. ImportError: the package that it takes is not installed.
    """
    kind, _, place = spec.partition(":")
    if kind not in KINDS or not place:
        raise ValueError(f"features: expected KIND:PATH with a kind of {', '.join(KINDS)}, got {spec!r}")
    if not Path(place).exists():
        raise ValueError(f"features: {place}: no such file or folder; nothing is downloaded")
    return kind, {"inception": inception, "dinov2": dinov2, "torchscript": torchscript}[kind](place)


def extractors(specs: Sequence[str]) -> dict[str, Extractor]:
    """Feature networks by name: the kind of each, and where a kind comes twice the name of its file too.

    Raises:
        ValueError: two of one name; or as of `extractor`. ImportError: as of `extractor`.
    """
    kinds = [spec.partition(":")[0] for spec in specs]
    found: dict[str, tuple[str, Extractor]] = {}
    for spec, kind in zip(specs, kinds, strict=True):
        name = kind if kinds.count(kind) == 1 else f"{kind}:{Path(spec.partition(':')[2]).stem}"
        if name in found:
            raise ValueError(f"features: expected files of different names, got {found[name][0]} and {spec}")
        found[name] = spec, extractor(spec)[1]
    return {name: network for name, (_, network) in found.items()}


def colour(x: Tensor) -> Tensor:
    """uint8 [N, 3, H, W] of images [N, 1 or 3, H, W].

    Raises:
        ValueError: they are no such images.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"features: expected images [N, 1 or 3, H, W], got samples {list(x.shape[1:])}")
    return x.expand(-1, 3, -1, -1)


def _in_parts(network: Callable[[Tensor], Tensor]) -> Extractor:
    @torch.no_grad()
    def features(x: Tensor) -> Tensor:
        return torch.cat([network(part).flatten(1).float().cpu() for part in colour(x).split(BATCH)])

    return features


def torchscript(path: str | Path) -> Extractor:
    """A TorchScript module that takes uint8 images [N, 3, H, W] and gives features [N, F] (with `return_features=True`,
    where it knows that). It is executed: use files that you trust.

    Raises:
        ValueError: the file is no TorchScript.
    """
    try:
        module = torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"extractor: {path} is no readable TorchScript file ({error})") from None
    options: dict[str, Any] = {}
    if any(argument.name == "return_features" for argument in module.forward.schema.arguments):
        options["return_features"] = True
    return _in_parts(lambda x: module(x, **options))


def inception(path: str | Path) -> Extractor:
    """torch-fidelity's Inception with the weights in a file (read as tensors only: nothing in it is executed)."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ImportError("inception features take torch-fidelity: pip install torch-fidelity") from error
    _tensors_only(path)
    module = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path)).eval()
    return _in_parts(lambda x: module(x)[0])


def _tensors_only(path: str | Path) -> None:
    """Raise ValueError unless torch's restricted reader takes the file, so that no other reader executes it."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"features: {path} is no file of weights ({type(error).__name__})") from None


def dinov2(path: str | Path) -> Extractor:
    """transformers' DINOv2 from a folder of safetensors: images scaled to 224 x 224 (bicubic), ImageNet's moments."""
    try:
        from transformers import Dinov2Model
    except ImportError as error:
        raise ImportError("dinov2 features take transformers: pip install transformers") from error
    module = Dinov2Model.from_pretrained(str(path), local_files_only=True, use_safetensors=True).eval()
    mean, deviation = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, DEVIATION))

    def features(x: Tensor) -> Tensor:
        x = F.interpolate(x.float() / 255, (DINO_SIZE, DINO_SIZE), mode="bicubic", antialias=True).clamp(0, 1)
        return module(pixel_values=(x - mean) / deviation).last_hidden_state[:, 0]

    return _in_parts(features)
