"""Small convolutional GAN with batch normalisation.

Source: Radford, Metz, Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
Networks" (arXiv 1511.06434): strided convolutions both ways, batch norm in both networks, none at the image end.
"""

from __future__ import annotations

from torch import Tensor, nn


def _doublings(img_resolution: int) -> int:
    """How often 4 is doubled to reach the resolution."""
    count = img_resolution.bit_length() - 3
    if img_resolution < 16 or 4 << count != img_resolution:
        raise ValueError(f"img_resolution: expected a power of two from 16 on, got {img_resolution}")
    return count


def _initialise(module: nn.Module) -> None:
    """Weights as in the paper: N(0, 0.02), batch norm's gains around one. On the meta device there are none to draw."""
    if next(module.parameters()).is_meta:
        return
    for m in module.modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(m.weight, 0.0, 0.02)
        elif isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight, 1.0, 0.02)


class DCGANGenerator(nn.Module):
    """z [N, latent_dim] to images [N, img_channels, R, R] in [-1, 1].

    Args:
        img_resolution: R, a power of two from 16 on. width: channels at R / 2; they double at each halving.

    Raises:
        ValueError: on a resolution that is no such power.
    """

    def __init__(self, latent_dim: int = 64, img_resolution: int = 32, img_channels: int = 1, width: int = 16):
        super().__init__()
        count = _doublings(img_resolution)
        self.init_kwargs = dict(
            latent_dim=latent_dim, img_resolution=img_resolution, img_channels=img_channels, width=width
        )
        self.latent_dim = latent_dim
        channels = width << (count - 1)
        layers: list[nn.Module] = [nn.ConvTranspose2d(latent_dim, channels, 4, bias=False)]
        for _ in range(count - 1):
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
            layers.append(nn.ConvTranspose2d(channels, channels // 2, 4, stride=2, padding=1, bias=False))
            channels //= 2
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        layers += [nn.ConvTranspose2d(channels, img_channels, 4, stride=2, padding=1), nn.Tanh()]
        self.net = nn.Sequential(*layers)
        _initialise(self)

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z[:, :, None, None])


class DCGANDiscriminator(nn.Module):
    """Images [N, img_channels, R, R] to logits [N, 1]; arguments as of `DCGANGenerator`."""

    def __init__(self, img_resolution: int = 32, img_channels: int = 1, width: int = 16, slope: float = 0.2):
        super().__init__()
        count = _doublings(img_resolution)
        self.init_kwargs = dict(img_resolution=img_resolution, img_channels=img_channels, width=width, slope=slope)
        layers: list[nn.Module] = [nn.Conv2d(img_channels, width, 4, stride=2, padding=1), nn.LeakyReLU(slope)]
        channels = width
        for _ in range(count - 1):
            layers.append(nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1, bias=False))
            layers += [nn.BatchNorm2d(2 * channels), nn.LeakyReLU(slope)]
            channels *= 2
        self.net = nn.Sequential(*layers, nn.Conv2d(channels, 1, 4), nn.Flatten())
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)
