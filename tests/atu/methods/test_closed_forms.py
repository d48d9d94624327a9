"""extrapolate, ewc and l1-sparse against their closed forms."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from atu import GAN, adapt, extrapolate, unlearn
from atu.methods.l1_sparse import L1, L1Sparse
from atu.training.fisher import diagonal_fisher

from .kinds import FIRST, QUICK, marked, mlp, quick


def test_extrapolate_is_the_closed_form():
    gan = mlp()
    config = {**quick("extrapolate", s=0.7), "adapt": {**QUICK["adapt"], "models": 2}}
    result = unlearn(gan, marked(gan), config=config, method="extrapolate", seed=2)
    adapted = adapt(gan, marked(gan), config=config, seed=2)
    alone = extrapolate(gan, adapted, 0.7).sampling_generator.state_dict()
    for key, value in gan.sampling_generator.state_dict().items():
        expected = value - 0.7 * ((adapted[0][key] + adapted[1][key]) / 2 - value)
        torch.testing.assert_close(result.generator.state_dict()[key], expected)
        assert torch.equal(result.generator.state_dict()[key], alone[key])


class Scale(nn.Module):
    """G(z) = theta z, one weight a coordinate."""

    def __init__(self, theta):
        super().__init__()
        self.latent_dim = len(theta)
        self.theta = nn.Parameter(theta.clone())

    def forward(self, z):
        return self.theta * z


class Blind(nn.Module):
    """A logit whose gradient for samples is known: the sum of the coordinates."""

    def __init__(self, slope):
        super().__init__()
        self.register_buffer("slope", torch.tensor(slope))
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.slope * x.sum(1) + 0 * self.weight


def test_ewc_on_a_quadratic():
    """A discriminator of slope a is met by Fisher a^2 z^2; with a strong weight the weights stay, with none they go."""
    theta = torch.tensor([1.0, -2.0, 0.5])
    gan = GAN(Scale(theta), Blind(3.0))
    z, _ = gan.inputs(6)
    (fisher,) = diagonal_fisher(gan, z)
    torch.testing.assert_close(fisher, 9 * z.square().mean(0))
    moved = []
    for weight in (0.0, 1e6):
        config = quick(
            "ewc", steps=30, weight=weight, relative=False, adversarial={"batch_size": 8, "lr": 0.01, "r1_gamma": 0}
        )
        result = unlearn(gan, torch.ones(4, 3), torch.zeros(9, 3), config=config, method="ewc")
        moved.append((result.gan.generator.theta - theta).abs().max().item())
    assert moved[1] < 0.1 * moved[0] and moved[0] > 0.05


def test_ewc_penalty_at_the_optimum_of_a_quadratic():
    """Gradient descent on b theta + w/2 F (theta - a)^2 ends at a - b / (w F)."""
    from atu.methods.adapt_then_unlearn.adapt import Ewc

    gan = GAN(Scale(torch.tensor([1.0, 2.0])))
    theta, anchor = gan.generator.theta, torch.tensor([1.0, 2.0])
    fisher, slope = torch.tensor([0.5, 2.0]), torch.tensor([0.3, -0.4])
    ewc = Ewc(gan, [anchor], [fisher], 4.0, False)
    optim = torch.optim.SGD([theta], lr=0.1)
    for _ in range(300):
        theta.grad = slope.clone()
        value = ewc.after_backward(FIRST)["ewc"]
        optim.step()
    torch.testing.assert_close(theta.detach(), anchor - slope / (4 * fisher), rtol=1e-5, atol=1e-5)
    assert value == pytest.approx((4 / 2 * fisher * (slope / (4 * fisher)).square()).sum().item(), rel=1e-4)


@pytest.mark.parametrize(
    "schedule, factor", [("constant", 1.0), ("linear", 0.75), ("cosine", 0.5 * (1 + math.sqrt(0.5)))]
)
def test_l1_is_the_sum_of_absolute_values(schedule, factor):
    params = [torch.randn(3, 2, dtype=torch.float64, requires_grad=True), torch.randn((), requires_grad=True)]
    cfg = L1Sparse(weight=0.3, schedule=schedule, steps=8)
    value = 0.3 * factor * sum(p.abs().sum() for p in params)
    expected = torch.autograd.grad(value, params)
    params[0].grad = torch.ones_like(params[0])
    penalty = L1(params, cfg.weight, cfg)
    assert penalty.after_backward(SimpleNamespace(step_count=2))["l1"] == pytest.approx(value.item(), rel=1e-6)
    torch.testing.assert_close(params[0].grad - 1, expected[0], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(params[1].grad, expected[1], rtol=1e-6, atol=1e-9)


def test_l1_sparse_shrinks_the_weights():
    gan = mlp()
    norms = []
    for weight in (0.0, 10.0):
        config = quick("l1-sparse", weight=weight, steps=20)
        result = unlearn(gan, marked(gan), config=config, method="l1-sparse")
        norms.append(sum(p.abs().sum().item() for p in result.gan.generator.parameters()))
    assert norms[1] < norms[0] - 1


def test_l1_weight_is_set_from_the_gradients():
    """With one batch of all the same latents: strength times the norm of the adversarial gradient, by hand."""
    gan = mlp()
    gan.latent_sampler = lambda n, rng: torch.ones(n, 4)
    result = unlearn(
        gan,
        torch.full((4, 1, 8, 8), 2.0),
        torch.rand(9, 1, 8, 8),
        lambda x: x[:, 0, 0, 0] > 1.5,
        quick("l1-sparse", strength=0.5),
        method="l1-sparse",
    )
    params = list(gan.generator.parameters())
    loss = -torch.sigmoid(gan.discriminator(gan.generator(torch.ones(1, 4)))).log().mean()
    norm = torch.cat([g.flatten() for g in torch.autograd.grad(loss, params)]).norm().item()
    size = sum(p.numel() for p in params)
    assert result.decisions["l1_weight"] * math.sqrt(size) == pytest.approx(0.5 * norm, rel=1e-4)
