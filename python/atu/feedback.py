"""The user's feedback: which samples are negative, and the positives built from that."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import config
from .adversarial import Samples
from .data import TensorSamples
from .features import Whitening, discriminator_features
from .gan import GAN, mix_seed

Judge = Callable[[Tensor], Tensor]


class Oracle:
    """Checks what the user's `is_negative` returns: bools [N] for samples [N, ...]."""

    def __init__(self, is_negative: Judge):
        if not callable(is_negative):
            raise TypeError(f"is_negative: expected a callable, got {type(is_negative).__name__}")
        self.is_negative = is_negative

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        answer = self.is_negative(x)
        if isinstance(answer, (np.ndarray, list, tuple)):
            answer = torch.as_tensor(answer)
        if not isinstance(answer, Tensor) or tuple(answer.shape) != (len(x),) or answer.dtype != torch.bool:
            got = f"{list(answer.shape)} {answer.dtype}" if isinstance(answer, Tensor) else type(answer).__name__
            raise ValueError(f"is_negative: expected a bool tensor [{len(x)}] for {len(x)} samples, got {got}")
        return answer.cpu()


class Probe:
    """Light logistic probe on the pretrained discriminator's penultimate features, in place of an oracle.

    Positive-unlabelled learning: the negatives against generated samples of unknown kind. Those that look negative are
    left out, and the probe is fitted again (two-step method of Liu et al., ICDM 2003).

    Args:
        negatives, unlabelled: features [N, F], [M, F]. recall: share of the held-out negatives to be recognised.
    """

    def __init__(self, gan: GAN, negatives: Tensor, unlabelled: Tensor, recall: float, rounds: int = 3):
        self.gan = gan
        self.whiten = Whitening(torch.cat([unlabelled, negatives]), components=64)
        marked, unknown = self.whiten(negatives).float(), self.whiten(unlabelled).float()
        keep = torch.ones(len(unknown), dtype=torch.bool)
        for _ in range(rounds):
            self.threshold = self._cross_threshold(marked, unknown[keep], recall)
            self.weight = _fit_logistic(marked, unknown[keep])
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
            scores[held] = _logit(marked[held], _fit_logistic(marked[~held], unknown))
        threshold = float(torch.quantile(scores, 1 - recall))
        # Too few for a quantile: unseen negatives often score below all of them. At 0 both classes are equally likely.
        return min(threshold, 0.0) if len(marked) < 20 else threshold

    def _score(self, whitened: Tensor) -> Tensor:
        return _logit(whitened, self.weight)

    def judge(self, features: Tensor) -> Tensor:
        """Bools [N] for discriminator features [N, F]."""
        return self._score(self.whiten(features).float()) >= self.threshold

    def __call__(self, x: Tensor) -> Tensor:
        return self.judge(discriminator_features(self.gan, x.split(100)))


