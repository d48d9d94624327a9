"""Features, moments, Frechet distance and whitening against closed forms in float64."""

import itertools
import math

import pytest
import torch
from torch import nn

from atu import unlearn
from atu.gan import GAN
from atu.measures.features import (
    DiscriminatorFeatures,
    Whitening,
    flat_features,
    kinds,
)
from atu.measures.frechet import frechet_distance, moments
from atu.measures.oriented_gradients import oriented_gradients
from atu.networks.mlp import MLPGenerator


def spd(n, seed):
    a = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return a @ a.t() + 0.1 * torch.eye(n, dtype=torch.float64)


def test_moments_are_numpys():
    x = torch.randn(50, 4)
    mean, cov = moments(x)
    assert mean.dtype == cov.dtype == torch.float64
    centred = x.double() - x.double().mean(0)
    torch.testing.assert_close(cov, centred.t() @ centred / 49)
    torch.testing.assert_close(mean, x.double().mean(0))
    assert moments(x[:, :1])[1].shape == (1, 1)
    assert torch.equal(moments(x[:1])[1], torch.zeros(4, 4, dtype=torch.float64))


def test_frechet_of_diagonal_covariances():
    m1, m2 = torch.randn(2, 6, dtype=torch.float64)
    s1, s2 = torch.rand(2, 6, dtype=torch.float64) + 0.1
    expected = ((m1 - m2) ** 2).sum() + ((s1 - s2) ** 2).sum()
    got = frechet_distance((m1, torch.diag(s1**2)), (m2, torch.diag(s2**2)))
    assert got == pytest.approx(expected.item(), rel=1e-12)


def test_frechet_of_commuting_covariances():
    q = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    s1, s2 = torch.rand(2, 5, dtype=torch.float64) + 0.1
    mean = torch.zeros(5, dtype=torch.float64)
    got = frechet_distance((mean, q @ torch.diag(s1**2) @ q.t()), (mean, q @ torch.diag(s2**2) @ q.t()))
    assert got == pytest.approx(((s1 - s2) ** 2).sum().item(), rel=1e-10)


def test_frechet_of_any_covariances_is_the_trace_formula():
    a, b, mean = spd(6, 1), spd(6, 2), torch.zeros(6, dtype=torch.float64)
    root = torch.linalg.eigvals(a @ b).sqrt().sum().real  # of the product, which is not symmetric
    expected = (a.trace() + b.trace() - 2 * root).item()
    assert frechet_distance((mean, a), (mean, b)) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance((mean, b), (mean, a)) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance((mean, a), (mean, a)) == pytest.approx(0, abs=1e-9)


