"""A WGAN with gradient penalty: a critic without batch norm and without a squashing end.

Source: Gulrajani et al., "Improved Training of Wasserstein GANs" (arXiv 1704.00028).

    atu unlearn wgan.pt --model examples/wgan_gp.py:build --negatives marks --out run

wgan.pt: torch.save({"generator": G.state_dict(), "critic": D.state_dict()}, "wgan.pt").
"""

import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Two convolutions beside a shortcut; `scale` 2 doubles the resolution, 0.5 halves it. `rectified` but where x is
    an image, whose dark values a ReLU would not let through."""

    def __init__(self, before, after, scale, norm, rectified=True):
        super().__init__()
        self.scale, self.rectified = scale, rectified
        self.norm1 = nn.BatchNorm2d(before) if norm else nn.Identity()
        self.norm2 = nn.BatchNorm2d(after) if norm else nn.Identity()
        self.conv1, self.conv2 = nn.Conv2d(before, after, 3, 1, 1), nn.Conv2d(after, after, 3, 1, 1)
        self.shortcut = nn.Conv2d(before, after, 1)

    def resize(self, x):
        return F.interpolate(x, scale_factor=2) if self.scale > 1 else F.avg_pool2d(x, 2)

    def forward(self, x):
        y = F.relu(self.norm1(x)) if self.rectified else x
        y = self.conv1(self.resize(y) if self.scale > 1 else y)
        y = self.conv2(F.relu(self.norm2(y)))
        return (y if self.scale > 1 else self.resize(y)) + self.shortcut(self.resize(x))


class Generator(nn.Module):
    """z [N, z_dim] to images [N, 3, size, size] in (-1, 1)."""

    def __init__(self, z_dim, width, size):
        super().__init__()
        self.z_dim = z_dim
        self.first = nn.Linear(z_dim, width * 16)
        doublings = (size // 4).bit_length() - 1
        self.blocks = nn.Sequential(*(Residual(width, width, 2, norm=True) for _ in range(doublings)))
        self.last = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 3, 3, 1, 1), nn.Tanh())

    def forward(self, z):
        return self.last(self.blocks(self.first(z).reshape(len(z), -1, 4, 4)))


class Critic(nn.Module):
    """Images [N, 3, size, size] to numbers [N], higher the more they look real."""

    def __init__(self, width, size):
        super().__init__()
        halvings = (size // 4).bit_length() - 1
        blocks = [Residual(width if k else 3, width, 0.5, norm=False, rectified=k > 0) for k in range(halvings)]
        self.blocks, self.last = nn.Sequential(*blocks), nn.Linear(width, 1)

    def forward(self, x):
        return self.last(torch.relu(self.blocks(x)).mean((2, 3))).squeeze(1)


def build(z_dim=128, width=128, size=32):
    return dict(generator=Generator(z_dim, width, size), discriminator=Critic(width, size), image_range=(-1, 1))
