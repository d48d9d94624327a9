"""The pair: checks of its arguments, sampling, and what it does with a discriminator's output."""

import copy
import re
import threading

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from atu import unlearn
from atu.check_gan import check_gan
from atu.gan import GAN
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.support.modules import ema_beta, eval_mode, update_ema

G = MLPGenerator(4, [2], hidden=(8,))
D = MLPDiscriminator([2], hidden=(8,))


@pytest.mark.parametrize(
    "kwargs, error, words",
    [
        (dict(generator="x"), TypeError, "generator: expected a torch.nn.Module, got str"),
        (dict(generator=G, discriminator=3), TypeError, "discriminator: .* got int"),
        (dict(generator=G, generator_ema=3), TypeError, "generator_ema: .* got int"),
        (dict(generator=nn.Linear(2, 2)), ValueError, "latent_dim: expected the latents' length"),
        (dict(generator=G, latent_dim=0), ValueError, "latent_dim: expected a positive int, got 0"),
        (dict(generator=G, latent_dim=1.5), ValueError, "latent_dim: .* got 1.5"),
        (dict(generator=G, latent_sampler=3), TypeError, "latent_sampler: expected a callable"),
        (dict(generator=G, label_sampler=3), TypeError, "label_sampler: expected a callable"),
        (dict(generator=G, image_range=(1, 1)), ValueError, "image_range: .* low < high"),
        (dict(generator=G, discriminator_output="score"), ValueError, "discriminator_output: .* 'score'"),
    ],
)
def test_bad_arguments_are_named(kwargs, error, words):
    with pytest.raises(error, match=words):
        GAN(**kwargs)


