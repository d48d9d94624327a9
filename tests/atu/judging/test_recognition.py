"""What is said of how well marks are recognised, against counts whose truth is known."""

import random

import pytest

from atu.judging.recognition import recognition_remarks, told, wrong_share


def marks(recognised, of, alarms=0, of_good=0):
    return dict(recognised=recognised, of=of, alarms=alarms, of_good=of_good)


@pytest.mark.parametrize(("prior", "recall", "alarm"), [(0.1, 0.9, 0.01), (0.12, 0.6, 0.18), (0.3, 0.7, 0.004)])
def test_the_share_of_wrong_ones(prior, recall, alarm):
    """By Bayes' rule; the interval holds the truth in at least 95 % of simulated marks."""
    called = prior * recall + (1 - prior) * alarm
    truth = (1 - prior) * alarm / called
    exact = wrong_share(marks(round(1000 * recall), 1000, round(1000 * alarm), 1000), called)
    assert exact[0] == pytest.approx(truth, abs=1e-6) and exact[1] < truth < exact[2]
    rng, held = random.Random(0), 0
    for _ in range(400):
        hits, alarms = (sum(rng.random() < p for _ in range(100)) for p in (recall, alarm))
        _, low, high = wrong_share(marks(hits, 100, alarms, 100), called)
        held += low <= truth <= high
    assert held >= 380


def test_what_cannot_be_told():
    assert wrong_share(marks(60, 100), 0.2) is None
    assert wrong_share(marks(60, 100, 3, 50), 0.0) is None
    assert wrong_share(marks(3, 30, 9, 30), 0.2) == (1.0, pytest.approx(0.0, abs=1), 1.0)


def test_the_sentences():
    assert told(marks(60, 100), 0.23) == (
        "Of what is unwanted a probe recognises 60 % (50 to 70). Good marks (positives) would tell how much of what it "
        "takes for unwanted is not."
    )
    assert told(marks(63, 100, 80, 300), 0.32).endswith("Of what it takes for unwanted, 71 % (46 to 100) is not.")


def test_the_remarks():
    """Of marks and shares that were measured: a GAN's digits, its frogs, and floppy ears."""
    assert recognition_remarks(marks(85, 100), 0.093) == []
    assert recognition_remarks(marks(6, 11), 0.2) == []
    assert "recognises 61 of 100: some of what they show may stay" in recognition_remarks(marks(61, 100), 0.33)[0]
    assert recognition_remarks(marks(68, 100, 0, 100), 0.2) == []
    (remark,) = recognition_remarks(marks(59, 100, 30, 100), 0.308)
    assert remark.startswith("positives: of what a probe takes for unwanted, 95 % (45 to 100) is not")
