"""The DCGAN and MLP GAN that the settings are developed on: networks, data, and the commands that train them."""

from __future__ import annotations

import functools
import json
import os
import signal

import pytest
import torch
from torch import nn

from atu.assets import asset
from atu.config import Adversarial
from atu.data.mnist import mnist
from atu.data.samples import PixelSamples, TensorSamples
from atu.gan import GAN
from atu.judging.classifier import Classifier
from atu.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.networks.stylegan2 import Discriminator, Generator
from atu.training.step import AdversarialStep
from examples import pretrain, scratch
from examples.drawings import PARTS, Drawings


class FromTable(nn.Module):
    """Gives the rows of a table, in order, whatever the latents."""

    def __init__(self, table):
        super().__init__()
        self.table, self.next = table, 0

    def forward(self, z):
        self.next += len(z)
        return self.table[self.next - len(z) : self.next]


@pytest.mark.parametrize(("resolution", "channels"), [(16, 3), (64, 1)])
def test_dcgan_has_batch_norm_and_the_asked_shapes(resolution, channels):
    gan = GAN(DCGANGenerator(5, resolution, channels, 2), DCGANDiscriminator(resolution, channels, 2))
    assert gan.sample(3).shape == (3, channels, resolution, resolution)
    assert gan.logits(gan.sample(3)).shape == (3,)
    for module in gan.modules().values():
        assert any(isinstance(m, nn.BatchNorm2d) for m in module.modules())


