"""The line through parameter space, on networks whose samples along it are known."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import nn

from atu.evaluation.judged import Verdicts
from atu.evaluation.parameter_path import POINTS, between, parameter_path
from atu.gan import GAN
from atu.measures.frechet import frechet
from atu.networks.dcgan import DCGANGenerator
from atu.networks.mlp import MLPGenerator
from atu.report import plots


class Shift(nn.Module):
    latent_dim = 2

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(2))

    def forward(self, z):
        return z + self.offset


def score(x):
    return Verdicts(x[:, 0] > 0, x, None, None)


def test_each_point_is_judged_on_the_same_latents():
    gan = GAN(Shift())
    z = gan.sample(300, 3)
    found = parameter_path(gan, {"offset": torch.tensor([2.0, 0.0])}, score, z, (-1.0, 0.0, 0.5), 300, 4, seed=3)
    for row, shift in zip(found.points, (-2.0, 0.0, 1.0), strict=True):
        assert row["negative"]["count"] == int((z[:, 0] + shift > 0).sum())
        # The same points, moved: the Frechet distance is the shift squared.
        assert row["frechet"] == pytest.approx(shift**2, abs=1e-5)
    assert torch.allclose(found.images[2] - found.images[1], torch.tensor([1.0, 0.0]).expand(4, 2), atol=1e-6)
    assert frechet(z, z + torch.tensor([1.0, 0.0])) == pytest.approx(1.0, abs=1e-5)


def test_ends_are_the_original_and_the_adapted_generator_with_its_batch_norm():
    torch.manual_seed(0)
    original, adapted = DCGANGenerator(3, 16, 1, 2), DCGANGenerator(3, 16, 1, 2)
    for module, scale in ((original, 1.0), (adapted, 3.0)):
        module(scale * torch.randn(50, 3))  # moves the running moments
        module.eval()
    z = torch.randn(6, 3)
    state = adapted.state_dict()
    assert torch.allclose(between(original, state, 1.0)(z), adapted(z), atol=1e-5)
    assert torch.equal(between(original, state, 0.0)(z), original(z))
    beyond = between(original, state, -1.5)
    name = "net.0.weight"
    expected = original.state_dict()[name] - 1.5 * (state[name] - original.state_dict()[name])
    assert torch.allclose(beyond.state_dict()[name], expected, atol=1e-6)
    for m, own in zip(beyond.modules(), original.modules(), strict=True):
        if isinstance(m, nn.BatchNorm2d):
            assert torch.equal(m.running_var, own.running_var)
            assert torch.equal(m.num_batches_tracked, own.num_batches_tracked)


def test_the_paper_range_is_covered():
    assert (POINTS[0], POINTS[-1]) == (-1.5, 1.0)
    assert 0.0 in POINTS


def test_figures(tmp_path):
    gan = GAN(MLPGenerator(4, [1, 8, 8], (8,), "tanh"))
    adapted = MLPGenerator(4, [1, 8, 8], (8,), "tanh").state_dict()
    kept = gan.sample(60).flatten(1)
    found = parameter_path(
        gan, adapted, lambda x: Verdicts(x.mean((1, 2, 3)) > 0, x.flatten(1)[:, :3], None, None), kept[:, :3], n=60
    )
    found.points[0]["frechet"] = 1284.2  # no exponent: those of two columns would run into each other
    svg = plots.path_figure(found)
    for text in ("-1.5", "Fréchet", "1,284", f"{100 * found.points[0]['negative']['share']:.1f} %", "<image"):
        assert text in svg
    with Image.open(plots.save_path(tmp_path / "path.png", found)) as picture:
        assert picture.width > 500
