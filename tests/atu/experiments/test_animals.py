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
from atu.cli import main as cli
from atu.cli import options
from atu.data import animals as drawn
from atu.data.images import map_range, to_range
from atu.evaluation.classifier import confusion
from atu.evaluation.parts import PartsClassifier
from atu.experiments import animals as demo
from atu.experiments import demo as both
from atu.gan import GAN
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.support.seeding import fork_rng
from benchmarks.paper import recipes
from benchmarks.paper.__main__ import reproduce

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

    for module in (demo, options, recipes):
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


def test_the_judge_looks_once_at_a_batch(monkeypatch):
    """Views and rules ask about the same one; another one, or the same tensor with other values, is looked at anew."""
    plain = demo.judge()
    one, looks = demo._Remembering.of(plain), []
    features = plain.module.features
    monkeypatch.setattr(plain.module, "features", lambda x: looks.append(len(x)) or features(x))
    x = to_range(shown().images[:7], one.image_range)
    said, rule = one.view(["antlers"]).logits_and_features(x), demo._Answers(one, one.image_range).rule("antlers")
    assert rule(x).tolist() == drawn.holds(shown().labels[:7], ANTLERS).tolist() and looks == [7]
    for own, expected in zip(said, plain.view(["antlers"]).logits_and_features(x), strict=True):
        torch.testing.assert_close(own, expected)
    x.copy_(x.flip(0))
    torch.testing.assert_close(one.labels(x), plain.labels(x))
    one.labels(x[:5])
    assert looks == [7, 7, 7, 7, 5]


@pytest.mark.slow
def test_a_feature_is_judged_by_the_judge_alone(small, monkeypatch):
    used = []
    evaluate = both.evaluate

    def spy(*args, **more):
        used.append(more["classifier"])
        return evaluate(*args, **more)

    monkeypatch.setattr(both, "evaluate", spy)
    data, page = animals_demo(small, "antlers", "--feature", "antlers")
    assert data["subject"] == "antlers" and data["targets"] == [{"names": ["antlers"]}]
    assert data["command"].startswith("atu demo animals --feature antlers --marks 6")
    gan = GAN.load(small / "animals-gan.safetensors")
    x = torch.cat(list(gan.batches(SAMPLES, data["seed"], SAMPLES)))
    assert data["negatives_before"] == int(drawn.holds(demo.judge().labels(x.clamp(-1, 1)), ANTLERS).sum()) > 0
    # The classes are the ears, so that one sees what took the antlers' place.
    assert set(data["class_histogram_before"]) == set(drawn.PARTS["ears"])
    assert data["landing"]["latents"] == data["negatives_before"]
    assert set(data["landing"]["transitions"]) <= {"moose-antlers", "deer-antlers"}
    assert data["attributes_before"].keys() == drawn.FEATURES.keys()
    assert data["attributes_before"]["antlers"]["count"] == data["negatives_before"]
    assert data["fid_cls_after"] > 0 and data["real_images"] < 300
    assert "learned from other drawings and never answered, judges the outcome" in page
    assert data["judge"] == "animals-judge" and not data["judges"]["animals-judge"]["answered"]
    assert data["judges"]["animals-classifier"]["answered"]
    # Its errors are counted on drawings that it has not seen, and the figures corrected for them.
    assert data["judges"]["animals-judge"]["corrected"]["pul"] is not None
    assert len(list((small / "antlers" / "negatives" / "antlers").glob("*.png"))) == 6
    (measured,) = used
    own, asked = (PartsClassifier.load(assets.asset(f"animals-{name}.safetensors")) for name in ("judge", "classifier"))
    x = x[:20]
    assert torch.equal(measured.logits_and_features(x)[1], own.logits_and_features(x)[1])
    assert not torch.equal(measured.logits_and_features(x)[1], asked.logits_and_features(x)[1])


@pytest.mark.slow
def test_without_oracle_it_marks_and_answers_no_more(small, monkeypatch):
    seen = []

    def unlearn(gan, negatives, is_negative, **options):
        seen.append((len(negatives), is_negative))
        return original(gan, negatives, is_negative=is_negative, **options)

    original = both.unlearn
    monkeypatch.setattr(both, "unlearn", unlearn)
    data, _ = animals_demo(small, "two", "--feature", "antlers", "--feature", "whiskers", "--no-oracle")
    assert seen == [(9, None)]  # six of each, and three faces have both
    assert data["subject"] == "antlers and whiskers"
    assert set(data["class_histogram_before"]) == {"antlers", "whiskers", "antlers and whiskers", "other"}
    assert "--no-oracle" in data["command"]


