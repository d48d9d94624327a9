"""What is said before a run with big samples."""

from __future__ import annotations

import pytest
import torch

from atu.cli import estimate
from atu.config import Adversarial
from atu.gan import GAN
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.support import memory, progress
from atu.support.context import RunContext

GIB = 2**30


@pytest.fixture
def said(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(progress, "say", lines.append)
    return lines


def small():
    torch.manual_seed(0)
    return GAN(MLPGenerator(4, [1, 8, 8], (16,), "tanh"), MLPDiscriminator([1, 8, 8], (16,)))


def big():
    gan = small()
    gan._sample_shape = (3, 256, 256)
    return gan


def test_small_samples_need_no_word(said):
    gan = small()
    estimate.say_sampling(gan, 1000)
    estimate.say_evaluation(gan, 10_000, 3)
    estimate.say_training(gan, None, None, None)
    assert said == []


def test_a_long_evaluation_is_said_and_a_smaller_one_offered(said):
    gan = big()
    gan._cost = (GIB // 2, 1.6)
    with RunContext(batch=6):
        estimate.say_evaluation(gan, 10_000, 3)
    assert said == [
        "evaluation: 10,000 samples of each of 3 generators, about 13.3 h, 6 at a time in 3.0 GiB",
        "            --samples 100 takes about 8 min",
    ]
    said.clear()
    with RunContext(batch=6):
        estimate.say_sampling(gan, 1000)
    assert said == ["sampling: 1,000 samples, about 27 min, 6 at a time in 3.0 GiB"]


def test_training_that_does_not_fit_is_said(said, monkeypatch, tmp_path):
    monkeypatch.setattr(estimate, "training_cost", lambda gan, settings: (3 * GIB, 0.001))
    monkeypatch.setattr(memory, "free", lambda device: 16 * GIB)
    (tmp_path / "c.toml").write_text("[adapt]\nmodels = 2\nsteps = 10\n[repel]\nsteps = 30\n")
    estimate.say_training(big(), tmp_path / "c.toml", None, None)
    assert said[0] == "training: up to 50 steps of 32 samples, about 4 s, 96.0 GiB"
    estimate.say_training(big(), None, "atu", None)  # of a GAN that is no StyleGAN
    assert said.pop().endswith("in --config fit") and said.pop().startswith("training: up to 2,600 steps of 32 samples")
    assert "16.0 GiB that are free" in said[1] and said[1].endswith("batch_size = 2 in --config fit")


def test_training_cost_leaves_the_networks_as_they_are():
    gan = small()
    before = {name: value.clone() for name, value in gan.generator.state_dict().items()}
    random = torch.get_rng_state()
    _, seconds = estimate.training_cost(gan, Adversarial(r1_gamma=1.0))
    assert seconds > 0 and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], value) for name, value in gan.generator.state_dict().items())
    assert all(p.grad is None for p in gan.generator.parameters())


@pytest.mark.parametrize("alone", ["generator", "discriminator", None])
def test_frozen_networks_are_estimated_as_they_will_be_trained(said, monkeypatch, alone):
    """As a --model function returns them that builds networks for sampling."""
    gan = big()
    for name, module in gan.modules().items():
        module.requires_grad_(name == alone)
    asked = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda y, of, **more: asked.append(len(of)) or grad(y, of, **more))
    _, seconds = estimate.training_cost(gan, Adversarial(r1_gamma=1.0))
    assert seconds > 0
    both = [len(list(module.parameters())) for module in (gan.generator, gan.discriminator)]
    assert asked[0] == sum(both) and asked[-1] == both[1]
    monkeypatch.setattr(estimate, "LONG", 0)  # so small a pass may leave no trace in the process's peak
    estimate.say_training(gan, None, None, None)
    assert said[0].startswith("training: up to 2,600 steps")


def test_training_cost_counts_the_double_backward_of_r1(monkeypatch):
    """R1 keeps the discriminator's passes twice: at big samples that is the peak of a step."""
    needed = iter([(3 * GIB, 2.0), (5 * GIB, 8.0)])
    monkeypatch.setattr(memory, "measure", lambda work, device: (work(), next(needed))[1])
    assert estimate.training_cost(small(), Adversarial(r1_gamma=1.0, r1_interval=16)) == (5 * GIB, 2.5)
    needed = iter([(3 * GIB, 2.0)])
    assert estimate.training_cost(small(), Adversarial(r1_gamma=0.0)) == (3 * GIB, 2.0)
