"""The animals demonstration end to end, on a small GAN of twelve faces made here, in place of the bundled one."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from atu import assets
from atu import demo as demonstrations
from atu.cli import main as cli
from atu.cli import options
from atu.data.images import map_range, to_range
from atu.gan import GAN
from atu.judging.errors import confusion
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.support.seeding import fork_rng
from benchmarks.paper import recipes
from benchmarks.paper.__main__ import reproduce
from examples import animals as demo
from examples import drawings as drawn

QUICK = """
[feedback]
pool = 150
[adapt]
steps = 2
fisher.n = 4
adversarial.augment = ""
adversarial.batch_size = 8
[repel]
steps = 3
check_every = 2
check_samples = 40
guide_steps = 2
adversarial.batch_size = 8
"""
FACES, SAMPLES = 12, 120
ANTLERS = drawn.FEATURES["antlers"]
cached_drawings = functools.cache(drawn.drawings)


@functools.cache
def shown() -> drawn.Drawings:
    """Twelve drawings, among them antlers (one on pink), whiskers and a dog."""
    some = cached_drawings("judge", 400)
    features = drawn.FEATURES
    wanted = [
        {**ANTLERS, "color": ("pink",)},
        {**ANTLERS, **features["whiskers"]},
        {**features["pointed-ears"], **features["whiskers"]},
        {**features["floppy-ears"], **features["tongue"]},
    ]
    first = [int(drawn.holds(some.labels, rule).nonzero()[0]) for rule in wanted]
    others = [i for i in range(len(some)) if i not in first and not drawn.holds(some.labels[i : i + 1], ANTLERS)]
    index = torch.tensor([*first, *others[: FACES - len(first)]])
    return drawn.Drawings(some.images[index], some.labels[index])


@functools.cache
def face_gan() -> GAN:
    """A generator fitted to show the face whose latent is the largest, and an untrained discriminator."""
    images = to_range(shown().images, (-1.0, 1.0))
    with fork_rng(torch.device("cpu"), 0):
        generator = MLPGenerator(FACES, [3, 64, 64], (48, 32), "tanh")
        with torch.no_grad():
            generator.net[0].weight.mul_(5)  # sharp borders between the faces
        optim = torch.optim.Adam(generator.parameters(), lr=4e-3)
        for _ in range(250):
            z = torch.randn(64, FACES)
            loss = F.mse_loss(generator(z), images[z.argmax(1)])
            optim.zero_grad()
            loss.backward()
            optim.step()
        return GAN(generator, MLPDiscriminator([3, 64, 64], (16,)), image_range=(-1.0, 1.0))


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The demonstration with the small GAN and few drawings; gives the folder of quick settings."""
    path = face_gan().save(tmp_path / "animals-gan.safetensors")
    bundled = assets.asset

    def asset(name):
        return path if name == "animals-gan.safetensors" else bundled(name)

    for module in (demo, demonstrations, options, recipes):
        monkeypatch.setattr(module, "asset", asset)
    monkeypatch.setattr(demo.animals, "drawings", lambda split, n, size=64: cached_drawings(split, 300, size))
    (tmp_path / "quick.toml").write_text(QUICK)
    return tmp_path


def run(*arguments):
    with pytest.raises(SystemExit) as done:
        cli.main(list(map(str, arguments)))
    return done.value.code


def animals_demo(folder, out, *options):
    arguments = ["demo", "animals", *options, "--marks", 6, "--samples", SAMPLES, "--config", folder / "quick.toml"]
    assert run(*arguments, "--quiet", "--out", folder / out) == 0
    data = json.loads((folder / out / "report.json").read_text())
    return data, (folder / out / "report.html").read_text()


def test_small_gan_shows_the_faces_to_both_classifiers():
    x = face_gan().sample(300)
    true = drawn.holds(shown().labels, ANTLERS).float().mean()
    for one in (demo.oracle(), demo.judge()):
        share = drawn.holds(one.labels(x), ANTLERS).float().mean()
        assert float(share) == pytest.approx(float(true), abs=0.12)


def test_animals_is_a_name_where_a_checkpoint_or_a_classifier_is_taken(small, capsys):
    out = small / "look"
    assert run("sample", "animals", "--samples", 9, "--judge", "x", "--out", out) == 2  # no option of it
    assert run("sample", "animals", "--samples", 9, "--oracle", "animals", "--class", "antlers", "--out", out) == 0
    shown_here = torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in sorted(out.glob("*.png"))])
    found = demo.judge().labels(to_range(shown_here.permute(0, 3, 1, 2), (-1.0, 1.0)))
    assert len(shown_here) == 9 and int(drawn.holds(found, ANTLERS).sum()) >= 8
    capsys.readouterr()
    assert run("inspect", "animals") == 0 and "generator" in capsys.readouterr().out
    judged = ["--judge", "animals", "--class", "antlers", "--samples", 150]
    assert run("eval", "animals", "animals", *judged, "--quiet", "--out", small / "same") == 0
    data = json.loads((small / "same" / "report.json").read_text())
    assert data["judge"] == "animals-judge" and data["pul"] == 0 and data["negatives_before"] > 0
    assert data["judges"]["animals-classifier"]["answered"] is None  # of a file it is not known


