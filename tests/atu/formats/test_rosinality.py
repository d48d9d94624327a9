"""Checkpoints of the rosinality-style trainer in and out."""

import argparse
import json
import logging
from pathlib import Path

import pytest
import torch
from deterministic import numbers, probe

from atu.formats.inspect import inspect_checkpoint
from atu.formats.tensors import CheckpointError
from atu.gan import GAN
from atu.networks import stylegan2

HERE = Path(__file__).parent
EXPECTED = json.loads((HERE / "reference_values.json").read_text())
# Names and shapes of that trainer's networks at 8 pixels, latent 12, 3 mapping layers, 16 feature maps.
SHAPES = json.loads((HERE / "rosinality_shapes.json").read_text())["8"]


def state(key):
    """A state dict with weights by formula, as deterministic.fill gives them."""
    filled = {}
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    for name, shape in SHAPES[key].items():
        if name.endswith("kernel"):
            gain = 4 if key == "g" else 1
            filled[name] = taps.outer(taps) / 64 * gain
            continue
        value = numbers(name, tuple(shape))
        if name.startswith("style.") and name.endswith("weight"):
            value = value * 100
        elif name.endswith(("bias", "noise.weight")):
            value = value * 0.3
        filled[name] = value + (1 if name.endswith("modulation.bias") else 0)
    return filled


def write(path, legacy=False, prefix="", **extra):
    content = {"g": state("g"), "d": state("d"), "g_ema": state("g"), "latent_avg": numbers("latent_avg", (12,))}
    content = {**content, **extra}
    for key in ("g", "d"):
        content[key] = {prefix + name: value for name, value in content[key].items()}
    content = {key: value for key, value in content.items() if value is not None}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return content


@pytest.mark.parametrize("legacy", [False, True])
def test_outputs_are_the_originals(tmp_path, legacy):
    write(tmp_path / "a.pt", legacy, prefix="module.")
    gan = GAN.load(tmp_path / "a.pt")
    image = gan.generator_ema(numbers("z", (4, 12)), truncation_psi=0.7, noise_mode="const")
    assert probe(image) == pytest.approx(EXPECTED["rosinality/8/g"], abs=1e-4)
    logits = gan.discriminator(numbers("x", (4, 3, 8, 8)))
    assert probe(logits) == pytest.approx(EXPECTED["rosinality/8/d"], abs=1e-4)


def test_round_trip_is_tensor_identical(tmp_path):
    content = write(tmp_path / "a.pt")
    GAN.load(tmp_path / "a.pt").save(tmp_path / "b.pt")
    again = torch.load(tmp_path / "b.pt", weights_only=True)
    for key in ("g", "d", "g_ema"):
        assert again[key].keys() == content[key].keys()
        for name, value in content[key].items():
            assert again[key][name].shape == value.shape
            assert torch.equal(again[key][name], value), name
    assert torch.equal(again["latent_avg"], content["latent_avg"])
    assert not again["g_optim"]["state"] and again["d_optim"]["param_groups"][0]["lr"] == pytest.approx(0.002 * 16 / 17)


def test_optimiser_states_and_options_are_left(tmp_path, caplog):
    weight = torch.nn.Parameter(torch.zeros(3))
    optimiser = torch.optim.Adam([weight])
    weight.grad = torch.ones(3)
    optimiser.step()
    options = argparse.Namespace(size=8, path="/data", lr=0.002)
    for legacy in (False, True):
        write(tmp_path / "a.pt", legacy, g_optim=optimiser.state_dict(), args=options, ada_aug_p=0.25)
        with caplog.at_level(logging.INFO, "atu"):
            GAN.load(tmp_path / "a.pt")
        assert "g_optim" in caplog.text
        found = inspect_checkpoint(tmp_path / "a.pt")
        assert found["options"]["args"] == {"size": 8, "path": "/data", "lr": 0.002}
        assert found["networks"]["generator"]["resolution"] == 8
        assert found["networks"]["generator"]["latent"] == 12


def without_noise_maps(path, legacy=False, kept=()):
    """As the checkpoint that the trainer's author published: older than the trainer's noise maps."""
    g = {name: value for name, value in state("g").items() if not name.startswith("noises.") or name in kept}
    write(path, legacy, g=g, g_ema=g)
    return path


