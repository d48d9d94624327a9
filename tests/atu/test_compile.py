"""GANs of modules that their user wrapped in `torch.compile`: they train as they would without, and are saved alike."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from torch import nn

from atu import unlearn
from atu.gan import GAN
from atu.measures.features import DiscriminatorFeatures
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.networks.stylegan2 import Discriminator, Generator
from atu.training.run_folder import gan_digest

QUICK = {
    "feedback": {"pool": 64},
    "adapt": {"steps": 2, "fisher": {"n": 2}, "adversarial": {"batch_size": 4}},
    "repel": {"steps": 3, "check_every": 2, "check_samples": 50, "guide_steps": 2, "adversarial": {"batch_size": 4}},
}


class Counting:
    """A backend that runs graphs as they are, and counts."""

    def __init__(self):
        self.calls = 0

    def __call__(self, graph, inputs):
        def run(*args):
            self.calls += 1
            return graph.forward(*args)

        return run


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def networks():
    torch.manual_seed(0)
    return MLPGenerator(4, [3], hidden=(16,)), MLPDiscriminator([3], hidden=(16,))


def compiled(backend, *modules):
    return [torch.compile(module, backend=backend) for module in modules]


def small_stylegan():
    torch.manual_seed(0)
    channels = dict(channel_base=64, channel_max=8)
    return Generator(4, 0, 4, 8, 1, dict(num_layers=2), dict(channels)), Discriminator(0, 8, 1, **channels)


def right(x):
    return x[:, 0] > 0


def keys_of(path):
    with safe_open(path, "pt") as file:
        return set(file.keys())


@pytest.mark.filterwarnings("ignore::UserWarning")  # few negatives of an untrained GAN
@pytest.mark.parametrize("backend", ["aot_eager", "eager"])
def test_unlearning_gives_what_it_gives_uncompiled(tmp_path, backend):
    """R1 and the guide's penalty take gradients of gradients, which aot_eager (as inductor) has none of."""
    plain = GAN(*networks())
    wrapped = GAN(*compiled(backend, *networks()))
    x = plain.sample(40)
    results = [unlearn(gan, x[right(x)], is_negative=right, config=QUICK, seed=1) for gan in (plain, wrapped)]
    a, b = (result.gan for result in results)
    assert type(b.generator) is MLPGenerator and type(b.discriminator) is MLPDiscriminator
    for name, module in a.modules().items():
        torch.testing.assert_close(
            dict(b.modules()[name].state_dict()), dict(module.state_dict()), rtol=1e-4, atol=1e-6
        )
    torch.testing.assert_close(b.sample(5), a.sample(5), rtol=1e-4, atol=1e-5)
    results[1].save(tmp_path / "result.safetensors")
    assert not any("_orig_mod" in key for key in keys_of(tmp_path / "result.safetensors"))
    torch.testing.assert_close(GAN.load(tmp_path / "result.safetensors").sample(5), b.sample(5))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_training_passes_run_compiled_in_the_copy_too():
    backend = Counting()
    gan = GAN(*compiled(backend, *networks()))
    gan.sample(2)
    after_sampling = backend.calls
    twin = gan.copy()
    z = twin.latents(8, torch.Generator().manual_seed(0))
    twin.logits(twin.fake(z, None))
    assert after_sampling == 1 and backend.calls == 3
    with torch.no_grad():
        next(twin.generator.parameters()).add_(1)
    assert not torch.equal(twin.sample(2), gan.sample(2))  # weights of its own, which the compiled code takes


@pytest.mark.parametrize("in_place", [False, True])
def test_features_and_logits_are_seen_within_compiled_modules(in_place):
    """By hooks, which compiled code passes over where they came later."""

    def critic():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1), nn.Sigmoid())

    plain, other = GAN(networks()[0], critic()), critic()
    if in_place:
        other.compile(backend="aot_eager")
    wrapped = GAN(networks()[0], other if in_place else torch.compile(other, backend="aot_eager"))
    x = plain.sample(6)
    other(x)  # compiled before anyone listens
    torch.testing.assert_close(wrapped.logits(x), plain.logits(x))
    torch.testing.assert_close(
        DiscriminatorFeatures(wrapped).penultimate([x]), DiscriminatorFeatures(plain).penultimate([x])
    )


def test_a_part_that_was_compiled_is_saved_and_filled_under_its_own_names(tmp_path):
    plain = GAN(*small_stylegan())
    generator, discriminator = small_stylegan()
    generator.synthesis = torch.compile(generator.synthesis, backend="eager")
    wrapped = GAN(generator, discriminator)
    assert any("_orig_mod" in key for key in generator.state_dict())
    assert gan_digest(wrapped) == gan_digest(plain)  # a run on the one goes on with the other
    wrapped.save(tmp_path / "gan.safetensors")
    plain.save(tmp_path / "plain.safetensors")
    assert keys_of(tmp_path / "gan.safetensors") == keys_of(tmp_path / "plain.safetensors")
    torch.testing.assert_close(GAN.load(tmp_path / "gan.safetensors").sample(3), plain.sample(3))
    with torch.no_grad():
        generator.mapping.fc0.weight.zero_()
    filled = GAN.load(tmp_path / "plain.safetensors", generator=generator, discriminator=discriminator)
    torch.testing.assert_close(filled.sample(3), plain.sample(3))
