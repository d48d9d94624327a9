"""A probe is a fitted rule: it stands in where there is no oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Feedback
from ..data.samples import Samples, TensorSamples, as_samples, read
from ..gan import GAN
from ..measures.features import DiscriminatorFeatures, Whitening, kinds
from ..support import progress
from ..support.seeding import Stream, stream_seed
from .places import marked_samples
from .pool import pool_size
from .rule import Rule

WHITENED_ON = 2000  # unlabelled samples
MAX_PROBE_SAMPLES = 2000  # negatives, and good samples, that it is fitted on, evenly spread
CONTRADICTED = 2.0  # log odds of a held-out answer from which on it contradicts a mark
MANY_NEGATIVES = 50  # from which on those that the others contradict are left out: slips, most of them
FOLDS = 5


@dataclass(frozen=True, eq=False, kw_only=True)
class Probe(Rule):
    """Logistic regression on what tells samples apart (`DiscriminatorFeatures.to_tell_apart`).

    Attributes:
        whiten, weight, threshold: features [N, F] are unwanted where the log odds of the whitened ones, by the weights
            [F + 1], reach the threshold.
        marks: counts of the held-out marks: negatives that it recognised (recognised, of), good ones that it took for
            negative (alarms, of_good), and negatives that were left out (contradicted).
    """

    whiten: Whitening
    weight: Tensor
    threshold: float
    marks: Mapping[str, int]

    def log_odds(self, features: Tensor) -> Tensor:
        """Log odds [N] for features [N, F]."""
        return logit(self.whiten(features).float(), self.weight)

    def calls(self, features: Tensor) -> Tensor:
        """bool [N] for features [N, F]."""
        return self.log_odds(features) >= self.threshold


def fit_on_features(
    of: DiscriminatorFeatures,
    negatives: Tensor,
    unlabelled: Tensor,
    recall: float,
    good: Tensor | None = None,
    rounds: int = 3,
) -> Probe:
    """A probe fitted on features `of` samples, [N, F], [M, F], [K, F].

    Positive-unlabelled learning: the negatives against good samples, where some are known, and generated samples of
    unknown kind. Those that look negative are left out, and the probe is fitted again (two-step method of Liu et al.,
    ICDM 2003). Negatives that the others contradict are left out likewise.

    Args:
        recall: share of the held-out negatives to be recognised, at least; more are where that takes no more than even
            odds, as marks that were chosen by what they look like are easier than others.
    """
    reference = torch.cat([unlabelled[:WHITENED_ON], negatives])
    whiten = Whitening(reference, components=64, kinds=kinds(of.gan, reference))
    marked, unknown = whiten(negatives).float(), whiten(unlabelled).float()
    fine = marked[:0] if good is None else whiten(good).float()
    keep = torch.ones(len(unknown), dtype=torch.bool)
    agreed = torch.ones(len(marked), dtype=torch.bool)
    for _ in range(rounds):
        zeros = torch.cat([unknown[keep], fine])
        scores = _held_out_negatives(marked, agreed, zeros)
        agreed = _agreed(scores)
        threshold = min(float(torch.quantile(scores[agreed], 1 - recall)), 0.0)
        weight = fit_logistic(marked[agreed], zeros)
        keep = _passed(unknown, weight, threshold)

    def fit_anew(some: Tensor) -> Tensor:
        """Weights from some of the negatives alone: what is left out of the unknown follows from these, too."""
        passed = torch.ones(len(unknown), dtype=torch.bool)
        for _ in range(rounds):
            weights = fit_logistic(some, torch.cat([unknown[passed], fine]))
            passed = _passed(unknown, weights, threshold)
        return weights

    others = _held_out(fine, lambda seen: fit_logistic(marked[agreed], torch.cat([unknown[keep], fine[seen]])))
    unseen = _held_out(marked, lambda seen: fit_anew(marked[seen]))
    marks = dict(
        recognised=int((unseen >= threshold).sum()),
        of=len(marked),
        alarms=int((others >= threshold).sum()),
        of_good=len(fine),
        contradicted=int((~agreed).sum()),
    )

    def score(x: Tensor) -> Tensor:
        return logit(whiten(_features(of, x.split(of.gan.fitting(100)))).float(), weight)

    return Probe(
        decide=lambda x: score(x) >= threshold,
        name="probe",
        score=score,
        slope=lambda x: logit(whiten(of.of_batch(x).cpu()).float(), weight),
        whiten=whiten,
        weight=weight,
        threshold=threshold,
        marks=marks,
    )


def _passed(unknown: Tensor, weight: Tensor, threshold: float) -> Tensor:
    """bool [N]: the unlabelled samples that count as good; all where nearly none would, as the weights cannot tell."""
    keep = logit(unknown, weight) < threshold
    return keep if keep.sum() >= max(len(unknown) // 4, 2) else torch.ones_like(keep)


def _features(of: DiscriminatorFeatures, batches: Iterable[Tensor]) -> Tensor:
    """Features in the training's precision: a run's probe passes over samples in every step."""
    with of.gan.autocast():
        return of.to_tell_apart(batches)


def _held_out(x: Tensor, fit: Callable[[Tensor], Tensor]) -> Tensor:
    """Log-odds [N] of x [N, F] by weights that `fit` gave for the others of them, bools [N]; 0 where there are none."""
    scores, folds = torch.zeros(len(x)), min(FOLDS, len(x))
    for fold in range(folds if folds > 1 else 0):
        held = torch.arange(len(x)) % folds == fold
        scores[held] = logit(x[held], fit(~held))
    return scores


def _held_out_negatives(marked: Tensor, agreed: Tensor, zeros: Tensor) -> Tensor:
    """Log-odds [N] of negatives by the others that are `agreed`, bools [N], against `zeros`."""
    return _held_out(marked, lambda seen: fit_logistic(marked[seen & agreed], zeros))


def _agreed(scores: Tensor) -> Tensor:
    """bool [N]: negatives that the others do not contradict, by held-out scores; all where that would say little."""
    agreed = scores > -CONTRADICTED
    usable = len(scores) >= MANY_NEGATIVES and int(agreed.sum()) > len(scores) // 2
    return agreed if usable else torch.ones_like(agreed)


def logit(x: Tensor, weight: Tensor) -> Tensor:
    """Log odds [N] of features [N, F] for weights [F + 1], the bias last."""
    return x @ weight[:-1] + weight[-1]


def fit_logistic(ones: Tensor, zeros: Tensor, decay: float = 1e-2) -> Tensor:
    """Class-balanced logistic regression with L2 decay; weights [F + 1], the bias last."""
    weight = ones.new_zeros(ones.shape[1] + 1).requires_grad_(True)
    optim = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optim.zero_grad()
        value = F.softplus(-logit(ones, weight)).mean() + F.softplus(logit(zeros, weight)).mean()
        value = value + decay * weight[:-1].square().sum()
        value.backward()
        return value

    optim.step(loss)
    return weight.detach()


def fit_probe(
    gan: GAN, negatives: Samples, pool: Tensor | Iterable[Tensor], recall: float, good: Samples | None = None
) -> Probe:
    """Probe that tells `negatives` from generated samples `pool`, [N, ...] or batches of them, and from `good` ones."""
    of, features, company = DiscriminatorFeatures(gan), [], torch.empty(0)
    for part in pool.split(gan.fitting(100)) if isinstance(pool, Tensor) else pool:
        company = company if len(company) else part
        features.append(_features(of, [part]))
    fine = None if good is None or not len(good) else amid(of, good, company)
    return fit_on_features(of, amid(of, negatives, company), torch.cat(features), recall, fine)


def probe_of(
    gan: GAN,
    negatives: Any,
    recall: float | None = None,
    seed: int = 0,
    resize: bool = False,
    samples: int = 2000,
    good: Samples | None = None,
) -> Probe:
    """A probe that tells negatives (as `atu.unlearn` takes them) from samples of the GAN, on latents that no run uses.

    Args:
        recall: share of the held-out negatives to be recognised; that of the settings when not given.
        resize: as of `atu.unlearn`.
        samples: how many generated ones it is fitted on.
        good: samples that are not negative; those of the folder of marks, where the negatives are one.
    """
    marked, beside = marked_samples(gan, negatives, "negatives", resize)
    if beside is not None and good is None:
        good = as_samples(beside, gan.sample_shape, gan.image_range, "good", gan.c_dim, resize=resize)
    pool = progress.track("probe", gan.batches(samples, stream_seed(seed, Stream.EVALUATION_PROBE)), samples)
    return fit_probe(gan, marked, pool, Feedback().recall if recall is None else recall, good)


def with_slope(rule: Rule, gan: GAN, seed: int = 0, samples: int = 2000) -> Rule:
    """The rule, with the log odds of a probe as its slope where it has none. The probe is fitted on the rule's answers.

    Raises:
        ValueError: the rule calls none, or all, of the GAN's samples unwanted.
    """
    if rule.slope is not None:
        return rule
    samples = pool_size(gan, samples)
    x = gan.sample(samples, seed=stream_seed(seed, Stream.ATTACK_PROBE))
    flags = torch.cat([rule(part) for part in x.split(250)])
    if not 0 < int(flags.sum()) < samples:
        raise ValueError(
            f"goal: expected a rule that calls some of the original's samples negative, got {int(flags.sum())} of "
            f"{samples:,}"
        )
    probe = fit_probe(gan, TensorSamples(x.cpu()[flags]), x.cpu(), Feedback().recall)
    return replace(rule, slope=probe.slope)


def amid(of: DiscriminatorFeatures, samples: Samples, company: Tensor) -> Tensor:
    """Features [N, F] of samples, each amid three generated ones; `MAX_PROBE_SAMPLES`, evenly spread, of more.

    A discriminator that looks at the spread of a batch (minibatch standard deviation) tells a batch of negatives by
    their being alike, which single ones among other samples are not.
    """
    rng = torch.Generator().manual_seed(0)
    index = torch.linspace(0, len(samples) - 1, min(len(samples), MAX_PROBE_SAMPLES)).long()
    features = []
    for part in index.split(max(of.gan.fitting(100) // 4, 1)):
        x = read(samples, part).to(company.device)
        order = torch.randperm(4 * len(x), generator=rng)
        others = company[torch.randint(len(company), (3 * len(x),), generator=rng)]
        features.append(_features(of, [torch.cat([x, others])[order]])[order.argsort()[: len(x)]])
    return torch.cat(features)
