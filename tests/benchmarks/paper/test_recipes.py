"""Recipes of the reproduced table: of the bundled domains, and of folders as AFHQ's and CelebA-HQ's are."""

from __future__ import annotations

import copy
import json
import pickle
import warnings

import click
import numpy as np
import pytest
import torch
from PIL import Image

from atu import presets
from atu.data.images import load_images, to_range
from atu.gan import GAN
from atu.judging.classifier import Classifier
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.support.context import RunContext
from benchmarks.paper import recipes, reproduce
from benchmarks.paper.__main__ import Wanted, take_part
from benchmarks.paper.cells import read_cells
from benchmarks.paper.published import PUBLISHED
from benchmarks.tables import read_rows

from .tiny import QUICK, run, tiny_gan


def picture(colour, rng, size=16):
    noise = rng.normal(0, 8, (size, size, 3))
    return Image.fromarray((np.asarray(colour) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture
def afhq(tmp_path):
    rng = np.random.default_rng(0)
    colours = {"cat": (220, 30, 30), "dog": (30, 220, 30), "wild": (30, 30, 220)}
    for name, colour in colours.items():
        folder = tmp_path / "afhq" / "train" / name
        folder.mkdir(parents=True)
        for index in range(30):
            picture(colour, rng).save(folder / f"{index:03d}.png")
    return tmp_path / "afhq"


@pytest.fixture
def celebahq(tmp_path):
    rng = np.random.default_rng(1)
    folder = tmp_path / "celebahq"
    (folder / "images").mkdir(parents=True)
    lines = ["80", "Bangs Bald Eyeglasses Smiling Wearing_Hat"]
    for index in range(80):
        values = [index % 2, index // 2 % 2, index // 4 % 2, 1, index // 8 % 2]
        colour = (240 if values[0] else 20, 240 if values[1] else 20, 240 if values[2] else 20)
        picture(colour, rng).save(folder / "images" / f"{index}.png")
        lines.append(f"{index}.png  " + " ".join("1" if value else "-1" for value in values))
    (folder / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    return folder


def coloured_gan():
    """Shows one of eight colours by the signs of the first three latents, nearly flat over the image."""
    gan = tiny_gan(3)
    with torch.no_grad():
        first, last = gan.generator.net[0], gan.generator.net[2]
        for p in (first.weight, first.bias, last.weight, last.bias):
            p.zero_()
        for channel in range(3):
            first.weight[channel, channel], first.weight[3 + channel, channel] = 5.0, -5.0
            part = slice(64 * channel, 64 * channel + 64)
            last.weight[part, channel], last.weight[part, 3 + channel] = 1.0, -1.0
    return gan


def test_afhq_recipe(afhq, tmp_path):
    gan, out = coloured_gan(), tmp_path / "out"
    plan = recipes.afhq_plan(afhq, gan, out, methods=["extrapolate"], seeds=1)
    assert [task.name for task in plan.tasks] == ["cat", "dog", "wild"]
    images, labels = plan.tasks[0].real
    assert images.shape == (90, 3, 8, 8) and images.dtype == torch.uint8
    assert labels.bincount().tolist() == [30, 30, 30]
    # Resized, a red square stays red.
    images = to_range(images, gan.image_range)
    assert images[:30, 0].mean() > 0.6 > -0.6 > images[:30, 1].mean()
    log = json.loads((out / "classifiers" / "afhq.json").read_text())
    assert log["held_out_accuracy"] == 1.0
    again = recipes.afhq_plan(afhq, gan, out, ["dog"], out / "classifiers", methods=["extrapolate"], seeds=1)
    own, other = plan.tasks[0].judge, again.tasks[0].judge
    assert torch.equal(other.predict(images), own.predict(images))
    assert other.name == own.name == "afhq" and torch.equal(other.confusion, own.confusion)
    assert own.confusion.sum() == 18  # a fifth
    with pytest.raises(ValueError, match="expected some of cat, dog, wild, got 'cow'"):
        recipes.afhq_plan(afhq, gan, out, ["cow"], methods=[], seeds=1)
    with pytest.raises(ValueError, match="found no image in train/cat, train/dog, train/wild"):
        recipes.afhq_plan(tmp_path, gan, out, methods=[], seeds=1)
    with pytest.raises(ValueError, match=r"classifiers: expected .*afhq\.safetensors"):
        recipes.afhq_plan(afhq, gan, out, [], tmp_path, methods=[], seeds=1)


def test_labels_are_counted_as_a_given_classifier_counts_its_classes(afhq, celebahq, tmp_path, monkeypatch):
    """Its classes may come in another order, and "without" may be called otherwise."""
    monkeypatch.setattr(recipes, "EPOCHS", 4)
    gan, out, given = coloured_gan(), tmp_path / "out", tmp_path / "given"
    options = dict(methods=["extrapolate"], seeds=1)

    def turned(judge, order, names):
        """The same classifier with its classes in another order."""
        module = copy.deepcopy(judge.module)
        with torch.no_grad():
            for p in (module.head.weight, module.head.bias):
                p.copy_(p[order].clone())
        return Classifier(module, names, gan.image_range)

    bangs = recipes.celebahq_plan(celebahq, gan, out, ["bangs"], **options).tasks[0]
    turned(bangs.judge, [1, 0], ["bangs", "none"]).save(given / "bangs.safetensors")
    again = recipes.celebahq_plan(celebahq, gan, out, ["bangs"], given, **options).tasks[0]
    assert torch.equal(again.real[1], 1 - bangs.real[1]) and 0 < int(again.real[1].sum()) < 80
    x = to_range(bangs.real[0], gan.image_range)
    assert torch.equal(again.judge.predict(x), 1 - bangs.judge.predict(x))

    cats = recipes.afhq_plan(afhq, gan, out, **options).tasks[0]
    turned(cats.judge, [2, 0, 1], ["wild", "cat", "dog"]).save(given / "afhq.safetensors")
    again = recipes.afhq_plan(afhq, gan, out, [], given, **options).tasks[0]
    assert again.real[1].tolist() == [1] * 30 + [2] * 30 + [0] * 30
    assert torch.equal(again.judge.predict(to_range(again.real[0], gan.image_range)), again.real[1])


def test_celebahq_recipe_from_the_command_line(celebahq, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "EPOCHS", 4)
    ckpt = coloured_gan().save(tmp_path / "gan.safetensors")
    (tmp_path / "quick.toml").write_text(QUICK)
    out = tmp_path / "out"
    arguments = ["celebahq", "--data", celebahq, "--ckpt", ckpt, "--class", "bangs"]
    arguments += ["--class", "eyeglasses"]
    arguments += ["--method", "extrapolate", "--method", "ewc", "--seeds", 1, "--samples", 60, "--marks", 6]
    arguments += ["--config", tmp_path / "quick.toml", "--jobs", 2, "--quiet", "--out", out]
    run(*arguments)
    assert len(read_cells(out)) == 4
    table = [row["target"] for row in read_rows(out / "table.csv") if row["method"] == "ewc"]
    assert table == ["bangs", "eyeglasses"]
    text = (out / "table.md").read_text()
    assert "## eyeglasses" in text
    assert PUBLISHED["celebahq"]["el2"]["bangs"][0] == 90.45
    cell = read_cells(out)["extrapolate", "bangs", 0]
    assert 0 < cell["negatives_before"] < 60
    assert cell["machine.threads"] == 1

    # Gone on with, and a target more.
    more = ["--class", "hat", "--method", "extrapolate", "--seeds", 1, "--samples", 60, "--marks", 6]
    run(*arguments[:5], *more, *arguments[-7:])
    assert ("extrapolate", "hat", 0) in read_cells(out)
    assert set(json.loads((out / "plan.json").read_text())["judges"]) == {"bangs", "eyeglasses", "hat"}

    # Another process, which is told what was asked for, computes the same.
    options = dict(seeds=1, negatives=6, samples=60, oracle=True, methods=["ewc"])
    options["config"] = reproduce.read_config(tmp_path / "quick.toml")
    wanted = Wanted("celebahq", ("bangs",), celebahq, str(ckpt), out / "classifiers", None, "cpu", options)
    with warnings.catch_warnings():
        take_part(*pickle.loads(pickle.dumps((wanted, tmp_path / "there", RunContext(batch=7)))))
    assert list(read_cells(tmp_path / "there")) == [("ewc", "bangs", 0)]
    own, there = (read_cells(folder)["ewc", "bangs", 0] for folder in (out, tmp_path / "there"))
    assert there["negatives_before"] == own["negatives_before"]
    assert there["models.after.fid_cls"] == pytest.approx(own["models.after.fid_cls"], rel=1e-3)


@pytest.mark.parametrize("dataset", ["afhq", "celebahq"])
def test_a_dry_run_trains_no_classifier(dataset, request, tmp_path, monkeypatch, capsys):
    data, ckpt = request.getfixturevalue(dataset), coloured_gan().save(tmp_path / "gan.safetensors")
    monkeypatch.setattr(recipes, "train_classifier", lambda *_, **__: pytest.fail("it trains"))
    command = [dataset, "--data", data, "--ckpt", ckpt, "--seeds", 1, "--method", "extrapolate"]
    run(*command, "--quiet", "--dry-run", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    names = {"afhq": "afhq", "celebahq": "bangs, hat, bald, eyeglasses"}[dataset]
    assert capsys.readouterr().out.splitlines()[-1] == f"Training the classifiers comes on top: {names}"


def test_attribute_lists(celebahq, tmp_path):
    path = celebahq / "list_attr_celeba.txt"
    table = recipes.read_attributes(path, ["Bald", "Bangs"])
    assert len(table) == 80
    assert table["2.png"] == [True, False]
    with pytest.raises(ValueError, match="does not list Young"):
        recipes.read_attributes(path, ["Young"])
    (tmp_path / "torn.txt").write_text("1\nBangs Bald\n0.png 1\n")
    with pytest.raises(ValueError, match="line 3: expected a file name and 2 values"):
        recipes.read_attributes(tmp_path / "torn.txt", ["Bangs"])
    with pytest.raises(ValueError, match="the attribute list"):
        recipes.celebahq_plan(tmp_path, coloured_gan(), tmp_path, methods=[], seeds=1)


def test_images_of_another_shape_are_refused(tmp_path):
    Image.new("RGB", (20, 10)).save(tmp_path / "wide.png")
    with pytest.raises(ValueError, match="20 x 10"):
        load_images([tmp_path / "wide.png"], (3, 8, 8), "data", resize=True)


def test_another_gan_of_digits_takes_the_place_of_the_bundled_one(monkeypatch):
    monkeypatch.setattr(
        recipes,
        "mnist",
        lambda: (torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 32, 32), torch.tensor([1, 4])),
    )
    gan = GAN(MLPGenerator(4, [1, 32, 32], (8,), "sigmoid"), MLPDiscriminator([1, 32, 32], (8,)), image_range=(0, 1))
    plan = recipes.mnist_plan(["4"], gan, methods=["ewc"], seeds=1)
    images, labels = plan.tasks[0].real
    assert plan.gan is gan and labels.tolist() == [1, 4]
    assert images.flatten(1).mean(1).tolist() == [0.0, 1.0]
    for make, expected in (
        (recipes.mnist_plan, r"\[1, 32, 32\], as the digits are"),
        (recipes.animals_plan, r"\[3, 64, 64\], as the drawings are"),
    ):
        with pytest.raises(ValueError, match=f"ckpt: expected a GAN of samples {expected}, got \\[1, 8, 8\\]"):
            make(["4"] if make is recipes.mnist_plan else ["antlers"], tiny_gan(), methods=["ewc"], seeds=1)


def test_mnist_recipe_names_the_bundled_files(monkeypatch, tmp_path, capsys):
    ckpt = GAN(MLPGenerator(4, [1, 32, 32], (8,)), MLPDiscriminator([1, 32, 32], (8,))).save(tmp_path / "g.safetensors")
    bundled = recipes.asset
    monkeypatch.setattr(recipes, "asset", lambda name: ckpt if name == "mnist-gan.safetensors" else bundled(name))
    monkeypatch.setattr(recipes, "mnist", lambda: (torch.zeros(2, 1, 32, 32), torch.tensor([1, 4])))
    plans = []
    done = dict(cells=33, cells_done=33)
    monkeypatch.setattr(reproduce, "reproduce", lambda plan, out: plans.append(plan) or done)
    run("mnist", "--jobs", 1, "--out", tmp_path / "out")
    assert [task.name for task in plans[0].tasks] == ["1", "4", "8"]
    assert (plans[0].seeds, list(plans[0].methods)) == (3, list(presets.METHODS))
    run("mnist", "--class", 8, "--class", 8, "--jobs", 1, "--out", tmp_path / "out")
    assert [task.name for task in plans[1].tasks] == ["8"]
    with pytest.raises(click.UsageError, match="mnist takes no --classifiers"):
        run("mnist", "--classifiers", tmp_path, "--out", tmp_path / "out")
