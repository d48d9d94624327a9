"""Judges on pixels of images whose classes are known."""

from __future__ import annotations

import pytest
import torch

from atu.evaluation.judged import verdicts_of
from atu.evaluation.pixels import KINDS, pixel_judge
from atu.gan import GAN
from atu.judging.finding import rule_of


def images(n, seed):
    """Bars at one of three places, on noise."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    x = torch.randn(n, 1, 9, 9, generator=rng) * 0.3 - 1
    x[torch.arange(n), 0, :, 3 * labels + 1] += 2
    return x, labels


@pytest.mark.parametrize("kind", KINDS)
def test_they_know_classes_and_their_own_errors(kind):
    judge = pixel_judge(kind, images(90, 0), images(60, 1), ["a", "b", "c"])
    assert judge.confusion.sum() == 60
    assert float(judge.confusion.diagonal().sum()) >= 57
    x, labels = images(30, 2)
    logits, features = judge.logits_and_features(x)
    assert float((logits.argmax(1) == labels).float().mean()) >= 0.9
    assert torch.equal(features, x.flatten(1))
    pair = GAN(torch.nn.Sequential(torch.nn.Linear(4, 81), torch.nn.Unflatten(1, (1, 9, 9))), latent_dim=4)
    rule = rule_of(judge, pair, ["b"])
    assert rule.name == f"{kind} on pixels" and rule.slope is None
    assert rule.errors.negatives == 20
    verdicts = verdicts_of(rule, pair)(x)
    assert torch.equal(verdicts.negative, logits.argmax(1) == 1) and torch.equal(verdicts.negative, rule(x))


def test_unknown_kinds_and_missing_packages(monkeypatch):
    with pytest.raises(ValueError, match="one of knn, svm, got 'tree'"):
        pixel_judge("tree", images(9, 0), images(9, 1), ["a", "b", "c"])
    monkeypatch.setitem(__import__("sys").modules, "sklearn.decomposition", None)
    with pytest.raises(ImportError, match="scikit-learn"):
        pixel_judge("knn", images(9, 0), images(9, 1), ["a", "b", "c"])
