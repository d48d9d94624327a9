"""The oracle's checks, the probe on features with a known answer, positives, and the score."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from atu.assets import asset
from atu.config import Feedback as FeedbackConfig
from atu.data.samples import DatasetSamples, TensorSamples
from atu.gan import GAN
from atu.judging import checks, feedback
from atu.judging.classifier import Classifier
from atu.judging.doubts import doubted, without_doubted
from atu.judging.feedback import Feedback, build_feedback
from atu.judging.pool import pool_size, wanted_pool
from atu.judging.positives import check_distinct
from atu.judging.probe import amid, fit_on_features, fit_probe
from atu.judging.rule import Rule
from atu.measures.features import DiscriminatorFeatures
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.training.score import Score

POOL = FeedbackConfig(pool=600)


def fitted(gan, *features, **options):
    """A probe fitted on features."""
    return fit_on_features(DiscriminatorFeatures(gan), *features, **options)


def negative(x):
    return x[:, 0] > 0.5


class Mixture(nn.Module):
    """Three separated Gaussians, the one at x = 3 being a quarter of all."""

    latent_dim = 3

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.2))

    def forward(self, z):
        centres = torch.tensor([[-3.0, 0.0], [0.0, 3.0], [3.0, 0.0]])
        kind = (z[:, 0] > 0.6745).long() + (z[:, 0] > -0.3186).long()  # 3/8, 3/8, 1/4
        return centres[kind] + self.scale * z[:, 1:]


@pytest.fixture
def mixture():
    return GAN(Mixture(), MLPDiscriminator([2], hidden=(32,)))


@pytest.mark.parametrize("kind", [lambda f: f, lambda f: f.numpy(), lambda f: f.tolist()])
def test_oracle_passes_bools(kind):
    x = torch.randn(9, 2)
    assert torch.equal(Rule(lambda v: kind(negative(v)))(x), negative(x))


@pytest.mark.parametrize(
    "answer, got",
    [
        (torch.zeros(3, dtype=torch.bool), r"\[3\] torch.bool"),
        (torch.zeros(4, 1, dtype=torch.bool), r"\[4, 1\] torch.bool"),
        (torch.zeros(4), r"\[4\] torch.float32"),
        (torch.zeros(4, dtype=torch.int64), r"\[4\] torch.int64"),
        (np.zeros((2, 2), dtype=bool), r"\[2, 2\] torch.bool"),
        (None, "NoneType"),
        (True, "bool"),
    ],
)
def test_oracle_of_a_wrong_shape_or_kind_is_named(answer, got):
    with pytest.raises(ValueError, match=rf"is_negative: expected a bool tensor \[4\] for 4 samples, got {got}"):
        Rule(lambda x: answer)(torch.zeros(4, 2))


def test_oracle_must_be_callable():
    with pytest.raises(TypeError, match="is_negative: expected a callable, got str"):
        Rule("x")


@pytest.mark.parametrize("marked", [1, 2, 10, 100])
def test_probe_finds_the_marked_cluster(vector_gan, marked):
    """Features of two far clusters; a fifth of the unlabelled ones are of the marked kind."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(1000, 8, generator=rng)
    truth = torch.arange(1000) % 5 == 0
    unlabelled = noise + 8 * truth[:, None].float()
    negatives = torch.randn(marked, 8, generator=rng) + 8
    found = fitted(vector_gan, negatives, unlabelled, recall=0.95).calls(unlabelled)
    assert float(found[truth].float().mean()) >= (0.85 if marked >= 10 else 0.2)
    assert float(found[~truth].float().mean()) <= 0.01


def test_probe_recall_moves_the_threshold(vector_gan):
    rng = torch.Generator().manual_seed(1)
    unlabelled = torch.randn(800, 4, generator=rng)
    negatives = torch.randn(200, 4, generator=rng) + 1.5
    counts = [int(fitted(vector_gan, negatives, unlabelled, r).calls(unlabelled).sum()) for r in (0.5, 0.8, 0.99)]
    assert counts == sorted(counts) and counts[0] < counts[2]
    fresh = torch.randn(2000, 4, generator=rng) + 1.5
    for recall in (0.8, 0.99):  # at least: at even odds 93 % of such clusters are recognised (a normal 1.5 away)
        hit = float(fitted(vector_gan, negatives, unlabelled, recall).calls(fresh).float().mean())
        assert max(recall, 0.93) - 0.05 < hit < max(recall, 0.97) + 0.02


