"""Evaluation: what was unlearned, and at what cost to the rest.

Every model compared gets the same latents and noise; a GAN's EMA generator is taken where there is one; all networks
run in eval mode; images are clamped to the GAN's range and mapped to the classifier's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .features import discriminator_features
from .gan import GAN
from .intervals import unlearned_percentage, wilson
from .manifold import kept_manifold

Real = Tensor | tuple[Tensor, Tensor]


class Judge(Protocol):
    """What `evaluate` asks of a classifier; `atu.classifier.Classifier` is one."""

    classes: list[str]
    image_range: tuple[float, float]

    def judge(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [N, classes], penultimate features [N, F])."""
        ...

    def class_indices(self, classes: Iterable[int | str]) -> list[int]: ...


@dataclass
class Judged:
    """One model's n samples. negative: bool [n]. features: [n, F]. labels: int64 [n] and confidence [n], or None.
    first: the first samples themselves, for a grid. attributes: bool [n] each, by name."""

    negative: Tensor
    features: Tensor
    labels: Tensor | None
    confidence: Tensor | None
    first: Tensor
    attributes: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Evaluation:
    """numbers: what report.json holds. models: by name, `before` and `after` among them."""

    numbers: dict[str, Any]
    models: dict[str, Judged]
    image_range: tuple[float, float]
    classes: list[str] = field(default_factory=list)
    negative_classes: list[int] = field(default_factory=list)


Scores = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def classifier_scorer(
    classifier: Judge,
    negative: Sequence[int],
    image_range: tuple[float, float],
    is_negative: Callable[[Tensor], Tensor] | None = None,
) -> Callable[[Tensor], Scores]:
    """samples -> (negative, features, labels, confidence), by a classifier; negative by `is_negative` if given."""
    wanted = torch.tensor(list(negative))

    def score(x: Tensor) -> Scores:
        logits, features = classifier.judge(map_range(x, image_range, classifier.image_range))
        confidence, labels = logits.softmax(1).cpu().max(1)
        flags = torch.isin(labels, wanted) if is_negative is None else is_negative(x).cpu()
        return flags, features.cpu(), labels, confidence

    return score


def oracle_scorer(gan: GAN, is_negative: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Scores]:
    """The same by an oracle alone; the features are those of the original discriminator's penultimate layer."""

    def score(x: Tensor) -> Scores:
        return is_negative(x).cpu(), discriminator_features(gan, [x]), None, None

    return score


def map_range(x: Tensor, source: tuple[float, float], target: tuple[float, float]) -> Tensor:
    """Images [N, C, H, W] clamped to `source` and mapped to `target`; other samples as they are."""
    if x.ndim != 4:
        return x
    x = x.clamp(*source)
    if source == target:
        return x
    return (x - source[0]) / (source[1] - source[0]) * (target[1] - target[0]) + target[0]


