"""StyleGAN2 generator and discriminator on the project's ops.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (arXiv 1912.04958) and "Training
Generative Adversarial Networks with Limited Data" (arXiv 2006.06676). Parameter and buffer names are those found in
the public checkpoints of those papers (`mapping.fc0.weight`, `synthesis.b8.conv0.affine.weight`, `b4.out.bias`), so
that such files map one to one.

Shapes: z [N, z_dim], c [N, c_dim], w [N, w_dim], ws [N, num_ws, w_dim], images [N, img_channels, R, R] in [-1, 1].

Under torch.autocast the blocks from 8 x 8 on run in its dtype, and all else in float32, as those papers train: mapping,
styles, 4 x 4, the sum of the images, the discriminator's last layers.
"""

from __future__ import annotations

from .discriminator import Discriminator, DiscriminatorBlock, DiscriminatorEpilogue, MinibatchStdLayer
from .generator import NOISE_MODES, Generator, SynthesisBlock, SynthesisLayer, SynthesisNetwork, ToRGBLayer
from .layers import BUFFERS, Conv2dLayer, FullyConnectedLayer, block_dtype, channels_at, without_autocast
from .mapping import MappingNetwork

__all__ = [
    "BUFFERS",
    "NOISE_MODES",
    "Conv2dLayer",
    "Discriminator",
    "DiscriminatorBlock",
    "DiscriminatorEpilogue",
    "FullyConnectedLayer",
    "Generator",
    "MappingNetwork",
    "MinibatchStdLayer",
    "SynthesisBlock",
    "SynthesisLayer",
    "SynthesisNetwork",
    "ToRGBLayer",
    "block_dtype",
    "channels_at",
    "without_autocast",
]
