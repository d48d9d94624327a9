"""A small GAN, and settings for runs of a few steps, for the tests of the reproduced table and of its recipes."""

from __future__ import annotations

import torch

from atu.gan import GAN
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from benchmarks.paper.__main__ import reproduce

QUICK = """
[feedback]
pool = 150
[adapt]
steps = 2
fisher.n = 4
adversarial.augment = ""
[repel]
steps = 2
check_every = 2
check_samples = 40
guide_steps = 1
[methods.retrain]
steps = 2
check_samples = 40
[methods.ewc]
steps = 2
check_samples = 40
"""


def tiny_gan(channels=1):
    torch.manual_seed(0)
    shape = [channels, 8, 8]
    return GAN(MLPGenerator(4, shape, (16,), "tanh"), MLPDiscriminator(shape, (16,)))


def run(*words) -> None:
    """`python -m benchmarks.paper WORDS`."""
    reproduce.main(list(map(str, words)), standalone_mode=False)
