"""A class-conditional GAN in the manner of BigGAN, small enough to read.

One embedding of the class shared by all layers, a piece of the latent for each resolution, class-conditional batch
norm, residual blocks, self-attention, spectral norm in both networks, a projection discriminator.

Source: Brock, Donahue, Simonyan (arXiv 1809.11096); Miyato, Koyama (arXiv 1802.05637); Zhang et al. (arXiv 1805.08318).

    atu inspect biggan.pt --model examples/biggan.py:build --arg classes=1000
    atu unlearn biggan.pt --model examples/biggan.py:build --arg classes=1000 --negatives marks --out run

biggan.pt: torch.save({"G": ..., "G_ema": ..., "D": ...}, "biggan.pt") of their state dicts.
"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

import atu_ext


class Normed(nn.Module):
    """Batch norm whose gain and bias are linear in a condition [N, C]."""

    def __init__(self, channels, condition):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain = spectral_norm(nn.Linear(condition, channels, bias=False))
        self.bias = spectral_norm(nn.Linear(condition, channels, bias=False))

    def forward(self, x, c):
        return self.norm(x) * (1 + self.gain(c))[:, :, None, None] + self.bias(c)[:, :, None, None]


class Attention(nn.Module):
    """Every place looks at every place of the halved map; starts as the identity."""

    def __init__(self, channels):
        super().__init__()
        inner = max(channels // 8, 1)
        self.query, self.key = (spectral_norm(nn.Conv2d(channels, inner, 1, bias=False)) for _ in range(2))
        self.value = spectral_norm(nn.Conv2d(channels, max(channels // 2, 1), 1, bias=False))
        self.out = spectral_norm(nn.Conv2d(max(channels // 2, 1), channels, 1, bias=False))
        self.gamma = nn.Parameter(torch.zeros([]))

    def forward(self, x):
        query = self.query(x).flatten(2)
        key, value = (F.max_pool2d(part, 2).flatten(2) for part in (self.key(x), self.value(x)))
        weights = torch.softmax(query.transpose(1, 2) @ key, 2)
        mixed = (value @ weights.transpose(1, 2)).reshape(len(x), -1, *x.shape[2:])
        return x + self.gamma * self.out(mixed)


class Up(nn.Module):
    def __init__(self, before, after, condition):
        super().__init__()
        self.norm1, self.norm2 = Normed(before, condition), Normed(after, condition)
        self.conv1 = spectral_norm(nn.Conv2d(before, after, 3, 1, 1))
        self.conv2 = spectral_norm(nn.Conv2d(after, after, 3, 1, 1))
        self.shortcut = spectral_norm(nn.Conv2d(before, after, 1))

    def forward(self, x, c):
        y = self.conv1(F.interpolate(F.relu(self.norm1(x, c)), scale_factor=2))
        y = self.conv2(F.relu(self.norm2(y, c)))
        return y + self.shortcut(F.interpolate(x, scale_factor=2))


class Generator(nn.Module):
    """z [N, z_dim] and labels int64 [N] to images [N, 3, size, size] in (-1, 1)."""

    def __init__(self, z_dim, classes, width, size, embedding):
        super().__init__()
        doublings = (size // 4).bit_length() - 1
        self.piece = z_dim // (doublings + 1)
        self.z_dim = z_dim
        self.shared = nn.Embedding(classes, embedding)
        self.first = spectral_norm(nn.Linear(z_dim - doublings * self.piece, 4 * width * 16))
        widths = [4 * width, *([2 * width] * (doublings - 1)), width]
        self.blocks = nn.ModuleList(Up(before, after, embedding + self.piece) for before, after in pairwise(widths))
        self.attention = Attention(widths[-2])
        self.last = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), spectral_norm(nn.Conv2d(width, 3, 3, 1, 1)), nn.Tanh()
        )

    def forward(self, z, labels):
        first = self.z_dim - len(self.blocks) * self.piece
        c, pieces = self.shared(labels), z[:, first:].split(self.piece, 1)
        x = self.first(z[:, :first]).reshape(len(z), -1, 4, 4)
        for index, (block, piece) in enumerate(zip(self.blocks, pieces, strict=True)):
            if index == len(self.blocks) - 1:
                x = self.attention(x)
            x = block(x, torch.cat([c, piece], 1))
        return self.last(x)


class Down(nn.Module):
    """Halves the resolution; `rectified` but where x is an image, whose dark values a ReLU would not let through."""

    def __init__(self, before, after, rectified=True):
        super().__init__()
        self.rectified = rectified
        self.conv1 = spectral_norm(nn.Conv2d(before, after, 3, 1, 1))
        self.conv2 = spectral_norm(nn.Conv2d(after, after, 3, 1, 1))
        self.shortcut = spectral_norm(nn.Conv2d(before, after, 1))

    def forward(self, x):
        y = self.conv2(F.relu(self.conv1(F.relu(x) if self.rectified else x)))
        return F.avg_pool2d(y + self.shortcut(x), 2)


class Discriminator(nn.Module):
    """Images and labels to logits [N]: a linear function of the features plus their product with the class."""

    def __init__(self, classes, width, size):
        super().__init__()
        halvings = (size // 4).bit_length() - 1
        widths = [3, *(width * min(2**k, 4) for k in range(halvings))]
        self.blocks = nn.ModuleList(Down(a, b, k > 0) for k, (a, b) in enumerate(pairwise(widths)))
        self.attention = Attention(widths[1])
        self.linear = spectral_norm(nn.Linear(widths[-1], 1))
        self.embed = spectral_norm(nn.Embedding(classes, widths[-1]))

    def forward(self, x, labels):
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == 0:
                x = self.attention(x)
        features = F.relu(x).sum((2, 3))
        return self.linear(features).squeeze(1) + (self.embed(labels) * features).sum(1)


def build(z_dim=120, classes=10, width=64, size=32, embedding=128):
    generator = Generator(z_dim, classes, width, size, embedding)
    discriminator = Discriminator(classes, width, size)
    for network in (generator, discriminator):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
                weights = dict(module.named_parameters())
                nn.init.orthogonal_(weights.get("parametrizations.weight.original", module.weight))
    return atu_ext.GAN(generator, discriminator, c_dim=classes, image_range=(-1, 1))
