"""A generator, latents and a guide that are so plain that the nearest good sample is known."""

import torch
from torch import nn

from atu.methods.adapt_then_unlearn.guide import Seen


class Doubled(nn.Module):
    """x = 2 z."""

    z_dim = 3

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, z):
        return self.factor * z


class Odds:
    """A guide of log-odds alone."""

    def look(self, x, c=None):
        return Seen(x, self.log_odds(x, c), [])


class Plane(Odds):
    """A guide whose log-odds are a x + b."""

    a, b = torch.tensor([3.0, 0.0, 4.0]), 5.5

    def log_odds(self, x, c=None):
        return x @ self.a + self.b


def uniform(n, rng):
    return torch.rand(n, 3, generator=rng) * 2 - 1


def apart(seen, other):
    """Mean squared difference of the elements."""
    return (seen.samples - other.samples).square().flatten(1).mean(1)


def anywhere(seen, other):
    """All samples are alike."""
    return 0 * apart(seen, other)


def filled(bank, z, c=None, steps=200):
    """The bank, begun with these latents."""
    bank.fill(z, c, steps)
    return bank