def test_sampling_repeats_and_leaves_the_random_state_alone(conv_gan, snapshot, unchanged):
    before, state = snapshot(conv_gan), torch.get_rng_state()
    a = conv_gan.sample(7, seed=3, batch_size=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert a.shape == (7, 3, 8, 8) and not a.requires_grad
    torch.rand(5)
    assert torch.equal(a, conv_gan.sample(7, seed=3, batch_size=4))
    assert not torch.equal(a, conv_gan.sample(7, seed=4, batch_size=4))
    # in eval mode neither batch norm nor dropout couples samples: only rounding may depend on the batch size
    torch.testing.assert_close(a, conv_gan.sample(7, seed=3, batch_size=1), rtol=1e-5, atol=1e-6)
    unchanged(before, snapshot(conv_gan))
    assert conv_gan.generator.training


def test_code_between_batches_runs_in_the_callers_random_state(vector_gan):
    """What a consumer draws between two batches is what it would have drawn without them."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    drawn = []
    for _ in vector_gan.batches(3, batch_size=1):
        assert vector_gan.generator.training and torch.is_grad_enabled()
        drawn.append(torch.rand(1))
    assert torch.equal(torch.cat(drawn), expected)


def test_labels_of_a_conditional_gan(conv_gan):
    c = conv_gan.labels(400, torch.Generator().manual_seed(0))
    if conv_gan.c_dim == 0:
        assert c is None
        return
    assert c.shape == (400, 3) and torch.equal(c.sum(1), torch.ones(400)) and (c.mean(0) > 0.2).all()
    fixed = GAN(conv_gan.generator, label_sampler=lambda n, rng: torch.eye(3)[torch.full((n,), 2)])
    assert torch.equal(fixed.labels(2, torch.Generator()), torch.tensor([[0.0, 0, 1], [0, 0, 1]]))


def test_latents_given_by_a_sampler():
    gan = GAN(nn.Linear(3, 2), latent_sampler=lambda n, rng: torch.rand(n, 3, generator=rng))
    z = gan.latents(5, torch.Generator().manual_seed(1))
    torch.testing.assert_close(gan.sample(5, seed=1), gan.generator(z).detach())


def test_empty_and_wrong_requests(vector_gan):
    assert vector_gan.sample(0).shape == (0, 2)
    with pytest.raises(ValueError, match=r"n: .* -1"):
        vector_gan.sample(-1)
    with pytest.raises(ValueError, match=r"batch_size: .* 0"):
        vector_gan.sample(2, batch_size=0)
    with pytest.raises(ValueError, match="truncation_psi: MLPGenerator has no such option"):
        vector_gan.sample(2, truncation_psi=0.5)


def test_options_reach_a_generator_that_takes_any():
    class Any_(nn.Module):
        def forward(self, z, **options):
            return z * options.get("scale", 1)

    gan = GAN(Any_(), latent_dim=2)
    torch.testing.assert_close(gan.sample(3, scale=2), 2 * gan.sample(3))


@pytest.mark.parametrize("output", [lambda z: (z, z), lambda z: z.sum(), lambda z: z[:1]])
def test_generator_with_a_wrong_output_is_named(output):
    class Wrong(nn.Module):
        def forward(self, z):
            return output(z)

    with pytest.raises(ValueError, match="generator: expected a tensor of 3 samples"):
        GAN(Wrong(), latent_dim=2).sample(3)


def test_copy_is_deep(conv_gan, snapshot, unchanged):
    before = snapshot(conv_gan)
    twin = conv_gan.copy()
    with torch.no_grad():
        for module in twin.modules().values():
            for tensor in module.parameters():
                tensor.add_(1)
    twin.generator.eval()
    unchanged(before, snapshot(conv_gan))


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.weight_norm])
def test_a_copy_after_a_pass_with_gradients(norm):
    """Their hooks leave the weight of the last pass as a plain tensor with its graph, which torch does not copy."""
    d = nn.Sequential(norm(nn.Linear(2, 5)), nn.Tanh(), norm(nn.Linear(5, 1)))
    gan, x = GAN(MLPGenerator(3, [2]), d), torch.randn(6, 2)
    gan.logits(x).sum().backward()
    twin = gan.copy()
    for module in (gan.discriminator, twin.discriminator):
        module.eval()
    torch.testing.assert_close(twin.logits(x), gan.logits(x))
    before = gan.logits(x).detach().clone()
    with torch.no_grad():
        for p in twin.discriminator.parameters():
            p.mul_(2)
    assert not torch.allclose(twin.logits(x), before)
    assert torch.equal(gan.logits(x), before)


def test_ema_generator_is_the_one_sampled():
    ema = MLPGenerator(4, [2], hidden=(8,))
    gan = GAN(G, D, generator_ema=ema)
    assert torch.equal(gan.sample(3), gan.sample(3, generator=ema))
    assert not torch.equal(gan.sample(3), gan.sample(3, generator=G))


def test_an_averaged_model_of_torch_is_the_average():
    generator = MLPGenerator(3, [2])
    average = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    with torch.no_grad():
        generator.net[0].weight.add_(1.0)
    average.update_parameters(generator)
    average.update_parameters(generator)
    gan = GAN(generator, MLPDiscriminator([2]), generator_ema=average)
    assert gan.generator_ema is average.module
    check_gan(gan)
    z, _ = gan.inputs(4, 1)
    assert torch.equal(gan.sample(4, 1), average.module(z))


def test_an_average_of_another_network_is_refused():
    gan = GAN(MLPGenerator(3, [2]), MLPDiscriminator([2]), generator_ema=MLPGenerator(3, [2], hidden=(7,)))
    with pytest.raises(ValueError, match=r"gan: expected a generator_ema of the generator's own .* net\.0\.bias is"):
        check_gan(gan)


def test_what_data_parallel_wraps_is_kept():
    g, d = MLPGenerator(3, [2]), MLPDiscriminator([2])
    gan = GAN(nn.DataParallel(g), nn.DataParallel(d), generator_ema=nn.DataParallel(copy.deepcopy(g)))
    assert gan.generator is g and gan.discriminator is d and isinstance(gan.generator_ema, MLPGenerator)
    assert gan.latent_dim == 3 and check_gan(gan).sample(2).shape == (2, 2)


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(64, 1)

    def forward(self, x):
        t = x.reshape(len(x), 2, 8, 4)
        return self.out(torch.nn.functional.scaled_dot_product_attention(t, t, t).flatten(1))


def test_fused_attention_has_a_gradient_penalty():
    gan, x = GAN(MLPGenerator(3, [1, 8, 8]), Attending()), torch.randn(5, 1, 8, 8, requires_grad=True)
    (slope,) = torch.autograd.grad(gan.logits(x).sum(), x, create_graph=True)
    slope.square().sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(gan.logits(x.detach()), gan.discriminator(x).flatten())
    assert gan.discriminator.out.weight.grad.abs().sum() > 0


def test_activations_that_a_hook_keeps_do_not_hinder_a_copy():
    d = MLPDiscriminator([2])
    d.kept = {"by layer": [None]}
    d.net[-1].register_forward_hook(lambda m, args, y: d.kept["by layer"].__setitem__(0, y))
    gan = GAN(MLPGenerator(3, [2]), d)
    gan.logits(torch.randn(4, 2)).sum().backward()
    assert not d.kept["by layer"][0].is_leaf
    twin = gan.copy().discriminator
    assert torch.equal(twin.kept["by layer"][0], d.kept["by layer"][0]) and twin.kept["by layer"][0].is_leaf


class Deviation(nn.Module):
    """A minibatch deviation as it is often written: groups of four."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(3, 1)

    def forward(self, x):
        group = min(len(x), 4)
        y = x.view(group, -1, *x.shape[1:]).var(0, unbiased=False).add(1e-8).sqrt().mean(1, keepdim=True)
        return self.out(torch.cat([x, y.repeat(group, 1)], 1))


class TwoInTraining(MLPGenerator):
    def forward(self, z):
        x = super().forward(z)
        return (x, z) if self.training else x


class WithoutGradients(MLPGenerator):
    @torch.no_grad()
    def forward(self, z):
        return super().forward(z)


class Locked(MLPGenerator):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.lock = threading.Lock()


class Whole(MLPDiscriminator):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.count = nn.Parameter(torch.zeros(1, dtype=torch.long), requires_grad=False)


@pytest.mark.parametrize(
    ("generator", "discriminator", "words"),
    [
        (MLPGenerator, lambda shape: Deviation(), "takes 2 samples at once, but not 5, .*divisor of the batch"),
        (TwoInTraining, MLPDiscriminator, "a step of training fails on these networks"),
        (WithoutGradients, MLPDiscriminator, "(step of training fails|no gradient of the discriminator reaches)"),
        (Locked, MLPDiscriminator, "Locked cannot be copied, which a run does .*keep what is no weight out of it"),
        (MLPGenerator, Whole, r"expected weights of floats, got discriminator\.count of torch\.int64"),
        (MLPGenerator, lambda shape: torch.jit.script(nn.Linear(2, 1)), "the discriminator is a TorchScript module"),
    ],
)
def test_networks_that_cannot_be_trained_are_told_before_any_work(generator, discriminator, words, tmp_path):
    gan = GAN(generator(3, [2]), discriminator([2]), latent_dim=3)
    with pytest.raises((ValueError, TypeError), match=words):
        unlearn(gan, torch.randn(9, 2), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Squashed(nn.Module):
    """A discriminator that ends in a function, not in an nn.Sigmoid."""

    def __init__(self, last):
        super().__init__()
        self.fc, self.last = nn.Linear(2, 1), last

    def forward(self, x):
        return self.last(self.fc(x))


def test_probabilities_that_would_pass_for_logits_are_refused():
    generator = MLPGenerator(3, [2])
    for last in (torch.sigmoid, lambda y: y.sigmoid().view(-1), lambda y: torch.sigmoid(y)[:, 0].double()):
        with pytest.raises(ValueError, match=r'ends in torch\.sigmoid.*discriminator_output="probability"'):
            check_gan(GAN(generator, Squashed(last)))
        check_gan(GAN(generator, Squashed(last), discriminator_output="probability"))
    patches = nn.Sequential(nn.Conv2d(1, 4, 2), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 2), nn.Sigmoid())

    class Patches(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.net = inner

        def forward(self, x):
            return self.net(x).mean((1, 2, 3)).clamp(1e-6, 1 - 1e-6)

    with pytest.raises(ValueError, match=r'ends in torch\.sigmoid.*discriminator_output="probability"'):
        check_gan(GAN(MLPGenerator(3, [1, 8, 8]), Patches(patches)))
    check_gan(GAN(MLPGenerator(3, [1, 8, 8]), Patches(patches[:-1])))
    for last in (nn.Sigmoid(), torch.tanh, lambda y: 1 - torch.sigmoid(y) * y):
        check_gan(GAN(generator, Squashed(last)))


class Raw(nn.Module):
    """A discriminator that hands its input through `last`."""

    def __init__(self, last, shape=(-1,)):
        super().__init__()
        self.last, self.shape = last, shape

    def forward(self, x):
        return self.last(x).reshape(self.shape)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1), (-1, 1, 1, 1)])
