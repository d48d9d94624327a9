"""Small GANs for the tests of the training API."""

import pytest
import torch
from torch import nn

from atu.gan import GAN
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.support import progress


@pytest.fixture(autouse=True)
def calm():
    """No progress output, one thread (small networks are quicker so), and the same random state for every test."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    progress.set_quiet(True)
    torch.manual_seed(0)
    yield
    progress.set_quiet(False)
    torch.set_num_threads(threads)


@pytest.fixture
def vector_gan() -> GAN:
    """Untrained, of 2-d samples."""
    return GAN(MLPGenerator(4, [2], hidden=(16,)), MLPDiscriminator([2], hidden=(16,)))


@pytest.fixture
def image_gan() -> GAN:
    """Untrained, of 1 x 8 x 8 images in [-1, 1]."""
    return GAN(MLPGenerator(4, [1, 8, 8], hidden=(16,), output="tanh"), MLPDiscriminator([1, 8, 8], hidden=(16,)))


class ConvGenerator(nn.Module):
    """Batch norm, dropout and labels: what a fully connected GAN has not."""

    def __init__(self, c_dim: int = 0):
        super().__init__()
        self.latent_dim, self.c_dim = 6, c_dim
        self.fc = nn.Linear(6 + c_dim, 8 * 4 * 4)
        self.body = nn.Sequential(
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(8, 3, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, z, c=None):
        return self.body(self.fc(z if c is None else torch.cat([z, c], 1)).reshape(-1, 8, 4, 4))


class ConvDiscriminator(nn.Module):
    """Batch norm, spectral norm, labels, and a probability [N] for its output."""

    def __init__(self, c_dim: int = 0):
        super().__init__()
        self.body = nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 3, 2, 1)),
            nn.BatchNorm2d(8),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
        )
        self.last = nn.utils.parametrizations.spectral_norm(nn.Linear(8 * 16 + c_dim, 1, bias=False))
        self.squash = nn.Sigmoid()

    def forward(self, x, c=None):
        f = self.body(x)
        return self.squash(self.last(f if c is None else torch.cat([f, c], 1))).squeeze(1)


@pytest.fixture(params=[0, 3], ids=["unconditional", "conditional"])
def conv_gan(request) -> GAN:
    """Untrained, of 3 x 8 x 8 images in [-1, 1], with and without labels."""
    return GAN(ConvGenerator(request.param), ConvDiscriminator(request.param))


@pytest.fixture
def snapshot():
    """gan -> all that the caller could notice of a change to it."""

    def take(gan: GAN):
        state = {f"{n}.{k}": v.clone() for n, m in gan.modules().items() for k, v in m.state_dict().items()}
        flags = {f"{n}.{k}": p.requires_grad for n, m in gan.modules().items() for k, p in m.named_parameters()}
        modes = {f"{n}.{k}": m.training for n, top in gan.modules().items() for k, m in top.named_modules()}
        grads = {
            f"{n}.{k}": None if p.grad is None else p.grad.clone()
            for n, m in gan.modules().items()
            for k, p in m.named_parameters()
        }
        return state, flags, modes, grads, list(gan.modules())

    return take


@pytest.fixture
def unchanged(snapshot):
    """Compare two snapshots."""

    def check(before, after):
        for a, b in zip(before, after, strict=True):
            if isinstance(a, list):
                assert a == b
                continue
            assert a.keys() == b.keys()
            for key, value in a.items():
                same = torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key]
                assert same, f"{key} was changed"

    return check
