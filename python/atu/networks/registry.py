"""Networks by the names that checkpoints use.

A network of another package (entry point group `atu.networks`, or `@NETWORKS.register("name")`) is an nn.Module class
whose instances hold in `init_kwargs` the numbers, words and lists that they were built with. Checkpoints keep these,
and loading a checkpoint, or retraining from new weights, builds the class with them.
"""

from __future__ import annotations

from torch import nn

from ..support.registry import Registry

NETWORKS: Registry[type[nn.Module]] = Registry(
    "atu.networks",
    {
        "stylegan2.Generator": "atu.networks.stylegan2.generator:Generator",
        "stylegan2.Discriminator": "atu.networks.stylegan2.discriminator:Discriminator",
        "stylegan3.Generator": "atu.networks.stylegan3:Generator",
        "dcgan.DCGANGenerator": "atu.networks.dcgan:DCGANGenerator",
        "dcgan.DCGANDiscriminator": "atu.networks.dcgan:DCGANDiscriminator",
        "mlp.MLPGenerator": "atu.networks.mlp:MLPGenerator",
        "mlp.MLPDiscriminator": "atu.networks.mlp:MLPDiscriminator",
    },
)
