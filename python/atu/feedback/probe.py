"""The probe that stands in where there is no oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.samples import Samples, read
from ..gan import GAN
from ..measures.features import Whitening, kinds, sample_features

REFERENCE = 2000  # unlabelled samples that whitening is fitted on
MOST = 2000  # negatives, and good samples, that it is fitted on, evenly spread
SURE = 2.0  # log-odds of a held-out answer from which on it contradicts a mark
ENOUGH = 50  # negatives from which on those that the others contradict are left out: slips, most of them
FOLDS = 5


class Probe:
    """Light logistic probe on what tells samples apart (`sample_features`), in place of an oracle.

    Positive-unlabelled learning: the negatives against good samples, where some are known, and generated samples of
    unknown kind. Of those the ones that look negative are left out, and the probe is fitted again (two-step method of
    Liu et al., ICDM 2003). Negatives that the others contradict are left out likewise.

    Args:
        negatives, unlabelled, good: features (`sample_features`) [N, F], [M, F], [K, F]. recall: share of the held-out
            negatives to be recognised, at least; more are where that takes no more than even odds, as marks that were
            chosen by what they look like are easier than others.

    Attributes:
        marks: of the held-out marks, how many negatives it recognised (recognised, of) and how many good ones it took
            for negative (alarms, of_good); contradicted: negatives that were left out.
    """

    def __init__(
        self,
        gan: GAN,
        negatives: Tensor,
        unlabelled: Tensor,
        recall: float,
        good: Tensor | None = None,
        rounds: int = 3,
    ):
        self.gan = gan
        reference = torch.cat([unlabelled[:REFERENCE], negatives])
        self.whiten = Whitening(reference, components=64, kinds=kinds(gan, reference))
        marked, unknown = self.whiten(negatives).float(), self.whiten(unlabelled).float()
        fine = marked[:0] if good is None else self.whiten(good).float()
        keep = torch.ones(len(unknown), dtype=torch.bool)
        agreed = torch.ones(len(marked), dtype=torch.bool)
        for _ in range(rounds):
            zeros = torch.cat([unknown[keep], fine])
            scores = _held_out_negatives(marked, agreed, zeros)
            agreed = _agreed(scores)
            self.threshold = min(float(torch.quantile(scores[agreed], 1 - recall)), 0.0)
            self.weight = fit_logistic(marked[agreed], zeros)
            keep = self._passed(unknown, self.weight)
        others = _held_out(fine, lambda seen: fit_logistic(marked[agreed], torch.cat([unknown[keep], fine[seen]])))
        unseen = _held_out(marked, lambda seen: self._fit_anew(marked[seen], unknown, fine, rounds))
        self.marks = dict(
            recognised=int((unseen >= self.threshold).sum()),
            of=len(marked),
            alarms=int((others >= self.threshold).sum()),
            of_good=len(fine),
            contradicted=int((~agreed).sum()),
        )

    def _fit_anew(self, marked: Tensor, unknown: Tensor, fine: Tensor, rounds: int) -> Tensor:
        """Weights from some of the negatives alone: what is left out of the unknown follows from these, too."""
        keep = torch.ones(len(unknown), dtype=torch.bool)
        for _ in range(rounds):
            weight = fit_logistic(marked, torch.cat([unknown[keep], fine]))
            keep = self._passed(unknown, weight)
        return weight

    def _passed(self, unknown: Tensor, weight: Tensor) -> Tensor:
        """Which of the unlabelled samples count as good: all where nearly none would, as the weights cannot tell."""
        keep = logit(unknown, weight) < self.threshold
        return keep if keep.sum() >= max(len(unknown) // 4, 2) else torch.ones_like(keep)

    def judge(self, features: Tensor) -> Tensor:
        """Bools [N] for features (`sample_features`) [N, F]."""
        return logit(self.whiten(features).float(), self.weight) >= self.threshold

    def __call__(self, x: Tensor) -> Tensor:
        return self.judge(_features(self.gan, x.split(self.gan.fitting(100))))


def _features(gan: GAN, batches: Iterable[Tensor]) -> Tensor:
    """As `sample_features`, in the training's precision: a run's probe passes over samples in every step."""
    with gan.autocast():
        return sample_features(gan, batches)


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
    """Which negatives the others do not contradict, by their held-out scores; all where that would say little."""
    agreed = scores > -SURE
    usable = len(scores) >= ENOUGH and int(agreed.sum()) > len(scores) // 2
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
    features, company = [], torch.empty(0)
    for part in pool.split(gan.fitting(100)) if isinstance(pool, Tensor) else pool:
        company = company if len(company) else part
        features.append(_features(gan, [part]))
    known = None if good is None or not len(good) else amid(gan, good, company)
    return Probe(gan, amid(gan, negatives, company), torch.cat(features), recall, known)


def amid(gan: GAN, samples: Samples, company: Tensor) -> Tensor:
    """Features [N, F] of samples, evenly spread ones where there are more than `MOST`, each amid three generated ones.

    A discriminator that looks at the spread of a batch (minibatch standard deviation) tells a batch of negatives by
    their being alike, which single ones among other samples are not.
    """
    rng = torch.Generator().manual_seed(0)
    index = torch.linspace(0, len(samples) - 1, min(len(samples), MOST)).long()
    features = []
    for part in index.split(max(gan.fitting(100) // 4, 1)):
        x = read(samples, part).to(company.device)
        order = torch.randperm(4 * len(x), generator=rng)
        others = company[torch.randint(len(company), (3 * len(x),), generator=rng)]
        features.append(_features(gan, [torch.cat([x, others])[order]])[order.argsort()[: len(x)]])
    return torch.cat(features)
