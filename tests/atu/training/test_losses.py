"""Losses against closed forms and explicit Jacobians, in float64."""

import math

import pytest
import torch
from torch import nn

from atu.training import losses
from atu.training.losses import PathLength, fake_loss, generator_loss, r1_penalty, real_loss, relativistic_loss


@pytest.mark.parametrize("loss, sign", [(generator_loss, -1), (real_loss, -1), (fake_loss, 1)])
def test_logistic_losses_are_the_written_formula(loss, sign):
    logits = torch.randn(64, dtype=torch.float64) * 3
    p = 1 / (1 + torch.exp(-logits))
    expected = -(p if sign < 0 else 1 - p).log().mean()
    torch.testing.assert_close(loss(logits), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss, sign", [(generator_loss, -1), (real_loss, -1), (fake_loss, 1)])
def test_logistic_losses_stay_finite_and_have_the_closed_form_gradient(loss, sign):
    logits = torch.tensor([-1e4, -1.0, 0.0, 2.0, 1e4], dtype=torch.float64, requires_grad=True)
    value = loss(logits)
    assert torch.isfinite(value)
    value.backward()
    torch.testing.assert_close(logits.grad, sign * torch.sigmoid(sign * logits.detach()) / 5, rtol=1e-12, atol=1e-300)


def test_relativistic_loss_is_the_written_formula():
    real, fake = torch.randn(2, 64, dtype=torch.float64) * 3
    expected = (1 + torch.exp(fake - real)).log().mean()
    torch.testing.assert_close(relativistic_loss(real, fake), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(relativistic_loss(real + 7, fake + 7), expected, rtol=1e-12, atol=0)


def test_r1_is_half_the_squared_input_jacobian():
    d = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Softplus(), nn.Linear(7, 1)).double()
    x = torch.randn(5, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    jacobians = [torch.autograd.functional.jacobian(lambda v: d(v).sum(), x[i : i + 1].detach()) for i in range(5)]
    expected = 0.5 * torch.stack([j.square().sum() for j in jacobians]).mean()
    value = r1_penalty(d(x).squeeze(1), x)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    # and its gradient reaches the weights: against a finite difference along a random direction
    weight, direction, h = d[1].weight, torch.randn(7, 12, dtype=torch.float64), 1e-6
    (grad,) = torch.autograd.grad(value, weight)

    def at(shift):
        with torch.no_grad():
            weight.add_(direction, alpha=shift)
        result = r1_penalty(d(x).squeeze(1), x).item()
        with torch.no_grad():
            weight.sub_(direction, alpha=shift)
        return result

    assert (grad * direction).sum().item() == pytest.approx((at(h) - at(-h)) / (2 * h), rel=1e-6)


def test_path_length_is_the_jacobian_projected_on_noise(monkeypatch):
    n, num_ws, w_dim, c, h, w = 3, 2, 4, 2, 3, 5
    a = torch.randn(c * h * w, num_ws * w_dim, dtype=torch.float64)

    def synthesis(ws):
        return torch.tanh(ws.flatten(1) @ a.t()).reshape(n, c, h, w)

    ws = torch.randn(n, num_ws, w_dim, dtype=torch.float64, requires_grad=True)
    y = torch.randn(n, c, h, w, dtype=torch.float64)
    monkeypatch.setattr(losses.torch, "randn_like", lambda _: y)
    penalty = PathLength(decay=0.25)
    value = penalty(synthesis(ws), ws)

    jacobian = torch.autograd.functional.jacobian(synthesis, ws.detach())  # [n, c, h, w, n, num_ws, w_dim]
    lengths = []
    for i in range(n):
        projected = torch.einsum("chw,chwlv->lv", y[i] / math.sqrt(h * w), jacobian[i, :, :, :, i])
        lengths.append(projected.square().sum(1).mean().sqrt())
    lengths = torch.stack(lengths)
    mean = 0.25 * lengths.mean()  # the running mean starts at 0
    torch.testing.assert_close(penalty.mean, mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(value, (lengths - mean).square().mean(), rtol=1e-12, atol=0)


def test_path_length_mean_follows_the_lengths():
    penalty = PathLength(decay=0.5)
    ws = torch.randn(8, 1, 6, requires_grad=True)
    for _ in range(40):
        penalty((ws @ torch.eye(6) * 2).reshape(8, 1, 2, 3), ws)
    # J = 2 I and y ~ N(0, 1 / 6) in 6 dimensions: E ||J^T y|| is 2 sqrt(2 / 6) gamma(3.5) / gamma(3)
    expected = 2 * math.sqrt(2 / 6) * math.gamma(3.5) / math.gamma(3)
    assert penalty.mean.item() == pytest.approx(expected, rel=0.1)