def test_logits_of_every_kind_of_discriminator(shape):
    x = torch.tensor([[-60.0], [-3.0], [0.0], [0.5], [60.0]])
    for gan in (GAN(G, Raw(nn.Identity(), shape)), GAN(G, Raw(nn.Sigmoid(), shape))):
        y = gan.logits(x)
        assert torch.equal(y, x[:, 0]), "a logit in front of a saturated sigmoid must not be lost"
    y = GAN(G, Raw(nn.Sigmoid(), shape), discriminator_output="probability").logits(x)
    torch.testing.assert_close(y[1:4], x[1:4, 0], rtol=1e-4, atol=1e-5)
    assert torch.isfinite(y).all()
    y = GAN(G, Raw(nn.Sigmoid(), shape), discriminator_output="logit").logits(x)
    torch.testing.assert_close(y, torch.sigmoid(x[:, 0]))


def test_a_sigmoid_inside_is_no_output():
    d = nn.Sequential(nn.Sigmoid(), nn.Linear(1, 1))
    x = torch.randn(4, 1)
    torch.testing.assert_close(GAN(G, d).logits(x), d(x)[:, 0])


def test_logits_errors():
    with pytest.raises(ValueError, match="discriminator: this GAN has none"):
        GAN(G).logits(torch.zeros(2, 2))
    with pytest.raises(
        ValueError, match=r"discriminator: expected one logit a sample, \[2\] or \[2, 1\], got \[2, 3\]"
    ):
        GAN(G, nn.Linear(2, 3)).logits(torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"got \[2, 2\]; of two classes, wrap it to give y\[:, real\] - y\[:, fake\]"):
        GAN(G, nn.Linear(2, 2)).logits(torch.zeros(2, 2))


