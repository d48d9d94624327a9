"""A classifier trained on folders of images: what is read, what is held out, how good it is, what is refused."""

from __future__ import annotations

import importlib
import json
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from atu.cli import main as cli
from atu.gan import GAN
from atu.judging.classifier import Classifier
from atu.judging.finding import find
from atu.judging.rule import class_rule
from atu.judging.train import (
    TrainingPlan,
    augmented,
    class_folders,
    read_classes,
    remarks,
    split,
    train_folder,
    usual_side,
)
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.support.digest import digest


def picture(rng, bright, size=(19, 17), colour=True):
    """Noise with a square in it, light or dark."""
    array = rng.integers(90, 160, (size[1], size[0], 3), dtype=np.uint8)
    array[5:12, 6:13] = 255 if bright else 0
    image = Image.fromarray(array)
    return image if colour else image.convert("L")


def folders(path, counts, colour=True, seed=0):
    """PATH/CLASS/*.png: "light" and the like have a light square, "dark" a dark one, "none" grey noise."""
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        for index in range(count):
            file = path / name / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture(rng, name in ("light", "unwanted"), colour=colour).save(file)
    return path


def test_unequal_classes_are_learned_and_their_errors_counted(tmp_path):
    data = folders(tmp_path / "data", {"good": 90, "unwanted": 14})
    path, found = train_folder(data, tmp_path / "net.safetensors", TrainingPlan(steps=60, size=16))
    assert found["images"] == {"good": 90, "unwanted": 14} and found["held_out"] == 18 + 3
    assert found["learned_from"] == 72 + 11 and found["channels"] == 3
    counts = torch.tensor(found["confusion"])
    assert counts.sum(1).tolist() == [18, 3] and found["accuracy"]["count"] == int(counts.diagonal().sum()) >= 20
    low, high = found["accuracy"]["ci95"]
    assert low < found["accuracy"]["share"] <= high and found["majority"] == 18 / 21
    classifier = Classifier.load(path)
    assert classifier.classes == ["good", "unwanted"] and torch.equal(classifier.confusion, counts)
    assert json.loads(path.with_suffix(".json").read_text()) == json.loads(json.dumps(found))
    # Other images of the same two kinds.
    other = read_classes(folders(tmp_path / "other", {"good": 20, "unwanted": 20}, seed=5), 16)
    calls = classifier.predict(other.images.float() / 127.5 - 1)
    assert float((calls == other.labels).float().mean()) >= 0.95
    # The unwanted class needs no naming, for samples of another size.
    gan = GAN(MLPGenerator(4, [3, 9, 9], (8,), "tanh"), MLPDiscriminator([3, 9, 9], (8,)))
    assert find(str(path), gan).subject == ("unwanted",)


def test_the_same_seed_gives_the_same_bits(tmp_path):
    data = folders(tmp_path / "data", {"dark": 12, "light": 12}, colour=False)
    torch.manual_seed(3)
    a, one = train_folder(data, tmp_path / "a", TrainingPlan(steps=3))
    state = torch.get_rng_state()
    torch.manual_seed(4)
    b, _ = train_folder(data, tmp_path / "b.safetensors", TrainingPlan(steps=3))
    assert a == tmp_path / "a" / "classifier.safetensors" and digest(load_file(a)) == digest(load_file(b))
    assert one["channels"] == 1 and one["size"] == 24  # the side of 17 pixels, up to a multiple of 8
    torch.manual_seed(3)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random state was left as it was
    c, _ = train_folder(data, tmp_path / "c", TrainingPlan(steps=3, seed=1))
    assert digest(load_file(c)) != digest(load_file(a))


def test_what_is_held_out():
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 11)
    train, held = split(labels, 0.2, 0)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(71))
    assert labels[held].bincount().tolist() == [10, 3, 3]
    assert not torch.equal(split(labels, 0.2, 1)[1], held)
    assert labels[split(labels, 0.9, 0)[1]].bincount().tolist() == [25, 5, 5]


