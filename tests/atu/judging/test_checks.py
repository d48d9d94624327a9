"""Feedback that cannot be right is told: once as a warning, and the same sentence in the notes."""

import json
import logging
import re
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from atu import GAN, FeedbackWarning, unlearn
from atu.config import Feedback as FeedbackConfig
from atu.data.samples import TensorSamples
from atu.judging.checks import discriminator_remarks
from atu.judging.feedback import build_feedback
from atu.judging.probe import fit_probe
from atu.judging.rule import Rule
from atu.networks.mlp import MLPDiscriminator
from atu.support.context import RunContext

POOL = FeedbackConfig(pool=600)
QUICK = {
    "feedback": {"pool": 300},
    "adapt": {"steps": 1, "fisher": {"n": 1}},
    "repel": {"steps": 1, "guide_steps": 1, "check_samples": 50},
}


class Mixture(nn.Module):
    """Three separated Gaussians, the one at x = 3 being a quarter of all."""

    latent_dim = 3

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.2))

    def forward(self, z):
        centres = torch.tensor([[-3.0, 0.0], [0.0, 3.0], [3.0, 0.0]])
        kind = (z[:, 0] > 0.6745).long() + (z[:, 0] > -0.3186).long()
        return centres[kind] + self.scale * z[:, 1:]


@pytest.fixture
def mixture():
    return GAN(Mixture(), MLPDiscriminator([2], hidden=(32,)))


def right(x):
    return x[:, 0] > 1.5


def at(n, x, y, spread=0.2):
    return torch.tensor([[x, y]]) + spread * torch.randn(n, 2)


def told(gan, negatives, oracle=None, positives=None):
    """The sentences of the notes, which are those of the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        oracle = None if oracle is None else Rule(oracle)
        made = build_feedback(gan, TensorSamples(negatives), positives, oracle, POOL, seed=0)
    sentences = [str(w.message) for w in caught if w.category is FeedbackWarning]
    assert made.notes["warnings"] == sentences
    return sentences


def only(sentences, words):
    assert len(sentences) == 1 and re.search(words, sentences[0]), sentences


@pytest.mark.parametrize("oracle", [None, right])
@pytest.mark.parametrize("n", [12, 150])
def test_feedback_that_may_be_right_is_passed_without_a_word(mixture, oracle, n):
    assert told(mixture, at(n, 3, 0), oracle) == []


@pytest.mark.parametrize("oracle", [None, right])
def test_few_marks(mixture, oracle):
    only(told(mixture, at(3, 3, 0), oracle), "negatives: 3 are few .* A dozen works, a hundred is better: mark more")


def test_copies_count_once(mixture):
    found = told(mixture, at(1, 3, 0).expand(4, 2), right)
    assert len(found) == 2
    assert "only 1 of 4 differ" in found[0] and "negatives: 1 are few" in found[1]
    twice = at(20, 3, 0).repeat(2, 1)
    only(told(mixture, twice, right), "only 20 of 40 differ from each other")


def test_mixed_marks_without_an_oracle(mixture):
    only(
        told(mixture, mixture.sample(40, seed=9)),
        r"the probe calls \d+\.\d % of 600 generated samples negative, so they",
    )


def test_an_oracle_that_contradicts_the_marks(mixture):
    only(told(mixture, at(20, 3, 0), lambda x: x[:, 1] > 1.5), "is_negative: it calls 0 of 20 negatives .* contradicts")
    reversed_ = told(mixture, at(20, 3, 0), lambda x: ~right(x))
    assert len(reversed_) == 2 and "yes and no are not exchanged" in reversed_[1]


@pytest.mark.parametrize("positives", [None, TensorSamples(torch.randn(9, 2))])
def test_an_oracle_that_never_says_yes_is_an_error(mixture, positives):
    with pytest.raises(ValueError, match="calls none of 600 generated samples and none of 20 negatives"):
        told(mixture, at(20, 3, 0), lambda x: x[:, 0] > 99, positives)


def test_an_oracle_that_knows_the_marks_but_finds_none(mixture):
    only(
        told(mixture, at(20, 3.9, 0, 0.01), lambda x: x[:, 0] > 3.85),
        "none of 600 .* rarely or never",
    )


@pytest.mark.parametrize("oracle", [None, lambda x: x.abs().amax(1) > 4])
def test_noise_is_unlike_anything_the_gan_makes(mixture, oracle):
    found = told(mixture, 60 * torch.randn(40, 2), oracle)
    assert any("unlike anything that this GAN makes" in sentence for sentence in found), found


@pytest.mark.parametrize(
    ("recognised", "of", "said"), [(60, 100, True), (71, 100, True), (73, 100, False), (2, 11, False)]
)
def test_marks_that_the_probe_does_not_recognise(mixture, monkeypatch, recognised, of, said):
    """The exact interval of 71 of 100 ends at 0.796, that of 73 at 0.814; eleven marks are too few to say so."""

    def fit(*args):
        probe = fit_probe(*args)
        return replace(probe, marks={**probe.marks, "recognised": recognised, "of": of})

    monkeypatch.setattr("atu.judging.feedback.fit_probe", fit)
    found = told(mixture, at(100, 3, 0))
    assert len(found) == said and all(f"it recognises {recognised} of {of}: some" in text for text in found)


class Ending(nn.Module):
    def __init__(self, end, outputs=1):
        super().__init__()
        self.net, self.end = nn.Linear(2, outputs), end

    def forward(self, x):
        return self.end(self.net(x))


@pytest.mark.parametrize(
    ("end", "outputs", "bounded"),
    [
        (lambda y: y[:, :1].sigmoid() - y[:, 1:].sigmoid(), 2, True),
        (lambda y: 3 * y.tanh().mean(1) + 1, 5, True),
        (lambda y: y, 1, False),
        (lambda y: y + y.sigmoid(), 1, False),
        (lambda y: torch.logit(y.sigmoid()), 1, False),
        (lambda y: y[:, :1] - y[:, 1:], 2, False),
    ],
)
def test_a_discriminator_that_is_bounded_is_told(end, outputs, bounded):
    gan = GAN(Mixture(), Ending(end, outputs))
    found = discriminator_remarks(gan, gan.sample(7))
    assert len(found) == bounded and all("its logits lie between two bounds" in text for text in found)


def test_a_bounded_discriminator_is_told_of_in_a_run():
    gan = GAN(Mixture(), Ending(torch.tanh))
    only(told(gan, at(20, 3, 0), right), "gan: its discriminator ends in a sigmoid or tanh")


class Labelled(nn.Module):
    """The first coordinate is the label's index."""

    z_dim, c_dim = 2, 4

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones([]))

    def forward(self, z, c):
        return torch.cat([(c @ torch.arange(4.0))[:, None], self.scale * z[:, :1]], 1)


class LabelledDiscriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(2 + 4, 1)

    def forward(self, x, c):
        return self.body(torch.cat([x, c], 1))


def test_a_label_that_is_never_drawn(tmp_path):
    def first_two(n, rng):
        return torch.eye(4)[torch.randint(0, 2, (n,), generator=rng)]

    gan = GAN(Labelled(), LabelledDiscriminator(), label_sampler=first_two)
    with pytest.raises(ValueError, match=r"negatives: label 2 of theirs is never drawn .* nothing would be unlearned"):
        unlearn(gan, (at(20, 1, 0), 2), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    some = TensorSamples(at(20, 1, 0), torch.eye(4)[torch.arange(20) % 4])
    with pytest.warns(FeedbackWarning, match="label 2, 3 of theirs is never drawn"):
        build_feedback(gan, some, None, Rule(lambda x: x[:, 0] > 0.5), POOL, seed=0)


def test_a_range_that_was_inferred_is_told_too(tmp_path):
    generator = nn.Sequential(nn.Linear(3, 16), nn.Sigmoid(), nn.Unflatten(1, (1, 4, 4)))
    gan = GAN(generator, nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1)), latent_dim=3)
    x = gan.sample(40)
    marks = (x[x[:, 0, 0, 0].argsort()[:15]] * 255).round().to(torch.uint8)
    with pytest.warns(UserWarning, match=r"taken for \(0, 1\)"):
        result = unlearn(gan, marks, config=QUICK, out=tmp_path)
    assert float(gan.sample(1).min()) > 0 and result.gan.image_range == (0, 1)
    kept = json.loads((tmp_path / "decisions.json").read_text())["warnings"]
    assert kept == result.decisions["warnings"] and "taken for (0, 1)" in kept[0]


def test_what_the_judge_would_call_negative_is_logged_before_training(mixture, caplog):
    with caplog.at_level(logging.INFO, "atu"):
        result = unlearn(mixture, at(15, 3, 0), config=QUICK)
    assert "15 negatives: a dozen works, a hundred is better" in caplog.text
    found = re.search(r"The probe calls (\d+\.\d) % of 300 generated samples negative", caplog.text)
    assert float(found[1]) / 100 == pytest.approx(result.decisions["negative_share"], abs=5e-4)
    assert result.decisions["marks"] == "15 negatives: a dozen works, a hundred is better"


@pytest.mark.filterwarnings("ignore::atu.FeedbackWarning")
def test_the_checks_draw_nothing(mixture):
    state = torch.get_rng_state()
    for oracle in (None, Rule(right)):
        build_feedback(mixture, TensorSamples(torch.full((20, 2), 3.0)), None, oracle, POOL, 0)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("oracle", [None, right])
def test_feedback_passes_no_more_samples_at_once_than_asked_for(mixture, oracle):
    """`batch` bounds the memory of big samples; all passes of the judge and of the checks keep to it."""
    sizes = []
    mixture.discriminator.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    with RunContext(batch=17):
        told(mixture, at(40, 3, 0), oracle)
    assert sizes and max(sizes) <= 17