def test_ema_half_life():
    """After `half life` images the weights have covered half the way to a constant target."""
    ema, target = nn.Linear(2, 2).double(), nn.Linear(2, 2).double()
    start = ema.weight.detach().clone()
    beta = ema_beta(batch_size=16, half_life_images=160)
    for _ in range(10):
        update_ema(ema, target, beta)
    torch.testing.assert_close(ema.weight, (start + target.weight) / 2, rtol=1e-12, atol=0)
    update_ema(ema, target, ema_beta(16, 0))
    assert torch.equal(ema.weight, target.weight)


def test_ema_copies_buffers():
    ema, bn = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    bn(torch.randn(8, 3))
    update_ema(ema, bn, 0.9)
    assert torch.equal(ema.running_mean, bn.running_mean) and int(ema.num_batches_tracked) == 1


def test_eval_mode_gives_every_module_its_mode_back():
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2).eval()))
    with pytest.raises(RuntimeError), eval_mode(net):
        assert not any(m.training for m in net.modules())
        raise RuntimeError
    assert net.training and net[0].training and not net[1][0].training


# --- the range of the samples


class Painted(nn.Module):
    """Images [N, 3, 4, 5] whose values fill [low, high]."""

    latent_dim = 2

    def __init__(self, low, high):
        super().__init__()
        self.low, self.high = low, high

    def forward(self, z):
        x = torch.rand(len(z), 3, 4, 5)
        return self.low + (self.high - self.low) * x


@pytest.mark.parametrize(
    ("low", "high", "found", "said"),
    [
        (-1, 1, (-1, 1), None),
        (-1.4, 1.2, (-1, 1), None),
        (-0.3, 0.2, (-1, 1), None),
        (0, 0.001, (-1, 1), None),
        (0, 1, (0, 1), r"taken for \(0, 1\)"),
        (0.4, 0.6, (0, 1), r"taken for \(0, 1\)"),
        (0, 255, (0, 255), r"taken for \(0, 255\)"),
        (-120, 130, (-1, 1), r"neither .* say GAN\(\.\.\., image_range"),
        (0, 3, (-1, 1), "neither"),
    ],
)
def test_the_range_is_inferred_and_said(low, high, found, said, recwarn):
    gan = GAN(Painted(low, high))
    state = torch.get_rng_state()
    assert gan.image_range == found and gan.image_range == found
    assert torch.equal(torch.get_rng_state(), state)
    texts = [str(w.message) for w in recwarn]
    assert len(texts) == (said is not None)
    assert said is None or re.search(f"image_range: not given, .*{said}", texts[0])
    assert GAN(Painted(low, high), image_range=(0, 7)).image_range == (0, 7)


def test_samples_that_are_no_images_have_no_range(recwarn):
    assert GAN(nn.Sequential(nn.Linear(2, 3), nn.Sigmoid()), latent_dim=2).image_range == (-1, 1)
    assert not recwarn.list


def test_repr_is_short(conv_gan):
    text = repr(conv_gan)
    assert text.startswith("GAN(generator=ConvGenerator of ") and len(text) < 300
    conv_gan.sample(1)
    assert "latent_dim=6" in text and str(list(conv_gan.sample_shape)) in repr(conv_gan)
