"""What an attacker climbs, made of whatever judges."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from atu.evaluation import goals
from atu.evaluation.attributes import FEATURES, Attribute
from atu.evaluation.classifier import Classifier
from atu.evaluation.judges import probe_of
from atu.gan import GAN
from atu.networks.classifier import ConvClassifier
from atu.networks.mlp import MLPDiscriminator


class Passing(nn.Module):
    """Gives the latent itself."""

    latent_dim = 2

    def forward(self, z):
        return z


def pair():
    return GAN(Passing(), MLPDiscriminator([2], hidden=(16,)))


def test_class_goal_agrees_with_the_classifier_and_its_score_can_be_differentiated():
    classifier = Classifier(ConvClassifier(4, 8, 1, (4, 4, 4, 4, 4), 8), ["a", "b", "c", "d"])
    x = torch.rand(50, 1, 8, 8)
    goal = goals.class_goal(classifier, ["b", "d"], (0.0, 1.0))
    p = classifier.probabilities(x * 2 - 1)
    assert torch.equal(goal.is_negative(x), classifier.oracle(["b", "d"])(x * 2 - 1))
    odds = (p[:, 1] + p[:, 3]) / (p[:, 0] + p[:, 2])
    assert torch.allclose(goal.score(x), odds.log(), atol=1e-4)
    inside = (x * 0.8 + 0.1).requires_grad_(True)
    assert float(torch.autograd.grad(goal.score(inside).sum(), inside)[0].abs().sum()) > 0


def test_a_rules_probe_is_fitted_on_what_memory_allows(monkeypatch):
    gan, drawn = pair(), []
    sample = GAN.sample

    def watched(self, n, *more, **options):
        drawn.append(n)
        return sample(self, n, *more, **options)

    monkeypatch.setattr(GAN, "sample", watched)
    monkeypatch.setattr(goals, "pool_size", lambda gan, wanted: min(wanted, 211))
    goal = goals.rule_goal(lambda x: x[:, 0] > 0.5, gan)
    assert max(drawn) == 211 and goal.score(torch.tensor([[2.0, 0.0], [-2.0, 0.0]])).diff() < 0


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
    found = {
        "module": goals.as_goal(Sides(), gan, [1]),
        "rule": goals.as_goal(right, gan),
        "probe": goals.as_goal(probe_of(gan, z[right(z)]), gan),
        "negatives": goals.as_goal(z[right(z)].numpy(), gan),
    }
    assert torch.equal(found["module"].is_negative(x), x[:, 0] > 0)
    assert torch.allclose(found["module"].score(x), 2 * x[:, 0], atol=1e-5)
    assert torch.equal(found["rule"].is_negative(x), right(x))
    assert torch.equal(found["probe"].is_negative(x), found["negatives"].is_negative(x))
    for name, goal in found.items():
        inside = x.clone().requires_grad_(True)
        score = goal.score(inside)
        assert float(torch.autograd.grad(score.sum(), inside)[0].abs().sum()) > 0
        ranked = score.detach().argsort()  # further to the right is nearer to a negative
        assert float(x[ranked[20:], 0].mean()) > float(x[ranked[:20], 0].mean()) + 0.5, name
    assert goals.as_goal(found["rule"], gan) is found["rule"]
    with pytest.raises(ValueError, match="got 0 of 2,000"):
        goals.as_goal(lambda x: x[:, 0] > 100, gan)
    with pytest.raises(ValueError, match="classes: 1 need a classifier"):
        goals.as_goal(right, gan, ["1"])


@pytest.mark.parametrize("name", list(FEATURES))
def test_feature_goals_can_be_differentiated(name):
    goal = goals.feature_goal(Attribute(name, 0.0, (-1.0, 1.0)))
    x = torch.full((2, 1, 12, 12), -1.0)
    x[0, :, 2:9, 4:7] = 0.7
    x.requires_grad_(True)
    gradient = torch.autograd.grad(goal.score(x)[0], x)[0]
    assert math.isfinite(float(gradient.abs().sum()))
    assert float(gradient[0].abs().sum()) > 0
