"""Evaluation: what was unlearned, and at what cost to the rest.

Every model compared gets the same latents and noise; a GAN's EMA generator is taken where there is one; all networks
run in eval mode; images are clamped to the GAN's range and mapped to the classifier's. What is to be kept is compared
with the original's good samples of other latents.

One judge gives every figure (`judge` says which); further ones count negatives beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..data.images import to_range, to_uint8
from ..gan import GAN
from ..judging.classifier import Classifier
from ..judging.finding import rule_of
from ..judging.probe import Probe
from ..judging.rule import Rule
from ..measures.extractors import Extractor
from ..measures.frechet import frechet
from ..measures.intervals import difference
from ..measures.kid import kid
from ..measures.prevalence import Errors, corrected_unlearning
from ..measures.shares import Share, histogram, share_of, unlearning
from ..support import progress
from ..support.digest import sha256
from ..support.modules import state_of
from ..support.seeding import Stream, stream_seed
from .collateral import SURE, MovedByAPixel, good_changed, kept, landing
from .figures import Distances, Figures, JudgeFigures, MetricFigure, ModelFigures, OverRemoval
from .judged import Judged, feature_source, judge_samples, verdicts_of
from .metrics import compute, description, load_metrics

Real = Tensor | tuple[Tensor, Tensor]
Judges = dict[str, Rule]
COMPARED = ("before", "after", "retrained")  # the models that every judge is asked about


@dataclass(frozen=True)
class RealFeatures:
    """Features of the real images that are not negative: the judge's, and those of further networks."""

    features: Tensor
    extracted: dict[str, Tensor]


@dataclass(frozen=True)
class Original:
    """What is the same beside any `after`. judged: the original's samples of the latents compared. drawn: of others.
    by_a_pixel: see collateral.py; None where it was not asked. real: None without real images."""

    judged: Judged
    drawn: Judged
    by_a_pixel: Share | None
    real: RealFeatures | None


@dataclass
class Evaluation:
    """models: by name, `before` and `after` among them. original: for a further comparison with `before`. sha256: of
    the weights of `before` and `after`."""

    figures: Figures
    models: dict[str, Judged]
    original: Original
    image_range: tuple[float, float]
    classes: list[str] = field(default_factory=list)
    negative_classes: list[int] = field(default_factory=list)
    sha256: dict[str, str] = field(default_factory=dict)