def judge_samples(
    batches: Iterable[Tensor],
    score: Callable[[Tensor], Scores],
    keep: int = 0,
    attributes: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> Judged:
    """Score samples batch by batch, keeping the first `keep` of them; attributes: samples -> bool [N], by name."""
    scores, first, kept = [], [], 0
    found: dict[str, list[Tensor]] = {name: [] for name in attributes or {}}
    for x in batches:
        scores.append(score(x))
        for name, has in (attributes or {}).items():
            found[name].append(has(x).cpu())
        if kept < keep:
            first.append(x[: keep - kept].cpu())
            kept += len(first[-1])
    negative, features, labels, confidence = zip(*scores, strict=True)
    shown = torch.cat(first) if first else torch.empty(0)
    flags = {name: torch.cat(parts) for name, parts in found.items()}
    return Judged(torch.cat(negative), torch.cat(features).float(), _joined(labels), _joined(confidence), shown, flags)


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None


def frechet(a: Tensor, b: Tensor) -> float | None:
    """Frechet distance of two sets of features [N, F], [M, F], in float64 (torchmetrics); None below two samples."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    if len(a) < 2 or len(b) < 2:
        return None
    passed = nn.Identity()
    passed.num_features = a.shape[1]  # type: ignore[assignment]
    metric = FrechetInceptionDistance(feature=passed)
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    return float(metric.compute())


def histogram(labels: Tensor, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Count, share and its 95 % interval (Wilson) of each class."""
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    return {name: share_of(count, len(labels)) for name, count in zip(classes, counts, strict=True)}


def share_of(count: int, n: int) -> dict[str, Any]:
    """Count, share and its 95 % interval (Wilson)."""
    return dict(count=count, share=count / max(n, 1), ci95=list(wilson(count, n)))


def total_variation(before: Tensor, after: Tensor, negative: Sequence[int], classes: int) -> float | None:
    """Total-variation distance of the kept classes' shares, renormalised to one; None where there are none."""
    kept = [index for index in range(classes) if index not in set(negative)]
    shares = [torch.bincount(labels, minlength=classes)[kept].double() for labels in (before, after)]
    if not all(float(share.sum()) > 0 for share in shares):
        return None
    p, q = (share / share.sum() for share in shares)
    return float((p - q).abs().sum() / 2)


def unlearning(before: Tensor, after: Tensor) -> dict[str, Any]:
    """PUL and its interval from the negatives among the same latents, bool [n] each."""
    n, first, second = len(before), int(before.sum()), int(after.sum())
    numbers: dict[str, Any] = dict(pul=None, pul_ci95=None, negatives_before=first, negatives_after=second)
    if first:
        numbers["pul"], interval = unlearned_percentage(int((before & after).sum()), second, first, n)
        numbers["pul_ci95"] = list(interval)
    return numbers


def _feature_source(classifier: Judge | None) -> str:
    """Where the features come from: "classifier", "discriminator", or what the judge itself says."""
    return "discriminator" if classifier is None else getattr(classifier, "feature_source", "classifier")


def _real_features(real: Real, score: Callable[[Tensor], Scores], negative: Sequence[int]) -> Tensor:
    """Features of the real images that are not negative: by their labels where classes are, else by `score`."""
    images, labels = real if isinstance(real, tuple) else (real, None)
    judged = judge_samples(images.split(500), score)
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
    batch_size: int = 250,
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
        attributes: further yes/no questions, samples -> bool [N], whose shares are reported (`atu.attributes`).
        keep: how many of the first samples are kept for grids.

    Returns:
        Evaluation; its numbers are pul, pul_ci95 (paired: see `atu.intervals`), negatives_before, negatives_after,
        fid_cls_before, fid_cls_after (generated against real images without the class; None without real images),
        frechet_kept (after against the non-negative samples of before), precision_kept_after, recall_kept_after (see
        `atu.manifold`; `_before` is what chance allows), class_histogram_before, class_histogram_after, tv_kept (of the
        class shares among non-negative samples), confident_before, confident_after (share judged with a confidence of
        0.9 or more), attributes_before, attributes_after, n, seed, features.
    """
    if n < 2:
        raise ValueError(f"n: expected at least 2 samples, got {n}")
    score, negative = _scorer(before, classifier, tuple(negative_classes), is_negative)
    final = after.sampling_generator if isinstance(after, GAN) else after
    generators = {"before": before.sampling_generator, **(others or {}), "after": final}
    models = {}
    for name, generator in generators.items():
        models[name] = judge_samples(before.batches(n, seed, batch_size, generator), score, keep, attributes)
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
        reference = _real_features(real, score, negative)
        for name, judged in models.items():
            numbers[f"fid_cls_{name}"] = frechet(reference, judged.features)
        numbers["real_images"] = len(reference)
    numbers.update(n=n, seed=seed, features=_feature_source(classifier))
    classes = list(classifier.classes) if classifier is not None else []
    return Evaluation(numbers, models, before.image_range, classes, negative)
