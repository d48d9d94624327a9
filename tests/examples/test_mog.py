"""The demonstrations, and the parts they are made of."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from atu import api, assets
from atu.config import Config
from atu.gan import GAN
from atu.judging.classifier import Classifier
from atu.judging.marking import mark_negatives
from atu.judging.rule import Rule
from atu.networks.mlp import MLPGenerator
from examples import mog

QUICK = {
    "feedback": {"pool": 400},
    "adapt": {"steps": 4, "fisher": {"n": 8}},
    "repel": {"steps": 6, "check_every": 3, "check_samples": 100, "guide_steps": 2},
}


def test_centres_lie_on_the_circle():
    centres = mog.mog_centres()
    assert torch.allclose(centres.norm(dim=1), torch.full((8,), 2.0))
    assert torch.allclose(centres[0], torch.tensor([2.0, 0.0]))
    assert torch.allclose(centres[2], torch.tensor([0.0, 2.0]), atol=1e-6)


def test_data_have_the_mixtures_moments():
    x = mog.mog_data(40_000)
    # Mean 0; each coordinate's variance is radius^2 / 2 + std^2.
    assert torch.allclose(x.mean(0), torch.zeros(2), atol=0.03)
    assert torch.allclose(x.var(0), torch.full((2,), 2.01), atol=0.05)
    share = torch.bincount(mog.centre_judge().predict(x), minlength=9).double() / len(x)
    # Rayleigh: four standard deviations hold all but exp(-8) of each Gaussian.
    assert float(share[8]) == pytest.approx(math.exp(-8), abs=4e-4)
    assert torch.allclose(share[:8], torch.full((8,), 0.125, dtype=torch.double), atol=0.01)


def test_centre_judge():
    judge = mog.centre_judge()
    points = torch.tensor([[2.0, 0.39], [2.0, 0.41], [0.0, 0.0], [-2.1, 0.0]])
    assert judge.predict(points).tolist() == [0, 8, 8, 4]
    assert judge.class_indices(["3", 1]) == [1, 3]


def test_marking_stops_when_enough_are_found():
    gan = GAN(MLPGenerator(2, [2], (4,)))
    few, looked = mark_negatives(gan, Rule(lambda x: x[:, 0] == x[:, 0]), 30, seed=0)
    assert (len(few), looked) == (30, 500)
    with pytest.raises(ValueError, match="got none"):
        mark_negatives(gan, lambda x: x[:, 0] > 1e9, 5, seed=0, most=1000)


def test_stage_seconds_count_a_resumed_run_in_full():
    class Result:
        seconds = 5.0
        history = [  # noqa: RUF012
            dict(stage="adapt-0", seconds=30.0),
            dict(stage="adapt-0", seconds=60.0),
            dict(stage="repel", seconds=9.0),
        ]

    assert api.stage_seconds(Result()) == {"prepare": 0.0, "adapt-0": 60.0, "repel": 9.0}


def test_mog_writes_everything_and_goes_on_from_its_folder(tmp_path):
    data = mog.demo_mog(tmp_path, negatives=20, samples=500, config=QUICK, pretrain_steps=60)
    assert data["command"] == "python -m examples.mog --seed 0 --samples 500 --out DIR"
    for name in ("report.html", "report.json", "mog.png", "result.safetensors", "pretrained/gan.safetensors"):
        assert (tmp_path / name).stat().st_size > 0
    assert set(data["models"]["before"]["classes"]) == {*map(str, range(8)), "elsewhere"}
    assert data["models"].keys() == {"before", "adapted", "after"}
    assert "<svg" in (tmp_path / "report.html").read_text()
    Config.of(data=QUICK).save(tmp_path / "quick.toml")
    given = dict(config=tmp_path / "quick.toml", precision="float32", device="cpu")
    again = mog.demo_mog(tmp_path, negatives=20, samples=500, **given, pretrain_steps=60)
    words = f"--config {tmp_path}/quick.toml --precision float32 --device cpu"
    assert again["command"] == f"python -m examples.mog --seed 0 --samples 500 {words} --out DIR"
    assert again["models"]["after"]["classes"] == data["models"]["after"]["classes"]


def test_mog_reads_its_settings_before_it_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(mog, "mog_gan", lambda *_: pytest.fail("it trains"))
    with pytest.raises(ValueError, match=r"config: .*none\.toml cannot be read"):
        mog.demo_mog(tmp_path, config=tmp_path / "none.toml")


@pytest.mark.slow
def test_mog_erases_two_centres_and_keeps_six(tmp_path):
    shorter = {**mog.MOG_UNLEARN, "repel": {**mog.MOG_UNLEARN["repel"], "steps": 800}}
    data = mog.demo_mog(tmp_path, config=shorter)
    share = {name: row["share"] for name, row in data["models"]["after"]["classes"].items()}
    assert max(share["0"], share["1"]) < 0.01
    assert min(share[str(kept)] for kept in range(2, 8)) >= 0.08
    assert data["kept"]["frechet"] < 35 * data["kept"]["frechet_chance"]  # 17 so, 51 by the weights that suit images
    adapted = data["models"]["adapted"]["classes"]
    assert adapted["0"]["share"] + adapted["1"]["share"] > 0.5


needs_gan = pytest.mark.skipif(
    not Path(assets.__file__).with_name("mnist-gan.safetensors").exists(), reason="the bundled GAN is not in this tree"
)


@needs_gan
def test_bundled_gan_makes_every_digit():
    gan = GAN.load(assets.asset("mnist-gan.safetensors"))
    classifier = Classifier.load(assets.asset("mnist-classifier.safetensors"))
    probabilities = torch.cat([classifier.probabilities(x.clamp(-1, 1)) for x in gan.batches(2000, seed=11)])
    share = torch.bincount(probabilities.argmax(1), minlength=10) / 2000
    # 3 % of 10,000 and 85 % are promised; 2,000 samples allow for four standard deviations of chance.
    assert float(share.min()) >= 0.03 - 4 * math.sqrt(0.03 * 0.97 / 2000)
    assert float((probabilities.amax(1) >= 0.9).float().mean()) >= 0.85 - 4 * math.sqrt(0.85 * 0.15 / 2000)
    assert gan.generator_ema is not None
    assert assets.asset("mnist-gan.safetensors").stat().st_size <= 6_000_000