def evaluate(
    before: GAN,
    after: GAN | nn.Module,
    judge: Any,
    classes: Iterable[int | str] = (),
    real: Real | None = None,
    *,
    others: Mapping[str, nn.Module] | None = None,
    attributes: Mapping[str, Rule | Callable[[Tensor], Tensor]] | None = None,
    judges: Mapping[str, Any] | None = None,
    answered: Iterable[str] | bool | None = (),
    retrained: GAN | nn.Module | None = None,
    extractors: Mapping[str, Extractor] | None = None,
    n: int = 10_000,
    seed: int = 0,
    batch_size: int | None = None,
    keep: int = 512,
    original: Original | None = None,
) -> Evaluation:
    """Compare a GAN before and after unlearning on n fixed latents.

    Args:
        before, after: the GANs (of `after`, the generator that samples).
        judge: anything that says which samples are negative, see `rule_of`. A classifier gives features and class
            histograms too; with a rule that says yes or no, or with negatives, from which a probe is fitted, the
            features are those of the original's discriminator.
        classes: the negative ones, by name or index, of judges that are classifiers.
        real: images, uint8 or in `before.image_range`, [M, ...] or (images, labels [M]), for fid_cls.
        others: further generators to judge, by name (the adapted one).
        attributes: further yes/no questions, samples -> bool [N], whose shares are reported (attributes.py).
        judges: further judges by name, each as `rule_of` takes it.
        answered: names of the judges, the first among them, that answered during the run: oracles. True: the first did.
            None: it is not known.
        retrained: a GAN, or its generator, trained without the negatives: fewer negatives than it makes is
            over-removal. Judged like `others`, as "retrained".
        extractors: further feature networks by name (measures/extractors.py), for distances of their own.
        batch_size: samples at once; 250, or as many as fit in memory of big ones.
        keep: how many of the first samples are kept for grids.
        original: `Evaluation.original` of an earlier call with the same `before`, judges, real, attributes, extractors,
            n, seed, batch_size and keep: then neither it nor the real images are judged again.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    if n < 2:
        raise ValueError(f"n: expected at least 2 samples, got {n}")
    metrics = load_metrics()
    unwanted = tuple(classes)
    judge = rule_of(judge, before, unwanted, seed)
    further = _further(judges or {}, judge, before, unwanted, seed)
    asked_of = {name: rule_of(has, before) for name, has in (attributes or {}).items()}
    spoke = _spoke(answered, [judge.name, *further])
    if isinstance(retrained, GAN) and retrained.sample_shape != before.sample_shape:
        raise ValueError(
            f"retrained: expected samples of shape {list(before.sample_shape)}, got {list(retrained.sample_shape)}"
        )
    networks = {name: _of_range(network, before) for name, network in (extractors or {}).items()}
    batch_size = batch_size or before.fitting(250)
    if original is None:
        asked = dict(keep=keep, attributes=asked_of, judges=further)
        original = _original(before, judge, real, networks, n, seed, batch_size, **asked)
    generators = dict(others or {})
    if retrained is not None:
        generators["retrained"] = _generator(retrained)
    generators["after"] = _generator(after)
    models, look = {"before": original.judged}, verdicts_of(judge, before)
    for name, generator in generators.items():
        # A retrained GAN may take other latents.
        source = retrained if name == "retrained" and isinstance(retrained, GAN) else before
        batches = progress.track(f"evaluate {name}", source.batches(n, seed, batch_size, generator), n)
        compared = further if name in COMPARED else {}
        models[name] = judge_samples(batches, look, keep, asked_of, judges=compared, extractors=networks)
    first, last, drawn, known = models["before"], models["after"], original.drawn, _names(judge)
    reference = drawn.features[~drawn.negative]
    each, agreed = _judges_figures({judge.name: judge, **further}, models, spoke)
    figures = Figures(
        **vars(unlearning(first.negative, last.negative)),
        n=n,
        seed=seed,
        judge=judge.name,
        features=feature_source(judge, before),
        probe=dict(judge.marks) if isinstance(judge, Probe) else None,
        models={name: _model_figures(judged, judge, original.real) for name, judged in models.items()},
        judges=each,
        agreed=agreed,
        kept=kept(reference, first, last, judge.classes, len(known)),
        landing=landing(reference, first, last, known),
        good_changed=good_changed(first, last, original.by_a_pixel),
        real_images=None if original.real is None else len(original.real.features),
        distances={name: _distances(name, original.real, drawn, models) for name in networks},
        metrics={
            name: MetricFigure(value=compute(metric, name, first, last), description=description(metric))
            for name, metric in metrics.items()
        },
    )
    hashes = {"before": _weights(before), "after": _weights(after)}
    return Evaluation(figures, models, original, before.image_range, known, list(judge.classes), hashes)


def _original(
    gan: GAN,
    judge: Rule,
    real: Real | None,
    networks: Mapping[str, Extractor],
    n: int,
    seed: int,
    batch_size: int,
    **asked: Any,
) -> Original:
    """Of the GAN before unlearning. asked: further arguments of `judge_samples`, of the samples that are compared."""
    reference = None if real is None else _real_samples(real, judge, gan, networks)
    compared: Iterable[Tensor] = progress.track("evaluate before", gan.batches(n, seed, batch_size), n)
    look = verdicts_of(judge, gan)
    moved = MovedByAPixel(look)
    compared = moved.watch(compared) if len(gan.sample_shape) == 3 and judge.classifier is not None else compared
    judged = judge_samples(compared, look, extractors=networks, **asked)
    others = gan.batches(n, stream_seed(seed, Stream.KEPT_REFERENCE), batch_size)
    drawn = judge_samples(progress.track("evaluate reference", others, n), look, shown=0, extractors=networks)
    return Original(judged, drawn, moved.changed(judged), reference)


def _further(judges: Mapping[str, Any], first: Rule, gan: GAN, classes: tuple[int | str, ...], seed: int) -> Judges:
    if first.name in judges:
        raise ValueError(f"judges: {first.name} gives the figures already; give the further ones other names")
    knows = (Classifier, nn.Module)
    return {name: rule_of(one, gan, classes if isinstance(one, knows) else (), seed) for name, one in judges.items()}


def _names(judge: Rule) -> list[str]:
    """The classes that the judge knows."""
    return [] if judge.classifier is None else judge.classifier.classes


def _generator(model: GAN | nn.Module) -> nn.Module:
    return model.sampling_generator if isinstance(model, GAN) else model


def _of_range(network: Extractor, gan: GAN) -> Extractor:
    """The features of samples in the GAN's range."""
    return lambda x: network(to_uint8(x, gan.image_range).cpu())


def _weights(model: GAN | nn.Module) -> str:
    modules = model.modules() if isinstance(model, GAN) else {"generator": model}
    return sha256({f"{name}.{key}": v for name, module in modules.items() for key, v in state_of(module).items()})


