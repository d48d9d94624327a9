"""Conditional GANs through the commands: one label's images, a feature across labels, labels drawn as the user says."""

import json

import nvidia_format as nf
import pytest
import torch
from test_export import QUICK, atu

from atu.cli.main import main
from atu.data.samples import as_samples
from atu.gan import GAN


@pytest.fixture
def source(tmp_path):
    """A GAN of four labels, label k of which makes images whose mean brightness is about k."""
    generator, discriminator, average = nf.small_pair(c_dim=4)
    for network in (generator, average):
        for name, value in network.state_dict().items():
            if name.endswith("torgb.bias"):
                value.zero_()
    path = tmp_path / "net.pkl"
    path.write_bytes(nf.dumps(nf.snapshot(generator, discriminator, average)))
    (tmp_path / "quick.toml").write_text(QUICK)
    return path


def images(folder):
    return as_samples(folder, (3, 8, 8), (-1.0, 1.0), "images").tensor


def test_sample_draws_the_label_that_was_asked_for(source, tmp_path):
    atu("sample", source, "--label", 2, "--samples", 5, "--noise", "none", "--out", tmp_path / "two")
    gan = GAN.load(source)
    z = gan.latents(5, torch.Generator().manual_seed(0))
    expected = gan.generator_ema(z, torch.eye(4)[[2] * 5], noise_mode="none").clamp(-1, 1)
    assert torch.allclose(images(tmp_path / "two"), expected, atol=1.01 / 255)  # rounded to 8 bits


@pytest.mark.parametrize("options", [["--negative-label", 2], ["--label", 0, "--label", "2=3"]])
def test_unlearn(source, tmp_path, options):
    atu("sample", source, "--label", 2, "--samples", 12, "--out", tmp_path / "bad")
    quick = ["--config", tmp_path / "quick.toml", "--samples", 20, "--quiet"]
    atu("unlearn", source, "--negatives", tmp_path / "bad", *options, *quick, "--out", tmp_path / "run")
    assert GAN.load(tmp_path / "run" / "result.safetensors").c_dim == 4
    identity = json.loads((tmp_path / "run" / "run.json").read_text())["identity"]
    assert identity["labels"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label", 4], "label: expected 0 to 3, got 4"),
        (["--label", "1=-2"], "positive weight"),
        (["--label", "cat"], "expected K or K=WEIGHT, got 'cat'"),
    ],
)
def test_wrong_labels_are_named(source, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as exit_:
        main(["sample", str(source), *map(str, options), "--out", str(tmp_path / "x")])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_label_of_an_unconditional_gan_is_refused(tmp_path, capsys):
    path = tmp_path / "net.pkl"
    path.write_bytes(nf.dumps(nf.snapshot(*nf.small_pair())))
    with pytest.raises(SystemExit):
        main(["sample", str(path), "--label", "0", "--out", str(tmp_path / "x")])
    assert "not conditional" in capsys.readouterr().err
