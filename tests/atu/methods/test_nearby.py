"""Latents moved to good samples nearby, the distance of samples, and statistics that are held."""

import copy
import math

import pytest
import torch
from torch import nn

from atu.gan import GAN
from atu.methods.adapt_then_unlearn.distance import SampleDistance, _mean_square
from atu.methods.adapt_then_unlearn.guide import Guide, GuideTraining
from atu.methods.adapt_then_unlearn.nearby import MARGIN, MAX_MOVES, MOVE_LENGTH, STAY, WAIT, MovedLatents
from atu.methods.adapt_then_unlearn.objective import hold_statistics
from atu.methods.adapt_then_unlearn.ways import WayLatents
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.networks.stylegan2 import Discriminator, Generator
from atu.networks.stylegan3 import Generator as Generator3
from atu.support.modules import still

from .planes import Doubled, Odds, Plane, anywhere, apart, filled, uniform


def plane_bank(z, distance=anywhere, at_once=9):
    gan = GAN(Doubled(), MLPDiscriminator([3], hidden=(4,)), latent_dim=3, latent_sampler=uniform)
    return filled(MovedLatents(gan, gan.fake, Plane(), distance, at_once), z)


def test_latents_move_down_the_slope_until_they_are_clearly_good():
    """Straight lines here, in moves of one length, in deviations of the latents."""
    z = uniform(37, torch.Generator().manual_seed(3))
    bank = plane_bank(z, at_once=5)
    slope = 2 * Plane.a * bank.scale
    move = MOVE_LENGTH * math.sqrt(3) * slope / slope.norm() * bank.scale
    odds, fall = 2 * z @ Plane.a + Plane.b, float(2 * move @ Plane.a)
    moves = ((odds + MARGIN) / fall).ceil().clamp(0, MAX_MOVES)
    assert moves.min() == 0 and 0 < (moves == MAX_MOVES).sum() < 37
    torch.testing.assert_close(bank.good, z - moves[:, None] * move, rtol=1e-4, atol=1e-5)


def test_latents_stay_near_their_own_sample():
    """Where log-odds a x + b and STAY weight |x - x_0|^2 / 3 balance, x = x_0 - 3 a / (2 STAY weight)."""
    z, weight = uniform(37, torch.Generator().manual_seed(3)), 40.0
    z = z[2 * z @ Plane.a + Plane.b > 0]
    bank = plane_bank(z, lambda seen, other: weight * apart(seen, other))
    balance = 3 * Plane.a / (2 * STAY * weight)
    assert balance @ Plane.a < MARGIN  # none is clearly good there
    torch.testing.assert_close(bank.good, z - (balance / 2), rtol=0, atol=1.5 * MOVE_LENGTH)
    assert (plane_bank(z).good - z).norm(dim=1).min() > 4 * (bank.good - z).norm(dim=1).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", [MovedLatents, WayLatents])
def test_normal_latents_keep_their_norm_and_precision(kind, dtype):
    gan = GAN(MLPGenerator(5, [2], hidden=(7,)).to(dtype), MLPDiscriminator([2], hidden=(4,)).to(dtype))

    class First(Odds):
        def log_odds(self, x, c=None):
            return 9 * x[:, 0] + 9

    z = gan.inputs(11, 2)[0].to(dtype)
    torch.manual_seed(0)
    good = filled(kind(gan, gan.fake, First(), anywhere), z).good
    assert good.dtype == dtype
    torch.testing.assert_close(good.norm(dim=1), z.norm(dim=1))
    before, after = (gan.generator(x).detach()[:, 0] for x in (z, good))
    assert (after <= before + 1e-6).all() and (after < before - 0.01).any()


@pytest.mark.parametrize("kind", [MovedLatents, WayLatents])
def test_labels_stay_with_their_latents(kind):
    torch.manual_seed(0)
    generator = Generator(4, 3, 5, 8, 1, dict(num_layers=1), dict(channel_base=32, channel_max=8))
    gan = GAN(generator, Discriminator(3, 8, 1, channel_base=32, channel_max=8))

    class Bright(Odds):
        def log_odds(self, x, c=None):
            return 300 * x.mean((1, 2, 3)) + 30 * c[:, 0]

    z, c = gan.inputs(13, 1)
    bank = filled(kind(gan, gan.fake, Bright(), anywhere, at_once=4), z, c, steps=20)
    assert bank.good.shape == z.shape and torch.equal(bank.c, c)
    index = {tuple(row.tolist()): i for i, row in enumerate(z)}
    drawn, labels, good = bank.draw(29)
    rows = [index[tuple(row.tolist())] for row in drawn]
    assert len(set(rows)) > 3 and torch.equal(labels, c[rows]) and torch.equal(good, bank.good[rows])
    with torch.no_grad():
        torch.manual_seed(2)
        before = Bright().log_odds(generator(z, c), c)
        torch.manual_seed(2)
        after = Bright().log_odds(generator(bank.good, c), c)
    moved = (bank.good - z).abs().sum(1) > 1e-4
    assert moved.any() and (after[moved] < before[moved]).float().mean() > 0.9


