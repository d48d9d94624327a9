"""Evaluation: what was unlearned, and at what cost to the rest.

Every model compared gets the same latents and noise; a GAN's EMA generator is taken where there is one; all networks
run in eval mode; images are clamped to the GAN's range and mapped to the classifier's. What is to be kept is compared
with the original's good samples of other latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..feedback.oracles import IsNegative
from ..gan import GAN
from ..measures.frechet import frechet
from ..measures.kid import kid
from ..measures.shares import histogram, share_of, total_variation, unlearning
from ..support.digest import sha256
from ..support.seeding import mix_seed
from .collateral import good_changed, kept_numbers, landing, tv_redistribution
from .judges import Judge, Judged, as_judge, judge_samples

Real = Tensor | tuple[Tensor, Tensor]


@dataclass
class Evaluation:
    """numbers: what report.json holds. models: by name, `before` and `after` among them. sha256: of the weights of
    `before` and `after`."""

    numbers: dict[str, Any]
    models: dict[str, Judged]
    image_range: tuple[float, float]
    classes: list[str] = field(default_factory=list)
    negative_classes: list[int] = field(default_factory=list)
    sha256: dict[str, str] = field(default_factory=dict)


def evaluate(
    before: GAN,
    after: GAN | nn.Module,
    classifier: Any = None,
    negative_classes: Iterable[int | str] = (),
    real: Real | None = None,
    *,
    is_negative: IsNegative | None = None,
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
        classifier, negative_classes, is_negative: the judge; see `as_judge`. A classifier (any nn.Module that gives one
            logit a class will do) gives features and class histograms too; a rule that says yes or no, or negatives
            from which a probe is fitted, leave the features to the original's discriminator.
        real: images in `before.image_range`, [M, ...] or (images, labels [M]), for fid_cls.
        others: further generators to judge, by name (the adapted one).
        attributes: further yes/no questions, samples -> bool [N], whose shares are reported (attributes.py).
        keep: how many of the first samples are kept for grids.

    Returns:
        Evaluation; its numbers are pul, pul_ci95 (paired: see intervals.py), negatives_before, negatives_after,
        fid_cls_before, fid_cls_after, kid_cls_before, kid_cls_after (generated against real images without the class;
        None without real images), frechet_kept, kid_kept, precision_kept_after and the like with what chance gives (see
        `kept_numbers`), landing, good_changed, tv_kept (of the class shares among non-negative samples),
        tv_redistribution (see collateral.py), class_histogram_before, class_histogram_after, confident_before,
        confident_after (share judged with a confidence of 0.9 or more), attributes_before, attributes_after, n, seed,
        features.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    if n < 2:
        raise ValueError(f"n: expected at least 2 samples, got {n}")
    judge = as_judge(classifier, before, negative_classes, is_negative, seed)
    reference = None if real is None else _real_features(real, judge, before)
    final = after.sampling_generator if isinstance(after, GAN) else after
    generators = {"before": before.sampling_generator, **(others or {}), "after": final}
    models = {}
    for name, generator in generators.items():
        models[name] = judge_samples(before.batches(n, seed, batch_size, generator), judge.score, keep, attributes)
    first, last = models["before"], models["after"]
    numbers: dict[str, Any] = dict(unlearning(first.negative, last.negative))
    numbers["negatives"] = {name: int(judged.negative.sum()) for name, judged in models.items()}
    numbers.update(_real_numbers(reference, models))
    drawn = judge_samples(before.batches(n, mix_seed(seed, 996), batch_size), judge.score, shown=0)
    numbers.update(_collateral(drawn.features[~drawn.negative], first, last, judge))
    for name, judged in models.items():
        shares = {key: share_of(int(flags.sum()), n) for key, flags in judged.attributes.items()}
        numbers[f"attributes_{name}"] = shares or None
    numbers.update(_class_numbers(models, judge))
    numbers.update(n=n, seed=seed, features=judge.features)
    hashes = {"before": _weights(before), "after": _weights(after)}
    return Evaluation(numbers, models, before.image_range, list(judge.classes), list(judge.negative), hashes)


def _weights(model: GAN | nn.Module) -> str:
    modules = model.modules() if isinstance(model, GAN) else {"generator": model}
    return sha256({f"{name}.{key}": v for name, module in modules.items() for key, v in module.state_dict().items()})


def _real_features(real: Real, judge: Judge, gan: GAN) -> Tensor:
    """Features of the real images that are not negative: by their labels where classes are, else by the judge."""
    images, labels = real if isinstance(real, tuple) else (real, None)
    if tuple(images.shape[1:]) != gan.sample_shape:
        raise ValueError(f"real: expected samples of shape {list(gan.sample_shape)}, got {list(images.shape[1:])}")
    judged = judge_samples(images.split(500), judge.score, shown=0)
    drop = judged.negative
    if labels is not None and judge.negative:
        drop = torch.isin(labels, torch.tensor(list(judge.negative)))
    return judged.features[~drop]


def _real_numbers(reference: Tensor | None, models: Mapping[str, Judged]) -> dict[str, Any]:
    """Distances of each model to the real images that are not negative."""
    if reference is None:
        return dict(fid_cls_before=None, fid_cls_after=None, kid_cls_before=None, kid_cls_after=None)
    numbers: dict[str, Any] = {
        f"fid_cls_{name}": frechet(reference, judged.features) for name, judged in models.items()
    }
    numbers.update({f"kid_cls_{name}": kid(reference, judged.features) for name, judged in models.items()})
    return {**numbers, "real_images": len(reference)}


def _collateral(reference: Tensor, before: Judged, after: Judged, judge: Judge) -> dict[str, Any]:
    numbers = kept_numbers(reference, before.features[~before.negative], after.features[~after.negative])
    numbers["landing"] = landing(reference, before, after, judge.classes)
    numbers["good_changed"] = good_changed(before, after)
    numbers["tv_redistribution"] = tv_redistribution(before, after, judge.negative, len(judge.classes))
    return numbers


def _class_numbers(models: Mapping[str, Judged], judge: Judge) -> dict[str, Any]:
    """Histograms and confidence of each model, and how the kept classes' shares changed; None without classes."""
    if not judge.classes:
        return dict(class_histogram_before=None, class_histogram_after=None, tv_kept=None)
    numbers: dict[str, Any] = {}
    for name, judged in models.items():
        assert judged.labels is not None and judged.confidence is not None
        numbers[f"class_histogram_{name}"] = histogram(judged.labels, judge.classes)
        numbers[f"confident_{name}"] = float((judged.confidence >= 0.9).float().mean())
    kept = [models[name].labels[~models[name].negative] for name in ("before", "after")]  # type: ignore[index]
    numbers["tv_kept"] = total_variation(kept[0], kept[1], judge.negative, len(judge.classes))
    return numbers