def test_probe_leaves_out_negatives_that_the_others_contradict(vector_gan):
    """A fifth of the negatives are slips: of the kind that is good."""
    rng = torch.Generator().manual_seed(2)
    unlabelled = torch.randn(907, 8, generator=rng)
    negatives = torch.randn(101, 8, generator=rng)
    slips = torch.arange(101) % 5 == 3
    negatives[~slips] += 4
    probe = fitted(vector_gan, negatives, unlabelled, recall=0.95)
    assert abs(probe.marks["contradicted"] - int(slips.sum())) <= 2
    assert float(probe.calls(torch.randn(2003, 8, generator=rng)).float().mean()) < 0.02
    assert float(probe.calls(torch.randn(2003, 8, generator=rng) + 4).float().mean()) > 0.98
    assert abs(probe.marks["recognised"] - int((~slips).sum())) <= 2 and probe.marks["of"] == 101


def test_what_a_probe_recognises_of_its_marks_it_recognises_of_fresh_samples(vector_gan):
    """Of eight kinds of negatives, of which a mark or two may be all that is known, and which are two fifths of the
    unlabelled. If the marks had a say in which of those count as good, it would seem to be 89 % for 73."""
    told, true = [], []
    for seed in range(5):
        rng = torch.Generator().manual_seed(seed)
        places = 2.2 * nn.functional.normalize(torch.randn(8, 30, generator=rng))

        def negatives(n, places=places, rng=rng):
            return places[torch.randint(8, (n,), generator=rng)] + 0.6 * torch.randn(n, 30, generator=rng)

        unlabelled = torch.cat([negatives(400), 0.6 * torch.randn(600, 30, generator=rng)])
        probe = fitted(vector_gan, negatives(60), unlabelled, recall=0.95)
        told.append(probe.marks["recognised"] / 60)
        true.append(float(probe.calls(negatives(1000)).float().mean()))
    assert abs(np.mean(told) - np.mean(true)) < 0.06 and np.mean(true) < 0.8


def test_probe_learns_from_good_marks_and_tells_how_many_it_takes_for_negative(vector_gan):
    """Good ones that no unlabelled sample is like, between those and the negatives."""
    rng = torch.Generator().manual_seed(3)
    unlabelled = torch.randn(907, 3, generator=rng)
    negatives = torch.randn(97, 3, generator=rng) + torch.tensor([6.0, 0, 0])
    good = torch.randn(89, 3, generator=rng) + torch.tensor([6.0, 6, 0])
    more = torch.randn(2003, 3, generator=rng) + torch.tensor([6.0, 6, 0])
    without = fitted(vector_gan, negatives, unlabelled, recall=0.95)
    probe = fitted(vector_gan, negatives, unlabelled, recall=0.95, good=good)
    assert float(without.calls(more).float().mean()) > 0.5 > 0.1 > float(probe.calls(more).float().mean())
    assert without.marks["of_good"] == without.marks["alarms"] == 0
    assert probe.marks["of_good"] == 89 and probe.marks["alarms"] < 20
    even = fitted(vector_gan, negatives, unlabelled, recall=0.95, good=negatives[:61] + 0.01)  # told apart by nothing
    assert even.marks["alarms"] > 30