def test_images_of_all_kinds_are_read_as_squares(tmp_path):
    folder = folders(tmp_path, {"dark": 10, "light": 10})
    rng = np.random.default_rng(3)
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = rng.integers(0, 256, (10, 10, 3))
    Image.fromarray(wide).save(folder / "dark" / "wide.png")
    deep = rng.integers(0, 65536, (16, 16), dtype=np.uint16)
    Image.fromarray(deep).save(folder / "dark" / "deep.png")
    (folder / "light" / "inner").mkdir()
    picture(rng, True).convert("RGBA").save(folder / "light" / "inner" / "alpha.png")
    (folder / "light" / "notes.txt").write_text("no image")
    (folder / ".hidden").mkdir()
    assert {name: len(files) for name, files in class_folders(folder).items()} == {"dark": 12, "light": 11}
    found = read_classes(folder, 10)
    assert found.images.shape == (23, 3, 10, 10) and found.labels.bincount().tolist() == [12, 11]
    middle = torch.from_numpy(wide[:, 10:20].copy()).permute(2, 0, 1)
    assert any(torch.equal(image, middle) for image in found.images)
    flat = next(image for image in read_classes(folder, 16).images if torch.equal(image[0], image[2]))
    assert np.array_equal(flat[0].numpy(), (deep >> 8).astype(np.uint8))
    assert usual_side(class_folders(folder)) == 24


def test_copies_are_left_out_and_contradictions_refused(tmp_path):
    folder = folders(tmp_path, {"dark": 11, "light": 11})
    data = (folder / "dark" / "0.png").read_bytes()
    (folder / "dark" / "again.png").write_bytes(data)
    assert read_classes(folder, 16).copies == 1 and len(read_classes(folder, 16).labels) == 22
    (folder / "light" / "same.png").write_bytes(data)
    with pytest.raises(ValueError, match=r"light/same\.png and .*dark/0\.png show the same under two classes"):
        read_classes(folder, 16)


