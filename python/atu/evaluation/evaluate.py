"""Evaluation: what was unlearned, and at what cost to the rest.

Every model compared gets the same latents and noise; a GAN's EMA generator is taken where there is one; all networks
run in eval mode; images are clamped to the GAN's range and mapped to the classifier's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..gan import GAN
from ..measures.frechet import frechet
from ..measures.manifold import kept_manifold
from ..measures.shares import histogram, share_of, total_variation, unlearning
from ..support import progress
from .judges import Judge, Judged, Scores, classifier_scorer, judge_samples, oracle_scorer

Real = Tensor | tuple[Tensor, Tensor]


@dataclass
class Evaluation:
    """numbers: what report.json holds. models: by name, `before` and `after` among them."""

    numbers: dict[str, Any]
    models: dict[str, Judged]
    image_range: tuple[float, float]
    classes: list[str] = field(default_factory=list)
    negative_classes: list[int] = field(default_factory=list)


def _feature_source(classifier: Judge | None) -> str:
    """Where the features come from: "classifier", "discriminator", or what the judge itself says."""
    return "discriminator" if classifier is None else getattr(classifier, "feature_source", "classifier")


def _real_features(
    real: Real, score: Callable[[Tensor], Scores], negative: Sequence[int], batch_size: int = 500
) -> Tensor:
    """Features of the real images that are not negative: by their labels where classes are, else by `score`."""
    images, labels = real if isinstance(real, tuple) else (real, None)
    judged = judge_samples(images.split(batch_size), score)
    drop = judged.negative if labels is None or not negative else torch.isin(labels, torch.tensor(list(negative)))
    return judged.features[~drop]


def _scorer(
    gan: GAN, classifier: Judge | None, classes: tuple[int | str, ...], is_negative: Callable[[Tensor], Tensor] | None
) -> tuple[Callable[[Tensor], Scores], list[int]]:
    """(samples -> scores, indices of the negative classes), from what `evaluate` was given."""
    if classifier is None and is_negative is None:
        raise ValueError("classifier: expected a classifier, or is_negative, to say which samples are negative")
    if classifier is None:
        assert is_negative is not None
        return oracle_scorer(gan, is_negative), []
    if is_negative is None:
        negative = classifier.class_indices(classes)
        return classifier_scorer(classifier, negative, gan.image_range), negative
    if classes:
        raise ValueError("is_negative: expected either negative_classes or is_negative beside a classifier, got both")
    return classifier_scorer(classifier, [], gan.image_range, is_negative), []


def evaluate(
    before: GAN,
    after: GAN | nn.Module,
    classifier: Judge | None = None,
    negative_classes: Iterable[int | str] = (),
    real: Real | None = None,
    *,
    is_negative: Callable[[Tensor], Tensor] | None = None,
    others: Mapping[str, nn.Module] | None = None,
    attributes: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    n: int = 10_000,
    seed: int = 0,
    batch_size: int | None = None,
    keep: int = 512,
) -> Evaluation:
    """Compare a GAN before and after unlearning on n fixed latents.

    Args:
        before, after: the GANs (of `after`, the generator that samples).
        classifier, negative_classes: says what is negative, and gives features and class histograms.
        real: images in `before.image_range`, [M, ...] or (images, labels [M]), for fid_cls.
        is_negative: an oracle, samples in `before.image_range` -> bool [N]. Alone, features come from the original
            discriminator; beside a classifier (and no negative_classes), features and histograms are the classifier's.
        others: further generators to judge, by name (the adapted one).
        attributes: further yes/no questions, samples -> bool [N], whose shares are reported (attributes.py).
        batch_size: samples at once; 250, or as many as fit in memory of big ones.
        keep: how many of the first samples are kept for grids.

    Returns:
        Evaluation; its numbers are pul, pul_ci95 (paired: see intervals.py), negatives_before, negatives_after,
        fid_cls_before, fid_cls_after (generated against real images without the class; None without real images),
        frechet_kept (after against the non-negative samples of before), precision_kept_after, recall_kept_after (see
        manifold.py; `_before` is what chance allows), class_histogram_before, class_histogram_after, tv_kept (of the
        class shares among non-negative samples), confident_before, confident_after (share judged with a confidence of
        0.9 or more), attributes_before, attributes_after, n, seed, features.
    """
    if n < 2:
        raise ValueError(f"n: expected at least 2 samples, got {n}")
    batch_size = batch_size or before.fitting(250)
    score, negative = _scorer(before, classifier, tuple(negative_classes), is_negative)
    final = after.sampling_generator if isinstance(after, GAN) else after
    generators = {"before": before.sampling_generator, **(others or {}), "after": final}
    models = {}
    for name, generator in generators.items():
        batches = progress.track(f"evaluate {name}", before.batches(n, seed, batch_size, generator), n)
        models[name] = judge_samples(batches, score, keep, attributes)
    first, last = models["before"], models["after"]
    numbers: dict[str, Any] = dict(unlearning(first.negative, last.negative), fid_cls_before=None, fid_cls_after=None)
    numbers["negatives"] = {name: int(judged.negative.sum()) for name, judged in models.items()}
    kept = first.features[~first.negative]
    numbers["frechet_kept"] = frechet(kept, last.features)
    numbers.update(kept_manifold(kept, last.features))
    for name, judged in models.items():
        shares = {key: share_of(int(flags.sum()), n) for key, flags in judged.attributes.items()}
        numbers[f"attributes_{name}"] = shares or None
    numbers.update(class_histogram_before=None, class_histogram_after=None, tv_kept=None)
    if classifier is not None:
        for name, judged in models.items():
            assert judged.labels is not None and judged.confidence is not None
            numbers[f"class_histogram_{name}"] = histogram(judged.labels, classifier.classes)
            numbers[f"confident_{name}"] = float((judged.confidence >= 0.9).float().mean())
        left = [judged.labels[~judged.negative] for judged in (first, last) if judged.labels is not None]
        numbers["tv_kept"] = total_variation(left[0], left[1], negative, len(classifier.classes))
    if classifier is not None and real is not None:
        reference = _real_features(real, score, negative, before.fitting(500))
        for name, judged in models.items():
            numbers[f"fid_cls_{name}"] = frechet(reference, judged.features)
        numbers["real_images"] = len(reference)
    numbers.update(n=n, seed=seed, features=_feature_source(classifier))
    classes = list(classifier.classes) if classifier is not None else []
    return Evaluation(numbers, models, before.image_range, classes, negative)
