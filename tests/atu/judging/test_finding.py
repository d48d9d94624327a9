"""Classifiers of the user's, by a spec: files of three kinds, functions, and what is wrong with them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from atu import unlearn
from atu.evaluation.evaluate import evaluate
from atu.gan import GAN
from atu.judging.classifier import Classifier
from atu.judging.finding import find
from atu.judging.rule import check_independent
from atu.judging.spec import OPTIONS, parse
from atu.networks.classifier import ConvClassifier
from atu.networks.mlp import MLPDiscriminator, MLPGenerator

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")


def gan_of(*shape, image_range=(-1.0, 1.0)):
    """Untrained, of images of an odd size."""
    generator = MLPGenerator(5, list(shape), hidden=(13,), output="tanh")
    if image_range != (-1.0, 1.0):
        generator = nn.Sequential(generator, nn.Hardtanh(0.0, 1.0))
    return GAN(generator, MLPDiscriminator(list(shape), hidden=(13,)), latent_dim=5, image_range=image_range)


class Halves(nn.Module):
    """Brightness of the upper left, the lower left and the right part: three logits."""

    def __init__(self, scale=20.0):
        super().__init__()
        self.scale = nn.Parameter(torch.full([], scale))

    def forward(self, x):
        h, w = x.shape[2] // 2, x.shape[3] // 2
        parts = [x[:, :, :h, :w], x[:, :, h:, :w], x[:, :, :, w:]]
        return self.scale * torch.stack([part.mean((1, 2, 3)) for part in parts], 1)


class Bright(nn.Module):
    """One probability a sample."""

    def forward(self, x):
        return torch.sigmoid(9 * x.mean((1, 2, 3)))


def traced(module, path, shape):
    torch.jit.trace(module.eval(), torch.rand(2, *shape), check_trace=False).save(str(path))
    return path


def exported(module, path, shape, batch=None, **options):
    pytest.importorskip("onnxscript")
    axes = {"x": {0: "n"}} if batch is None else None
    x = torch.rand(batch or 2, *shape)
    torch.onnx.export(module.eval(), (x,), str(path), input_names=["x"], dynamic_axes=axes, dynamo=False, **options)
    return path


# --- the spec itself


@pytest.mark.parametrize(
    ("text", "source", "options"),
    [
        ("net.pt", "net.pt", {}),
        ("a/b c.onnx?class=3&threshold=0.5", "a/b c.onnx", {"class": "3", "threshold": "0.5"}),
        ("n.pt?class=a&class=b,c", "n.pt", {"class": "a,b,c"}),
        ("text:eye?against=no eye", "text:eye", {"against": "no eye"}),
        ("mine.py:rule?range=0,1", "mine.py:rule", {"range": "0,1"}),
    ],
)
def test_a_spec_is_read(text, source, options):
    found = parse(text)
    assert (found.source, dict(found.options)) == (source, options)


def test_what_a_spec_records_names_no_folder(tmp_path):
    (tmp_path / "net.pt").write_bytes(b"x")
    assert parse(f"{tmp_path}/net.pt?class=3&size=7").recorded == "net.pt?class=3&size=7"
    (tmp_path / "labels.txt").write_text("a\nb\n")
    assert parse(f"net.onnx?names={tmp_path}/labels.txt").recorded == "net.onnx?names=labels.txt"
    (tmp_path / "odd?name.pt").write_bytes(b"x")
    assert parse(f"{tmp_path}/odd?name.pt").source == f"{tmp_path}/odd?name.pt"


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("n.pt?clas=3", {}, "expected options class, threshold, .* got 'clas=3'"),
        ("n.pt?class=", {}, "got 'class='"),
        ("n.pt?size=3&size=5", {}, "size is given twice"),
        ("n.pt?class=3", {"class": "4"}, "class=3 in it contradicts class 4"),
        ("text:hat?class=3", {}, "expected options against, model, weights, threshold"),
        ("text:hat", {"size": "3"}, "takes no size"),
    ],
)
def test_specs_that_cannot_be_read(text, options, words):
    with pytest.raises(ValueError, match=words):
        parse(text, options)


VALUES = st.text(
    st.characters(exclude_characters="&?", codec="ascii", exclude_categories=["C"]), min_size=1, max_size=9
)


@given(st.dictionaries(st.sampled_from([name for name in OPTIONS if name != "class"]), VALUES))
def test_what_is_recorded_reads_as_the_same(options):
    found = parse("no such file.pt" + ("?" if options else "") + "&".join(f"{k}={v}" for k, v in options.items()))
    assert dict(found.options) == options and parse(found.recorded) == found


# --- files


@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
def test_a_network_in_a_file_answers_as_the_module_itself(kind, tmp_path):
    gan = gan_of(3, 9, 7)
    module = Halves()
    write = traced if kind == "torchscript" else exported
    path = write(module, tmp_path / "net.bin", (3, 9, 7))  # known by its content
    x = gan.sample(41, seed=3)
    p = module((x + 1) / 2).detach().softmax(1)
    found = find(f"{path}?class=2&names=up,low,right&range=0,1", gan)
    assert torch.equal(found(x), p.argmax(1) == 2) and 0 < int(found(x).sum()) < 41
    torch.testing.assert_close(found.rank(x), p[:, 2], rtol=1e-4, atol=1e-6)
    several = find(f"{path}?names=up,low,right&class=up,1&threshold=0.8&range=0,1", gan)
    assert torch.equal(several(x), p[:, :2].sum(1) >= 0.8)
    assert found.identity == {
        "spec": "net.bin?class=2&names=up,low,right&range=0,1",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def test_onnx_with_a_fixed_batch_and_size_and_channels_last(tmp_path):
    """Seven at a time, 8 x 6 pixels, channels last, of 8-bit numbers: what tools of other frameworks write."""

    class Last(nn.Module):
        def forward(self, x):
            return Halves()(x.float().permute(0, 3, 1, 2) / 255)

    pytest.importorskip("onnxscript")
    path = tmp_path / "last.onnx"
    example = torch.zeros(7, 8, 6, 3, dtype=torch.uint8)
    torch.onnx.export(Last(), (example,), str(path), input_names=["x"], dynamo=False)
    gan = gan_of(3, 16, 12)
    x = gan.sample(9, seed=1)
    small = nn.functional.interpolate((x + 1) / 2, (8, 6), mode="bilinear", antialias=True)
    expected = Halves()((small * 255).round() / 255).detach().softmax(1)[:, 1]
    torch.testing.assert_close(find(f"{path}?class=1", gan).rank(x), expected, rtol=1e-4, atol=1e-6)


def test_grey_samples_for_a_colour_network_and_back(tmp_path):
    grey, colour = gan_of(1, 8, 8), gan_of(3, 8, 8)
    path = exported(Halves(), tmp_path / "three.onnx", (3, 8, 8))
    x = grey.sample(11)
    expected = Halves()(x.expand(-1, 3, -1, -1)).detach().softmax(1)[:, 0]
    torch.testing.assert_close(find(f"{path}?class=0", grey).rank(x), expected, rtol=1e-4, atol=1e-6)
    path = traced(Halves(), tmp_path / "one.pt", (1, 8, 8))
    x = colour.sample(11)
    luma = 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
    found = find(f"{path}?class=0&channels=1", colour)
    torch.testing.assert_close(found.rank(x), Halves()(luma).detach().softmax(1)[:, 0], rtol=1e-4, atol=1e-6)


def test_mean_and_std_normalise_in_0_to_1(tmp_path):
    gan = gan_of(3, 8, 8)
    path, x = traced(Halves(), tmp_path / "net.pt", (3, 8, 8)), gan.sample(11)
    mean, std = torch.tensor([0.5, 0.4, 0.3])[:, None, None], torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    expected = Halves()(((x + 1) / 2 - mean) / std).detach().softmax(1)[:, 2]
    found = find(f"{path}?class=2&mean=0.5,0.4,0.3&std=0.2,0.3,0.4", gan)
    torch.testing.assert_close(found.rank(x), expected, rtol=1e-4, atol=1e-6)


def test_one_number_a_sample(tmp_path):
    """A probability is taken for one, a logit for one; a threshold needs no class."""
    gan = gan_of(1, 9, 7)
    x = gan.sample(37, seed=2)
    p = Bright()(x)
    found = find(str(traced(Bright(), tmp_path / "p.pt", (1, 9, 7))), gan)
    assert torch.equal(found(x), p >= 0.5) and found.classifier is None
    high = find(f"{tmp_path}/p.pt?threshold=0.6", gan)
    assert torch.equal(high(x), p >= 0.6)

    class Logit(nn.Module):
        def forward(self, x):
            return 9 * x.mean((1, 2, 3))[:, None, None]

    logit = find(str(traced(Logit(), tmp_path / "l.pt", (1, 9, 7))), gan)
    torch.testing.assert_close(logit.rank(x), p)
    said = find(f"{tmp_path}/p.pt?output=sigmoid&threshold=0.6", gan)
    torch.testing.assert_close(said.rank(x), p.sigmoid())


def test_attributes_that_are_independent_of_each_other(tmp_path):
    """Several sigmoids: any of the named ones above one half; no classes for a histogram."""

    class Attributes(nn.Module):
        def forward(self, x):
            return Halves(5.0)(x) - 0.1

    gan = gan_of(1, 9, 7)
    path, x = traced(Attributes(), tmp_path / "net.pt", (1, 9, 7)), gan.sample(37)
    p = Attributes()(x).sigmoid().detach()
    (tmp_path / "names.txt").write_text("hat\ntie\n\nring\n")
    found = find(f"{path}?output=sigmoid&names={tmp_path}/names.txt&class=hat,ring", gan)
    assert torch.equal(found(x), (p[:, 0] >= 0.5) | (p[:, 2] >= 0.5)) and found.classifier is None
    figures = evaluate(gan, gan, found, n=40).figures
    assert figures.negatives_before > 0 and figures.models["before"].classes is None


def test_a_classifier_of_ours_of_another_size_and_with_unwanted_among_its_classes(tmp_path):
    gan = gan_of(1, 12, 12)
    module = ConvClassifier(2, 8, 1, widths=(4, 4, 4, 4, 4), num_features=5).eval()
    Classifier(module, ["good", "unwanted"], (0.0, 1.0)).save(tmp_path / "c.safetensors")
    found = find(str(tmp_path / "c.safetensors"), gan)
    x = gan.sample(21)
    seen = nn.functional.interpolate((x + 1) / 2, (8, 8), mode="bilinear", antialias=True)
    assert torch.equal(found(x), module(seen).argmax(1) == 1) and found.subject == ("unwanted",)
    figures = evaluate(gan, gan, found, n=40).figures
    assert figures.features == "classifier" and set(figures.models["before"].classes) == {"good", "unwanted"}
    one_size = gan_of(1, 8, 8)
    assert isinstance(find(str(tmp_path / "c.safetensors"), one_size).classifier, Classifier)


def test_a_foreign_classifier_judges_with_classes_and_the_discriminators_features(tmp_path):
    gan = gan_of(3, 9, 7)
    path = traced(Halves(), tmp_path / "net.pt", (3, 9, 7))
    found = find(f"{path}?names=up,low,right&class=right", gan)
    figures = evaluate(gan, gan, found, n=60).figures
    x = gan.sample(60, batch_size=250)
    assert figures.negatives_before == int(found(x).sum()) > 0
    assert figures.features == "discriminator"
    shares = {name: row.count for name, row in figures.models["before"].classes.items()}
    assert shares["right"] == figures.negatives_before and sum(shares.values()) == 60
    high = find(f"{path}?names=up,low,right&class=right&threshold=0.99", gan)
    fewer = evaluate(gan, gan, high, n=60).figures.negatives_before
    assert fewer == int(high(x).sum()) < figures.negatives_before


# --- functions


def test_functions_of_a_file_and_of_a_module(tmp_path, monkeypatch):
    gan = gan_of(1, 9, 7, image_range=(0.0, 1.0))
    source = "import helper_of_mine\ndef rule(x):\n    return helper_of_mine.level(x) > 0.3\n"
    source += "def share(x):\n    return helper_of_mine.level(x).numpy()\n"
    (tmp_path / "mine_of_test.py").write_text(source)
    (tmp_path / "helper_of_mine.py").write_text("def level(x):\n    return x.mean((1, 2, 3))\n")
    x = gan.sample(33)
    level = x.mean((1, 2, 3))
    found = find(f"{tmp_path}/mine_of_test.py:rule", gan)
    assert torch.equal(found(x), level > 0.3)
    assert found.identity == {
        "spec": "mine_of_test.py:rule",
        "sha256": hashlib.sha256(source.encode()).hexdigest(),
    }
    assert torch.equal(found.rank(x), (level > 0.3).float())
    monkeypatch.chdir(tmp_path)
    by_name = find("mine_of_test:share?threshold=0.25", gan)
    assert torch.equal(by_name(x), level >= 0.25)


def test_functions_of_samples_that_are_no_images(tmp_path):
    (tmp_path / "points_of_test.py").write_text(
        "def right(x): return x[:, 0] > 0\ndef share(x): return x[:, 0].sigmoid()\n"
    )
    gan = GAN(MLPGenerator(4, [2], hidden=(8,)), MLPDiscriminator([2], hidden=(8,)))
    x = gan.sample(17, seed=1)
    for name in ("right", "share"):
        assert torch.equal(find(f"{tmp_path}/points_of_test.py:{name}", gan)(x), x[:, 0] >= 0)
    with pytest.raises(ValueError, match=r"range is for images, and this GAN's samples are \[2\]"):
        find(f"{tmp_path}/points_of_test.py:share?range=0,1", gan)


@pytest.mark.parametrize(
    ("source", "spec", "kind", "words"),
    [
        ("rule = 3", ":rule", ValueError, "is a int, which cannot be called"),
        ("", ":rule", ValueError, "has no 'rule'"),
        ("import nowhere_at_all", ":rule", ImportError, r"cannot be imported \(ModuleNotFoundError: .*nowhere_at_all"),
        ("def rule(x): return x[:, 0] > 0", ":rule", ValueError, r"expected a bool tensor \[4\] for 4 samples"),
        ("def rule(x): return x[:, 0, 0, 0] > 0", ":rule?class=3", ValueError, "answers yes or no itself"),
    ],
)
def test_functions_that_do_not_do(source, spec, kind, words, tmp_path):
    name = f"wrong_{abs(hash((source, spec)))}.py"
    (tmp_path / name).write_text(source)
    with pytest.raises(kind, match=words):
        find(f"{tmp_path / name}{spec}", gan_of(1, 9, 7))


# --- what is wrong with a network


class Wrong(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.mode = mode

    def forward(self, x):
        y = x.mean((2, 3))[:, :1]
        if self.mode == "nan":
            return y.repeat(1, 3) / torch.zeros(1)
        if self.mode == "few rows":
            return y[:1].repeat(1, 3)
        if self.mode == "open":
            return y.repeat(1, 3).sigmoid()
        return x[:, :, :5, :5].reshape(len(x), 1, 5, 5) * y[:, :, None, None]


@pytest.mark.parametrize(
    ("mode", "options", "words"),
    [
        ("nan", "class=0", "gives values that are not finite"),
        ("few rows", "class=0", r"a row of numbers for each of 4 samples, got \[1, 3\]"),
        ("open", "class=0", "3 numbers from 0 to 1 a sample that do not add up to 1: say output="),
        ("open", "class=0&output=cosine", "expected output=softmax, sigmoid or probabilities.*got output=cosine"),
        ("map", "class=25", "expected one of 0, 1, .* got '25'"),
        ("map", "class=0&size=4", r"cannot take images \[4, 1, 4, 4\].*say size="),
        ("map", "class=0&size=4x", "expected size=R or size=HxW.*got size=4x"),
        ("map", "class=0&names=a,b", r"gives 25 numbers a sample, and 2 names"),
        ("map", "class=0&range=1,0", "a range whose low is below its high"),
        ("map", "class=0&mean=1,2", "expected mean=M or mean=R,G,B"),
        ("map", "class=0&threshold=1.5", "expected a threshold between 0 and 1, got 1.5"),
        ("map", "class=0&channels=2", "expected channels=1 or channels=3"),
        ("map", "", "say which of its classes are unwanted, one of 0, 1, .*25 in all"),
        ("map", "output=softmax&class=" + ",".join(map(str, range(25))), "none is left to be good"),
    ],
)
def test_what_is_wrong_is_named_before_any_work(mode, options, words, tmp_path):
    gan = gan_of(1, 9, 7)
    path = tmp_path / "net.pt"
    torch.jit.script(Wrong(mode)).save(str(path))
    with pytest.raises(ValueError, match=words):
        find(f"{path}?{options}" if options else str(path), gan)


def test_files_that_are_no_networks(tmp_path):
    gan = gan_of(1, 9, 7)
    torch.save(Halves().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights\.pt: holds weights, but no network.*torch\.jit\.trace"):
        find(str(tmp_path / "weights.pt"), gan)
    traced(Halves(), tmp_path / "torn.pt", (1, 9, 7))
    whole = (tmp_path / "torn.pt").read_bytes()
    for length in (0, 7, 300, len(whole) - 30):
        (tmp_path / "torn.pt").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"torn\.pt"):
            find(f"{tmp_path}/torn.pt?class=0", gan)
    (tmp_path / "x.onnx").write_bytes(b"\x08\x09nothing")
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match="not a readable ONNX file"):
        find(f"{tmp_path}/x.onnx", gan)
    with pytest.raises(ValueError, match=r"none\.pt: no such file"):
        find("none.pt", gan)
    vectors = GAN(MLPGenerator(4, [2], hidden=(8,)), MLPDiscriminator([2], hidden=(8,)))
    with pytest.raises(ValueError, match=r"cannot take images \[4, 2\]"):
        find(f"{traced(Halves(), tmp_path / 'net.pt', (1, 9, 7))}?class=0", vectors)


def test_values_that_stop_being_finite_stop_the_run(tmp_path):
    class Later(nn.Module):
        def forward(self, x):
            return torch.log(0.5 - x.mean((1, 2, 3)))

    gan = gan_of(1, 9, 7)
    found = find(f"{traced(Later(), tmp_path / 'net.pt', (1, 9, 7))}?output=sigmoid", gan)
    with pytest.raises(ValueError, match="values that are not finite"):
        found(torch.ones(2, 1, 9, 7))


# --- a judge is another network; a run knows its oracle again


def test_a_judge_is_never_the_oracle(tmp_path):
    gan = gan_of(1, 9, 7)
    one = traced(Halves(), tmp_path / "one.pt", (1, 9, 7))
    (tmp_path / "copy.pt").write_bytes(one.read_bytes())
    other = traced(Halves(19.0), tmp_path / "other.pt", (1, 9, 7))
    oracle = find(f"{one}?class=0", gan)
    for judge in (f"{one}?class=0", f"{tmp_path}/copy.pt?class=2"):
        with pytest.raises(ValueError, match=r"judge: .* is the network that answers during the run"):
            check_independent(oracle, find(judge, gan))
    check_independent(oracle, find(f"{other}?class=0", gan))
    check_independent(None, oracle)
    (tmp_path / "two_rules.py").write_text("def a(x): return x[:, 0, 0, 0] > 0\ndef b(x): return x[:, 0, 0, 1] > 0\n")
    rules = {name: find(f"{tmp_path}/two_rules.py:{name}", gan) for name in "ab"}
    check_independent(rules["a"], rules["b"])
    with pytest.raises(ValueError, match=r"judge: two_rules\.py:a is the network"):
        check_independent(rules["a"], rules["a"])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_is_resumed_with_its_own_oracle_only(tmp_path):
    gan = gan_of(1, 9, 7)
    path = traced(Halves(), tmp_path / "net.pt", (1, 9, 7))
    spec = f"{path}?class=0"
    settings = {"feedback": {"pool": 64}, "adapt": {"steps": 1}, "repel": {"steps": 1, "guide_steps": 1}}
    negatives = gan.sample(300)[find(spec, gan)(gan.sample(300))][:9]

    def run(oracle):
        return unlearn(gan, negatives, is_negative=oracle, config=settings, out=tmp_path / "run")

    first = run(spec)
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / "net.pt")
    again = run(f"{moved}?class=0")
    assert torch.equal(first.gan.sample(3), again.gan.sample(3))
    with pytest.raises(ValueError, match=r"another oracle\.spec \(net\.pt\?class=0 there, net\.pt\?class=1 now\)"):
        run(f"{moved}?class=1")
    traced(Halves(7.0), moved, (1, 9, 7))
    with pytest.raises(ValueError, match=r"another oracle\.sha256"):
        run(f"{moved}?class=0")


def test_numpy_and_lists_are_answers_too():
    """As of `is_negative` in Python."""
    from atu.judging.rule import Rule

    x = torch.linspace(-1, 1, 5)[:, None]
    assert Rule(lambda x: np.asarray(x[:, 0] > 0))(x).tolist() == [False, False, False, True, True]