def test_frechet_of_singular_covariances():
    v = torch.tensor([3.0, 4.0], dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    got = frechet_distance((zero, torch.outer(v, v)), (v, torch.zeros(2, 2, dtype=torch.float64)))
    assert got == pytest.approx(25 + 25, rel=1e-12)


def test_whitening_makes_the_reference_white():
    x = torch.randn(400, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64) + 7
    white = Whitening(x)(x)
    mean, cov = moments(white)
    torch.testing.assert_close(mean, torch.zeros(5, dtype=torch.float64), atol=1e-10, rtol=0)
    torch.testing.assert_close(cov, torch.eye(5, dtype=torch.float64), atol=1e-10, rtol=0)
    # free of units: rescaling the features changes nothing but signs
    again = Whitening(x * 1000 - 3)(x * 1000 - 3)
    torch.testing.assert_close(again.abs(), white.abs(), rtol=1e-6, atol=1e-8)


def test_whitening_keeps_the_leading_components_and_drops_the_empty_ones():
    scale = torch.tensor([100.0, 10.0, 1.0, 0.0], dtype=torch.float64)
    x = torch.randn(500, 4, dtype=torch.float64) * scale
    assert Whitening(x)(x).shape == (500, 3)
    two = Whitening(x, components=2)(x)
    correlation = torch.corrcoef(torch.cat([two, x[:, :2]], 1).t())[:2, 2:].abs()
    assert torch.allclose(correlation.max(0).values, torch.ones(2, dtype=torch.float64), atol=0.05)
    assert Whitening(torch.ones(9, 4))(torch.ones(2, 4)).shape == (2, 0)


@pytest.mark.parametrize("components", [3, 50])
def test_whitening_on_fewer_samples_than_features_is_the_same(components):
    few = torch.randn(13, 37, dtype=torch.float64) @ torch.randn(37, 37, dtype=torch.float64) + 2
    white = Whitening(few, components)
    assert white.components == min(components, 12)
    values, vectors = torch.linalg.eigh(moments(few)[1])
    fresh = torch.randn(5, 37, dtype=torch.float64)
    axes = vectors[:, -white.components :] / values[-white.components :].sqrt()
    torch.testing.assert_close(white(fresh).abs(), ((fresh - few.mean(0)) @ axes).abs(), rtol=1e-6, atol=1e-8)
    assert Whitening(torch.ones(4, 9))(torch.ones(2, 9)).shape == (2, 0)


def test_kinds_are_whitened_apart():
    x = torch.randn(401, 11, dtype=torch.float64) @ torch.randn(11, 11, dtype=torch.float64)
    x[:, 4:] *= 1000
    white, apart = Whitening(x, 3, [4, 7]), [Whitening(x[:, :4], 3), Whitening(x[:, 4:], 3)]
    torch.testing.assert_close(white(x[:9]), torch.cat([apart[0](x[:9, :4]), apart[1](x[:9, 4:])], 1))
    assert white.components == 6


def test_sample_features_are_coarse_maps_and_what_the_last_layer_takes_in():
    first, second, third = nn.Conv2d(2, 16, 3, padding=1), nn.Conv2d(16, 40, 3, stride=2), nn.Conv2d(40, 300, 2)
    last = nn.Linear(300, 1)
    d = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
    gan = GAN(MLPGenerator(4, [2, 11, 11], hidden=(8,)), d)
    x = torch.randn(7, 2, 11, 11)
    with torch.no_grad():
        a = first(x).relu()
        b = second(a).relu()
        c = third(b).mean((2, 3))
    pool = nn.functional.adaptive_avg_pool2d
    expected = torch.cat([pool(a, 4).flatten(1), pool(b, 2).flatten(1), c], 1)
    found = DiscriminatorFeatures(gan).to_tell_apart(x.split(3))
    torch.testing.assert_close(found, torch.cat([expected, oriented_gradients(x, (-1.0, 1.0))], 1))
    assert kinds(gan, found) == [16 * 16 + 4 * 40 + 300, 464]
    assert DiscriminatorFeatures(gan).to_tell_apart([]).shape[0] == 0


def test_sample_features_know_no_labels_and_count_nothing_twice(conv_gan, snapshot, unchanged):
    before = snapshot(conv_gan)
    x = conv_gan.sample(6)
    features = DiscriminatorFeatures(conv_gan).to_tell_apart([x])
    unchanged(before, snapshot(conv_gan))
    inputs = DiscriminatorFeatures(conv_gan).layer_inputs(x)
    assert [sum(f.shape[1] for f in inputs), 464] == kinds(conv_gan, features)
    assert all(not torch.equal(f, g) for f, g in itertools.pairwise(inputs))
    torch.testing.assert_close(inputs[-1][:, :128], DiscriminatorFeatures(conv_gan).penultimate([x])[:, :128])


def test_sample_features_of_vectors_are_every_hidden_layers(vector_gan):
    x = torch.randn(7, 2, requires_grad=True)
    layers = [m for m in vector_gan.discriminator.net if isinstance(m, nn.Linear)]
    inputs = DiscriminatorFeatures(vector_gan).layer_inputs(x)
    assert [f.shape[1] for f in inputs] == [layer.in_features for layer in layers[1:]]
    features = DiscriminatorFeatures(vector_gan).of_batch(x)
    assert torch.equal(features, torch.cat(inputs, 1)) and kinds(vector_gan, features) == [features.shape[1]]
    (slope,) = torch.autograd.grad(inputs[0].sum(), x)
    assert slope.shape == x.shape and (slope != 0).any()


def test_features_are_what_the_last_layer_takes_in(vector_gan):
    x = torch.randn(7, 2)
    with torch.no_grad():
        expected = vector_gan.discriminator.net[:-1](x)
    torch.testing.assert_close(DiscriminatorFeatures(vector_gan).penultimate(x.split(3)), expected)
    assert DiscriminatorFeatures(vector_gan).penultimate([]).shape[0] == 0


class Projection(nn.Module):
    """A discriminator whose layer of labels comes last (Miyato and Koyama, arXiv 1802.05637)."""

    def __init__(self, embed):
        super().__init__()
        self.body, self.out, self.embed = nn.Linear(2, 9), nn.Linear(9, 1), embed

    def forward(self, x, y):
        h = self.body(x).relu()
        return self.out(h) + (self.embed(y) * h).sum(1, keepdim=True)


@pytest.mark.parametrize("embed", [nn.Embedding(3, 9), nn.Linear(3, 9)], ids=["index", "one-hot"])
def test_features_are_of_samples_where_the_layer_of_labels_comes_last(embed):
    class Generator(MLPGenerator):
        def forward(self, z, y):
            return super().forward(z)

    d = Projection(embed)
    labels = "index" if isinstance(embed, nn.Embedding) else "one-hot"
    gan, x = GAN(Generator(4, [2]), d, c_dim=3, label_format=labels), torch.randn(7, 2)
    with torch.no_grad():
        expected = d.body(x).relu()
    assert torch.equal(DiscriminatorFeatures(gan).penultimate([x]), expected)
    assert all(torch.equal(f, expected) for f in DiscriminatorFeatures(gan).layer_inputs(x))


class Tokens(nn.Module):
    """Patches as tokens, 16 of them, which come first: as torch's attention has it."""

    def __init__(self):
        super().__init__()
        self.patch, self.attention, self.out = nn.Conv2d(1, 6, 2, 2), nn.MultiheadAttention(6, 2), nn.Linear(6, 1)

    def forward(self, x):
        t = self.patch(x).flatten(2).permute(2, 0, 1)
        return self.out((t + self.attention(t, t, t, need_weights=False)[0]).mean(0))


class Folded(nn.Module):
    """Judges the rows of an image one by one."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x):
        return self.net(x.flatten(0, 2)).view(len(x), -1).mean(1)


@pytest.mark.parametrize("n", [3, 16, 25])
def test_features_are_a_row_a_sample_whatever_comes_first_within(n):
    x = torch.rand(n, 1, 8, 8)
    gan = GAN(MLPGenerator(4, [1, 8, 8], hidden=(8,)), Tokens())
    with torch.no_grad():
        t = gan.discriminator.patch(x).flatten(2).permute(2, 0, 1)
        expected = (t + gan.discriminator.attention(t, t, t)[0]).mean(0)
    torch.testing.assert_close(DiscriminatorFeatures(gan).penultimate([x]), expected)
    assert [len(f) for f in DiscriminatorFeatures(gan).layer_inputs(x)] == [n]
    folded = GAN(MLPGenerator(4, [1, 8, 8], hidden=(8,)), Folded())
    assert torch.equal(
        DiscriminatorFeatures(folded).penultimate([x]), x.flatten(1)
    )  # none of its layers: the samples themselves
    assert torch.equal(DiscriminatorFeatures(folded).layer_inputs(x)[0], x.flatten(1))


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("d", [Tokens, Folded])
def test_such_networks_run(d, asked):
    torch.manual_seed(0)
    gan = GAN(MLPGenerator(4, [1, 8, 8], hidden=(8,)), d())
    x = gan.sample(100, 1)
    above = x.flatten(1).mean(1).sort().values[80]

    def unwanted(x):
        return x.flatten(1).mean(1) > above

    config = {"feedback": {"pool": 90}, "adapt": {"steps": 1, "fisher": {"n": 2}}}
    config["repel"] = {"steps": 2, "guide_steps": 2, "check_samples": 50}
    result = unlearn(gan, x[unwanted(x)], is_negative=unwanted if asked else None, config=config)
    assert all(torch.isfinite(p).all() for p in result.generator.parameters())


def test_features_of_spectral_and_batch_norm(conv_gan, snapshot, unchanged):
    """In eval mode, without touching running statistics, from the layer and not from its parametrization."""
    before = snapshot(conv_gan)
    x = conv_gan.sample(6)
    f = DiscriminatorFeatures(conv_gan).penultimate([x])
    unchanged(before, snapshot(conv_gan))
    assert f.shape == (6, 128 + conv_gan.c_dim)
    with torch.no_grad():
        expected = conv_gan.discriminator.eval().body(x)
    torch.testing.assert_close(f[:, :128], expected)
    alone = torch.cat([DiscriminatorFeatures(conv_gan).penultimate([x[i : i + 1]])[:, :128] for i in range(6)])
    torch.testing.assert_close(alone, expected, rtol=1e-5, atol=1e-6)


def test_large_maps_are_averaged_over_space():
    d = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 8))
    gan = GAN(MLPGenerator(4, [1, 8, 8], hidden=(8,)), d)
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        maps = d[0](x)
    torch.testing.assert_close(DiscriminatorFeatures(gan).penultimate([x]), maps.flatten(1))
    torch.testing.assert_close(DiscriminatorFeatures(gan).penultimate([x], max_features=100), maps.mean([2, 3]))


def test_wide_flat_features_are_projected():
    f = torch.randn(7, 4099, dtype=torch.float64)
    g = flat_features(f)
    assert g.shape == (7, 1024) and torch.equal(g, flat_features(f))
    ratio = torch.pdist(g) / torch.pdist(f)  # deviates by 1 / sqrt(2 * 1024) = 0.022
    assert ratio.min() > 0.9 and ratio.max() < 1.1
    torch.testing.assert_close(flat_features(f[:1] + f[1:2]), g[:1] + g[1:2])
    assert torch.equal(flat_features(f[:, :2048]), f[:, :2048])


def test_features_need_a_discriminator():
    with pytest.raises(ValueError, match="discriminator: this GAN has none"):
        DiscriminatorFeatures(GAN(MLPGenerator(4, [2])))


def test_frechet_of_samples_estimates_the_gaussians():
    x, y = torch.randn(20000, 3, dtype=torch.float64), 2 * torch.randn(20000, 3, dtype=torch.float64) + 1
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(3 * (1 + 1), rel=0.05)
    assert math.isfinite(frechet_distance(moments(x[:2]), moments(y[:2])))
