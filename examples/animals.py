"""The bundled oracle and judge of drawn animals, and how like the drawings a GAN's samples are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from atu.assets import asset
from atu.data.images import map_range, to_range
from atu.gan import GAN
from atu.judging.errors import count_calls
from atu.judging.parts import PartsClassifier, PartsView
from atu.measures.frechet import frechet
from atu.measures.manifold import manifold
from atu.support import progress

from . import drawings as animals

HELD_OUT = 4000  # drawings that no network learned from


def oracle() -> PartsClassifier:
    """The bundled classifier that marks and answers."""
    return PartsClassifier.load(asset("animals-classifier.safetensors"))


def judge() -> PartsClassifier:
    """The bundled classifier that measures, and never answers during a run."""
    return PartsClassifier.load(asset("animals-judge.safetensors"))


def held_out() -> animals.Drawings:
    """Drawings that no network has seen."""
    return animals.drawings("held-out", HELD_OUT)


def with_errors(classifier: PartsClassifier, *names: tuple[str, ...]) -> list[PartsView]:
    """The classifier's view of each group of names, its errors on unseen drawings counted (`confusion`)."""
    data, views = held_out(), [classifier.view(group) for group in names]
    batches = (to_range(x, classifier.image_range) for x in data.images.split(500))
    logits = torch.cat([classifier.logits_and_features(x)[0] for x in batches])
    for view in views:
        calls = view.of_parts(logits).argmax(1).cpu()
        view.confusion = count_calls(view.truth(data.labels), calls, len(view.classes))
    return views


class LikeDrawings:
    """How like the held-out drawings, but those for which a rule holds, a GAN's samples are, in the oracle's features
    and by its answers."""

    def __init__(self, n: int = HELD_OUT, without: Iterable[Mapping[str, Iterable[str]]] = ()):
        self.n, self.classifier = n, oracle()
        kept = animals.without_any(held_out(), without)
        images = (to_range(part, self.classifier.image_range) for part in kept.images.split(500))
        self.features = torch.cat([self.classifier.logits_and_features(x)[1] for x in images])
        self.shares = self._shares(kept.labels)

    def _shares(self, labels: Tensor) -> dict[str, Tensor]:
        columns = zip(self.classifier.parts.items(), labels.t(), strict=True)
        return {part: column.bincount(minlength=len(v)).double() / len(column) for (part, v), column in columns}

    def __call__(self, gan: GAN, seed: int = 0) -> dict[str, float]:
        """fid, precision and recall; share_error: the largest difference of a value's share from the drawings'; sure:
        share of samples of whose every part the classifier is sure (0.9); of n samples."""
        labels, features, sure = [], [], 0
        for x in progress.track("like drawings", gan.batches(self.n, seed, 250), self.n):
            logits, found = self.classifier.logits_and_features(
                map_range(x, gan.image_range, self.classifier.image_range)
            )
            parts = [part.softmax(1).max(1) for part in self.classifier.split(logits).values()]
            labels.append(torch.stack([part.indices for part in parts], 1).cpu())
            features.append(found.cpu())
            sure += int((torch.stack([part.values for part in parts]).min(0).values >= 0.9).sum())
        shares, own = self._shares(torch.cat(labels)), torch.cat(features)
        like = manifold(self.features, own)
        error = max(float((shares[part] - share).abs().max()) for part, share in self.shares.items())
        numbers = dict(fid=frechet(self.features, own), precision=like["precision"], recall=like["recall"])
        return {name: float(value) for name, value in numbers.items() if value is not None} | dict(
            share_error=error, sure=sure / self.n
        )
