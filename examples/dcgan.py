"""A DCGAN with the layers and names of PyTorch's DCGAN tutorial, so that weights trained with it fit.

Source: Radford, Metz, Chintala (arXiv 1511.06434).

    atu sample netG.pth --model examples/dcgan.py:build --out samples
    atu unlearn netG.pth,netD.pth --model examples/dcgan.py:build --negatives marks --out run
"""

from torch import nn

import atu_ext


class Generator(nn.Module):
    """z [N, nz, 1, 1] to images [N, nc, 64, 64] in (-1, 1)."""

    def __init__(self, nz, ngf, nc):
        super().__init__()
        before = nz
        layers: list[nn.Module] = []
        for factor, stride, padding in ((8, 1, 0), (4, 2, 1), (2, 2, 1), (1, 2, 1)):
            layers.append(nn.ConvTranspose2d(before, ngf * factor, 4, stride, padding, bias=False))
            layers += [nn.BatchNorm2d(ngf * factor), nn.ReLU(True)]
            before = ngf * factor
        self.main = nn.Sequential(*layers, nn.ConvTranspose2d(ngf, nc, 4, 2, 1, bias=False), nn.Tanh())

    def forward(self, z):
        return self.main(z)


class Discriminator(nn.Module):
    """Images [N, nc, 64, 64] to probabilities [N, 1, 1, 1]."""

    def __init__(self, ndf, nc):
        super().__init__()
        layers = [nn.Conv2d(nc, ndf, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
        for factor in (2, 4, 8):
            layers.append(nn.Conv2d(ndf * factor // 2, ndf * factor, 4, 2, 1, bias=False))
            layers += [nn.BatchNorm2d(ndf * factor), nn.LeakyReLU(0.2, inplace=True)]
        self.main = nn.Sequential(*layers, nn.Conv2d(ndf * 8, 1, 4, 1, 0, bias=False), nn.Sigmoid())

    def forward(self, x):
        return self.main(x)


def build(nz=100, ngf=64, ndf=64, nc=3):
    return atu_ext.GAN(Generator(nz, ngf, nc), Discriminator(ndf, nc), latent_dim=(nz, 1, 1), image_range=(-1, 1))