def test_dcgan_doubles_channels_as_it_halves_the_image():
    gan = GAN(DCGANGenerator(5, 32, 1, 4), DCGANDiscriminator(32, 1, 4))
    convolutions = [m for m in gan.generator.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [m.out_channels for m in convolutions] == [16, 8, 4, 1]
    assert [m.out_channels for m in gan.discriminator.modules() if isinstance(m, nn.Conv2d)] == [4, 8, 16, 1]


@pytest.mark.parametrize("resolution", [0, 8, 24, 33])
def test_dcgan_refuses_other_resolutions(resolution):
    with pytest.raises(ValueError, match=f"expected a power of two from 16 on, got {resolution}"):
        DCGANGenerator(5, resolution)
    with pytest.raises(ValueError, match="img_resolution"):
        DCGANDiscriminator(resolution)


@pytest.mark.parametrize("build", [pretrain.mnist_dcgan, pretrain.mnist_mlp])
def test_checkpoints_of_both_round_trip(tmp_path, build):
    gan = build()
    again = GAN.load(gan.save(tmp_path / "gan.safetensors"))
    assert torch.equal(again.sample(4), gan.sample(4))
    assert again.image_range == gan.image_range
    gan.discriminator.eval()
    assert torch.equal(again.logits(gan.sample(4)), gan.logits(gan.sample(4)))


def test_mlp_discriminator_gives_probabilities_when_asked():
    torch.manual_seed(0)
    logits = MLPDiscriminator([2], (8,))
    probabilities = MLPDiscriminator([2], (8,), output="sigmoid")
    probabilities.load_state_dict(logits.state_dict())
    x = torch.randn(7, 2)
    assert torch.allclose(probabilities(x), logits(x).sigmoid())
    with pytest.raises(ValueError, match="expected linear or sigmoid, got 'tanh'"):
        MLPDiscriminator([2], output="tanh")


def test_unequal_mnist_has_the_stated_shares():
    images = pretrain.unequal_mnist(4000)
    assert images.shape == (4000, 1, 32, 32)
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
    found = Classifier.load(asset("mnist-classifier.safetensors")).predict(images * 2 - 1).bincount(minlength=10)
    # The classifier is right in 99 % of its own data and more: two in a hundred may be called something else.
    assert torch.allclose(found / 4000, torch.tensor(pretrain.MLP_SHARES), atol=0.02)
    assert sum(pretrain.MLP_SHARES) == pytest.approx(1)
    assert (min(pretrain.MLP_SHARES), max(pretrain.MLP_SHARES)) == (0.02, 0.35)


@pytest.mark.parametrize("kind", ["dcgan", "mlp"])
def test_training_is_recorded_and_repeatable(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(pretrain, "describe_digits", lambda gan: {"n": 0})
    train = getattr(pretrain, f"pretrain_{kind}")
    path = train(tmp_path / "a", steps=2, seed=3)
    assert path == tmp_path / "a" / f"{kind}.safetensors"
    about = json.loads(path.with_suffix(".json").read_text())
    assert (about["command"], about["seed"]) == (f"python -m examples.pretrain {kind}", 3)
    assert [phase["until_step"] for phase in about["phases"]] == [2]
    again = GAN.load(train(tmp_path / "b", steps=2, seed=3))
    other = GAN.load(train(tmp_path / "c", steps=2, seed=4))
    first = GAN.load(path).sample(3)
    assert torch.equal(again.sample(3), first)
    assert not torch.equal(other.sample(3), first)


def test_description_maps_the_images_to_the_classifiers_range():
    gan = pretrain.mnist_mlp()
    assert gan.sample_shape == (1, 32, 32)  # asked now, since a sample is drawn to tell
    images = pretrain.unequal_mnist(200)
    gan.generator = FromTable(images)
    classifier = Classifier.load(asset("mnist-classifier.safetensors"))
    expected = classifier.predict(images * 2 - 1).bincount(minlength=10) / 200
    assert list(pretrain.describe_digits(gan, n=200)["shares"].values()) == pytest.approx(expected.tolist(), abs=1e-4)


def read_rows(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.mark.parametrize("stop", [5, 13])
def test_a_stopped_training_saves_and_goes_on_bit_for_bit(tmp_path, monkeypatch, stop):
    """Ctrl-C in the first and in the second phase; no row is repeated, none is lost."""
    data = TensorSamples(torch.randn(40, 2, generator=torch.Generator().manual_seed(1)))
    phases = [(10, Adversarial(batch_size=4)), (18, Adversarial(batch_size=4, loss="relativistic", r1_gamma=0.1))]
    gan = GAN(MLPGenerator(4, [2], (8,)), MLPDiscriminator([2], (8,)))
    whole, broken = gan.copy(), gan.copy()
    history = scratch.train(whole, data, phases, tmp_path / "whole", seed=3, log_every=1)
    step = AdversarialStep.step

    def interrupted(trainer):
        if trainer.step_count == stop - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(AdversarialStep, "step", interrupted)
        with pytest.raises(KeyboardInterrupt, match=f"pretrain: stopped at step {stop} of {10 if stop < 10 else 18}"):
            scratch.train(broken, data, phases, tmp_path / "broken", seed=3, log_every=1)
    broken = gan.copy()  # a new process has nothing but the folder
    again = scratch.train(broken, data, phases, tmp_path / "broken", seed=3, log_every=1)
    for name, module in whole.modules().items():
        theirs = broken.modules()[name].state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in module.state_dict().items())
    assert [row["step"] for row in history] == [row["step"] for row in again] == list(range(1, 19))
    assert read_rows(tmp_path / "whole") == read_rows(tmp_path / "broken")
    with pytest.raises(ValueError, match="holds a run with another seed"):
        scratch.train(broken, data, phases, tmp_path / "broken", seed=4, log_every=1)


def test_learning_rates_decay_before_the_step_in_each_phase(tmp_path, monkeypatch):
    """Step k of a phase that ends at step n has the factor of k / n: 1, and down to 0 over the last quarter."""
    gan = GAN(MLPGenerator(4, [2], (8,)), MLPDiscriminator([2], (8,)))
    seen, step = [], AdversarialStep.step

    def spy(trainer):
        seen.append(trainer.optim_g.param_groups[0]["lr"] / trainer.base_lr[0])
        return step(trainer)

    monkeypatch.setattr(AdversarialStep, "step", spy)
    settings = Adversarial(batch_size=2)
    scratch.train(gan, TensorSamples(torch.zeros(3, 2)), [(8, settings), (20, settings)], tmp_path)
    expected = [min(4 * (1 - k / last), 1.0) for first, last in ((0, 8), (8, 20)) for k in range(first, last)]
    assert seen == pytest.approx(expected)


def test_a_folder_of_an_earlier_version_is_told(tmp_path):
    (tmp_path / "state.safetensors").write_bytes(b"")
    gan = GAN(MLPGenerator(4, [2], (8,)), MLPDiscriminator([2], (8,)))
    with pytest.raises(ValueError, match="was written by an earlier version of atu in format 1, and this is atu"):
        scratch.train(gan, TensorSamples(torch.zeros(3, 2)), [(1, Adversarial())], tmp_path)


def test_a_look_every_so_often_is_logged_and_changes_nothing(tmp_path):
    """What a look says is in the history of its step; the training is the same bits as without."""
    data = TensorSamples(torch.randn(40, 2, generator=torch.Generator().manual_seed(1)))
    phases = [(5, Adversarial(batch_size=4)), (9, Adversarial(batch_size=4))]
    gan = GAN(MLPGenerator(4, [2], (8,)), MLPDiscriminator([2], (8,)))
    plain, watched = gan.copy(), gan.copy()
    seen = []

    def look(run, gan, step):
        gan.sample(7, seed=step)
        seen.append((run.out, step))
        return {"like": step / 10}

    scratch.train(plain, data, phases, tmp_path / "plain", log_every=2)
    rows = scratch.train(watched, data, phases, tmp_path / "watched", log_every=2, look=look, look_every=4)
    assert seen == [(tmp_path / "watched", 4), (tmp_path / "watched", 8)]
    assert {row["step"]: row["like"] for row in rows if "like" in row} == {4: 0.4, 8: 0.8}
    for name, module in plain.modules().items():
        theirs = watched.modules()[name].state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in module.state_dict().items())


def test_the_animals_gan_is_trained_watched_and_described(tmp_path, monkeypatch):
    faces = Drawings(torch.randint(256, (40, 3, 64, 64), dtype=torch.uint8), torch.randint(3, (40, 8)))
    monkeypatch.setattr(pretrain, "drawings", lambda: faces)
    monkeypatch.setattr(pretrain, "LikeDrawings", lambda without: lambda gan: {"fid": float(gan.sample(2).mean())})
    monkeypatch.setattr(pretrain, "ANIMALS_CONFIG", Adversarial(batch_size=2))
    monkeypatch.setattr(pretrain, "train", functools.partial(scratch.train, look_every=2, log_every=2))
    path = pretrain.pretrain_animals(tmp_path, steps=5)
    about = json.loads(path.with_suffix(".json").read_text())
    gan = GAN.load(path)
    assert gan.sample_shape == (3, 64, 64) and set(gan.modules()) == {"generator", "generator_ema", "discriminator"}
    assert about["command"] == "python -m examples.pretrain animals"
    assert about["samples"] == {"fid": pytest.approx(float(gan.sample(2).mean()), abs=1e-6)}
    assert [row["step"] for row in about["log"] if "fid" in row] == [2, 4]
    assert [(phase["until_step"], phase["r1_gamma"]) for phase in about["phases"]] == [(4, 0.1), (5, 0.05)]
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {row["stage"]: row["step"] for row in rows} == {"labels": 100, "draw": 90, "pretrain": 5}
    assert {p.name for p in (tmp_path / "samples").iterdir()} == {"step-000002.png", "step-000004.png"}
    assert path.stat().st_size <= 8_000_000


class Seen(Exception):
    """What a training was given."""


def stop_at_training(gan, samples, *args, **kwargs):
    raise Seen(samples, kwargs.get("lessons"))


def test_digits_that_a_gan_is_trained_without_are_not_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "train", stop_at_training)
    images, labels = mnist()
    with pytest.raises(Seen) as seen:
        pretrain.pretrain_mnist(tmp_path, without=("8", "1"))
    kept = torch.stack([image for image, label in zip(images, labels, strict=True) if int(label) not in (1, 8)])
    assert torch.equal(seen.value.args[0].tensor, kept)
    with pytest.raises(ValueError, match=r"expected digits, 0 to 9, and not all ten, got 11"):
        pretrain.pretrain_mnist(tmp_path, without=("3", "11"))
    with pytest.raises(ValueError, match="not all ten, got 0, 1"):
        pretrain.pretrain_mnist(tmp_path, without=[str(digit) for digit in range(10)])