def test_the_recipe_of_the_table(small, capsys):
    plan = recipes.animals_plan(methods=["ewc"], seeds=1)
    assert [task.name for task in plan.tasks] == list(recipes.ANIMALS) and len(plan.tasks) == 7
    images, labels = plan.tasks[0].real
    truth = drawn.holds(cached_drawings("held-out", 300).labels, drawn.SPECIES["dog"])
    (dog, antlers) = (plan.tasks[0], plan.tasks[4])
    assert torch.equal(torch.isin(labels, torch.tensor(dog.judge.class_indices(["dog"]))), truth)
    assert images.shape == (300, 3, 64, 64) and float(images.min()) >= -1
    assert (dog.judge.name, dog.asked.name) == ("animals-judge", "animals-classifier")
    assert antlers.judge.classes == list(drawn.PARTS["ears"])
    for task in (dog, antlers):
        for one in (task.judge, task.oracle):  # all views were counted at once; one alone says the same
            known = one.truth(cached_drawings("held-out", 300).labels)
            assert torch.equal(one.confusion, confusion(one, map_range(images, (-1, 1), one.image_range), known))
            assert int(one.confusion.sum()) == 300
    command = ["animals", "--class", "wool", "--method", "ewc", "--seeds", 2, "--samples", 50]
    words = list(map(str, [*command, "--dry-run", "--out", small / "table"]))
    reproduce.main(words, standalone_mode=False)
    assert "2 cells to do, about" in capsys.readouterr().out and not (small / "table").exists()


@pytest.mark.slow
def test_two_features_on_one_colour_are_judged_by_the_judge(small):
    data, _ = animals_demo(small, "pink", "--feature", "antlers", "--class", "dog", "--on", "pink")
    assert data["subject"] == "antlers+color=pink, dog+color=pink"
    gan = GAN.load(small / "animals-gan.safetensors")
    x = torch.cat(list(gan.batches(SAMPLES, data["seed"], SAMPLES)))
    found = demo.judge().labels(x.clamp(-1, 1))
    pink = {"color": ("pink",)}
    unwanted = drawn.holds(found, {**ANTLERS, **pink}) | drawn.holds(found, {**drawn.SPECIES["dog"], **pink})
    assert abs(data["negatives_before"] - int(unwanted.sum())) <= 2  # batches of other sizes round otherwise
    assert data["negatives_before"] > 0
    assert data["judge"] == "animals-judge" and data["decisions"]["answered_by"] == "oracle"


def test_wrong_names_are_named(small, capsys):
    for given, told in {
        ("--feature", "wings"): "expected one of antlers, ",
        ("--class", "dog", "--on", "violet"): "got 'color=violet'",
    }.items():
        assert run("demo", "animals", *given, "--out", small / "no") == 2
        assert told in " ".join(capsys.readouterr().err.split())
    assert not (small / "no").exists()


def test_a_missing_file_says_which_command_makes_it(monkeypatch):
    assert assets.MADE_BY["animals-gan.safetensors"] == "python -m examples.pretrain animals --out DIR"
    monkeypatch.setitem(assets.MADE_BY, "none.safetensors", "atu make none")
    with pytest.raises(FileNotFoundError, match=r"none.safetensors: .* is missing; .*or make it with `atu make none`"):
        assets.asset("none.safetensors")


@pytest.mark.slow
def test_the_bundled_gan_is_like_the_drawings():
    path = assets.asset("animals-gan.safetensors")
    assert path.stat().st_size <= 8_000_000
    found = demo.LikeDrawings(2000)(GAN.load(path))
    assert found["share_error"] < 0.06  # 0.045 of 4,000 samples
    assert found["precision"] >= 0.9 and found["recall"] >= 0.75  # 0.958, 0.790
    assert found["sure"] >= 0.42  # 0.473


def test_drawings_are_like_drawings(monkeypatch):
    monkeypatch.setattr(demo.animals, "drawings", lambda split, n: cached_drawings(split, 300))
    measure = demo.LikeDrawings(300)
    held_out = cached_drawings("held-out", 300)
    gan = face_gan().copy()
    gan.batches = lambda n, seed, size: iter(to_range(held_out.images, (-1.0, 1.0)).split(60))
    same = measure(gan)
    assert same["fid"] == pytest.approx(0, abs=1e-3) and same["share_error"] < 0.02 and same["sure"] > 0.9
    assert same["precision"] == same["recall"] == 1
    few = measure(face_gan())
    assert few["fid"] > 10 * abs(same["fid"]) + 1 and few["recall"] < 0.5 and few["share_error"] > 0.1