def test_found_latents_wait_for_each_other():
    z = uniform(2 * WAIT, torch.Generator().manual_seed(4))
    whole, grown = plane_bank(z, apart), plane_bank(z[:WAIT], apart)
    grown.add(z[WAIT : WAIT + 3], None)
    assert len(grown) == WAIT
    again = plane_bank(z[:1], apart)
    again.load_state_dict(copy.deepcopy(grown.state_dict()))
    for one in (grown, again):
        one.add(z[WAIT + 3 :], None)
        assert torch.equal(one.z, whole.z)
        torch.testing.assert_close(one.good, whole.good)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_distance_is_the_formula(share, dtype):
    pair = MLPGenerator(3, [1, 5, 5], hidden=(7,)).to(dtype), MLPDiscriminator([1, 5, 5], hidden=(11, 6)).to(dtype)
    gan = GAN(*pair)
    positives, x, other = (torch.randn(n, 1, 5, 5, dtype=torch.float64).to(dtype) for n in (31, 9, 9))
    net = copy.deepcopy(gan.discriminator.net).double()

    def features(x):
        first = net[:3](x.double())
        return [first, net[3:5](first)]

    expected = (1 - share) * (x - other).double().square().mean((1, 2, 3)) / positives.double().var(0).mean()
    for a, b, p in zip(features(x), features(other), features(positives), strict=True):
        expected = expected + share / 2 * (a - b).square().mean(1) / p.var(0).mean()
    x.requires_grad_(True)
    guide = untrained_guide(gan)
    found = SampleDistance(guide, positives, share)(guide.look(x), guide.look(other))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    found.sum().backward()
    assert x.grad is not None and all(p.grad is None for p in guide.discriminator.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_mean_squares_of_16_bits_are_summed_in_float32(dtype):
    x = torch.randn(5, 37, 11, 13).to(dtype).requires_grad_(True)
    found = _mean_square(x)
    assert found.dtype == torch.float32
    exact = x.detach().double()
    torch.testing.assert_close(found.double(), exact.square().mean((1, 2, 3)), rtol=1e-5, atol=0)
    weights = torch.randn(5)
    (found * weights).sum().backward()
    slope = 2 / (37 * 11 * 13) * weights.double().view(5, 1, 1, 1) * exact
    unit = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    torch.testing.assert_close(x.grad.double(), slope, rtol=unit, atol=1e-7)  # float16 is as coarse as that near 0


def test_mean_squares_have_their_slope():
    x = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_mean_square, x)
    still = torch.zeros(2, 3, requires_grad=True)
    _mean_square(still).sum().backward()
    assert torch.equal(still.grad, torch.zeros(2, 3))


def untrained_guide(gan):
    """One that still is the pretrained discriminator."""
    return Guide(gan, GuideTraining(steps=0))


def test_labels_are_no_features():
    generator = Generator(4, 3, 5, 8, 1, dict(num_layers=1), dict(channel_base=32, channel_max=8))
    gan = GAN(generator, Discriminator(3, 8, 1, channel_base=32, channel_max=8))
    guide, (x, other) = untrained_guide(gan), torch.randn(2, 9, 1, 8, 8)
    labels = torch.eye(3).repeat(3, 1)
    seen = guide.look(x, labels)
    assert not any(f.shape[1:] == (3,) for f in seen.features)
    distance = SampleDistance(guide, torch.randn(31, 1, 8, 8), 0.5)
    assert (distance(seen, guide.look(other, labels)) > 0).all()
    torch.testing.assert_close(distance(seen, guide.look(x, labels)), torch.zeros(9))