def test_probe_is_not_led_by_batches_of_one_kind():
    """StyleGAN2's discriminator sees how much the samples of a batch differ; single ones among others do not."""
    gan, classifier = GAN.load(asset("mnist-gan.safetensors")), Classifier.load(asset("mnist-classifier.safetensors"))
    x = torch.cat(list(gan.batches(1200, 5)))
    ones = classifier.logits(x).argmax(1) == 1
    pool, fresh = x[:600], x[600:]
    marked = TensorSamples(pool[ones[:600]])
    found = fit_probe(gan, marked, pool, 0.95)(fresh)
    assert float(found[ones[600:]].float().mean()) > 0.85 and float(found[~ones[600:]].float().mean()) < 0.05
    alone = DiscriminatorFeatures(gan).to_tell_apart([marked.tensor[:60]])
    among = amid(DiscriminatorFeatures(gan), TensorSamples(marked.tensor[:60]), pool)
    usual = DiscriminatorFeatures(gan).to_tell_apart([pool])[ones[:600]][:60]
    assert (among - usual).norm() < 0.5 * (alone - usual).norm()


def test_positives_by_the_oracle(mixture):
    negatives = TensorSamples(torch.tensor([[3.0, 0.0]]))
    made = build_feedback(mixture, negatives, None, Rule(negative), POOL, seed=0)
    assert made.has_oracle and made.negative_share == pytest.approx(0.25, abs=0.06)
    assert not negative(made.positives.tensor).any()
    assert len(made.positives) == 600 - round(made.negative_share * 600)
    # the negatives found on the way are used too
    assert len(made.negatives) == 1 + 600 - len(made.positives) and negative(made.negatives.tensor).all()


def test_positives_by_the_probe(mixture):
    negatives = TensorSamples(torch.tensor([[3.0, 0.0]]) + 0.2 * torch.randn(40, 2))
    made = build_feedback(mixture, negatives, None, None, POOL, seed=0)
    assert not made.has_oracle and len(made.negatives) == 40
    counts = made.notes["probe"]
    assert 30 < counts["recognised"] <= counts["of"] == 40
    recall = (counts["recognised"] + 1) / (40 + 2)  # of the rule of succession
    found = made.negative_share / (1 - made.negative_share)
    assert made.missed == pytest.approx(2 * found * (1 - recall) / recall)
    left = negative(made.positives.tensor)
    assert float(left.float().mean()) < 0.1 and len(made.positives) > 400
    assert made.negative_share == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize(("least", "added"), [(0, 0), (5, 0), (9, 4)])
def test_positives_given_stay_and_few_are_joined_by_generated_ones(mixture, least, added):
    positives = TensorSamples(torch.randn(5, 2))
    cfg = dataclasses.replace(POOL, least_positives=least)
    made = build_feedback(mixture, TensorSamples(torch.ones(3, 2)), positives, Rule(negative), cfg, seed=0)
    x = made.positives.batch(torch.arange(len(made.positives)))
    assert torch.equal(x[:5], positives.tensor) and len(x) == 5 + added
    assert not negative(x[5:]).any() and (made.positives is positives) == (added == 0)
    assert made.given == 5
    assert made.notes["positives"] == "5 given" + (f", joined by {added} generated ones" if added else "")


@pytest.mark.parametrize("positives", [None, TensorSamples(torch.full((5, 2), -3.0))], ids=["none", "given"])
@pytest.mark.parametrize("held", [True, False], ids=["tensor", "dataset"])
def test_what_the_oracle_finds_joins_all_kinds_of_negatives(mixture, positives, held):
    x = 3 + torch.rand(7, 2)
    given = TensorSamples(x) if held else DatasetSamples(TensorDataset(x), lambda y: y)
    made = build_feedback(mixture, given, positives, Rule(negative), POOL, seed=0)
    found = made.notes["negatives_found"]
    everything = made.negatives.batch(torch.arange(len(made.negatives)))
    assert found > 90 and len(everything) == 7 + found
    assert torch.equal(everything[:7], x) and negative(everything).all()
    by_probe = build_feedback(mixture, given, positives, None, POOL, seed=0)
    assert by_probe.negatives is given and "negatives_found" not in by_probe.notes