def _real_samples(real: Real, judge: Rule, gan: GAN, networks: Mapping[str, Extractor]) -> RealFeatures:
    """Of the real images that are not negative: by their labels where classes are, else by the judge."""
    images, labels = real if isinstance(real, tuple) else (real, None)
    if tuple(images.shape[1:]) != gan.sample_shape:
        raise ValueError(f"real: expected samples of shape {list(gan.sample_shape)}, got {list(images.shape[1:])}")
    parts = (to_range(part, gan.image_range) for part in images.split(gan.fitting(500)))
    judged = judge_samples(parts, verdicts_of(judge, gan), shown=0, extractors=networks)
    drop = judged.negative
    if labels is not None and judge.classes:
        drop = torch.isin(labels, torch.tensor(judge.classes))
    # Shuffled: files come sorted by class, and some distances take the first so many.
    order = torch.randperm(len(drop), generator=torch.Generator().manual_seed(0))
    kept = order[~drop[order]]
    return RealFeatures(judged.features[kept], {name: found[kept] for name, found in judged.extracted.items()})


def _model_figures(judged: Judged, judge: Rule, real: RealFeatures | None) -> ModelFigures:
    n, classes = len(judged.negative), None
    if judge.classifier is not None and judged.labels is not None:
        classes = histogram(judged.labels, _names(judge))
    return ModelFigures(
        negatives=int(judged.negative.sum()),
        classes=classes,
        confident=None if judged.confidence is None else float((judged.confidence >= SURE).float().mean()),
        attributes={name: share_of(int(flags.sum()), n) for name, flags in judged.attributes.items()},
        fid_cls=None if real is None else frechet(real.features, judged.features),
        kid_cls=None if real is None else kid(real.features, judged.features),
    )


def _spoke(answered: Iterable[str] | bool | None, known: Sequence[str]) -> dict[str, bool | None]:
    """Of each judge whether it answered during the run; None where that is not known."""
    if answered is None:
        return dict.fromkeys(known)
    names = known[:1] if answered is True else list(answered or ())
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"answered: expected names of judges ({', '.join(known)}), got {unknown[0]!r}")
    return {name: name in names for name in known}


def _judges_figures(
    judges: Judges, models: Mapping[str, Judged], spoke: Mapping[str, bool | None]
) -> tuple[dict[str, JudgeFigures], JudgeFigures | None]:
    """What each says; and what those say with one voice that are known not to have answered, as an oracle of the run
    may be fooled: None with fewer than two of them."""
    compared = {name: models[name] for name in COMPARED if name in models}
    said = {
        judge: {name: model.verdicts.get(judge, model.negative) for name, model in compared.items()} for judge in judges
    }
    blind = [said[judge] for judge in judges if spoke[judge] is False]
    agreed = None
    if len(blind) > 1:
        unanimous = {name: torch.stack([verdicts[name] for verdicts in blind]).all(0) for name in compared}
        agreed = judge_figures(unanimous, None, None)
    return {name: judge_figures(said[name], judge.errors, spoke[name]) for name, judge in judges.items()}, agreed


def judge_figures(verdicts: Mapping[str, Tensor], errors: Errors | None, answered: bool | None) -> JudgeFigures:
    """What one judge says, or several with one voice.

    Args:
        verdicts: bool [n] of the same latents under `before`, `after` and, where there is one, `retrained`.
        errors: the judge's on held-out real samples, where they are known.
        answered: whether it was an oracle of the run; None where that is not known.
    """
    before, after = verdicts["before"], verdicts["after"]
    counts = int((before & after).sum()), int(before.sum()), int(after.sum()), len(before)
    return JudgeFigures(
        **vars(unlearning(before, after)),
        answered=answered,
        sensitivity=None if errors is None else share_of(errors.hits, errors.negatives),
        specificity=None if errors is None else share_of(errors.passed, errors.others),
        held_out=None if errors is None else errors.negatives + errors.others,
        corrected=None if errors is None else corrected_unlearning(*counts, errors),
        over_removal=_over_removal(verdicts),
    )


def _over_removal(verdicts: Mapping[str, Tensor]) -> OverRemoval | None:
    if "retrained" not in verdicts:
        return None
    n, left, made = len(verdicts["after"]), int(verdicts["after"].sum()), int(verdicts["retrained"].sum())
    interval = difference(left, n, made, n)
    return OverRemoval(
        retrained=share_of(made, n), difference=(left - made) / n, difference_ci95=interval, fewer=interval[1] < 0
    )


def _distances(network: str, real: RealFeatures | None, drawn: Judged, models: Mapping[str, Judged]) -> Distances:
    first, last = (models[name].extracted[network][~models[name].negative] for name in ("before", "after"))
    reference, size = drawn.extracted[network][~drawn.negative], min(len(first), len(last))
    samples = {} if real is None else {name: model.extracted[network] for name, model in models.items()}
    images = torch.empty(0) if real is None else real.extracted[network]
    return Distances(
        frechet=frechet(reference, last[:size]),
        frechet_chance=frechet(reference, first[:size]),
        kid=kid(reference, last[:size]),
        kid_chance=kid(reference, first[:size]),
        real_fid={name: frechet(images, x) for name, x in samples.items()},
        real_kid={name: kid(images, x) for name, x in samples.items()},
    )
