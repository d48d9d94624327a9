"""What became of the rest, against cases counted by hand."""

from __future__ import annotations

import pytest
import torch

from atu.evaluation import collateral
from atu.evaluation.collateral import (
    MovedByAPixel,
    frechet_redistribution,
    good_changed,
    kept,
    landing,
    transitions,
    tv_redistribution,
)
from atu.evaluation.judged import Judged, Verdicts
from atu.measures.frechet import frechet
from atu.measures.manifold import manifold

CLASSES = ["a", "b", "c"]  # "b" is negative


def judged(labels, features=None):
    labels = torch.as_tensor(labels)
    features = torch.randn(len(labels), 2) if features is None else features
    return Judged(labels == 1, features, labels, torch.ones(len(labels)), torch.empty(0))


BEFORE = judged([1, 1, 1, 1, 0, 0, 0, 2, 2, 2])
AFTER = judged([0, 0, 2, 1, 0, 2, 0, 2, 2, 1])


def test_transitions_count_pairs():
    pairs = transitions(BEFORE.labels, AFTER.labels, CLASSES)
    assert pairs == {"a": {"a": 2, "c": 1}, "b": {"a": 2, "b": 1, "c": 1}, "c": {"b": 1, "c": 2}}


def test_good_latents_changed():
    found = good_changed(BEFORE, AFTER)
    assert (found.count, found.share) == (2, pytest.approx(2 / 6))  # one a to c, one c to b
    assert found.ci95[0] < found.share < found.ci95[1]
    unlabelled = Judged(BEFORE.negative, BEFORE.features, None, None, torch.empty(0))
    assert good_changed(unlabelled, unlabelled) is None


def test_good_latents_changed_of_whose_class_the_judge_was_sure():
    confidence = torch.tensor([1, 1, 1, 1, 0.95, 0.89, 0.9, 0.9, 0.5, 0.91])
    before = Judged(BEFORE.negative, BEFORE.features, BEFORE.labels, confidence, torch.empty(0))
    sure = good_changed(before, AFTER).sure
    assert (sure.count, sure.of, sure.share) == (1, 4, 0.25)  # a to c was not sure, c to b was


def test_images_on_a_boundary_change_when_they_are_moved_by_a_pixel(monkeypatch):
    """Three classes by the brightest column of seven; the first is negative. The edge comes in from the left."""

    def score(x):
        labels = x.mean((1, 2)).argmax(1) // 3
        return Verdicts(labels == 0, torch.zeros(len(x), 1), labels, torch.ones(len(x)))

    images = torch.zeros(9, 1, 2, 7)
    for image, column in zip(images, (0, 1, 2, 3, 4, 5, 5, 6, 6), strict=True):
        image[..., column] = 1
    images[7, ..., 5] = 0.5  # 6 comes to lie outside, and 5 where it was: still the third class; of 8 nothing is left
    negative, features, labels, confidence = score(images)
    before = Judged(negative, features, labels, confidence, torch.empty(0))

    def changed():
        moved = MovedByAPixel(score)
        assert torch.equal(torch.cat(list(moved.watch(images.split(4)))), images)  # they pass as they are
        return moved.changed(before)

    found = changed()
    # Good: columns 3 to 6. 5 goes to 6 and changes; the last is all dark, and so of the first class.
    assert (found.count, found.share) == (3, 0.5)
    # No more are moved than are needed, in whole batches.
    monkeypatch.setattr(collateral, "MOVED", 5)
    found = changed()
    assert (found.count, found.share) == (2, 0.4)
    assert MovedByAPixel(score).changed(before) is None  # nothing was watched


def test_redistribution_is_what_landing_alone_explains():
    # Before: a 3, c 3 of 6. Good latents as they were and 2 to a, 1 to c: a 5, c 4 of 9.
    assert tv_redistribution(BEFORE, AFTER, [1], 3) == pytest.approx(abs(3 / 6 - 5 / 9))
    unlabelled = Judged(BEFORE.negative, BEFORE.features, None, None, torch.empty(0))
    assert tv_redistribution(unlabelled, unlabelled, [], 0) is None