@pytest.mark.slow
def test_a_species_on_one_color_and_one_after_another(small):
    first, page = animals_demo(small, "pink", "--feature", "antlers", "--on", "pink")
    assert first["subject"] == "antlers with color pink"
    kept = first["class_histogram_before"]
    assert set(kept) == {"antlers", "color=pink", "antlers and color=pink", "other"}
    assert first["negatives_before"] == kept["antlers and color=pink"]["count"] > 0
    assert kept["antlers"]["count"] > 0  # those of other colours are none of the negatives
    assert "antlers with color pink" in page
    second, _ = animals_demo(small, "dogs", "--class", "dog", "--from", small / "pink")
    assert second["subject"] == "dogs" and second["earlier"][0]["subject"] == "antlers with color pink"
    assert second["targets"] == [{"names": ["antlers+color=pink"]}, {"names": ["dog"]}]
    assert second["earlier"][0]["original"] == first["negatives_before"]


@pytest.mark.slow
def test_another_judge_measures(small, capsys, monkeypatch):
    """The bundled judge by its spec gives the figures that it gives unasked; the samples are made 7 at once."""
    audits = []
    monkeypatch.setattr(both, "audited", lambda out, searched, *given: audits.append((searched, given[3])))
    options = ["--judge", "animals-judge", "--batch", 7, "--threads", 1, "--audit"]
    data, page = animals_demo(small, "judged", *options)
    assert data["decisions"]["judge"] == "oracle"
    assert [judge["answered"] for judge in data["judges"].values()] == [False]
    assert "animals-judge, which never answered, judges the outcome" in page
    assert "--judge animals-judge --batch 7" in data["command"]
    gan = GAN.load(small / "animals-gan.safetensors")
    found = demo.judge().labels(gan.sample(SAMPLES, data["seed"], 7).clamp(-1, 1))
    assert data["negatives_before"] == int(drawn.holds(found, ANTLERS).sum()) > 0
    assert data["attributes_before"]["antlers"]["count"] == data["negatives_before"]
    assert data["fid_cls_after"] > 0
    ((searched, rules),) = audits
    assert searched == "oracle" and [name.partition("?")[0] for name in rules] == ["animals-judge", "oracle"]
    assert torch.equal(
        next(iter(rules.values()))(gan.sample(40)).cpu(), drawn.holds(demo.judge().labels(gan.sample(40)), ANTLERS)
    )
    assert run("demo", "animals", "--judge", "animals", "--marks", 6, "--out", small / "same") == 2
    assert "is the network that answers during the run" in " ".join(capsys.readouterr().err.split())
    assert not (small / "same").exists()


def test_animals_is_a_name_where_a_checkpoint_or_a_classifier_is_taken(small, capsys):
    out = small / "look"
    assert run("sample", "animals", "--samples", 9, "--judge", "x", "--out", out) == 2  # no option of it
    assert run("sample", "animals", "--samples", 9, "--oracle", "animals", "--class", "antlers", "--out", out) == 0
    shown_here = torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in sorted(out.glob("*.png"))])
    found = demo.judge().labels(to_range(shown_here.permute(0, 3, 1, 2), (-1.0, 1.0)))
    assert len(shown_here) == 9 and int(drawn.holds(found, ANTLERS).sum()) >= 8
    capsys.readouterr()
    assert run("inspect", "animals") == 0 and "generator" in capsys.readouterr().out
    judged = ["--judge", "animals", "--class", "antlers", "--real", "animals", "--samples", 150]
    assert run("eval", "animals", "animals", *judged, "--quiet", "--out", small / "same") == 0
    data = json.loads((small / "same" / "report.json").read_text())
    assert data["judge"] == "animals-judge" and data["pul"] == 0 and data["negatives_before"] > 0
    assert data["judges"]["animals-classifier"]["answered"] is None  # of a file it is not known
    assert data["fid_cls_before"] == pytest.approx(data["fid_cls_after"]) and data["real_images"] < 300


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


def test_a_run_of_another_demonstration_is_no_source(small, capsys):
    run_folder = small / "digits"
    run_folder.mkdir()
    (run_folder / "report.json").write_text(json.dumps({"targets": [{"classes": ["8"]}]}))
    (run_folder / "result.safetensors").write_bytes((small / "animals-gan.safetensors").read_bytes())
    assert run("demo", "animals", "--from", run_folder, "--out", small / "no") == 2
    assert "is of another demonstration" in " ".join(capsys.readouterr().err.split())


def test_wrong_names_are_named(small, capsys):
    for given, told in {
        ("--feature", "wings"): "expected one of antlers, ",
        ("--class", "dog", "--on", "violet"): "got 'color=violet'",
    }.items():
        assert run("demo", "animals", *given, "--out", small / "no") == 2
        assert told in " ".join(capsys.readouterr().err.split())
    assert not (small / "no").exists()


def test_without_the_drawings_package_it_ends_before_the_marking(small, capsys, monkeypatch):
    def missing(*_):
        raise ImportError("pip install 'atu-ext[demo]'")

    monkeypatch.setattr(demo.animals, "drawings", missing)
    monkeypatch.setattr(demo, "mark", None)
    assert run("demo", "animals", "--feature", "antlers", "--quiet", "--out", small / "out") != 0
    assert "atu-ext[demo]" in capsys.readouterr().err


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