def test_drawings_that_a_gan_is_trained_without_are_not_seen(tmp_path, monkeypatch):
    """Neither as images of the game nor as drawings to learn from, nor among those that samples are compared with."""
    torch.manual_seed(0)
    labels = torch.stack([torch.randint(len(values), (300,)) for values in PARTS.values()], 1)
    faces = Drawings(torch.randint(256, (300, 3, 4, 4), dtype=torch.uint8), labels)
    rules = []
    monkeypatch.setattr(pretrain, "drawings", lambda: faces)
    monkeypatch.setattr(pretrain, "LikeDrawings", lambda without: rules.extend(without))
    monkeypatch.setattr(pretrain, "train", stop_at_training)
    with pytest.raises(Seen) as seen:
        pretrain.pretrain_animals(tmp_path, without=("antlers", "color=pink"))
    pink, antlers = 2, [PARTS["ears"].index(name) for name in ("moose-antlers", "deer-antlers")]
    kept = [row for row in range(300) if labels[row, 3] not in antlers and labels[row, 1] != pink]
    samples, lessons = seen.value.args
    assert torch.equal(samples.images, faces.images[kept])
    assert torch.equal(lessons.labels, labels[kept]) and lessons.images is samples
    assert rules == [{"ears": ("moose-antlers", "deer-antlers")}, {"color": ("pink",)}]
    with pytest.raises(ValueError, match=r"class: expected one of antlers, .*, got 'antler'"):
        pretrain.pretrain_animals(tmp_path, without=("antler",))
    with pytest.raises(ValueError, match=r"no drawing is left without color=sand, color=brown, .*turquoise"):
        pretrain.pretrain_animals(tmp_path, without=[f"color={color}" for color in PARTS["color"]])


