"""Layers in the order of the pass: cf-k trains the last of them, eu-k begins them anew."""

import pytest
import torch
from torch import nn

from atu import GAN, unlearn
from atu.methods.layers import last_layers, layers_in_order, owner, reinitialise

from .kinds import KINDS, dcgan, marked, mlp, quick, stylegan, upper_half, weights


def test_layers_are_in_the_order_of_the_pass():
    names = [layer.name for layer in layers_in_order(dcgan())]
    assert names == ["body.0", "body.1", "last"]
    found = [layer.name for layer in layers_in_order(stylegan())]
    assert found[:3] == ["mapping.fc0", "mapping.fc1", "synthesis.b4"]  # b4 itself holds the constant
    assert found[-2:] == ["synthesis.b8.torgb.affine", "synthesis.b8.torgb"]
    assert layers_in_order(dcgan())[1].parameters == ("body.1.weight", "body.1.bias")


class Odd(nn.Module):
    """A constant at the top, an unused layer, a weight used twice, and spectral norm."""

    def __init__(self):
        super().__init__()
        self.latent_dim = 4
        self.b = nn.Linear(4, 4)
        self.a = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        self.unused = nn.Linear(4, 4)
        self.shift = nn.Parameter(torch.zeros(4))

    def forward(self, z):
        return self.b(torch.relu(self.a(self.b(z + self.shift))))


def test_layers_of_an_odd_network():
    layers = layers_in_order(GAN(Odd()))
    assert [layer.name for layer in layers] == ["", "a", "b"]
    assert set(layers[1].parameters) == {"a.bias", "a.parametrizations.weight.original"}
    assert owner("x.parametrizations.weight.original") == owner("x.weight") == "x"
    assert [layer.name for layer in last_layers(GAN(Odd()), None, "k")] == ["a", "b"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit's own
def test_a_scripted_generator_is_refused():
    class Scripted(nn.Module):
        def __init__(self):
            super().__init__()
            self.latent_dim = 2
            self.inner = torch.jit.trace(nn.Linear(2, 2), torch.zeros(3, 2))

        def forward(self, z):
            return self.inner(z)

    with pytest.raises(ValueError, match="generator: Scripted does not show which parameters its pass uses"):
        layers_in_order(GAN(Scripted()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["cf-k", "eu-k"])
def test_only_the_last_k_layers_change(kind, method):
    gan = KINDS[kind]()
    if kind == "dcgan":  # statistics other than those at the start
        gan.generator.train()(torch.randn(50, 5))
    k = 2
    result = unlearn(gan, marked(gan), is_negative=upper_half(gan), config=quick(method, k=k), method=method)
    trained = {layer.name for layer in layers_in_order(gan)[-k:]}
    assert set(result.decisions["trained_layers"]) == trained and result.decisions["k"] == k
    before = gan.generator.state_dict()
    for module in (result.gan.generator, result.generator):
        for name, value in module.state_dict().items():
            if owner(name) not in trained:
                assert torch.equal(value, before[name]), f"{name} was changed"
        changed = {owner(n) for n, v in module.state_dict().items() if not torch.equal(v, before[n])}
        assert changed == trained


@pytest.mark.parametrize("kind", KINDS)
def test_eu_k_forgets_the_weights_of_its_layers(kind):
    """Two GANs that differ only in the last layer give the same result: nothing of it is left."""
    gan = KINDS[kind]()
    other = gan.copy()
    last = layers_in_order(gan)[-1]
    with torch.no_grad():
        for module in (gan.generator, other.generator):
            for name, p in module.named_parameters():
                if name in last.parameters:
                    p.add_(torch.randn_like(p))
    config = quick("eu-k", k=1, steps=0)
    negatives, positives = marked(gan), torch.rand(20, 1, 8, 8)
    a, b = (unlearn(g, negatives, positives, config=config, method="eu-k", seed=5) for g in (gan, other))
    for name in last.parameters:
        p, q = (dict(r.generator.named_parameters())[name] for r in (a, b))
        assert torch.equal(p, q) and not torch.equal(p, dict(gan.generator.named_parameters())[name])


def test_part_frozen_generators_stay_so():
    gan = mlp()
    gan.generator.net[4].weight.requires_grad_(False)
    result = unlearn(gan, marked(gan), config=quick("cf-k", k=1), method="cf-k")
    assert torch.equal(result.gan.generator.net[4].weight, gan.generator.net[4].weight)
    assert not torch.equal(result.gan.generator.net[4].bias, gan.generator.net[4].bias)
    gan.generator.net[4].bias.requires_grad_(False)
    with pytest.raises(ValueError, match="generator: expected a parameter that requires grad in its last 1 layers"):
        unlearn(gan, marked(gan), config=quick("cf-k", k=1), method="cf-k")


def test_reinitialise_known_networks_as_they_are_built():
    trained = stylegan().generator
    with torch.no_grad():
        for p in trained.parameters():
            p.add_(1.0)
        trained.mapping.w_avg.add_(1.0)
    torch.manual_seed(7)
    fresh = type(trained)(**trained.init_kwargs)
    torch.manual_seed(7)
    assert reinitialise(trained) == []
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in trained.state_dict().items())


def test_reinitialise_other_networks_by_their_own_rule_or_by_their_moments():
    module = Odd()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn_like(p) * 3 + 10)
    before = weights(module)
    left = reinitialise(module)
    assert set(left) == {"shift", "a.parametrizations.weight.original"}
    after = weights(module)
    assert all(not torch.equal(before[k], after[k]) for k in dict(module.named_parameters()))
    assert module.b.weight.abs().max() <= 0.5, "nn.Linear starts within 1 / sqrt(4)"
    big = nn.ParameterList([torch.randn(40_000) * 3 + 10])
    reinitialise(big)
    assert big[0].mean().item() == pytest.approx(10, abs=0.1) and big[0].std().item() == pytest.approx(3, abs=0.1)
