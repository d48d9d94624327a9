"""Small GANs of every kind, marks and an oracle for them, and settings with which every method ends at once."""

import copy
from types import SimpleNamespace

import torch
from torch import nn

from atu import GAN
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.networks.stylegan2 import Discriminator, Generator

FIRST = SimpleNamespace(step_count=0)  # all that a penalty asks of the first step
ADVERSARIAL = {"batch_size": 4}
CHECKS = {"check_every": 2, "check_samples": 50}
SECTIONS = ("ewc", "cf-k", "eu-k", "l1-sparse", "cdc", "rssa", "retrain")
QUICK = {
    "feedback": {"pool": 64},
    "adapt": {"steps": 2, "fisher": {"n": 4}, "adversarial": ADVERSARIAL},
    "repel": {"steps": 3, **CHECKS, "guide_steps": 2, "adversarial": ADVERSARIAL},
    "methods": {
        "extrapolate": {"check_samples": 50},
        **{name: {"steps": 3, **CHECKS, "adversarial": ADVERSARIAL} for name in SECTIONS},
    },
    "log_every": 1,
    "save_every": 2,
}


def quick(section=None, **settings):
    """QUICK with settings of one method changed."""
    config = copy.deepcopy(QUICK)
    if section is not None:
        config["methods"][section].update(settings)
    return config


class DCGenerator(nn.Module):
    """Transposed convolutions and batch norm, a network the package does not know; 1 x 8 x 8."""

    def __init__(self):
        super().__init__()
        self.latent_dim = 5
        self.last = nn.ConvTranspose2d(6, 1, 4, 2, 1)  # registered first, run last
        self.body = nn.Sequential(nn.ConvTranspose2d(5, 6, 4, 1, 0, bias=False), nn.BatchNorm2d(6), nn.ReLU())

    def forward(self, z):
        return torch.tanh(self.last(self.body(z[:, :, None, None])))


class DCDiscriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 6, 4, 2, 1), nn.BatchNorm2d(6), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(96, 1)
        )

    def forward(self, x):
        return self.net(x)


def dcgan():
    return GAN(DCGenerator(), DCDiscriminator())


def stylegan():
    generator = Generator(4, 0, 4, 8, 1, dict(num_layers=2), dict(channel_base=32, channel_max=4))
    return GAN(generator, Discriminator(0, 8, 1, channel_base=32, channel_max=4))


def mlp():
    return GAN(MLPGenerator(4, [1, 8, 8], (16, 12), "tanh"), MLPDiscriminator([1, 8, 8], (16,)))


KINDS = {"stylegan": stylegan, "dcgan": dcgan, "mlp": mlp}


def bright(x):
    """Whether the mean of an image is above 0."""
    return x.flatten(1).mean(1) > 0.0


def marked(gan, count=8):
    x = gan.sample(100, seed=1)
    return x[x.flatten(1).mean(1).argsort(descending=True)[:count]]


def upper_half(gan):
    """An oracle: images brighter than half of the GAN's."""
    middle = gan.sample(100, seed=1).flatten(1).mean(1).median()
    return lambda x: x.flatten(1).mean(1) > middle


def weights(module):
    return {k: v.detach().clone() for k, v in module.state_dict().items()}
