"""Fully connected GAN for vectors and small images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

OUTPUTS = {"linear": nn.Identity, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


def _layers(sizes: Sequence[int], slope: float) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.LeakyReLU(slope)]
    return layers


class MLPGenerator(nn.Module):
    """z [N, latent_dim] to samples [N, *sample_shape].

    Args:
        hidden: widths of the hidden layers. output: "linear", "tanh" or "sigmoid".

    Raises:
        ValueError: on an unknown output.
    """

    def __init__(self, latent_dim: int, sample_shape: Sequence[int], hidden=(128, 128), output="linear", slope=0.2):
        super().__init__()
        if output not in OUTPUTS:
            raise ValueError(f"output: expected one of {', '.join(OUTPUTS)}, got {output!r}")
        self.init_kwargs = dict(
            latent_dim=latent_dim, sample_shape=list(sample_shape), hidden=list(hidden), output=output, slope=slope
        )
        self.latent_dim, self.sample_shape = latent_dim, tuple(sample_shape)
        body = _layers([latent_dim, *hidden], slope)
        self.net = nn.Sequential(*body, nn.Linear(hidden[-1], math.prod(sample_shape)), OUTPUTS[output]())

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z).reshape(-1, *self.sample_shape)


class MLPDiscriminator(nn.Module):
    """Samples [N, *sample_shape] to logits [N, 1]; probabilities with output="sigmoid".

    Raises:
        ValueError: on an unknown output.
    """

    def __init__(self, sample_shape: Sequence[int], hidden=(128, 128), slope=0.2, output="linear"):
        super().__init__()
        if output not in ("linear", "sigmoid"):
            raise ValueError(f"output: expected linear or sigmoid, got {output!r}")
        self.init_kwargs = dict(sample_shape=list(sample_shape), hidden=list(hidden), slope=slope, output=output)
        body = _layers([math.prod(sample_shape), *hidden], slope)
        self.net = nn.Sequential(nn.Flatten(), *body, nn.Linear(hidden[-1], 1))
        if output == "sigmoid":
            self.net.append(nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)
