"""The figures of a comparison, as report.json holds them: what is gone, and what it cost.

`_chance`: the same of the original's own good samples in the place of the unlearned GAN's. ci95: bounds of the 95 %
interval.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..measures.prevalence import Corrected
from ..measures.shares import Share, Unlearning


@dataclass(frozen=True, kw_only=True)
class ModelFigures:
    """One model's n samples.

    classes: share of each; confident: of those judged with a confidence of 0.9 or more; None without classes.
    attributes: share of each. fid_cls, kid_cls: in the judge's features, from the real images that are not negative;
    None without real images.
    """

    negatives: int
    classes: dict[str, Share] | None
    confident: float | None
    attributes: dict[str, Share]
    fid_cls: float | None
    kid_cls: float | None


@dataclass(frozen=True, kw_only=True)
class OverRemoval:
    """Beside a GAN that was trained without the negatives: the share that it makes, the unlearned GAN's less that, and
    whether the unlearned GAN certainly makes fewer."""

    retrained: Share
    difference: float
    difference_ci95: tuple[float, float]
    fewer: bool


@dataclass(frozen=True, kw_only=True)
class JudgeFigures(Unlearning):
    """What one judge says, or several with one voice.

    answered: whether it was an oracle of the run; None where that is not known. sensitivity, specificity: on held_out
    real samples; corrected: by them; None where they are not known. over_removal: None without a retrained GAN.
    """

    answered: bool | None
    sensitivity: Share | None
    specificity: Share | None
    held_out: int | None
    corrected: Corrected | None
    over_removal: OverRemoval | None


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The unlearned GAN's good samples beside the original's good samples of other latents.

    frechet, kid: distances of the features. precision, recall, density, coverage: by k nearest neighbours. compared,
    reference: how many of each. tv: total variation of the kept classes' shares, None without classes.
    `_redistribution`: what the landing of the negatives alone explains of it.
    """

    frechet: float | None
    frechet_chance: float | None
    frechet_redistribution: float | None
    kid: float | None
    kid_chance: float | None
    precision: float | None
    precision_chance: float | None
    recall: float | None
    recall_chance: float | None
    density: float | None
    density_chance: float | None
    coverage: float | None
    coverage_chance: float | None
    compared: int
    reference: int
    tv: float | None
    tv_redistribution: float | None


@dataclass(frozen=True, kw_only=True)
class Landing:
    """What the latents give now whose original sample was negative.

    latents: how many. still_negative: of them. compared: how many of the others are compared with good samples of the
    original. transitions: class before, class after, count, of all of them; None without classes. sure: share of those
    compared of whose class the judge is sure; None with two classes or none. What lies between two classes, or is half
    of one, `precision` passes. Even a perfect outcome has a Frechet distance above chance: it lands on some classes.
    """

    latents: int
    still_negative: int
    compared: int
    transitions: dict[str, dict[str, int]] | None
    frechet: float | None
    frechet_chance: float | None
    precision: float | None
    precision_chance: float | None
    density: float | None
    density_chance: float | None
    sure: float | None
    sure_chance: float | None


@dataclass(frozen=True, kw_only=True)
class SureChanged(Share):
    """Of the good samples of whose class before the judge was sure (`of` many), those that changed."""

    of: int


@dataclass(frozen=True, kw_only=True)
class GoodChanged(Share):
    """Good samples of another class now. by_a_pixel: original ones that a shift of one pixel changes; None where the
    samples are no images."""

    sure: SureChanged
    by_a_pixel: Share | None


@dataclass(frozen=True, kw_only=True)
class Distances:
    """In the features of a further network: of what is kept, as in `Kept`; and of all samples of each model to the real
    ones that are not negative, empty without real images."""

    frechet: float | None
    frechet_chance: float | None
    kid: float | None
    kid_chance: float | None
    real_fid: dict[str, float | None]
    real_kid: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class MetricFigure:
    """Of another package (`atu.evaluation.metrics`). value: None where it is not finite."""

    value: float | None
    description: str


@dataclass(frozen=True, kw_only=True)
class Figures(Unlearning):
    """Of n fixed latents before and after, by one judge.

    features: whose, "classifier" or "discriminator". probe: counts on held-out marks (`Probe.marks`), where the judge
    is one. models: before and after, and others. judges: by name, the first too. agreed: what all of them call negative
    that did not answer; None where fewer than two are known not to have. landing: None where nothing was negative.
    good_changed: None without classes. real_images: those that are not negative. distances: by further network.
    """

    n: int
    seed: int
    judge: str
    features: str
    probe: dict[str, int] | None
    models: dict[str, ModelFigures]
    judges: dict[str, JudgeFigures]
    agreed: JudgeFigures | None
    kept: Kept
    landing: Landing | None
    good_changed: GoodChanged | None
    real_images: int | None
    distances: dict[str, Distances]
    metrics: dict[str, MetricFigure]
