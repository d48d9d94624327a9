"""A generator, latents and a guide that are so plain that the nearest good sample is known."""

import torch
from torch import nn


class Doubled(nn.Module):
    """x = 2 z."""

    z_dim = 3

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, z):
        return self.factor * z


class Plane:
    """A guide whose log-odds are a x + b."""

    a, b = torch.tensor([3.0, 0.0, 4.0]), 5.5

    def log_odds(self, x, c=None):
        return x @ self.a + self.b


def uniform(n, rng):
    return torch.rand(n, 3, generator=rng) * 2 - 1