def _logit(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight[:-1] + weight[-1]


def _fit_logistic(ones: Tensor, zeros: Tensor, decay: float = 1e-2) -> Tensor:
    """Class-balanced logistic regression with L2 decay; weights [F + 1], the bias last."""
    weight = torch.zeros(ones.shape[1] + 1, requires_grad=True)
    optim = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optim.zero_grad()
        value = F.softplus(-_logit(ones, weight)).mean() + F.softplus(_logit(zeros, weight)).mean()
        value = value + decay * weight[:-1].square().sum()
        value.backward()
        return value

    optim.step(loss)
    return weight.detach()


@dataclass
class Feedback:
    """What stage 2 needs to know.

    negatives, positives: samples. judge: samples [N, ...] -> bools [N]. is_oracle: whether judge is the user's own.
    negative_share: of the pretrained GAN's samples, by judge. notes: what was built and dropped, for the report.
    """

    negatives: Samples
    positives: Samples
    judge: Judge
    is_oracle: bool
    negative_share: float
    notes: dict[str, object]


def check_distinct(negatives: Samples, positives: Samples) -> None:
    """Raise ValueError when the positives are the negatives."""
    n = min(len(negatives), 64)
    if len(negatives) == len(positives):
        index = torch.arange(n)
        if torch.equal(negatives.batch(index), positives.batch(index)):
            raise ValueError("positives: expected samples other than the negatives, got the same ones")


def pool_size(gan: GAN, wanted: int, budget_bytes: int = 2**30) -> int:
    """How many samples to keep in memory at once: `wanted`, unless they take more than a GiB."""
    bytes_each = 4 * int(np.prod(gan.sample_shape))
    return max(min(wanted, budget_bytes // bytes_each), 64)


def build(
    gan: GAN, negatives: Samples, positives: Samples | None, oracle: Oracle | None, cfg: config.Feedback, seed: int
) -> Feedback:
    """Positives, and a judge of samples, from what the user gave (METHOD: positives are generated and not negative).

    Raises:
        ValueError: the oracle or the probe calls all of the generated samples negative.
    """
    size = pool_size(gan, cfg.pool)
    pool = torch.cat([part.cpu() for part in gan.batches(size, seed=mix_seed(seed, 1))])
    notes: dict[str, object] = {"pool": size}
    if oracle is not None:
        judge: Judge = oracle
        flags = torch.cat([oracle(part.to(gan.device)) for part in pool.split(100)])
    else:
        probe = fit_probe(gan, negatives, pool, cfg.recall)
        judge, flags = probe, probe(pool)
    share = float(flags.float().mean())
    notes["judge"] = "oracle" if oracle is not None else "probe"
    notes["negative_share"] = share
    if positives is None:
        if int((~flags).sum()) < 2:
            raise ValueError(
                f"positives: the {notes['judge']} calls {int(flags.sum())} of {size} generated samples negative, so "
                "none is left to learn from; give positives, or an is_negative that accepts some samples"
            )
        _, labels = gan.inputs(size, mix_seed(seed, 1))
        labels = None if labels is None else labels.cpu()
        positives = TensorSamples(pool[~flags], None if labels is None else labels[~flags])
        notes["positives"] = f"{len(positives)} generated samples, {int(flags.sum())} dropped as negative"
        if labels is not None:
            positives, filled = fill_labels(positives, labels, mix_seed(seed, 6))
            if filled:
                notes["labels_filled"] = {str(label): count for label, count in filled.items()}
        found = pool[flags]
        if oracle is not None and len(found) and isinstance(negatives, TensorSamples):
            notes["negatives_found"] = len(found)
            known = negatives.labels
            both = None if known is None or labels is None else torch.cat([known, labels[flags]])
            negatives = TensorSamples(torch.cat([negatives.tensor, found]), both)
    else:
        check_distinct(negatives, positives)
        notes["positives"] = f"{len(positives)} given"
    return Feedback(negatives, positives, judge, oracle is not None, share, notes)


def fill_labels(positives: TensorSamples, drawn: Tensor, seed: int) -> tuple[TensorSamples, dict[int, int]]:
    """Give labels that lost (nearly) all of their samples as negatives the samples of the other labels.

    Without positives of its own, nothing would tell the generator what to make of such a label.

    Args:
        positives: what was kept, with labels. drawn: labels [N, c_dim] of all samples, before any was dropped; nothing
            is done where they are not one-hot.

    Returns:
        The positives with the added ones, and how many were added by label. A label below a tenth of the samples drawn
        for it is filled up to their number.
    """
    assert positives.labels is not None
    if not ((drawn == 0) | (drawn == 1)).all() or not (drawn.sum(1) == 1).all():
        return positives, {}
    before, after = drawn.sum(0).long(), positives.labels.sum(0).long()
    lost = (after * 10 < before).nonzero().flatten().tolist()
    others = (positives.labels[:, lost].sum(1) == 0).nonzero().flatten()
    if not lost or len(others) == 0:
        return positives, {}
    rng = torch.Generator().manual_seed(seed)
    images, labels, added = [positives.tensor], [positives.labels], {}
    for label in lost:
        added[label] = count = int(before[label] - after[label])
        images.append(positives.tensor[others[torch.randint(len(others), (count,), generator=rng)]])
        labels.append(F.one_hot(torch.full((count,), label), drawn.shape[1]).to(drawn.dtype))
    return TensorSamples(torch.cat(images), torch.cat(labels)), added


def fit_probe(gan: GAN, negatives: Samples, pool: Tensor, recall: float) -> Probe:
    """Probe that tells `negatives` from the generated samples `pool`."""

    def batches(samples: Samples) -> Iterable[Tensor]:
        for index in torch.arange(len(samples)).split(100):
            yield samples.batch(index)

    marked = discriminator_features(gan, batches(negatives))
    return Probe(gan, marked, discriminator_features(gan, pool.split(100)), recall)
