"""A classifier of several parts: its views against a table written out by hand, its names, its file."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from atu.assets import asset
from atu.data.images import to_range
from atu.evaluation.judged import verdicts_of
from atu.formats.tensors import CheckpointError, save_tensors
from atu.gan import GAN
from atu.judging.finding import find, rule_of
from atu.judging.parts import PartsClassifier
from atu.judging.rule import check_independent, class_rule
from atu.networks.classifier import ConvClassifier, StridedClassifier
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from examples import drawings as animals
from examples.classifiers import parts_accuracy, parts_loss, smeared, train_parts, turned

PARTS = {"hat": ("none", "cap", "crown"), "nose": ("short", "long"), "coat": ("red", "blue", "green", "black", "white")}
RULES = {
    "covered": {"hat": ("cap", "crown")},
    "king": {"hat": ("crown",), "coat": ("red", "white")},
    "long": {"nose": ("long",)},
}


def network(kind=ConvClassifier, classes=10, size=16):
    torch.manual_seed(3)
    widths = (4, 4, 4, 4, 4) if kind is ConvClassifier else (4, 8, 4)
    return kind(classes, size, 3, widths, 7)


def classifier(kind=ConvClassifier):
    one = PartsClassifier(network(kind), PARTS, RULES)
    one.module.head.weight.data.mul_(60)  # so that it is sure now and then, and of several values
    one.module.head.bias.data.sub_(one.logits_and_features(images(40))[0].mean(0))
    return one


def images(n=11):
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def cells():
    return list(itertools.product(*PARTS.values()))


@pytest.mark.parametrize("kind", [ConvClassifier, StridedClassifier])
@pytest.mark.parametrize("names", [["king"], ["king", "long"], ["covered+coat=blue"], ["covered+coat=blue", "king"]])
def test_a_view_adds_up_the_joint_probabilities(kind, names):
    one, x = classifier(kind), images()
    probabilities = [p.double().softmax(1) for p in one.split(one.logits_and_features(x)[0]).values()]
    atoms = list(dict.fromkeys(atom for name in names for atom in name.split("+")))
    expected: dict[str, torch.Tensor] = {}
    for cell in cells():
        held = dict(zip(PARTS, cell, strict=True))
        true = [a for a in atoms if all(held[p] in v for p, v in RULES.get(a, {"coat": ("blue",)}).items())]
        joint = torch.ones(len(x), dtype=torch.float64)
        for p, part, value in zip(probabilities, PARTS, cell, strict=True):
            joint = joint * p[:, PARTS[part].index(value)]
        name = " and ".join(true) or "other"
        expected[name] = expected.get(name, 0) + joint
    view = one.view(names)
    assert set(view.classes) == set(expected) and len(view.classes) == len(expected)
    logits, features = view.logits_and_features(x)
    wanted = torch.stack([expected[c] for c in view.classes], 1)
    torch.testing.assert_close(logits.exp().double(), wanted, rtol=0, atol=2e-6)  # of float32 log probabilities
    torch.testing.assert_close(features, one.logits_and_features(x)[1])


def test_names_of_one_part_have_its_values_for_classes():
    one, x = classifier(), images(40)
    view = one.view(["covered", "hat=none"])
    assert view.classes == list(PARTS["hat"])
    assert view.class_indices(["covered"]) == [1, 2] and view.class_indices(["hat=none"]) == [0]
    assert view.class_indices(["crown"]) == [2] and view.class_indices([2, "cap"]) == [1, 2]
    said = one.labels(x)[:, 0]
    assert len(said.unique()) > 1
    assert torch.equal(class_rule(view, ["covered"], one.image_range)(x), said > 0)


@pytest.mark.parametrize("names", [["covered"], ["king", "long"], ["long+coat=blue"]])
def test_truth_is_the_class_of_known_parts(names):
    one = classifier()
    labels = torch.tensor(list(itertools.product(*(range(len(values)) for values in PARTS.values()))))
    view = one.view(names)
    negative = torch.isin(view.truth(labels), torch.tensor(view.class_indices(names)))
    for row, cell, said in zip(labels.tolist(), cells(), negative.tolist(), strict=True):
        held = dict(zip(PARTS, cell, strict=True))
        rules = [one.condition(name) for name in names]
        assert said == any(all(held[p] in v for p, v in rule.items()) for rule in rules), row


def test_a_view_judges_and_can_be_climbed(image_gan):
    one, x = classifier(), images(30)
    view = one.view(["king", "long"])
    image_gan._sample_shape = (3, 16, 16)
    flags, _, labels, _ = verdicts_of(rule_of(view, image_gan, ["long"]), image_gan)(x)
    assert torch.equal(flags, torch.isin(labels, torch.tensor(view.class_indices(["long"]))))
    rule = class_rule(view, ["long"], (-1.0, 1.0))
    assert torch.equal(rule(x), flags)
    x.requires_grad_(True)
    rule.slope(x).sum().backward()
    assert float(x.grad.abs().max()) > 0


def image_gan_of(size):
    return GAN(MLPGenerator(5, [3, size, size], (7,), "tanh"), MLPDiscriminator([3, size, size], (7,)))


def test_a_spec_names_a_file_and_what_is_unwanted(tmp_path):
    one, gan = classifier(), image_gan_of(16)
    path = one.save(tmp_path / "c.safetensors")
    found = find(f"{path}?class=long,coat=blue", gan)
    x = images(40)
    hat = one.labels(x)[:, 0]
    names = ["long", "coat=blue"]
    assert (
        torch.equal(found(x), class_rule(one.view(names), names, gan.image_range)(x)) and 0 < int(found(x).sum()) < 40
    )
    assert found.identity["spec"] == "c.safetensors?class=long,coat=blue"
    assert set(found.subject) == {"long", "coat=blue", "long and coat=blue"}
    assert torch.equal(verdicts_of(found, gan)(x).negative, found(x))
    alone = find(f"{path}?class=covered", gan)
    assert torch.equal(alone(x), hat > 0) and alone.subject == ("cap", "crown")
    # Of another size, it sees the samples scaled.
    assert find(str(path), image_gan_of(24), {"class": "long"})(torch.zeros(2, 3, 24, 24)).shape == (2,)
    with pytest.raises(ValueError, match="class: say which are unwanted, one of covered, king, long, or PART=VALUE"):
        find(str(path), gan)
    with pytest.raises(ValueError, match="expected one of covered, king, long"):
        find(f"{path}?class=fez", gan)


def test_bundled_names_are_specs():
    gan = image_gan_of(64)
    x = to_range(animals.drawings("held-out", 60).images, (-1.0, 1.0))
    antlers = animals.holds(animals.drawings("held-out", 60).labels, animals.FEATURES["antlers"])
    assert 0 < int(antlers.sum()) < 60
    oracle, judge = (find(f"{name}?class=antlers", gan) for name in ("animals", "animals-judge"))
    assert torch.equal(oracle(x), antlers) and torch.equal(judge(x), antlers)
    check_independent(oracle, judge)
    with pytest.raises(ValueError, match="judge: animals"):
        check_independent(oracle, find("animals?class=horns", gan))


def test_wrong_names_are_named():
    one = classifier()
    for wrong, told in {
        "hat": "expected one of covered, king, long, or PART=VALUE",
        "hat=fez": "got 'hat=fez'",
        "covered+hat=none": "nothing is all of covered\\+hat=none: no value of hat is left",
    }.items():
        with pytest.raises(ValueError, match=told):
            one.view([wrong])
    with pytest.raises(ValueError, match="class: expected at least one name, got none"):
        one.view([])
    with pytest.raises(ValueError, match=r"expects \[N, 3, 16, 16\], got \[2, 1, 16, 16\]"):
        one.labels(torch.zeros(2, 1, 16, 16))
    with pytest.raises(ValueError, match="parts: expected 9 values in all, got 10"):
        PartsClassifier(network(classes=9), PARTS, RULES)
    with pytest.raises(ValueError, match="img_resolution: expected a multiple of 8, got 28"):
        StridedClassifier(5, 28)


@pytest.mark.parametrize("kind", [ConvClassifier, StridedClassifier])
def test_file_keeps_everything(tmp_path, kind):
    one, x = classifier(kind), images()
    again = PartsClassifier.load(one.save(tmp_path / "c.safetensors"))
    assert torch.equal(again.logits_and_features(x)[0], one.logits_and_features(x)[0])
    assert (again.parts, again.conditions, again.image_range) == (one.parts, one.conditions, one.image_range)
    half = PartsClassifier.load(one.save(tmp_path / "half.safetensors", torch.bfloat16))
    assert (tmp_path / "half.safetensors").stat().st_size < (tmp_path / "c.safetensors").stat().st_size
    for name, value in half.module.state_dict().items():
        own = one.module.state_dict()[name]
        assert torch.equal(value, own.bfloat16().float() if own.is_floating_point() else own), name


def test_bad_files_are_named(tmp_path):
    path = classifier().save(tmp_path / "c.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="torn"):
        PartsClassifier.load(tmp_path / "torn.safetensors")
    save_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, {"format": "atu-gan"})
    with pytest.raises(CheckpointError, match="expected a file of format atu-parts-classifier, got atu-gan"):
        PartsClassifier.load(tmp_path / "other.safetensors")
    config = json.dumps({"network": "Identity", "kwargs": {}})
    save_tensors(tmp_path / "odd.safetensors", {}, {"format": "atu-parts-classifier", "config": config})
    with pytest.raises(CheckpointError, match="its config cannot be read"):
        PartsClassifier.load(tmp_path / "odd.safetensors")


@pytest.mark.parametrize("augment", [turned, smeared])
def test_training_learns_every_part(augment):
    """On plain colours: a few steps of training tell them, and the loss is the sum of each part's."""
    torch.manual_seed(0)
    n = 640
    labels = torch.stack([torch.randint(len(values), (n,)) for values in animals.PARTS.values()], 1)
    labels[:, 2:] = 0
    shown = torch.zeros(n, 3, 16, 16, dtype=torch.uint8)
    shown[:, 0] = (labels[:, 0] * 50)[:, None, None]
    shown[:, 2] = (labels[:, 1] * 50)[:, None, None]
    data = animals.Drawings(shown, labels)
    total = sum(map(len, animals.PARTS.values()))
    one, rows = train_parts(StridedClassifier(total, 16, 3, (8, 8, 8), 16), data, data, augment, 8, "test", 32)
    scores = parts_accuracy(one, data)
    assert min(scores[part] for part in animals.PARTS) > 0.9, scores
    assert len(rows) == 8 and rows[-1]["loss"] < rows[0]["loss"] / 2
    x = shown[:9].float() / 127.5 - 1
    logits = one.module(x)
    each = [torch.nn.functional.cross_entropy(p, labels[:9, i]) for i, p in enumerate(one.split(logits).values())]
    torch.testing.assert_close(parts_loss(one, logits, labels[:9]), sum(each))