def test_distance_that_landing_alone_explains():
    """Of a, b, c at three places, b is unwanted and all of it lands on a: a mixture of two thirds a, one third c, whose
    mean and variance are known; what the samples there look like does not count."""
    n = 3000
    labels = torch.arange(n) % 3
    places = torch.tensor([[0.0], [50.0], [6.0]])
    before = judged(labels, places[labels])
    after = judged(torch.where(labels == 1, 0, labels), torch.randn(n, 1))
    reference = places[labels[labels != 1]]
    # a and c alike: mean 3, variance 9; two thirds of a: mean 2, variance 8
    assert frechet_redistribution(reference, before, after) == pytest.approx(1 + (3 - 8**0.5) ** 2, rel=1e-2)
    assert frechet_redistribution(reference, before, before) == pytest.approx(0, abs=1e-9)
    unlabelled = Judged(before.negative, before.features, None, None, torch.empty(0))
    assert frechet_redistribution(reference, unlabelled, unlabelled) is None


def test_landing_on_a_class_that_was_not_there_explains_nothing():
    after = judged([2] * 4 + [0] * 6)
    before = judged([1] * 4 + [0] * 6, torch.randn(10, 2))
    assert frechet_redistribution(before.features[4:], before, after) == pytest.approx(0, abs=1e-9)


def test_landing_is_of_formerly_negative_latents_alone():
    rng = torch.Generator().manual_seed(0)
    n = 300
    was, still = torch.arange(n) < 90, torch.arange(n) < 20
    before = Judged(was, torch.randn(n, 2, generator=rng), None, None, torch.empty(0))
    after = Judged(still, torch.randn(n, 2, generator=rng), None, None, torch.empty(0))
    after.features[20:90] += 100  # those that landed are far from everything
    reference = torch.randn(251, 2, generator=rng)
    found = landing(reference, before, after, [])
    assert (found.latents, found.still_negative, found.compared) == (90, 20, 70)
    assert found.transitions is None
    assert (found.precision, found.density) == (0.0, 0.0)
    assert found.frechet == pytest.approx(frechet(reference, after.features[20:90]))
    own = before.features[90:160]
    assert found.frechet_chance == pytest.approx(frechet(reference, own))
    assert found.precision_chance == manifold(reference, own)["precision"] > 0.8
    assert landing(reference, AFTER, AFTER, CLASSES).precision is None  # nothing landed
    none = Judged(was & False, before.features, None, None, torch.empty(0))
    assert landing(reference, none, after, []) is None


def test_landing_is_clear_where_the_judge_is_sure():
    def told(confidence, labels, most=2):
        labels = torch.tensor(labels).clamp(max=most)
        return Judged(labels == 1, torch.randn(7, 2), labels, torch.tensor(confidence), torch.empty(0))

    before = [1, 1, 1, 0.95, 0.2, 0.9, 0.3], [1, 1, 1, 0, 0, 2, 2]
    after = [0.95, 0.5, 1, 1, 1, 1, 1], [0, 2, 1, 0, 0, 2, 2]  # two landed, the third is negative still
    found = landing(torch.randn(9, 2), told(*before), told(*after), CLASSES)
    assert (found.compared, found.sure, found.sure_chance) == (2, 0.5, 0.5)
    two = landing(torch.randn(9, 2), told(*before, most=1), told(*after, most=1), CLASSES[:2])
    assert two.sure is None and two.latents > 3


def test_kept_is_compared_at_equal_sizes_beside_chance():
    rng = torch.Generator().manual_seed(1)
    reference, own = torch.randn(1000, 3, generator=rng), torch.randn(500, 3, generator=rng)

    def good(features):
        return Judged(torch.zeros(len(features), dtype=torch.bool), features, None, None, torch.empty(0))

    same = kept(reference, good(own), good(torch.randn(700, 3, generator=rng)), [], 0)
    assert (same.compared, same.reference, same.tv) == (500, 1000, None)
    assert same.frechet == pytest.approx(same.frechet_chance, abs=0.05)
    for what in ("precision", "recall", "density", "coverage"):
        assert getattr(same, what) == pytest.approx(getattr(same, f"{what}_chance"), abs=0.1)
    far = kept(reference, good(own), good(own + 100), [], 0)
    assert (far.precision, far.coverage) == (0.0, 0.0)
    assert far.kid > 1000 * abs(far.kid_chance)
