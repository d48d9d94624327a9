"""The MNIST demonstration end to end, on a small GAN of digits made here in a second, in place of the bundled one."""

from __future__ import annotations

import functools
import json

import pytest
import torch
import torch.nn.functional as F

from atu import assets
from atu.cli import main as cli
from atu.data.mnist import mnist
from atu.evaluation.audit import Budget, probe_table
from atu.evaluation.classifier import Classifier
from atu.experiments import mnist as demo
from atu.experiments import targets
from atu.experiments.demo import still_unlearned
from atu.gan import GAN
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
    monkeypatch.setattr(assets, "asset", asset)
    monkeypatch.setattr(demo, "asset", asset)
    monkeypatch.setattr(demo, "mnist", lambda size=32: real)
    quick = Budget(starts=8, steps=4, marks=(1, 5), unrelated=30, images=64, looks=2, check_samples=100, samples=400)
    monkeypatch.setattr(demo, "AUDIT", quick)
    monkeypatch.setattr(demo, "attributes", functools.partial(demo.attributes, n=300))
    (tmp_path / "quick.toml").write_text(QUICK)
    return tmp_path


def run(*arguments):
    with pytest.raises(SystemExit) as done:
        cli.main(list(map(str, arguments)))
    return done.value.code


def mnist_demo(folder, out, *options):
    arguments = ["demo", "mnist", *options, "--marks", 12, "--samples", 300, "--config", folder / "quick.toml"]
    assert run(*arguments, "--quiet", "--out", folder / out) == 0
    data = json.loads((folder / out / "report.json").read_text())
    return data, (folder / out / "report.html").read_text()


def test_small_gan_shows_the_digits():
    classifier = Classifier.load(assets.asset("mnist-classifier.safetensors"))
    share = classifier.predict(digit_gan().sample(1000)).bincount(minlength=10) / 1000
    assert float(share.min()) > 0.02


def test_a_feature(small):
    data, page = mnist_demo(small, "thick", "--feature", "thick")
    assert data["subject"] == "thick strokes"
    assert data["targets"][0]["feature"] == "thick"
    # The threshold is the quantile that a fifth of the GAN's samples exceed.
    assert data["negatives_before"] / 300 == pytest.approx(0.2, abs=0.07)
    assert data["negatives_before"] == data["attributes_before"]["thick"]["count"]
    assert data["attributes_before"].keys() == {"thick", "left", "wide"}
    assert len(list((small / "thick" / "negatives" / "thick").glob("*.png"))) == 12
    assert "px of mean stroke width" in page
    assert data["features"] == "classifier"
    assert data["fid_cls_after"] > 0
    assert data["command"].startswith("atu demo mnist --feature thick --marks 12")


def test_two_digits_with_the_path_and_the_audit(small):
    retrained = digit_gan().save(small / "retrained.safetensors")
    found, page = mnist_demo(small, "two", "--class", 4, "--class", 9, "--audit", "--retrained", retrained)
    assert (found["subject"], found["decisions"]["judge"]) == ("the digits 4 and 9", "oracle")
    assert len(list((small / "two" / "negatives" / "9").glob("*.png"))) == 12
    before = found["class_histogram_before"]
    assert found["negatives_before"] == before["4"]["count"] + before["9"]["count"]
    assert [row["s"] for row in found["parameter_path"]][::5] == [-1.5, -0.25, 1.0]
    assert (small / "two" / "parameter-path.png").stat().st_size > 0
    # The retrained GAN is the original here: digits are found at once.
    audit = found["audit"]["parts"]
    assert audit["retrained"]["search z"] == audit["before"]["search z"]
    assert audit["retrained"]["rate"] == audit["before"]["rate"]
    assert found["audit"]["judges"] == ["mnist-judge", "oracle"]
    assert probe_table(found["audit"], {})[0] == ["layer", "before", "after", "retrained"]
    for text in ("Along the line", "search in z finds one", "retrained without it", "Shares, with 95"):
        assert text in page
    assert "audit" in found["seconds_by_stage"]
    assert found["seconds"] < sum(found["seconds_by_stage"].values()) - found["seconds_by_stage"]["audit"] + 0.1
    own = found["judges"]["mnist-judge"]
    assert (found["judge"], own["answered"], own["held_out"]) == ("mnist-judge", False, 4000)
    assert list(found["judges"]) == ["mnist-judge", "mnist-classifier", "knn on pixels", "svm on pixels"]
    assert found["judges"]["mnist-classifier"]["answered"]
    assert own["over_removal"]["retrained"]["count"] == own["negatives_before"]
    assert "What each judge says" in page and "Judge: mnist-judge, which did not answer" in page