def test_few_positives_of_a_dataset_are_joined_too(mixture):
    x = torch.randn(5, 2)
    given = DatasetSamples(TensorDataset(x), lambda y: y)
    cfg = dataclasses.replace(POOL, least_positives=9)
    made = build_feedback(mixture, TensorSamples(torch.ones(3, 2)), given, Rule(negative), cfg, seed=0)
    assert torch.equal(made.positives.tensor[:5], x) and len(made.positives) == 9 and made.given == 5
    enough = dataclasses.replace(POOL, least_positives=5)
    made = build_feedback(mixture, TensorSamples(torch.ones(3, 2)), given, Rule(negative), enough, seed=0)
    assert made.positives is given


def test_few_positives_without_labels_get_some_that_the_gan_draws(conv_gan):
    x = conv_gan.sample(3, 1)
    cfg = dataclasses.replace(POOL, pool=64, least_positives=11)
    half = conv_gan.sample(64, 3).flatten(1).mean(1).median()
    oracle = Rule(lambda y: y.flatten(1).mean(1) > half)
    made = build_feedback(conv_gan, TensorSamples(x + 1), TensorSamples(x), oracle, cfg, seed=0)
    found = made.positives
    assert len(found) == 11 and torch.equal(found.tensor[:3], x)
    if conv_gan.c_dim:
        assert found.labels.shape == (11, conv_gan.c_dim) and torch.equal(found.labels.sum(1), torch.ones(11))


@pytest.mark.parametrize("given", [0, 4])
def test_generated_positives_that_are_doubted_are_left_out(mixture, given):
    """Those that the user gave stay whatever is said of them, and a label that lost its samples gets others'."""
    x = torch.randn(97, 2, generator=torch.Generator().manual_seed(3))
    x[:7] = 9.0
    labels = torch.eye(2)[(x[:, 0] == 9).long()]
    marked, positives, notes = TensorSamples(x[:3]), TensorSamples(x, labels), {"marks": "3"}
    feedback = Feedback(marked, positives, negative, False, 0.1, notes, given=given, missed=0.3)
    flags, above = doubted(mixture, feedback, lambda y: y[:, 0] - 8)
    left = without_doubted(feedback, flags, seed=0)
    x_left, labels_left = left.positives.tensor, left.positives.labels
    assert above == 0 and torch.equal(x_left[: 90 + given], torch.cat([x[:given], x[7:]]))
    assert left.notes == {"marks": "3", "positives_doubted": 7 - given} and feedback.notes == {"marks": "3"}
    if given:  # more than a tenth of the label's are left
        assert torch.equal(labels_left, torch.cat([labels[:4], labels[7:]]))
    else:
        assert len(x_left) == 97 and (x_left[90:] < 8).all() and labels_left.sum(0).tolist() == [90, 7]


@pytest.mark.parametrize(("missed", "given", "count"), [(0, 0, 0), (0.4, 0, 3), (99, 0, 6), (99, 8, 0), (0.4, 5, 1)])
def test_no_more_are_doubted_than_were_missed_or_three_quarters(mixture, missed, given, count):
    """The likeliest of them, and the log-odds that they are above."""
    x = torch.tensor([0.3, 0.1, 0.8, 0.5, 0.2, 0.6, 0.7, 0.4])[:, None].expand(8, 2)
    feedback = Feedback(TensorSamples(x), TensorSamples(x), negative, False, 0.1, {}, given=given, missed=missed)
    flags, above = doubted(mixture, feedback, lambda y: y[:, 0])
    assert int(flags.sum()) == count and not flags[:given].any()
    assert torch.equal(x[given:, 0][flags[given:]].sort().values, x[given:, 0].sort().values[8 - given - count :])
    if count:
        assert above == pytest.approx(float(x[given:, 0].sort().values[-count - 1]))
    else:
        assert without_doubted(feedback, flags, seed=0) is feedback


def test_nothing_left_is_told(mixture):
    with pytest.raises(ValueError, match="positives: the oracle calls 600 of 600 generated samples negative"):
        build_feedback(mixture, TensorSamples(torch.ones(3, 2)), None, Rule(lambda x: x[:, 0] > -99), POOL, seed=0)


