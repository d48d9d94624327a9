"""GANs as people write them: latents of several sizes, labels as indices, other precisions, arguments of their own."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from atu import adapt, repel, unlearn
from atu.evaluation.evaluate import evaluate
from atu.evaluation.search import latent_search
from atu.gan import GAN
from atu.judging.rule import Rule
from atu.networks.mlp import MLPDiscriminator, MLPGenerator

G = MLPGenerator(4, [2], hidden=(8,))
D = MLPDiscriminator([2], hidden=(8,))


class TutorialGenerator(nn.Module):
    """Of PyTorch's DCGAN tutorial, smaller: latents [N, 6, 1, 1] to images [N, 3, 8, 8] in (-1, 1)."""

    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(6, 8, 4, 1, 0, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(True),
            nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False),
            nn.Tanh(),
        )

    def forward(self, z):
        return self.main(z)


class TutorialDiscriminator(nn.Module):
    """Images to probabilities [N, 1, 1, 1]."""

    def __init__(self):
        super().__init__()
        layers = (nn.Conv2d(3, 4, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(4, 1, 4, 1, 0))
        self.main = nn.Sequential(*layers, nn.Sigmoid())

    def forward(self, x):
        return self.main(x)


class EmbeddingGenerator(nn.Module):
    """Labels are indices into an embedding."""

    def __init__(self, classes=5):
        super().__init__()
        self.embed, self.body = nn.Embedding(classes, 3), nn.Linear(4 + 3, 2)

    def forward(self, noise, labels):
        return self.body(torch.cat([noise, self.embed(labels)], 1))


class EmbeddingDiscriminator(EmbeddingGenerator):
    def __init__(self, classes=5):
        super().__init__(classes)
        self.body = nn.Linear(2 + 3, 1)


QUICK = {
    "feedback": {"pool": 64},
    "adapt": {"steps": 2, "fisher": {"n": 2}, "adversarial": {"batch_size": 4, "augment": ""}},
    "repel": {"steps": 3, "check_every": 2, "check_samples": 50, "guide_steps": 2, "adversarial": {"batch_size": 4}},
    "methods": {"cdc": {"steps": 2, "adversarial": {"batch_size": 4}}},
}


@pytest.mark.parametrize("method", ["atu", "cdc"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # few negatives of an untrained GAN
def test_the_dcgan_of_the_tutorial_runs_as_it_is(tmp_path, method):
    """Latents of several sizes, through both stages, saving, loading, the search for what is left."""
    gan = GAN(TutorialGenerator(), TutorialDiscriminator(), latent_dim=(6, 1, 1))
    assert gan.latents(3, torch.Generator()).shape == (3, 6, 1, 1) and gan.sample_shape == (3, 8, 8)
    result = unlearn(gan, gan.sample(9), config=QUICK, method=method)
    path = result.save(tmp_path / "x.safetensors")
    again = GAN.load(path, generator=TutorialGenerator(), discriminator=TutorialDiscriminator())
    assert again.latent_dim == (6, 1, 1)
    assert torch.equal(again.sample(4, seed=2), result.gan.sample(4, seed=2))
    goal = Rule(lambda x: x.mean([1, 2, 3]) > 9, slope=lambda x: x.mean([1, 2, 3]))
    found = latent_search(result.gan, goal, {"judge": goal}, starts=3, steps=2).numbers
    assert found["found"]["judge"]["count"] == 0
    evaluation = evaluate(gan, result.gan, lambda x: x.mean([1, 2, 3]) > 0, n=50)
    assert evaluation.figures.n == 50


@pytest.mark.parametrize("sizes", [(), (3, 0), (2, 1.5), [True], "ab"])
def test_latent_sizes_that_are_none(sizes):
    with pytest.raises(ValueError, match="latent_dim: expected a positive int"):
        GAN(G, D, latent_dim=sizes)


@pytest.mark.parametrize("label_format", ["auto", "index"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_labels_as_indices(tmp_path, label_format):
    gan = GAN(EmbeddingGenerator(), EmbeddingDiscriminator(), latent_dim=4, c_dim=5, label_format=label_format)
    z, c = gan.inputs(7, seed=3)
    assert c.shape == (7, 5)
    torch.testing.assert_close(gan.sample(7, seed=3), gan.generator(z, c.argmax(1)).detach())
    negatives = gan.sample(9) + 3  # apart from most of what it makes
    result = unlearn(gan, (negatives, 2), config=QUICK)
    path = result.save(tmp_path / "x.safetensors")
    again = GAN.load(path, generator=EmbeddingGenerator(), discriminator=EmbeddingDiscriminator())
    assert again.c_dim == 5 and torch.equal(again.sample(4), result.gan.sample(4))


def test_labels_from_a_sampler_of_indices_and_of_vectors():
    def indices(n, rng):
        return torch.randint(2, 4, (n,), generator=rng)

    gan = GAN(EmbeddingGenerator(), EmbeddingDiscriminator(), 4, c_dim=5, label_sampler=indices)
    assert set(gan.labels(50, torch.Generator()).argmax(1).tolist()) == {2, 3}
    with pytest.raises(ValueError, match=r"label_sampler: expected labels \[n, c_dim\], got \[1\]; .*c_dim=10"):
        GAN(EmbeddingGenerator(), latent_dim=4, label_sampler=indices)
    generator, state = EmbeddingGenerator(), torch.get_rng_state()
    vectors = GAN(generator, latent_dim=4, label_sampler=lambda n, rng: torch.rand(n, 5))
    assert vectors.c_dim == 5 and torch.equal(torch.get_rng_state(), state)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_negatives_with_a_label_beside_a_label_sampler(conv_gan):
    """The generator does not say how many labels it takes: the sampler does."""
    if conv_gan.c_dim == 0:
        pytest.skip("of conditional GANs")
    del conv_gan.generator.c_dim
    gan = GAN(
        conv_gan.generator, conv_gan.discriminator, label_sampler=lambda n, rng: torch.eye(3)[torch.ones(n).long()]
    )
    assert gan.c_dim == 3
    assert torch.isfinite(unlearn(gan, (gan.sample(9), 1), config=QUICK).gan.sample(3)).all()


class Progressive(nn.Module):
    latent_dim = 2

    def forward(self, z, step, *, alpha):
        return z * step * alpha


class OfPairs(nn.Module):
    def forward(self, x, c):
        return x[:, 0] * c[:, 0]


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        (
            dict(generator=Progressive()),
            "Progressive's forward needs step, alpha too, and gets latents alone",
        ),
        (
            dict(generator=Progressive(), c_dim=3),
            "Progressive's forward needs alpha too, and gets latents and",
        ),
        (
            dict(generator=EmbeddingGenerator(), latent_dim=4),
            r"needs labels too.* GAN\(\.\.\., c_dim=10\)",
        ),
        (
            dict(generator=G, discriminator=OfPairs()),
            "discriminator: OfPairs.* needs c too, and gets samples alone",
        ),
        (dict(generator=G, c_dim=3), "generator: expected a forward that takes latents and labels"),
        (dict(generator=G, label_sampler=lambda n, rng: torch.eye(3)[:n]), "generator: expected a forward that takes"),
        (dict(generator=EmbeddingGenerator(), latent_dim=4, c_dim=-1), "c_dim: expected a number of labels"),
        (dict(generator=G, label_format="int"), "label_format: expected auto, one-hot or index, got 'int'"),
        (dict(generator=G, image_range=3), r"image_range: expected \(low, high\), got 3"),
    ],
)
def test_arguments_that_a_forward_cannot_get_are_named(kwargs, words):
    with pytest.raises(ValueError, match=words):
        GAN(**kwargs)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_discriminator_without_labels_beside_a_generator_with_them():
    gan = GAN(EmbeddingGenerator(), MLPDiscriminator([2], hidden=(8,)), latent_dim=4, c_dim=5)
    assert torch.isfinite(unlearn(gan, gan.sample(9), config=QUICK).gan.sample(3)).all()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_double_precision_runs_and_stays(conv_gan):
    gan = GAN(conv_gan.generator.double(), conv_gan.discriminator.double())
    result = unlearn(gan, gan.sample(9), is_negative=lambda x: x.mean([1, 2, 3]) > x.mean(), config=QUICK)
    assert {p.dtype for p in result.generator.parameters()} == {torch.float64}
    assert torch.isfinite(result.gan.sample(3)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_sample_but_do_not_train(dtype):
    gan = GAN(MLPGenerator(4, [2], hidden=(8,)).to(dtype), MLPDiscriminator([2], hidden=(8,)).to(dtype))
    x = gan.sample(9)
    assert x.dtype == torch.float32
    with pytest.raises(ValueError, match=r"gan: .*generator.* of (b?float16), .*float32: gan\.generator\.float\(\)"):
        unlearn(gan, x)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_switched_off_around_the_call(vector_gan, mode):
    x = vector_gan.sample(9, seed=1)
    expected = unlearn(vector_gan, x, config=QUICK).gan.sample(5)
    with mode():
        x = vector_gan.sample(9, seed=1)
        result = unlearn(vector_gan, x, config=QUICK)
        adapted = adapt(vector_gan, x, config=QUICK)
        assert not torch.is_grad_enabled()
    assert torch.equal(result.gan.sample(5), expected)
    again = repel(vector_gan, adapted, x, config=QUICK)
    assert torch.equal(again.gan.sample(5), expected)


def test_devices_that_are_not_supported_are_named(vector_gan):
    with pytest.raises(ValueError, match=r"device: expected cpu or cuda, .* got 'mps'"):
        unlearn(vector_gan, torch.ones(4, 2), device="mps")
    meta = GAN(MLPGenerator(4, [2], hidden=(8,)).to("meta"), MLPDiscriminator([2], hidden=(8,)).to("meta"))
    with pytest.raises(ValueError, match=r"device: expected cpu or cuda, .* got 'meta'"):
        unlearn(meta, torch.ones(4, 2))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_unlearn_resizes_where_asked(image_gan, tmp_path):
    for index in range(3):
        Image.fromarray(np.full((16, 16), 60 * index, dtype=np.uint8)).save(tmp_path / f"{index}.png")
    config = {"feedback": {"pool": 64}, "adapt": {"steps": 1}, "repel": {"steps": 1, "guide_steps": 1}}
    with pytest.raises(ValueError, match="resize=True"):
        unlearn(image_gan, tmp_path, config=config)
    assert torch.isfinite(unlearn(image_gan, tmp_path, config=config, resize=True).gan.sample(2)).all()
