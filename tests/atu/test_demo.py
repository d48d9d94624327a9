"""The MNIST demonstration end to end, on a small GAN of digits made here in a second, in place of the bundled one."""

from __future__ import annotations

import functools
import json

import pytest
import torch
import torch.nn.functional as F

from atu import assets
from atu import demo as demonstrations
from atu.cli import main as cli
from atu.cli import options
from atu.data.mnist import mnist
from atu.gan import GAN
from atu.judging.classifier import Classifier
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.support.seeding import fork_rng

QUICK = """
[feedback]
pool = 200
[adapt]
steps = 3
fisher.n = 4
adversarial.augment = ""
[repel]
steps = 4
check_every = 2
check_samples = 60
guide_steps = 2
"""


@functools.cache
def digit_gan() -> GAN:
    """A generator fitted to show the digit whose latent is the largest, and an untrained discriminator."""
    images, labels = mnist()
    shown = torch.stack([images[labels == digit][7] for digit in range(10)])
    with fork_rng(torch.device("cpu"), 0):
        generator = MLPGenerator(10, [1, 32, 32], (64, 64), "tanh")
        with torch.no_grad():
            generator.net[0].weight.mul_(5)  # sharp borders between the digits
        optim = torch.optim.Adam(generator.parameters(), lr=3e-3)
        for _ in range(300):
            z = torch.randn(128, 10)
            loss = F.mse_loss(generator(z), shown[z.argmax(1)])
            optim.zero_grad()
            loss.backward()
            optim.step()
        return GAN(generator, MLPDiscriminator([1, 32, 32], (16,)))


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The demonstration with the small GAN and 1,000 real images; gives the folder of quick settings."""
    path = digit_gan().save(tmp_path / "mnist-gan.safetensors")
    bundled = assets.asset

    def asset(name):
        return path if name == "mnist-gan.safetensors" else bundled(name)

    images, labels = mnist()
    real = images[::5], labels[::5]
    for module in (demonstrations, options):
        monkeypatch.setattr(module, "asset", asset)
    monkeypatch.setattr(demonstrations, "mnist", lambda: real)
    monkeypatch.setattr(demonstrations, "feature_rules", functools.partial(demonstrations.feature_rules, n=300))
    (tmp_path / "quick.toml").write_text(QUICK)
    return tmp_path


def run(*arguments):
    with pytest.raises(SystemExit) as done:
        cli.main(list(map(str, arguments)))
    return done.value.code


def test_small_gan_shows_the_digits():
    classifier = Classifier.load(assets.asset("mnist-classifier.safetensors"))
    share = classifier.predict(digit_gan().sample(1000)).bincount(minlength=10) / 1000
    assert float(share.min()) > 0.02


def mnist_demo(folder, out, *options):
    arguments = ["demo", "mnist", *options, "--marks", 12, "--samples", 300, "--config", folder / "quick.toml"]
    assert run(*arguments, "--quiet", "--out", folder / out) == 0
    data = json.loads((folder / out / "report.json").read_text())
    return data, (folder / out / "report.html").read_text()


def test_a_feature(small):
    data, _ = mnist_demo(small, "thick", "--feature", "thick")
    assert data["subject"] == "thick" and data["decisions"]["answered_by"] == "oracle"
    # The threshold is the quantile that a fifth of the GAN's samples exceed.
    assert data["negatives_before"] / 300 == pytest.approx(0.2, abs=0.07)


def test_two_digits(small):
    data, _ = mnist_demo(small, "two", "--class", 4, "--class", 9)
    assert (data["subject"], data["decisions"]["answered_by"]) == ("4, 9", "oracle")
    before = data["models"]["before"]["classes"]
    assert data["negatives_before"] == before["4"]["count"] + before["9"]["count"] > 0
    assert data["judge"].startswith("mnist-judge") and data["models"]["after"]["fid_cls"] > 0
    judge = Classifier.load(assets.asset("mnist-judge.safetensors"))
    assert data["negatives_before"] == sum(
        int(torch.isin(judge.predict(x), torch.tensor([4, 9])).sum())
        for x in digit_gan().batches(300, data["seed"], 100)
    )


def test_negatives_alone(small, monkeypatch):
    """24 of them, each once, and no oracle."""
    seen, original = [], demonstrations.unlearn
    monkeypatch.setattr(
        demonstrations,
        "unlearn",
        lambda gan, negatives, positives, oracle, **rest: (
            seen.append((negatives, oracle)) or original(gan, negatives, positives, oracle, **rest)
        ),
    )
    data, _ = mnist_demo(small, "alone", "--class", 4, "--class", 9, "--no-oracle")
    ((negatives, oracle),) = seen
    assert oracle is None and data["decisions"]["answered_by"] == "probe"
    assert len(negatives) == 24 and len(negatives.flatten(1).unique(dim=0)) == 24


def test_errors_name_the_option(small, capsys):
    for words in (["--feature", "red"], ["--feature", "thick", "--class", 3]):
        assert run("demo", "mnist", *words, "--out", small / "out") == 2
        assert "--feature: expected thick, left or wide, and no --class" in capsys.readouterr().err


def test_audit_command(small, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    ckpt, out = small / "mnist-gan.safetensors", small / "audit"
    arguments = ["audit", ckpt, ckpt, "--oracle", "mnist", "--class", 3, "--starts", 5, "--steps", 2]
    arguments += ["--images", 16, "--samples", 400, "--retrained", ckpt, "--out", out]
    assert run(*arguments) == 0
    told = capsys.readouterr()
    assert "search in z finds one" in told.out
    assert "audit: 17 parts, about" in told.err
    found = json.loads((out / "audit.json").read_text())
    assert found["parts"]["before"]["search z"] == found["parts"]["after"]["search z"]
    assert (found["judges"], found["searched"]) == (["mnist-judge", "mnist?class=3"], "mnist?class=3")
    assert found["subject"] == "class 3"
    page = (out / "audit.html").read_text()
    assert "What can be got back: class 3" in page
    assert "mnist-judge was not searched" in " ".join(page.split())
    assert page.count("data:image/png") == 3  # what was found, of three models
    stamp = (out / "audit" / "after-residue.json").stat().st_mtime_ns
    assert run(*arguments, "--quiet") == 0  # what is there is not computed again
    assert (out / "audit" / "after-residue.json").stat().st_mtime_ns == stamp
    assert run(*arguments[:3], "--oracle", "mnist", "--class", 4, "--quiet", "--out", out) == 2
    assert "holds an audit with other" in capsys.readouterr().err
