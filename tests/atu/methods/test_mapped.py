"""The map of latents to good samples nearby, and the bank that has one."""

import copy

import pytest
import torch

from atu.gan import GAN
from atu.methods.adapt_then_unlearn.mapped import LEARN_EVERY, MOVE_WEIGHT, MappedLatents
from atu.methods.adapt_then_unlearn.nearby import MARGIN, MOST
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.networks.stylegan2 import Discriminator, Generator

from .planes import Doubled, Plane, uniform


def best_moves(l0, steepness):
    """Of each log-odds l0 [N] the k that is least in softplus(l0 - steepness k + MARGIN) + MOVE_WEIGHT k^2: where
    the derivative is 0, by bisection."""
    low, high = torch.zeros_like(l0), torch.full_like(l0, 10.0)
    for _ in range(60):
        k = (low + high) / 2
        rises = 2 * MOVE_WEIGHT * k > steepness * torch.sigmoid(l0 - steepness * k + MARGIN)
        low, high = torch.where(rises, low, k), torch.where(rises, k, high)
    return low


def test_the_map_learns_the_best_moves():
    """On a plane they lead straight down its slope, in deviations of the latents."""
    torch.manual_seed(1)
    gan = GAN(Doubled(), MLPDiscriminator([3], hidden=(4,)), latent_dim=3, latent_sampler=uniform)
    z = uniform(370, torch.Generator().manual_seed(3))
    bank = MappedLatents(gan, gan.fake, Plane(), (z, None), steps=600)
    scale = gan.inputs(512)[0].std(0)
    slope = (2 * Plane.a * scale).double()
    best = best_moves(Plane().log_odds(2 * z).double(), slope.norm())
    expected = -best[:, None] * slope / slope.norm()
    with torch.no_grad():
        found = (bank.map(z) - z) / scale
    assert best.max() > 4 * best.min() > 0
    assert (found - expected).square().mean() < 0.01 * expected.square().mean()


def test_before_it_learns_the_map_moves_nothing():
    gan = GAN(MLPGenerator(5, [2], hidden=(7,)), MLPDiscriminator([2], hidden=(4,)))
    z, _ = gan.inputs(11, 2)
    bank = MappedLatents(gan, gan.fake, Plane(), (z, None), steps=0)
    torch.testing.assert_close(bank.map(z), z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_normal_latents_keep_their_norm_and_precision(dtype):
    torch.manual_seed(0)
    gan = GAN(MLPGenerator(5, [2], hidden=(7,)).to(dtype), MLPDiscriminator([2], hidden=(4,)).to(dtype))

    class First:
        def log_odds(self, x, c=None):
            return 90 * x[:, 0] + 9

    z = gan.inputs(110, 2)[0].to(dtype)
    bank = MappedLatents(gan, gan.fake, First(), (z, None), steps=50)
    with torch.no_grad():
        good = bank.map(z)
        before, after = (gan.generator(x)[:, 0] for x in (z, good))
    assert good.dtype == dtype
    torch.testing.assert_close(good.norm(dim=1), z.norm(dim=1), rtol=1e-5, atol=0.0)
    assert (after < before).double().mean() > 0.9 and (after < before - 0.01).any()


def test_labels_stay_with_their_latents_and_are_seen():
    """Samples with the second label are never negative, so that their latents need not move."""
    torch.manual_seed(0)
    generator = Generator(4, 2, 5, 8, 1, dict(num_layers=1), dict(channel_base=32, channel_max=8))
    gan = GAN(generator, Discriminator(2, 8, 1, channel_base=32, channel_max=8))

    class Bright:
        def log_odds(self, x, c):
            return 30 * (x.mean((1, 2, 3)) + 1.3) - 1000 * c[:, 1]

    z, _ = gan.inputs(130, 1)
    c = torch.eye(2)[torch.arange(130) % 2]
    bank = MappedLatents(gan, gan.fake, Bright(), (z, c), steps=200)
    index = {tuple(row.tolist()): i for i, row in enumerate(z)}
    drawn, labels, good = bank.draw(29)
    rows = [index[tuple(row.tolist())] for row in drawn]
    assert len(set(rows)) > 3 and torch.equal(labels, c[rows])
    with torch.no_grad():
        torch.testing.assert_close(good, bank.map(z[rows], c[rows]))
        near = bank.map(z, c)
        before, after = (generator(x, c, noise_mode="const").mean((1, 2, 3)) for x in (z, near))
    bright = (before > -1.3) & (c[:, 0] > 0)
    assert (after < before)[bright].float().mean() > 0.9
    moves = (near - z).square().mean(1)
    assert moves[::2].mean() > 10 * moves[1::2].mean()


def test_the_map_learns_alike_in_parts():
    gan = GAN(Doubled(), MLPDiscriminator([3], hidden=(4,)), latent_dim=3, latent_sampler=uniform)
    z = uniform(37, torch.Generator().manual_seed(4))
    found = []
    for at_once in (64, 5):
        torch.manual_seed(6)
        found.append(MappedLatents(gan, gan.fake, Plane(), (z, None), at_once, steps=3).map(z))
    assert (found[0] - z).abs().max() > 1e-3
    torch.testing.assert_close(*found)


def test_the_bank_grows_and_goes_on():
    """The map learns from what was added too; the oldest go; and the state resumes."""
    gan = GAN(Doubled(), MLPDiscriminator([3], hidden=(4,)), latent_dim=3, latent_sampler=uniform)
    z = uniform(MOST + 5, torch.Generator().manual_seed(4))

    def new(n):
        return MappedLatents(gan, gan.fake, Plane(), (z[:n], None), steps=2)

    grown = new(3)
    grown.add(z[3:9], None)
    assert torch.equal(grown.z, z[:9])
    grown.draw(7)
    again = new(1)
    again.load_state_dict(copy.deepcopy(grown.state_dict()))
    for one in (grown, again):
        torch.manual_seed(5)
        before = one.map(z).detach()
        for _ in range(LEARN_EVERY):
            one.draw(7)
        assert not torch.equal(one.map(z), before)
        one.add(z[9:], None)
        assert len(one) == MOST and torch.equal(one.z, z[-MOST:])
    assert torch.equal(grown.map(z), again.map(z))
