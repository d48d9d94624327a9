"""What StyleGAN checkpoints need of training: the mean of w, magnitudes, path length, averaged buffers."""

import copy

import nvidia_format as nf
import torch

from atu.gan import GAN
from atu.networks import stylegan3
from atu.support.modules import update_ema
from atu.training.losses import PathLength


def test_mean_of_w_follows_the_first_latents_alone():
    """With style mixing too: one update a pass, w_avg <- beta w_avg + (1 - beta) mean w."""
    generator = nf.small_pair()[0].train()
    mapping, gan = generator.mapping, GAN(generator)
    before, z = mapping.w_avg.clone(), torch.randn(6, 8)
    w = mapping(z, update_w_avg=False)[:, 0].detach()
    gan.fake(z, None, mixing_probability=1.0)
    expected = mapping.w_avg_beta * before + (1 - mapping.w_avg_beta) * w.mean(0)
    torch.testing.assert_close(mapping.w_avg, expected)
    generator.eval()
    gan.fake(z, None, mixing_probability=1.0)
    torch.testing.assert_close(mapping.w_avg, expected)


def test_stylegan3_magnitudes_follow_with_style_mixing_as_without():
    torch.manual_seed(0)
    network = stylegan3.Generator(8, 0, 8, 16, 3, channel_base=128, channel_max=8, num_layers=4)
    z, found = torch.randn(4, 8), []
    for mixing in (0.0, 1e-9):  # the second takes the mixing path and mixes nothing
        torch.manual_seed(1)
        twin = copy.deepcopy(network).train()
        GAN(twin).fake(z, None, mixing_probability=mixing)
        found.append({n: v for n, v in twin.state_dict().items() if n.endswith(("magnitude_ema", "w_avg"))})
    assert any(not torch.equal(v, network.state_dict()[n]) for n, v in found[0].items())
    assert all(torch.equal(v, found[1][n]) for n, v in found[0].items())


def test_average_takes_over_the_mean_of_w():
    generator, _, average = nf.small_pair()
    update_ema(average, generator, 0.9)
    assert torch.equal(average.mapping.w_avg, generator.mapping.w_avg)


def test_path_length_gradient_passes_through_the_running_mean():
    """d/ds of mean (s l - a)^2 with a = (1 - d) a0 + d mean(s l), at s = 1, in closed form."""
    lengths, decay = torch.tensor([1.0, 3.0], dtype=torch.float64), 0.25
    penalty = PathLength(decay)
    penalty.mean = torch.tensor(0.5, dtype=torch.float64)
    scale = torch.ones([], dtype=torch.float64, requires_grad=True)
    ws = torch.ones(2, 1, 1, dtype=torch.float64, requires_grad=True)
    noise = torch.tensor([2.0, 2.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    randn, torch.randn_like = torch.randn_like, lambda _: noise
    try:
        value = penalty(scale * (lengths.reshape(2, 1, 1) / 2 * ws).reshape(2, 1, 1, 1), ws)
    finally:
        torch.randn_like = randn
    mean = 0.75 * 0.5 + 0.25 * lengths.mean()
    torch.testing.assert_close(value, (lengths - mean).square().mean())
    (grad,) = torch.autograd.grad(value, scale)
    torch.testing.assert_close(grad, (2 * (lengths - mean) * (lengths - decay * lengths.mean())).mean())
    torch.testing.assert_close(penalty.mean, mean)
