"""Networks by the names that checkpoints use."""

from __future__ import annotations

from torch import nn

from . import dcgan, mlp, stylegan2, stylegan3

NETWORKS: dict[str, type[nn.Module]] = {
    "stylegan2.Generator": stylegan2.Generator,
    "stylegan2.Discriminator": stylegan2.Discriminator,
    "stylegan3.Generator": stylegan3.Generator,
    "dcgan.DCGANGenerator": dcgan.DCGANGenerator,
    "dcgan.DCGANDiscriminator": dcgan.DCGANDiscriminator,
    "mlp.MLPGenerator": mlp.MLPGenerator,
    "mlp.MLPDiscriminator": mlp.MLPDiscriminator,
}
