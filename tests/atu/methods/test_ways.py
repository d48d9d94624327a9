"""Ways from latents to good samples nearby, the same for all latents."""

import copy

import torch

from atu.gan import GAN
from atu.methods.adapt_then_unlearn.nearby import MARGIN, MAX_LATENTS, WAIT
from atu.methods.adapt_then_unlearn.ways import MAX_STEPS, STEP, WAYS, WayLatents
from atu.networks.mlp import MLPDiscriminator

from .planes import Doubled, Plane, apart, filled, uniform


def plane_bank(z, guide=None, at_once=None, steps=200):
    gan = GAN(Doubled(), MLPDiscriminator([3], hidden=(4,)), latent_dim=3, latent_sampler=uniform)
    torch.manual_seed(1)
    return filled(WayLatents(gan, gan.fake, guide or Plane(), apart, at_once), z, steps=steps)


def test_ways_lead_down_the_slope():
    """Of a plane, in deviations of the latents; a batch's gradients are summed over its parts."""
    z = uniform(37, torch.Generator().manual_seed(3))
    whole, parts = plane_bank(z), plane_bank(z, at_once=9)
    slope = 2 * Plane.a * whole.scale
    assert whole.ways.shape == (WAYS, 3)
    torch.testing.assert_close(whole.ways.norm(dim=1), torch.ones(WAYS))
    assert (whole.ways @ -slope / slope.norm() > 0.97).all()
    torch.testing.assert_close(parts.ways, whole.ways, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(parts.good, whole.good, rtol=1e-3, atol=1e-4)


def test_latents_go_the_shortest_way_until_they_are_clearly_good():
    """By hand, in double precision: step by step along each of four ways, or to where it is best."""

    class Egg:
        """Negative inside of an ellipsoid, and once more far out on one side."""

        def log_odds(self, x, c=None):
            inside = 5 - (x.square() * torch.tensor([1.0, 0.3, 0.5], dtype=x.dtype)).sum(1)
            return inside.maximum(7 * x[:, 0] - 9)

    z = 2 * uniform(41, torch.Generator().manual_seed(5))
    bank = plane_bank(z[:1], Egg(), steps=1)
    bank.ways = torch.nn.functional.normalize(torch.randn(WAYS, 3, generator=torch.Generator().manual_seed(2)), dim=1)
    found = bank._moved(z, None)
    steps = STEP * torch.arange(MAX_STEPS + 1).double()
    at = z.double()[:, None, None] + steps[:, None, None] * (bank.ways * bank.scale).double()  # [N, steps, ways, 3]
    odds = Egg().log_odds(2 * at.view(-1, 3)).view(at.shape[:3])
    taken = set()
    for one, reached, said in zip(found, at, odds, strict=True):
        good = (said.amin(1) < -MARGIN).nonzero().flatten()
        step = int(good[0]) if len(good) else int(said.amin(1).argmin())
        way = int(said[step].argmin())
        taken.add((len(good) > 0, step > 0, way))
        torch.testing.assert_close(one.double(), reached[step, way], rtol=1e-5, atol=1e-6)
    assert len(taken) > 3


def test_ways_out_of_the_middle_lead_to_the_nearer_side():
    """Good samples are on both sides of the negative ones, where the mean of all slopes leads nowhere."""

    class Slab:
        def log_odds(self, x, c=None):
            return 9 - 20 * x[:, 0].abs()

    z = uniform(300, torch.Generator().manual_seed(7)) * torch.tensor([0.2, 1.0, 1.0])
    bank = plane_bank(z, Slab())
    assert {-1.0, 1.0} == set(bank.ways[:, 0].sign().tolist())
    assert (Slab().log_odds(2 * bank.good) < -MARGIN).all()
    clear = z[:, 0].abs() > 0.1
    assert clear.sum() > 20 and (bank.good[:, 0] * z[:, 0] > 0)[clear].all()


def test_found_latents_wait_for_each_other():
    z = uniform(2 * WAIT, torch.Generator().manual_seed(4))
    whole, grown, again = plane_bank(z, at_once=9), plane_bank(z[:WAIT], at_once=9, steps=1), plane_bank(z[:1], steps=1)
    grown.ways = whole.ways
    grown.good = grown._moved(z[:WAIT], None)
    grown.add(z[WAIT : WAIT + 3], None)
    assert len(grown) == WAIT
    again.load_state_dict(copy.deepcopy(grown.state_dict()))
    for one in (grown, again):
        one.add(z[WAIT + 3 :], None)
        assert torch.equal(one.z, whole.z)
        torch.testing.assert_close(one.good, whole.good)
        one.add(uniform(MAX_LATENTS, torch.Generator().manual_seed(8)), None)
        assert len(one) == MAX_LATENTS and len(one.good) == MAX_LATENTS
