"""What the demonstrations share."""

import shlex

import pytest
import torch
from PIL import Image

from atu.cli.demo import demo
from atu.experiments import mnist
from atu.experiments.demo import Demo, gans_of, mark
from atu.gan import GAN
from atu.networks.mlp import MLPGenerator


def test_a_negative_of_two_parts_is_marked_once(image_gan, tmp_path):
    """In the order of the parts; each part's folder has all of its own."""
    x = image_gan.sample(500, seed=1).flatten(1)
    limit = float(x.mean(1).median())

    def bright(x):
        return x.flatten(1).mean(1) > limit

    def dark_corner(x):
        return x[:, 0, 0, 0] < 0

    settings = Demo(out=tmp_path, negatives=40, samples=10)
    marked = mark(image_gan, {"bright": bright, "dark-corner": dark_corner}, settings)
    both = bright(marked.samples) & dark_corner(marked.samples)
    assert len(torch.unique(marked.samples.flatten(1), dim=0)) == len(marked.samples) < 80
    assert bright(marked.samples[:40]).all() and dark_corner(marked.samples[40:]).all() and both.any()
    for part in ("bright", "dark-corner"):
        files = list((tmp_path / "negatives" / part).glob("*.png"))
        assert len(files) == 40 and Image.open(files[0]).size == (8, 8)


def test_the_command_is_the_one_that_was_given(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(mnist, "demo_mnist", lambda settings: seen.append(settings) or {})
    monkeypatch.setattr("atu.cli.demo.show", lambda data, run: None)
    (tmp_path / "my settings.toml").write_text("")
    words = ["mnist", "--class", "8", "--config", str(tmp_path / "my settings.toml"), "--samples", "300"]
    words += ["--device", "cpu", "--precision", "float32", "--marks", "30", "--seed", "3", "--no-oracle", "--audit"]
    demo.main([*words, "--out", str(tmp_path / "out")], standalone_mode=False)
    command = seen[0].command("mnist", "--class", "8")
    assert command.endswith("--no-oracle --audit --out DIR")
    demo.main([*shlex.split(command)[2:-1], str(tmp_path / "out")], standalone_mode=False)
    assert seen[0] == seen[1]
    assert "--config" not in Demo(out="x", config={"seed": 1}).command("mnist")


def test_a_retrained_gan_of_other_samples_is_told_before_the_run(image_gan, tmp_path):
    first = image_gan.save(tmp_path / "gan.safetensors")
    other = GAN(MLPGenerator(4, [1, 4, 4], (8,))).save(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"retrained: expected samples of shape \[1, 8, 8\], got \[1, 4, 4\]"):
        gans_of(Demo(out=tmp_path, retrained=other), first)