@pytest.mark.parametrize("legacy", [False, True])
def test_noise_maps_are_drawn_where_a_file_has_none(tmp_path, caplog, legacy):
    write(tmp_path / "whole.pt")
    whole, z = GAN.load(tmp_path / "whole.pt").generator, numbers("z", (4, 12))
    with caplog.at_level(logging.INFO, "atu"):
        gan = GAN.load(without_noise_maps(tmp_path / "a.pt", legacy))
    assert "no noise maps: they are drawn" in caplog.text
    assert torch.equal(gan.generator(z, noise_mode="none"), whole(z, noise_mode="none"))
    maps = {n: m for n, m in gan.generator.state_dict().items() if n.endswith("noise_const")}
    assert [tuple(m.shape) for m in maps.values()] == [(4, 4), (8, 8), (8, 8)]
    values = torch.cat([m.flatten() for m in maps.values()])  # 144 of a standard normal: 5 standard errors
    assert abs(float(values.mean())) < 5 / 12 and abs(float(values.std()) - 1) < 5 / 288**0.5
    for other in (gan.generator_ema, GAN.load(tmp_path / "a.pt").generator):
        assert all(torch.equal(other.state_dict()[name], m) for name, m in maps.items())
    gan.save(tmp_path / "b.pt")
    written = torch.load(tmp_path / "b.pt", weights_only=True)["g"]
    assert {name: list(value.shape) for name, value in written.items()} == SHAPES["g"]
    assert torch.equal(written["noises.noise_2"][0, 0], maps["synthesis.b8.conv1.noise_const"])
    assert "noises" not in str(inspect_checkpoint(tmp_path / "a.pt"))


def test_a_part_of_the_noise_maps_is_an_error(tmp_path):
    path = without_noise_maps(tmp_path / "a.pt", kept=("noises.noise_1",))
    with pytest.raises(CheckpointError, match=r"missing noises\.noise_0; missing noises\.noise_2"):
        GAN.load(path)


def test_mean_of_w_is_estimated_where_the_file_has_none(tmp_path):
    write(tmp_path / "a.pt", latent_avg=None)
    gan = GAN.load(tmp_path / "a.pt")
    with torch.no_grad():
        w = gan.generator.mapping(torch.randn(20000, 12, generator=torch.Generator().manual_seed(5)))[:, 0]
    standard_error = float(w.std(0).max()) * (1 / 20000 + 1 / 16384) ** 0.5
    assert torch.allclose(gan.generator.mapping.w_avg, w.mean(0), atol=5 * standard_error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.pop("conv1.conv.weight"), "missing conv1.conv.weight"),
        (lambda g: g.update(extra=torch.zeros(2)), "unexpected extra"),
        (lambda g: g.update({"conv1.activate.bias": torch.zeros(7)}), "conv1.activate.bias|synthesis.b4.conv1.bias"),
        (lambda g: g.update({"style.1.weight": torch.zeros(12, 13)}), "shape"),
        (lambda g: g.update({"input.input": torch.full((1, 16, 4, 4), torch.inf)}), "not finite"),
    ],
)
def test_networks_that_do_not_fit(tmp_path, change, message):
    g = state("g")
    change(g)
    write(tmp_path / "a.pt", g=g, g_ema=None)
    with pytest.raises(CheckpointError, match=message):
        GAN.load(tmp_path / "a.pt")


def test_networks_without_counterpart_are_refused(tmp_path):
    options = dict(z_dim=8, c_dim=0, w_dim=8, img_resolution=8, img_channels=3)
    for changes, message in (({"c_dim": 3}, "c_dim"), ({"w_dim": 6}, "w_dim")):
        gan = GAN(stylegan2.Generator(**{**options, **changes}, synthesis_kwargs={"channel_base": 64}))
        with pytest.raises(CheckpointError, match=message):
            gan.save(tmp_path / "x.pt")
    resnet = stylegan2.Generator(**options, synthesis_kwargs={"channel_base": 64, "architecture": "resnet"})
    with pytest.raises(CheckpointError, match="architecture"):
        GAN(resnet).save(tmp_path / "x.pt")