@pytest.mark.parametrize("name", ["animals-classifier", "animals-judge"])
def test_bundled_classifiers_tell_every_part_of_unseen_drawings(name):
    one = PartsClassifier.load(asset(f"{name}.safetensors"))
    log = json.loads(asset(f"{name}.json").read_text())
    unseen = animals.drawings("held-out", 1000)
    scores = parts_accuracy(one, unseen)
    assert scores.keys() == log["held_out_accuracy"].keys()
    for part, score in scores.items():
        assert score >= 0.985, part  # of 1,000; 0.99 of the 4,000 that the log is of
        assert log["held_out_accuracy"][part] >= 0.99, part
        assert score == pytest.approx(log["held_out_accuracy"][part], abs=0.01), part
    assert set(one.conditions) == {*animals.FEATURES, *animals.SPECIES}


def test_the_judge_is_of_another_kind_and_learned_from_other_drawings():
    oracle, judge = (PartsClassifier.load(asset(f"animals-{name}.safetensors")) for name in ("classifier", "judge"))
    assert type(oracle.module) is not type(judge.module)
    logs = [json.loads(asset(f"animals-{name}.json").read_text()) for name in ("classifier", "judge")]
    assert logs[0]["drawings"] != logs[1]["drawings"]
    sizes = [asset(f"animals-{name}.safetensors").stat().st_size for name in ("classifier", "judge")]
    assert sum(sizes) <= 1_500_000
