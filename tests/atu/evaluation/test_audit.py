"""Attacks on generators whose negatives, and the way to them, are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from atu.evaluation import audit as attacks
from atu.evaluation.attributes import FEATURES, Attribute
from atu.evaluation.audit import Budget, Goal, attack, latent_search, relearn
from atu.evaluation.classifier import Classifier
from atu.evaluation.judges import probe_of
from atu.gan import GAN
from atu.networks.classifier import ConvClassifier
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.networks.stylegan2 import Discriminator, Generator
from atu.support.seeding import Stream, stream_seed


class Passing(nn.Module):
    """Gives the latent itself, moved; the weight is a hundredth of the shift, so that few steps go far."""

    latent_dim = 2

    def __init__(self, shift=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([shift / 100, 0.0]))

    def forward(self, z):
        return z + 100 * self.weight


def beyond(limit):
    """Negative: first coordinate above a limit."""
    return Goal(lambda x: x[:, 0] > limit, lambda x: x[:, 0])


def pair(generator=None):
    return GAN(generator or Passing(), MLPDiscriminator([2], hidden=(16,)))


def test_search_finds_exactly_what_the_norm_of_z_allows():
    budget = Budget(starts=40, steps=100, rate=0.1)
    z, _ = pair().inputs(40, 7)
    found = latent_search(pair(), beyond(1.0), "z", budget, seed=7)
    # On its circle, a start can reach its own norm and no more.
    reachable = z.norm(dim=1) > 1.0
    assert 0 < int(reachable.sum()) < 40
    assert found["found"]["count"] == int(reachable.sum())
    assert found["by_chance"]["count"] == int((z[:, 0] > 1.0).sum())
    assert found["median_steps"] > 0


def test_search_in_vain():
    found = latent_search(pair(Passing(-50.0)), beyond(1.0), "z", Budget(starts=10, steps=20))
    assert (found["found"]["count"], found["by_chance"]["count"], found["median_steps"]) == (0, 0, None)
    assert found["found"]["ci95"][1] == pytest.approx(0.2775, abs=1e-3)  # Wilson of 0 in 10: z^2 / (10 + z^2)


def test_search_leaves_gan_and_random_state_alone(unchanged, snapshot):
    gan = pair()
    before, state = snapshot(gan), torch.random.get_rng_state()
    latent_search(gan, beyond(1.0), "z", Budget(starts=4, steps=5))
    unchanged(before, snapshot(gan))
    assert torch.equal(state, torch.random.get_rng_state())


def style_gan():
    kwargs = dict(channel_base=64, channel_max=8)
    return GAN(Generator(4, 0, 4, 8, 1, dict(num_layers=2), dict(kwargs)), Discriminator(0, 8, 1, **kwargs))


def test_search_in_w_stays_within_what_latents_reach():
    gan = style_gan()
    seen = []

    def score(x):
        seen.append(float(x.detach().mean()))
        return x.mean(dim=(1, 2, 3))

    found = latent_search(gan, Goal(lambda x: x.mean(dim=(1, 2, 3)) > 1e9, score), "w", Budget(starts=8, steps=30))
    assert found["found"]["count"] == 0
    assert seen[-1] > seen[0]
    with torch.no_grad():
        z, c = gan.inputs(8, 0)
        space = attacks._search_w(gan, gan.generator.eval(), z, c, seed=0)
        w = space.bound(space.start * 1000)
        cloud = gan.generator.mapping(gan.inputs(1000, stream_seed(0, Stream.ATTACK_CLOUD))[0], None)[:, 0]
        radius = float((cloud - cloud.mean(0)).norm(dim=1).max())
    assert torch.allclose((w - cloud.mean(0)).norm(dim=1), torch.full((8,), radius), rtol=1e-4)
    # A w that a latent gave is left as it is.
    assert torch.allclose(space.bound(space.start), space.start, atol=1e-6)


def test_spaces_that_are_not_there():
    with pytest.raises(ValueError, match="no mapping network"):
        latent_search(pair(), beyond(1.0), "w")
    with pytest.raises(ValueError, match="expected z or w, got 'x'"):
        latent_search(pair(), beyond(1.0), "x")
    with pytest.raises(ValueError, match="starts: expected a positive number, got 0"):
        Budget(starts=0)


def test_relearning_counts_the_steps_to_the_target():
    gan = pair(Passing(-3.0))
    negatives = torch.randn(20, 2) * 0.1 + torch.tensor([3.0, 0.0])
    budget = Budget(relearn_steps=600, check_every=20, check_samples=200)
    again = relearn(gan, beyond(0.0), negatives, 0.5, budget, seed=1)
    assert again["steps"] is not None
    assert again["steps"] == again["curve"][-1][0]
    assert again["curve"][-1][1] >= 0.5
    assert all(rate < 0.5 for _, rate in again["curve"][:-1])
    assert again["curve"][0] == [0, attacks.negative_rate(gan, beyond(0.0), 200, 1)]
    assert float(gan.generator.weight[0].detach()) == pytest.approx(-0.03)
    short = relearn(gan, beyond(0.0), negatives, 0.5, Budget(relearn_steps=3, check_every=2, check_samples=50))
    assert short["steps"] is None
    assert [step for step, _ in short["curve"]] == [0, 2, 3]


def test_relearning_what_is_there_already_takes_no_step():
    again = relearn(pair(Passing(3.0)), beyond(0.0), torch.zeros(5, 2), 0.5)
    assert (again["steps"], len(again["curve"])) == (0, 1)
    with pytest.raises(ValueError, match="negatives: expected at least one"):
        relearn(pair(), beyond(0.0), torch.zeros(0, 2), 0.5)


def test_both_attacks_on_three_models():
    budget = Budget(starts=6, steps=3, negatives=4, relearn_steps=2, check_every=1, check_samples=60)
    models = pair(), pair(Passing(-9.0)), pair(Passing(-8.0))
    found = attack(*models[:2], beyond(0.0), torch.ones(9, 2), models[2], budget)
    assert list(found["search"]) == ["before", "after", "retrained"]
    assert list(found["relearn"]) == ["after", "retrained"]
    assert found["relearned_from"] == 4
    assert found["relearn"]["after"]["target"] == found["rate_before"] / 2
    table = attacks.rows(found, {"after": "unlearned"})
    assert table[0] == ["", "search in z finds one", "by chance", "relearned after"]
    assert [row[0] for row in table[1:]] == ["before", "unlearned", "retrained"]
    assert [row[-1] for row in table[1:]] == ["–", "> 2 steps", "> 2 steps"]
    other = GAN(MLPGenerator(4, [3], (8,)), MLPDiscriminator([3], (8,)))
    with pytest.raises(ValueError, match=r"after: expected samples of shape \[2\], got \[3\]"):
        attack(models[0], other, beyond(0.0), torch.ones(9, 2), budget=budget)


def test_class_goal_agrees_with_the_classifier_and_its_score_can_be_differentiated():
    classifier = Classifier(ConvClassifier(4, 8, 1, (4, 4, 4, 4, 4), 8), ["a", "b", "c", "d"])
    x = torch.rand(50, 1, 8, 8)
    goal = attacks.class_goal(classifier, ["b", "d"], (0.0, 1.0))
    p = classifier.probabilities(x * 2 - 1)
    assert torch.equal(goal.is_negative(x), classifier.oracle(["b", "d"])(x * 2 - 1))
    odds = (p[:, 1] + p[:, 3]) / (p[:, 0] + p[:, 2])
    assert torch.allclose(goal.score(x), odds.log(), atol=1e-4)
    inside = (x * 0.8 + 0.1).requires_grad_(True)
    assert float(torch.autograd.grad(goal.score(inside).sum(), inside)[0].abs().sum()) > 0


class Sides(nn.Module):
    """Logits of left and right."""

    def forward(self, x):
        return torch.stack([-x[:, 0], x[:, 0]], 1)


def test_a_goal_is_made_of_whatever_judges():
    def right(x):
        return x[:, 0] > 0.5

    torch.manual_seed(0)
    gan, x = pair(), torch.randn(40, 2)
    z = gan.sample(1000, seed=2)
    goals = {
        "module": attacks.as_goal(Sides(), gan, [1]),
        "rule": attacks.as_goal(right, gan),
        "probe": attacks.as_goal(probe_of(gan, z[right(z)]), gan),
        "negatives": attacks.as_goal(z[right(z)].numpy(), gan),
    }
    assert torch.equal(goals["module"].is_negative(x), x[:, 0] > 0)
    assert torch.allclose(goals["module"].score(x), 2 * x[:, 0], atol=1e-5)
    assert torch.equal(goals["rule"].is_negative(x), right(x))
    assert torch.equal(goals["probe"].is_negative(x), goals["negatives"].is_negative(x))
    budget = Budget(starts=12, steps=30, negatives=4, relearn_steps=1, check_every=1, check_samples=30)
    for name, goal in goals.items():
        inside = x.clone().requires_grad_(True)
        score = goal.score(inside)
        assert float(torch.autograd.grad(score.sum(), inside)[0].abs().sum()) > 0
        ranked = score.detach().argsort()  # further to the right is nearer to a negative
        assert float(x[ranked[20:], 0].mean()) > float(x[ranked[:20], 0].mean()) + 0.5, name
        found = latent_search(gan, goal, budget=budget)
        assert found["found"]["count"] >= found["by_chance"]["count"]
    assert attacks.as_goal(goals["rule"], gan) is goals["rule"]
    found = attack(gan, pair(Passing(-1.0)), Sides(), z[:9], budget=budget, classes=["1"])
    assert found["relearned_from"] == 4
    with pytest.raises(ValueError, match="got 0 of 2,000"):
        attacks.as_goal(lambda x: x[:, 0] > 100, gan)
    with pytest.raises(ValueError, match="classes: 1 need a classifier"):
        attacks.as_goal(right, gan, ["1"])


@pytest.mark.parametrize("name", list(FEATURES))
def test_feature_goals_can_be_differentiated(name):
    goal = attacks.feature_goal(Attribute(name, 0.0, (-1.0, 1.0)))
    x = torch.full((2, 1, 12, 12), -1.0)
    x[0, :, 2:9, 4:7] = 0.7
    x.requires_grad_(True)
    gradient = torch.autograd.grad(goal.score(x)[0], x)[0]
    assert math.isfinite(float(gradient.abs().sum()))
    assert float(gradient[0].abs().sum()) > 0