def test_positives_that_are_the_negatives_are_refused():
    x = TensorSamples(torch.randn(5, 2))
    with pytest.raises(ValueError, match="positives: expected samples other than the negatives"):
        check_distinct(x, TensorSamples(x.tensor.clone()))
    check_distinct(x, TensorSamples(torch.randn(5, 2)))
    check_distinct(x, TensorSamples(torch.randn(6, 2)))


def test_pool_size_is_bounded_by_memory(image_gan):
    assert pool_size(image_gan, 500) == 500
    assert pool_size(image_gan, 10**9, budget_bytes=4 * 64 * 1000) == 1000
    assert pool_size(image_gan, 10**9, budget_bytes=1) == 64


@pytest.mark.parametrize(
    ("asked", "used", "why"),
    [(500, 100, "more of this size would take over 1 GiB of memory"), (10, 64, "fewer say too little")],
)
def test_a_pool_of_another_size_than_asked_for_is_told(image_gan, monkeypatch, asked, used, why):
    monkeypatch.setattr(feedback, "pool_size", lambda gan, wanted, budget=0: pool_size(gan, wanted, 4 * 64 * 100))
    negatives = TensorSamples(image_gan.sample(20, seed=3))
    middle = negatives.tensor.mean([1, 2, 3]).median()
    bright = Rule(lambda x: x.mean([1, 2, 3]) > middle)
    told = f"feedback.pool: {asked} generated samples were asked for, and {used} are used: {why}"
    with pytest.warns(checks.FeedbackWarning, match=re.escape(told)):
        made = build_feedback(image_gan, negatives, None, bright, FeedbackConfig(pool=asked), seed=0)
    assert made.notes["pool"] == used and told in made.notes["warnings"]
    for pool in (70, "auto"):
        made = build_feedback(image_gan, negatives, None, bright, FeedbackConfig(pool=pool), seed=0)
        assert not any("feedback.pool" in one for one in made.notes["warnings"])


def test_an_oracle_is_asked_about_more_where_samples_are_cheap(mixture):
    def of_images(*shape):
        return GAN(MLPGenerator(4, shape, hidden=(2,)), MLPDiscriminator(shape, hidden=(2,)))

    auto, small = FeedbackConfig(), of_images(1, 8, 8)
    assert wanted_pool(small, auto, has_oracle=True) == 20_000
    assert wanted_pool(small, auto, has_oracle=False) == 5000
    assert wanted_pool(small, FeedbackConfig(pool=77), has_oracle=True) == 77
    assert wanted_pool(of_images(3, 80, 80), auto, has_oracle=True) == 5000
    assert wanted_pool(of_images(3, 60, 60), auto, has_oracle=True) == 6213  # 256 MiB of 3 * 60 * 60 * 4 bytes
    assert wanted_pool(mixture, auto, has_oracle=True) == 5000  # points in the plane
    assert wanted_pool(GAN.load(asset("mnist-gan.safetensors")), auto, has_oracle=True) == 5000


def test_score_tells_negatives_and_drift_apart(mixture):
    made = build_feedback(mixture, TensorSamples(torch.tensor([[3.0, 0.0]])), None, Rule(negative), POOL, seed=0)
    score = Score(mixture, made, n=400, seed=0)

    class Kept(Mixture):
        def forward(self, z):
            return super().forward(torch.cat([z[:, :1].clamp(max=0.6), z[:, 1:]], 1))

    class Shifted(Kept):
        def forward(self, z):
            return super().forward(z) + torch.tensor([-2.0, 2.0])

    before, kept, shifted = score(mixture.generator), score(Kept()), score(Shifted())
    assert before["negative_rate"] == pytest.approx(0.25, abs=0.06) and kept["negative_rate"] == 0
    assert kept["score"] < before["score"] and kept["drift"] < shifted["drift"]
    assert score(Kept()) == kept


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_score_with_hardly_any_positives(mixture, n):
    positives = TensorSamples(torch.randn(n, 2))
    made = build_feedback(mixture, TensorSamples(torch.ones(3, 2)), positives, Rule(negative), POOL, seed=0)
    assert np.isfinite(list(Score(mixture, made, n=20, seed=0)(mixture.generator).values())).all()
