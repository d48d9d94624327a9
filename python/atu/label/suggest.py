"""What a probe, fitted on the marks, says of them and of the samples that are not marked yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..judging.probe import CONTRADICTED, FOLDS, fit_logistic, logit
from ..measures.intervals import wilson

ROW = 24  # samples in a row of suggestions
MOST = 2000  # marks of each kind that the probe is fitted on: the last ones
FEWEST = 3  # of each kind, for a probe
ENOUGH_GOOD = 10  # below, samples that are not marked stand in for good ones
ADVISED = 100  # of each kind
SAME = 0.2  # distance of near-duplicates, in typical distances of two samples
SETTLED = 0.03  # spread of the held-out recall that counts as none


@dataclass
class Probe:
    """Weights, and what held-out marks say of them.

    recall, specificity: (right, of) among held-out unwanted and good marks. contradictions: positions of marks that
    the others contradict. duplicates: positions of marks that another is nearly the same as.
    """

    weight: Tensor
    recall: tuple[int, int]
    specificity: tuple[int, int]
    contradictions: list[int] = field(default_factory=list)
    duplicates: list[int] = field(default_factory=list)

    def score(self, features: np.ndarray) -> np.ndarray:
        """Log odds [n] of unwanted against good, for features [n, F]."""
        return logit(torch.from_numpy(features), self.weight).numpy()


def fit(features: np.ndarray, unwanted: np.ndarray, others: np.ndarray) -> Probe | None:
    """A probe on marks; None while there are too few of them.

    Args:
        features: float32 [n, F], whitened. unwanted: bool [n]. others: float32 [m, F] of samples that are not marked.
    """
    x, y = torch.from_numpy(features), torch.from_numpy(unwanted)
    good = int((~y).sum())
    if int(y.sum()) < FEWEST or good + len(others) < FEWEST:
        return None
    extra = torch.from_numpy(others) if good < ENOUGH_GOOD else x[:0]
    scores = torch.zeros(len(x))
    fold = torch.zeros(len(x), dtype=torch.long)
    for kind in (y, ~y):  # each kind is spread over the folds
        fold[kind] = torch.arange(int(kind.sum())) % FOLDS
    for k in range(FOLDS):
        held = fold == k
        if held.any():
            scores[held] = logit(x[held], fit_logistic(x[~held & y], torch.cat([x[~held & ~y], extra])))
    weight = fit_logistic(x[y], torch.cat([x[~y], extra]))
    against = torch.where(y, -scores, scores)
    order = against.argsort(descending=True)
    return Probe(
        weight,
        recall=(int((scores[y] > 0).sum()), int(y.sum())),
        specificity=(int((scores[~y] <= 0).sum()), good),
        contradictions=[int(i) for i in order if against[i] > CONTRADICTED] if good >= ENOUGH_GOOD else [],
        duplicates=near_duplicates(features),
    )


def near_duplicates(features: np.ndarray) -> list[int]:
    """Positions of samples that an earlier one is nearly the same as. Whitened features: two samples lie about
    sqrt(2 F) apart."""
    x = torch.from_numpy(features)
    if len(x) < 2:
        return []
    limit = SAME * (2 * x.shape[1]) ** 0.5
    near = torch.cdist(x, x) < limit
    return near.tril(-1).any(1).nonzero().flatten().tolist()


def highest(scores: np.ndarray, free: np.ndarray, n: int = ROW) -> list[int]:
    """Indices of the samples that score highest, of those that are `free`."""
    index = np.flatnonzero(free)
    return index[np.argsort(-scores[index], kind="stable")][:n].tolist()


def likely(scores: np.ndarray, free: np.ndarray, n: int = ROW) -> list[int]:
    """Indices of samples that are likely unwanted, of those that are `free`: the first of the likelier half, a random
    draw of it, as samples are independent. Those that score highest resemble what is marked already, and teach little.
    """
    unwanted = free & (scores > 0)
    return sorted(highest(scores, unwanted, max(int(unwanted.sum()) // 2, n)))[:n]


def unsure(scores: np.ndarray, free: np.ndarray, n: int = ROW) -> list[int]:
    """Indices of the samples that the probe can tell least about."""
    index = np.flatnonzero(free)
    return index[np.argsort(np.abs(scores[index]), kind="stable")][:n].tolist()


def agreement(count: tuple[int, int]) -> dict[str, Any]:
    """A share (right, of) with its 95 % interval."""
    low, high = wilson(*count)
    return dict(right=count[0], of=count[1], share=count[0] / count[1] if count[1] else None, low=low, high=high)


def settled(history: list[tuple[int, float]]) -> bool:
    """Whether the recall on held-out marks has stopped to move: (marks, recall) of each fit.

    Judged over the last 30 marks, from 60 marks on.
    """
    if not history or history[-1][0] < 60:
        return False
    recent = [recall for marks, recall in history if marks >= history[-1][0] - 30]
    before = [marks for marks, _ in history if marks <= history[-1][0] - 30]
    return bool(before) and len(recent) >= 3 and max(recent) - min(recent) <= SETTLED


def advice(counts: dict[str, int], steady: bool) -> str:
    """One sentence: what to do next."""
    unwanted, good = counts["unwanted"], counts["good"]
    if steady and min(unwanted, good) >= 30:
        return "The held-out agreement has settled: more marks will change little. You can stop here."
    if unwanted == 0:
        return "Mark a few samples that must go, then a few that are fine."
    if good == 0:
        return "Now mark some that are fine, the close calls above all."
    if min(unwanted, good) < ADVISED:
        return f"About {ADVISED} of each are advised; a dozen of each work."
    return "Enough for a run. Look through Unsure for what the probe cannot tell."
