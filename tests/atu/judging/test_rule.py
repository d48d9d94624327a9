"""Rules of classes, and of whatever says what is unwanted; their slopes, which an attack climbs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from atu.gan import GAN
from atu.judging import probe
from atu.judging.classifier import Classifier
from atu.judging.finding import rule_of
from atu.judging.probe import probe_of, with_slope
from atu.judging.rule import Rule, class_rule
from atu.judging.strokes import FEATURES, feature_rule
from atu.networks.classifier import ConvClassifier
from atu.networks.mlp import MLPDiscriminator


class Passing(nn.Module):
    """Gives the latent itself."""

    latent_dim = 2

    def forward(self, z):
        return z


def pair():
    return GAN(Passing(), MLPDiscriminator([2], hidden=(16,)))


def test_a_class_rule_agrees_with_the_classifier_and_its_slope_can_be_differentiated():
    classifier = Classifier(ConvClassifier(4, 8, 1, (4, 4, 4, 4, 4), 8), ["a", "b", "c", "d"])
    x = torch.rand(50, 1, 8, 8)
    rule = class_rule(classifier, ["b", "d"], (0.0, 1.0))
    p = classifier.probabilities(x * 2 - 1)
    assert torch.equal(rule(x), torch.isin(classifier.predict(x * 2 - 1), torch.tensor([1, 3])))
    torch.testing.assert_close(rule.rank(x), p[:, 1] + p[:, 3])
    odds = (p[:, 1] + p[:, 3]) / (p[:, 0] + p[:, 2])
    assert torch.allclose(rule.slope(x), odds.log(), atol=1e-4)
    inside = (x * 0.8 + 0.1).requires_grad_(True)
    assert float(torch.autograd.grad(rule.slope(inside).sum(), inside)[0].abs().sum()) > 0


def test_a_rules_probe_is_fitted_on_what_memory_allows(monkeypatch):
    gan, drawn = pair(), []
    sample = GAN.sample

    def watched(self, n, *more, **options):
        drawn.append(n)
        return sample(self, n, *more, **options)

    monkeypatch.setattr(GAN, "sample", watched)
    monkeypatch.setattr(probe, "pool_size", lambda gan, wanted: min(wanted, 211))
    rule = with_slope(Rule(lambda x: x[:, 0] > 0.5), gan)
    assert max(drawn) == 211 and rule.slope(torch.tensor([[2.0, 0.0], [-2.0, 0.0]])).diff() < 0


class Sides(nn.Module):
    """Logits of left and right."""

    def forward(self, x):
        return torch.stack([-x[:, 0], x[:, 0]], 1)


def test_a_rule_that_can_be_climbed_is_made_of_whatever_judges():
    def right(x):
        return x[:, 0] > 0.5

    torch.manual_seed(0)
    gan, x = pair(), torch.randn(40, 2)
    z = gan.sample(1000, seed=2)
    rules = {
        "module": rule_of(Sides(), gan, [1]),
        "rule": with_slope(rule_of(right, gan), gan),
        "probe": probe_of(gan, z[right(z)]),
        "negatives": rule_of(z[right(z)].numpy(), gan),
    }
    assert torch.equal(rules["module"](x), x[:, 0] > 0)
    assert torch.allclose(rules["module"].slope(x), 2 * x[:, 0], atol=1e-5)
    assert torch.equal(rules["rule"](x), right(x))
    assert torch.equal(rules["probe"](x), rules["negatives"](x))
    for name, rule in rules.items():
        inside = x.clone().requires_grad_(True)
        slope = rule.slope(inside)
        assert float(torch.autograd.grad(slope.sum(), inside)[0].abs().sum()) > 0
        ranked = slope.detach().argsort()  # further to the right is nearer to a negative
        assert float(x[ranked[20:], 0].mean()) > float(x[ranked[:20], 0].mean()) + 0.5, name
        assert rule_of(rule, gan) is with_slope(rule, gan) is rule
    with pytest.raises(ValueError, match="got 0 of 2,000"):
        with_slope(Rule(lambda x: x[:, 0] > 100), gan)
    with pytest.raises(ValueError, match="classes: 1 need a classifier"):
        rule_of(right, gan, ["1"])


@pytest.mark.parametrize("name", list(FEATURES))
def test_features_can_be_climbed(name):
    rule = feature_rule(name, 0.0, (-1.0, 1.0))
    x = torch.full((2, 1, 12, 12), -1.0)
    x[0, :, 2:9, 4:7] = 0.7
    x.requires_grad_(True)
    gradient = torch.autograd.grad(rule.slope(x)[0], x)[0]
    assert math.isfinite(float(gradient.abs().sum()))
    assert float(gradient[0].abs().sum()) > 0