def test_moves_keep_the_latents_precision():
    gan = GAN(MLPGenerator(3, [5], hidden=(7,)).double(), MLPDiscriminator([5], hidden=(11,)).double())
    z = torch.randn(6, 3, dtype=torch.float64)
    guide = untrained_guide(gan)
    distance = SampleDistance(guide, gan.fake(torch.randn(31, 3, dtype=torch.float64), None).detach(), 0.5)
    bank = filled(MovedLatents(gan, gan.fake, guide, distance, at_once=4), z)
    assert bank.good.dtype == torch.float64
    before, after = (guide.log_odds(gan.fake(latents, None)) for latents in (z, bank.good))
    assert (after <= before).all() and (bank.good != z).any()


def test_a_look_gives_log_odds_and_features_of_one_pass():
    gan = GAN(MLPGenerator(3, [1, 5, 5], hidden=(7,)), MLPDiscriminator([1, 5, 5], hidden=(11, 6)))
    guide, x, passes = untrained_guide(gan), torch.randn(9, 1, 5, 5), []
    guide.discriminator.register_forward_hook(lambda *_: passes.append(1))
    seen = guide.look(x)
    assert len(passes) == 1 and seen.samples is x
    assert [f.shape for f in seen.features] == [(9, 11), (9, 6)]
    torch.testing.assert_close(seen.log_odds, guide.log_odds(x))


def test_layers_of_spectral_norm_count_as_those_without():
    def linears():
        return nn.Linear(5, 7), nn.Linear(7, 6, bias=False), nn.Linear(6, 1, bias=False)

    def network(layers):
        return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2]).eval()

    normed, plain = [nn.utils.parametrizations.spectral_norm(one) for one in linears()], linears()
    found = GAN(MLPGenerator(3, [5], hidden=(7,)), network(normed))
    with torch.no_grad():
        for layer, one in zip(plain, normed, strict=True):
            layer.weight.copy_(one.weight)
        plain[0].bias.copy_(normed[0].bias)
    expected = GAN(found.generator, network(plain))
    positives, x, other = (torch.randn(n, 5) for n in (31, 9, 9))
    guides = [untrained_guide(gan) for gan in (found, expected)]
    found, expected = (SampleDistance(g, positives, 1.0)(g.look(x), g.look(other)) for g in guides)
    torch.testing.assert_close(found, expected)
    assert found.min() > 0


def test_batch_norm_uses_its_running_statistics():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    hold_statistics(net, None)
    assert [m.training for m in net] == [True, False, True]


def stylegan3():
    options = dict(channel_base=64, channel_max=8, num_layers=4, num_critical=1, margin_size=4)
    return GAN(Generator3(4, 0, 4, 16, 3, dict(num_layers=1), **options))


def magnitudes(network):
    return {name: value.clone() for name, value in network.state_dict().items() if name.endswith("magnitude_ema")}


@pytest.mark.parametrize("mixing", [0.0, 0.5])
def test_stylegan3_keeps_its_magnitudes_where_statistics_are_held(mixing):
    gan = stylegan3()
    gan.generator.train()
    z, before = gan.inputs(7)[0], magnitudes(gan.generator)
    hold_statistics(gan.generator)
    gan.fake(z, None, mixing)
    assert before and all(torch.equal(value, before[name]) for name, value in magnitudes(gan.generator).items())


class Normed(nn.Module):
    """A generator of spectral norms, old and new, batch norm and dropout."""

    def __init__(self):
        super().__init__()
        norms = nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm
        self.layers = nn.Sequential(
            norms[0](nn.Linear(4, 6)), nn.BatchNorm1d(6), nn.Dropout(0.5), norms[1](nn.Linear(6, 5))
        )

    def forward(self, z):
        return self.layers(z)


@pytest.mark.parametrize("make", [stylegan3, lambda: GAN(Normed(), latent_dim=4)])
def test_a_still_copy_gives_the_same_after_any_pass(make):
    gan = make()
    gan.generator.train()
    copy = still(gan.generator)
    z, state = gan.inputs(7)[0], {k: v.clone() for k, v in copy.state_dict().items()}
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(gan.fake(z, None, generator=copy))
        gan.fake(3 * z + 1, None, generator=copy)
    assert torch.equal(*found)
    assert all(torch.equal(v, state[k]) for k, v in copy.state_dict().items())
    assert not any(p.requires_grad for p in copy.parameters()) and gan.generator.training
    dropout = [m for m in copy.modules() if isinstance(m, nn.Dropout)]
    assert all(m.training for m in dropout)
