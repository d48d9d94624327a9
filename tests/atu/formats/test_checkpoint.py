"""The project's checkpoints: exact, and every way to be broken is named."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from atu.formats.inspect import inspect_checkpoint
from atu.formats.own_model import load_like
from atu.formats.tensors import CheckpointError, load_tensors
from atu.gan import GAN
from atu.networks import stylegan3
from atu.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.networks.stylegan2 import Discriminator, Generator


def small(ema=True) -> GAN:
    def g():
        return MLPGenerator(4, [2], hidden=(8,))

    return GAN(g(), MLPDiscriminator([2], hidden=(8,)), generator_ema=g() if ema else None, image_range=(0, 1))


def parts(path):
    tensors, metadata = load_tensors(path)
    return tensors, metadata, json.loads(metadata["config"])


def rewrite(path, tensors, metadata, config):
    save_file(tensors, path, {**metadata, "config": json.dumps(config)})


@pytest.mark.parametrize("ema", [True, False])
def test_round_trip_is_exact(tmp_path, ema):
    gan = small(ema)
    again = GAN.load(gan.save(tmp_path / "gan.safetensors"))
    assert list(again.modules()) == list(gan.modules())
    for name, module in gan.modules().items():
        mine, theirs = module.state_dict(), again.modules()[name].state_dict()
        assert list(mine) == list(theirs) and all(torch.equal(mine[k], theirs[k]) for k in mine)
    assert (again.latent_dim, again.image_range, again.discriminator_output) == (4, (0.0, 1.0), "auto")
    assert torch.equal(again.sample(5), gan.sample(5))


def test_networks_of_the_users_own(tmp_path, conv_gan):
    conv_gan.generator(torch.randn(4, 6), *([torch.eye(3)[[0, 1, 2, 0]]] if conv_gan.c_dim else []))  # moves batch norm
    path = conv_gan.save(tmp_path / "own.safetensors")
    with pytest.raises(CheckpointError, match=r"own\.safetensors: generator is a .*ConvGenerator, .* pass generator="):
        GAN.load(path)
    types = type(conv_gan.generator), type(conv_gan.discriminator)
    again = GAN.load(path, generator=types[0](conv_gan.c_dim), discriminator=types[1](conv_gan.c_dim))
    assert torch.equal(again.sample(5), conv_gan.sample(5))


def test_latents_drawn_by_a_function(tmp_path):
    def uniform(n, rng):
        return torch.rand(n, 3, generator=rng)

    gan = GAN(nn.Linear(3, 2), latent_sampler=uniform)
    path = gan.save(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="pass latent_sampler="):
        GAN.load(path, generator=nn.Linear(3, 2))
    again = GAN.load(path, generator=nn.Linear(3, 2), latent_sampler=uniform)
    assert torch.equal(again.sample(4), gan.sample(4))


def test_tied_weights_are_saved(tmp_path):
    g = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    g[1].weight = g[0].weight
    path = GAN(g, latent_dim=3).save(tmp_path / "tied.safetensors")
    again = GAN.load(path, generator=nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    assert torch.equal(again.generator[1].weight, g[0].weight)


def test_missing_extra_and_misshapen_weights_are_named(tmp_path):
    path = small().save(tmp_path / "a.safetensors")
    tensors, metadata, config = parts(path)
    del tensors["generator.net.0.bias"]
    tensors["generator.net.9.weight"] = torch.zeros(1)
    tensors["generator.net.0.weight"] = torch.zeros(3, 4)
    rewrite(path, tensors, metadata, config)
    with pytest.raises(CheckpointError) as error:
        GAN.load(path)
    for words in (
        "a.safetensors: generator:",
        "missing net.0.bias",
        "unexpected net.9.weight",
        "net.0.weight: expected shape [8, 4], got [3, 4]",
    ):
        assert words in str(error.value)


def test_weights_that_are_not_finite_and_weights_of_nothing(tmp_path):
    path = small().save(tmp_path / "a.safetensors")
    tensors, metadata, config = parts(path)
    good = tensors["discriminator.net.1.bias"].clone()
    tensors["discriminator.net.1.bias"][0] = float("nan")
    rewrite(path, tensors, metadata, config)
    with pytest.raises(CheckpointError, match=r"discriminator: .*net.1.bias: holds values that are not finite"):
        GAN.load(path)
    rewrite(path, {**tensors, "discriminator.net.1.bias": good, "classifier.w": good.clone()}, metadata, config)
    with pytest.raises(CheckpointError, match=r"holds classifier.w, which belongs to none of its generator"):
        GAN.load(path)


def test_files_that_are_none(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.safetensors: no such file"):
        GAN.load(tmp_path / "none.safetensors")
    path = small().save(tmp_path / "a.safetensors")
    whole = path.read_bytes()
    for name, content in (
        ("half", whole[: len(whole) // 2]),
        ("head", whole[:20]),
        ("empty", b""),
        ("text", b"{}" * 99),
    ):
        broken = tmp_path / f"{name}.safetensors"
        broken.write_bytes(content)
        with pytest.raises(ValueError, match=name):
            GAN.load(broken)


def test_another_safetensors_file(tmp_path):
    save_file({"unet.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other\.safetensors"):
        GAN.load(tmp_path / "other.safetensors")


def mutate(config, path, value):
    *parents, last = path
    for key in parents:
        config = config[key]
    config[last] = value


@pytest.mark.parametrize(
    "where, value, words",
    [
        (["modules", "generator", "network"], "mlp.Unknown", "generator: unknown network 'mlp.Unknown'"),
        (["modules", "generator", "network"], ["mlp"], r"generator: unknown network \['mlp'\]"),
        (["modules", "generator", "kwargs"], {"widths": 3}, "generator: .*widths"),
        (["modules", "generator", "kwargs"], None, "generator: kwargs: expected the network's options by name, got N"),
        (["modules", "generator", "kwargs"], [3], "generator: kwargs: expected the network's options by name, got l"),
        (["modules", "generator", "kwargs"], {"a": {"a": {"a": {"a": {}}}}}, r"a\.a\.a\.a: expected .* nested 3 deep"),
        (["modules", "generator", "kwargs"], {f"a{i}": 1 for i in range(65)}, "expected at most 64 options.* got 65"),
        (["modules", "generator"], "x", "expected a generator"),
        (["modules"], {}, "expected a generator among .* got none"),
        (["modules", "critic"], {"network": None}, "got .*critic"),
        (["modules"], 3, "config cannot be read"),
        (["latent_dim"], -1, "latent_dim: expected a positive int, got -1"),
        (["latent_dim"], 2**40, "latent_dim: expected at most 4,194,304 elements, got 1099511627776"),
        (["origin"], "x.pkl", "origin: expected a format and a path, got x.pkl"),
        (["origin"], {"format": "nvidia-pkl"}, "origin: expected a format and a path"),
        (["image_range"], [1, 0], "image_range"),
        (["image_range"], 1, "config cannot be read"),
    ],
)
def test_broken_configs_are_named(tmp_path, where, value, words):
    path = small().save(tmp_path / "a.safetensors")
    tensors, metadata, config = parts(path)
    mutate(config, where, value)
    rewrite(path, tensors, metadata, config)
    with pytest.raises(CheckpointError, match=words) as error:
        GAN.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("config", ["{", "[" * 200_000, '{"a":' * 200_000, '{"latent_dim": ' + "1" * 5000 + "}"])
def test_config_that_is_no_json(tmp_path, config):
    path = tmp_path / "a.safetensors"
    save_file({"generator.w": torch.zeros(1)}, path, {"format": "atu-gan", "config": config})
    for read in (GAN.load, inspect_checkpoint):
        with pytest.raises(CheckpointError, match=r"a\.safetensors: its config cannot be read"):
            read(path)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: not a readable file"):
        load_like(path, small())


def test_filters_of_a_million_taps_are_refused_before_they_are_made(tmp_path, monkeypatch):
    """Options of half a terabyte, each within its own limits."""
    sizes = dict(z_dim=4, c_dim=0, w_dim=4, img_resolution=4096, img_channels=3, num_layers=2, num_critical=0)
    bands = dict(first_cutoff=2, first_stopband=2048, last_stopband_rel=2**-16)
    kwargs = {**sizes, **bands, "filter_size": 64, "lrelu_upsampling": 16, "use_radial_filters": True}
    config = {"latent_dim": 4, "image_range": [-1, 1]}
    config["modules"] = {"generator": {"network": "stylegan3.Generator", "kwargs": kwargs}}
    path = tmp_path / "a.safetensors"
    save_file({"generator.w": torch.zeros(1)}, path, {"format": "atu-gan", "config": json.dumps(config)})
    asked = []
    monkeypatch.setattr(stylegan3, "lowpass_filter", lambda taps, *_: asked.append(taps))
    with pytest.raises(CheckpointError, match=r"generator: .*expected at most 256 taps, got"):
        GAN.load(path)
    assert max(asked, default=0) <= 256


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = small().save(tmp_path / "a.safetensors")
    before = path.read_bytes()

    def full(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("atu.formats.tensors.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        small().save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


COMPILER = """
import sys, torch
if "torch._dynamo" not in sys.modules:
    from atu.gan import GAN
    for path in sys.argv[1:]:
        GAN.load(path).sample(2)
    print("torch._dynamo" in sys.modules)
"""


def test_loading_and_sampling_leave_torchs_compiler_alone(tmp_path):
    """It takes longer to import than all else of a short command; torch does so for sums on the meta device."""
    narrow = dict(channel_base=32, channel_max=8)
    gans = {
        "stylegan2": GAN(Generator(4, 3, 4, 8, 1, dict(num_layers=1), dict(narrow)), Discriminator(3, 8, 1, **narrow)),
        "dcgan": GAN(DCGANGenerator(4, 16, 1, 8), DCGANDiscriminator(16, 1, 8)),
        "mlp": small(),
    }
    paths = [tmp_path / f"{name}.safetensors" for name in gans]
    for gan, path in zip(gans.values(), paths, strict=True):
        gan.save(path)
    done = subprocess.run([sys.executable, "-c", COMPILER, *paths], capture_output=True, text=True, check=True)
    assert done.stdout.strip() != "True"
