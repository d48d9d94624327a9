"""A conditional GAN whose networks take integer labels [N].

Source: Mirza, Osindero, "Conditional Generative Adversarial Nets" (arXiv 1411.1784), with convolutions.

    atu sample G.pt --model examples/conditional.py:build --label 3 --out threes
    atu unlearn G.pt,D.pt --model examples/conditional.py:build --negatives marks --negative-label 3 --out run
"""

import torch
from torch import nn

import atu_ext


class Generator(nn.Module):
    """z [N, nz] and labels int64 [N] to images [N, 1, 32, 32] in (-1, 1)."""

    def __init__(self, nz, classes, width):
        super().__init__()
        self.label = nn.Embedding(classes, nz)
        self.first = nn.Linear(2 * nz, 4 * width * 16)
        layers, before = [nn.BatchNorm2d(4 * width), nn.ReLU()], 4 * width
        for after in (2 * width, width):
            layers += [nn.ConvTranspose2d(before, after, 4, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
            before = after
        self.body = nn.Sequential(*layers, nn.ConvTranspose2d(width, 1, 4, 2, 1), nn.Tanh())

    def forward(self, z, labels):
        x = self.first(torch.cat([z, self.label(labels)], 1))
        return self.body(x.reshape(len(z), -1, 4, 4))


class Discriminator(nn.Module):
    """Images and labels to logits [N, 1]; the label is a second channel."""

    def __init__(self, classes, width):
        super().__init__()
        self.label = nn.Embedding(classes, 32 * 32)
        layers, before = [], 2
        for after in (width, 2 * width, 4 * width):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.LeakyReLU(0.2)]
            before = after
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width * 16, 1))

    def forward(self, x, labels):
        return self.body(torch.cat([x, self.label(labels).reshape(-1, 1, 32, 32)], 1))


def build(nz=100, classes=10, width=64):
    generator, discriminator = Generator(nz, classes, width), Discriminator(classes, width)
    return atu_ext.GAN(generator, discriminator, latent_dim=nz, c_dim=classes, image_range=(-1, 1))
