"""Diagonal Fisher information against a loop of autograd calls and an analytic linear model."""

import pytest
import torch
from torch import nn

from atu.gan import GAN
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.training.fisher import diagonal_fisher


def loop(gan, z, c):
    """E[g^2], each sample alone through networks in eval mode."""
    gan = gan.copy()
    for module in gan.modules().values():
        module.eval()
    params = list(gan.generator.parameters())
    total = [torch.zeros_like(p) for p in params]
    for i in range(len(z)):
        args = [] if c is None else [c[i : i + 1]]
        value = gan.logits(gan.generator(z[i : i + 1], *args), *args).sum()
        gan.generator.zero_grad()
        value.backward()
        for t, p in zip(total, params, strict=True):
            t += 0 if p.grad is None else p.grad.square()
    return [t / len(z) for t in total]


def test_equals_the_loop_over_samples(conv_gan, snapshot, unchanged):
    z, c = conv_gan.latents(5, torch.default_generator), conv_gan.labels(5, torch.default_generator)
    before = snapshot(conv_gan)
    got = diagonal_fisher(conv_gan, z, c)
    unchanged(before, snapshot(conv_gan))
    for f, e in zip(got, loop(conv_gan, z, c), strict=True):
        torch.testing.assert_close(f, e, rtol=1e-5, atol=1e-9)
    assert sum(float(f.sum()) for f in got) > 0


def test_linear_model_in_closed_form():
    """D(G(z)) = d . (W z + b): the gradient is d_i z_j in W and d_i in b."""
    g, d = nn.Linear(3, 2).double(), nn.Linear(2, 1).double()
    z = torch.randn(40, 3, dtype=torch.float64)
    weight, bias = diagonal_fisher(GAN(g, d, 3), z)
    row = d.weight.detach()[0].square()
    torch.testing.assert_close(weight, row[:, None] * z.square().mean(0), rtol=1e-10, atol=0)
    torch.testing.assert_close(bias, row, rtol=1e-10, atol=0)


def test_frozen_and_unused_parameters():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.spare, self.latent_dim = nn.Linear(3, 2), nn.Linear(2, 2), 3

        def forward(self, z):
            return self.fc(z)

    gan = GAN(Spare(), MLPDiscriminator([2], hidden=(4,)))
    z = torch.randn(4, 3)
    expected = diagonal_fisher(gan, z)
    gan.generator.requires_grad_(False)
    for a, b in zip(diagonal_fisher(gan, z), expected, strict=True):
        assert torch.equal(a, b)
    assert not any(p.requires_grad for p in gan.generator.parameters())
    assert float(expected[0].sum()) > 0 and float(expected[2].abs().sum()) == 0


def test_selected_parameters():
    gan = GAN(MLPGenerator(3, [2], hidden=(5,)), MLPDiscriminator([2], hidden=(4,)))
    z = torch.randn(4, 3)
    everything, some = diagonal_fisher(gan, z), diagonal_fisher(gan, z, parameters=[r"net\.0\.", "weight$"])
    for (name, _), f, e in zip(gan.generator.named_parameters(), some, everything, strict=True):
        wanted = name.startswith("net.0.") or name.endswith("weight")
        assert torch.equal(f, e if wanted else torch.zeros_like(e))


def test_errors(vector_gan):
    z = torch.zeros(1, 4)
    with pytest.raises(ValueError, match="z: expected at least one latent"):
        diagonal_fisher(vector_gan, z[:0])
    with pytest.raises(ValueError, match=r"parameters: 'conv' matches none .* such as net.0.weight"):
        diagonal_fisher(vector_gan, z, parameters=["conv"])