def test_the_command_says_what_was_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "describe_digits", lambda gan: {"n": 0})
    path = pretrain.pretrain_mnist(tmp_path, steps=2, without=("8", "1"))
    assert (
        json.loads(path.with_suffix(".json").read_text())["command"]
        == "python -m examples.pretrain mnist --without 8 --without 1"
    )
    with pytest.raises(ValueError, match=r"out: .*another"):
        pretrain.pretrain_mnist(tmp_path, steps=2, without=("8",))


def test_pixels_are_given_in_the_range_of_the_gan():
    images = torch.randint(256, (9, 3, 5, 7), dtype=torch.uint8)
    samples = PixelSamples(images)
    assert len(samples) == 9
    torch.testing.assert_close(samples.batch(torch.tensor([8, 0])), images[[8, 0]].float() / 127.5 - 1)
    assert PixelSamples(images, (0.0, 1.0)).batch(torch.arange(9)).max() <= 1


def test_logits_are_centred_on_images_of_all_classes():
    """Files come sorted by class."""
    generator = Generator(4, 0, 4, 8, 1, dict(num_layers=1), dict(channel_base=32, channel_max=4))
    gan = GAN(generator, Discriminator(0, 8, 1, channel_base=32, channel_max=4))
    real = torch.cat([torch.full((300, 1, 8, 8), value) for value in (-0.9, 0.0, 0.9)])
    scratch.centre_logits(gan, TensorSamples(real), n=300)
    with torch.no_grad():
        means = [gan.logits(x).mean() for x in (gan.sample(300), real[torch.randperm(900)])]
        spread = torch.stack([gan.logits(x[:1]) for x in real.split(300)]).std()
    assert abs(sum(means)) < 0.2 * spread
