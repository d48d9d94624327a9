"""The probe that stands in where there is no oracle."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.samples import Samples
from ..gan import GAN
from ..measures.features import Whitening, layer_features

REFERENCE = 2000  # unlabelled samples that whitening is fitted on


class Probe:
    """Light logistic probe on what the pretrained discriminator's layers take in, in place of an oracle.

    Positive-unlabelled learning: the negatives against generated samples of unknown kind. Those that look negative are
    left out, and the probe is fitted again (two-step method of Liu et al., ICDM 2003).

    Args:
        negatives, unlabelled: features (`layer_features`) [N, F], [M, F]. recall: share of the held-out negatives to be
            recognised.
    """

    def __init__(self, gan: GAN, negatives: Tensor, unlabelled: Tensor, recall: float, rounds: int = 3):
        self.gan = gan
        self.whiten = Whitening(torch.cat([unlabelled[:REFERENCE], negatives]), components=64)
        marked, unknown = self.whiten(negatives).float(), self.whiten(unlabelled).float()
        keep = torch.ones(len(unknown), dtype=torch.bool)
        for _ in range(rounds):
            self.threshold = self._cross_threshold(marked, unknown[keep], recall)
            self.weight = fit_logistic(marked, unknown[keep])
            keep = self._score(unknown) < self.threshold
            if keep.sum() < max(len(unknown) // 4, 2):  # nearly everything looks negative: the probe cannot tell
                keep = torch.ones(len(unknown), dtype=torch.bool)
                break

    @staticmethod
    def _cross_threshold(marked: Tensor, unknown: Tensor, recall: float, folds: int = 5) -> float:
        """Score below which 1 - recall of the negatives fall, when the probe has not seen them."""
        folds = min(folds, len(marked))
        if folds < 2:
            return 0.0
        scores = torch.empty(len(marked))
        for fold in range(folds):
            held = torch.arange(len(marked)) % folds == fold
            scores[held] = logit(marked[held], fit_logistic(marked[~held], unknown))
        threshold = float(torch.quantile(scores, 1 - recall))
        # Too few for a quantile: unseen negatives often score below all of them. At 0 both classes are equally likely.
        return min(threshold, 0.0) if len(marked) < 20 else threshold

    def _score(self, whitened: Tensor) -> Tensor:
        return logit(whitened, self.weight)

    def judge(self, features: Tensor) -> Tensor:
        """Bools [N] for features (`layer_features`) [N, F]."""
        return self._score(self.whiten(features).float()) >= self.threshold

    def __call__(self, x: Tensor) -> Tensor:
        return self.judge(layer_features(self.gan, x.split(self.gan.fitting(100))))


def logit(x: Tensor, weight: Tensor) -> Tensor:
    """Log odds [N] of features [N, F] for weights [F + 1], the bias last."""
    return x @ weight[:-1] + weight[-1]


def fit_logistic(ones: Tensor, zeros: Tensor, decay: float = 1e-2) -> Tensor:
    """Class-balanced logistic regression with L2 decay; weights [F + 1], the bias last."""
    weight = torch.zeros(ones.shape[1] + 1, requires_grad=True)
    optim = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optim.zero_grad()
        value = F.softplus(-logit(ones, weight)).mean() + F.softplus(logit(zeros, weight)).mean()
        value = value + decay * weight[:-1].square().sum()
        value.backward()
        return value

    optim.step(loss)
    return weight.detach()


def fit_probe(gan: GAN, negatives: Samples, pool: Tensor | Iterable[Tensor], recall: float) -> Probe:
    """Probe that tells `negatives` from the generated samples `pool`, [N, ...] or batches of them."""

    def batches(samples: Samples) -> Iterable[Tensor]:
        for index in torch.arange(len(samples)).split(gan.fitting(100)):
            yield samples.batch(index)

    marked = layer_features(gan, batches(negatives))
    parts = pool.split(gan.fitting(100)) if isinstance(pool, Tensor) else pool
    return Probe(gan, marked, layer_features(gan, parts), recall)