def test_one_after_another(small):
    first, _ = mnist_demo(small, "first", "--class", 4)
    assert (first["earlier"], first["targets"]) == ([], [{"classes": ["4"]}])
    second, page = mnist_demo(small, "second", "--feature", "left", "--from", small / "first")
    (row,) = second["earlier"]
    assert row["subject"] == "the digit 4"
    # The latents and their seed are the same as in the first run's evaluation.
    assert row["original"] == first["negatives_before"]
    assert row["before"] == first["negatives_after"]
    assert row["pul_before"] == pytest.approx(first["pul"])
    assert row["stays_unlearned"] == (row["pul_after"] >= row["pul_before"] - 1)
    assert second["negatives"].keys() == {"before", "first", "after"}
    assert [sorted(plain) for plain in second["targets"]] == [["classes"], ["feature", "threshold"]]
    assert ("stays unlearned" in page) or ("came back" in page)
    # Both runs are to be kept negative in a third one.
    assert [one["feature"] for one in targets.earlier_targets(small / "second")[1:]] == ["left"]


def test_still_unlearned_says_when_it_came_back():
    from types import SimpleNamespace

    def model(count):
        return SimpleNamespace(attributes={"x": torch.arange(200) < count})

    def row(before, after):
        models = {"first": model(100), "before": model(before), "after": model(after)}
        return still_unlearned("x", SimpleNamespace(models=models))

    assert row(2, 3)["stays_unlearned"] is True
    assert row(2, 4)["stays_unlearned"] is False
    assert (row(2, 3)["pul_before"], row(2, 3)["pul_after"]) == (98.0, 97.0)


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


def test_errors_name_the_option(small, capsys):
    def error(*arguments):
        assert run("demo", "mnist", *arguments, "--out", small / "out") == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "feature: expected one of thick, left, wide, got 'red'" in error("--feature", "red")
    assert "got both" in error("--feature", "thick", "--class", 3)
    assert "--attacks is now --audit" in error("--attacks")
    assert "holds no report" in error("--from", small / "nowhere")
    (small / "half").mkdir()
    (small / "half" / "report.json").write_text('{"targets": []}')
    assert "holds no result of one" in error("--from", small / "half")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_another_judge(small, capsys):
    """The same network in another file stands for another one; its figures are the classifier's own."""
    module = Classifier.load(assets.asset("mnist-classifier.safetensors")).module
    torch.jit.trace(module, torch.rand(2, 1, 32, 32)).save(str(small / "other.pt"))
    data, page = mnist_demo(small, "judged", "--class", 4, "--no-oracle", "--judge", small / "other.pt")
    assert data["decisions"]["judge"] == "probe"
    assert "other.pt, which never answered, judges the outcome" in page and "not asked again in the run." in page
    shares = data["class_histogram_before"]
    assert data["negatives_before"] == shares["4"]["count"] > 0 and data["features"] == "discriminator"
    assert data["fid_cls_after"] > 0 and f"--judge {small / 'other.pt'}" in data["command"]
    arguments = ["demo", "mnist", "--class", 4, "--judge", "mnist", "--marks", 12, "--out", small / "same"]
    assert run(*arguments) == 2
    assert "judge: mnist?class=4 is the network that answers during the run" in capsys.readouterr().err