@pytest.mark.parametrize(
    ("counts", "plan", "words"),
    [
        ({"dark": 30, "light": 9}, TrainingPlan(), "FOLDER: light has 9 different images, and at least 10 are needed"),
        ({"dark": 30}, TrainingPlan(), "expected at least two folders of images in .*, got dark"),
        ({}, TrainingPlan(), "but .* is not a folder"),
        ({"dark": 10, "light": 10}, TrainingPlan(size=20), "size: expected a multiple of 8, got 20"),
        ({"dark": 10, "light": 10}, TrainingPlan(augment=("turn",)), "augment: expected names of affine, flip, light"),
        ({"dark": 10, "light": 10}, TrainingPlan(held_out=1.0), "held_out: expected a share between 0 and 1, got 1"),
        ({"dark": 10, "light": 10}, TrainingPlan(backbone="resnet18"), "needs the file of its weights"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(counts, plan, words, tmp_path):
    folder = folders(tmp_path / "data", counts)
    with pytest.raises(ValueError, match=words):
        train_folder(folder, tmp_path / "net.safetensors", plan)
    assert not (tmp_path / "net.safetensors").exists()


def test_an_unreadable_image_is_named(tmp_path):
    folder = folders(tmp_path, {"dark": 10, "light": 10})
    (folder / "dark" / "3.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(ValueError, match=r"dark/3\.png cannot be read as an image"):
        read_classes(folder, 16)


def test_augmentation_changes_what_it_says():
    torch.manual_seed(1)
    x = torch.rand(40, 3, 9, 9) * 1.6 - 0.8
    flipped = augmented(x, ["flip"])
    turned = (flipped == x.flip(3)).flatten(1).all(1)
    assert torch.equal((flipped == x).flatten(1).all(1), ~turned) and 0 < int(turned.sum()) < 40
    light = augmented(x, ["light"])
    assert light.abs().max() <= 1 and not torch.equal(light, x)
    inside = (light.abs() < 1).flatten(1)
    a, b = x.flatten(1)[0][inside[0]], light.flatten(1)[0][inside[0]]
    slope = (b - b.mean()) / (a - a.mean())
    torch.testing.assert_close(slope, slope[:1].expand_as(slope), rtol=1e-3, atol=1e-3)  # linear in the values
    assert torch.equal(augmented(x, []), x) and augmented(x, ["affine"]).shape == x.shape


def test_remarks():
    data = dict(images={"a": 30, "b": 300}, copies_left_out=2, accuracy=dict(ci95=[0.6, 0.9]), majority=0.9)
    assert [text.split(":")[0] for text in remarks(data)] == [
        "few images of a (30)",
        "2 copies of other images were left out",
        "that is not surely better than to say the most frequent class always (90 %)",
    ]
    assert remarks(dict(images={"a": 100}, copies_left_out=0, accuracy=dict(ci95=[0.96, 1]), majority=0.9)) == []


# --- on the command line


def run(*arguments):
    with pytest.raises(SystemExit) as done:
        cli.main(list(map(str, arguments)))
    return done.value.code


def test_the_command(tmp_path, capsys):
    data, out = folders(tmp_path / "data", {"dark": 12, "light": 30}), tmp_path / "mine.safetensors"
    assert run("train-classifier", data, "--out", out, "--steps", 40, "--augment", "none") == 0
    told = capsys.readouterr()
    assert "% of 9 held-out images right (95 %: " in told.out and "called light" in told.out
    assert told.out.splitlines()[-1] == str(out) and "Warning: few images of dark (12), light (30)" in told.err
    assert Classifier.load(out).classes == ["dark", "light"]
    assert run("train-classifier", data, "--out", tmp_path / "mine.safetensors") == 2
    assert "mine.safetensors" in capsys.readouterr().err


# --- a backbone of timm


class Backbone(nn.Module):
    """What timm gives: a network of three features without its own classifier."""

    def __init__(self):
        super().__init__()
        self.num_features, self.default_cfg = 3, dict(input_size=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(x))[:, :, 6:10, 6:10].mean((2, 3))


@pytest.fixture
def fake_timm(monkeypatch):
    fake = types.ModuleType("timm")
    fake.list_models = lambda: ["small", "smaller"]

    def create_model(name, pretrained, num_classes):
        assert not pretrained and num_classes == 0 and name in fake.list_models()
        return Backbone()

    fake.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", fake)


def test_a_frozen_backbone_with_its_weights_from_a_file(fake_timm, tmp_path):
    data = folders(tmp_path / "data", {"dark": 20, "light": 20})
    torch.manual_seed(5)
    network = Backbone()
    network.norm.running_mean.fill_(0.3)
    torch.save({"state_dict": {**network.state_dict(), "fc.weight": torch.zeros(7, 3)}}, tmp_path / "w.pth")
    plan = TrainingPlan(steps=150, backbone="small", weights=tmp_path / "w.pth")
    path, found = train_folder(data, tmp_path / "net.safetensors", plan)
    assert found["size"] == 16 and found["accuracy"]["share"] == 1
    classifier = Classifier.load(path)
    for name, value in network.state_dict().items():
        assert torch.equal(classifier.module.backbone.state_dict()[name], value), name
    x = torch.rand(5, 3, 16, 16) * 2 - 1
    features = network.eval()(((x + 1) / 2 - 0.5) / 0.25)
    torch.testing.assert_close(classifier.features(x), features.detach())
    x.requires_grad_(True)  # as in an audit's search
    (slope,) = torch.autograd.grad(class_rule(classifier, ["dark"], (-1.0, 1.0)).slope(x).sum(), x)
    assert slope[:, :, 6:10, 6:10].abs().sum() > 0
    torch.save({"conv.weight": torch.zeros(2)}, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match=r"wrong\.pth: the weights do not fit the network: .*conv\.weight: expected"):
        train_folder(data, tmp_path / "other", TrainingPlan(backbone="small", weights=tmp_path / "wrong.pth"))
    with pytest.raises(ValueError, match="backbone: timm has no 'big'; it has small, smaller"):
        train_folder(data, tmp_path / "other", TrainingPlan(backbone="big", weights=tmp_path / "w.pth"))


def test_without_timm(monkeypatch, tmp_path):
    data = folders(tmp_path / "data", {"dark": 10, "light": 10})
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"backbone: needs timm: pip install 'atu-ext\[timm\]'"):
        train_folder(data, tmp_path / "x", TrainingPlan(backbone="resnet18", weights=tmp_path / "w.pth"))


def test_timm_itself(tmp_path):
    """A small network of timm with random weights; skipped where timm cannot be imported."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    try:
        timm = importlib.import_module("timm")
    except (RuntimeError, ImportError) as error:
        pytest.skip(f"timm cannot be imported: {error}")
    data = folders(tmp_path / "data", {"dark": 12, "light": 12}, colour=False)
    torch.manual_seed(0)
    weights = timm.create_model("resnet10t", pretrained=False).state_dict()
    torch.save(weights, tmp_path / "w.pth")
    plan = TrainingPlan(steps=2, size=32, backbone="resnet10t", weights=tmp_path / "w.pth")
    path, found = train_folder(data, tmp_path / "net.safetensors", plan)
    assert found["channels"] == 1 and found["size"] == 32
    loaded = Classifier.load(path)
    assert torch.equal(loaded.module.backbone.state_dict()["conv1.0.weight"], weights["conv1.0.weight"])
    assert loaded.logits(torch.zeros(2, 1, 32, 32)).shape == (2, 2)
