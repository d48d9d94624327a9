"""--oracle, --judge and --class: who answers, who measures, and what the run and its report keep of them."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil

import click
import pytest
import torch
from torch import nn

from atu.assets import asset
from atu.cli import main as cli
from atu.cli import models, oracles
from atu.cli.audit import _who_says
from atu.cli.evaluate import _judged, _real
from atu.data.images import map_range, save_folder
from atu.data.mnist import mnist
from atu.evaluation.judged import verdicts_of
from atu.gan import GAN
from atu.judging import probe
from atu.judging.classifier import Classifier
from atu.judging.finding import find
from atu.judging.parts import PartsClassifier
from atu.judging.rule import Rule, Source, class_rule
from atu.networks.mlp import MLPDiscriminator, MLPGenerator

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
QUICK = """
[feedback]
pool = 200
[adapt]
steps = 2
fisher.n = 4
adversarial.augment = ""
[repel]
steps = 2
check_samples = 50
guide_steps = 1
"""


class Side(nn.Module):
    """Logits of "brighter on the left" and "brighter on the right"."""

    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.full([], scale))

    def forward(self, x):
        y = self.scale * (x[..., :4].mean((1, 2, 3)) - x[..., 4:].mean((1, 2, 3)))
        return torch.stack([y, -y], 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("oracles")
    torch.manual_seed(0)
    gan = GAN(MLPGenerator(4, [1, 8, 8], (16,), "tanh"), MLPDiscriminator([1, 8, 8], (16,)))
    gan.save(folder / "gan.safetensors")
    for name, scale in (("oracle", 20.0), ("judge", 19.0)):
        torch.jit.trace(Side(scale).eval(), torch.rand(2, 1, 8, 8)).save(str(folder / f"{name}.pt"))
    x = gan.sample(200, seed=5)
    save_folder(x[Side(1.0)(x).argmax(1) == 0][:15], (-1.0, 1.0), folder / "negatives")
    (folder / "quick.toml").write_text(QUICK)
    return folder


def run(*arguments):
    with pytest.raises(SystemExit) as exit_:
        cli.main(list(map(str, arguments)))
    return exit_.value.code


def error(capsys, *arguments):
    assert run(*arguments) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def unlearn(folder, out, *more):
    common = ["--negatives", folder / "negatives", "--config", folder / "quick.toml", "--samples", 60, "--quiet"]
    return ["unlearn", folder / "gan.safetensors", *common, "--out", out, *more]


def test_one_answers_and_another_measures(folder, tmp_path, capsys):
    oracle, judge = folder / "oracle.pt", folder / "judge.pt"
    arguments = unlearn(folder, tmp_path / "run", "--oracle", f"{oracle}?names=left,right", "--judge", judge)
    assert run(*arguments, "--class", 0) == 0
    told = json.loads((tmp_path / "run/run.json").read_text())["identity"]["oracle"]
    assert told == {
        "spec": "oracle.pt?names=left,right&class=0",
        "sha256": hashlib.sha256(oracle.read_bytes()).hexdigest(),
    }
    data = json.loads((tmp_path / "run/report.json").read_text())
    assert data["subject"] == "class left" and data["decisions"]["answered_by"] == "oracle"
    page = (tmp_path / "run/report.html").read_text()
    told = hashlib.sha256(judge.read_bytes()).hexdigest()[:16]
    assert f"measured by judge.pt?class=0 (SHA-256 {told}...), which did not answer during the run" in page
    gan = GAN.load(folder / "gan.safetensors")
    from atu.support.seeding import Stream, stream_seed

    latents = gan.sample(60, seed=stream_seed(0, Stream.EVALUATION), batch_size=250)
    assert data["negatives_before"] == int((Side(1.0)(latents).argmax(1) == 0).sum())

    # Without the judge, whose verdict would be lost; then with another oracle, which is another run.
    again = unlearn(folder, tmp_path / "run", "--oracle", f"{oracle}?class=0&names=left,right")
    assert "its report holds the verdict of judge.pt" in error(capsys, *again)
    assert run(*again, "--judge", f"{judge}?class=0") == 2
    assert "another oracle.spec" in capsys.readouterr().err
    line = error(
        capsys, *unlearn(folder, tmp_path / "new", "--oracle", f"{oracle}?class=0", "--judge", f"{oracle}?class=1")
    )
    assert "judge: oracle.pt?class=1 is the network that answers during the run" in line
    assert not (tmp_path / "new").exists()


def test_eval_by_the_bundled_classifier_of_samples_of_another_size(tmp_path):
    gan = GAN(MLPGenerator(3, [1, 20, 20], hidden=(7,)), MLPDiscriminator([1, 20, 20], hidden=(5,)))
    gan.save(tmp_path / "gan.safetensors")
    names = [tmp_path / "gan.safetensors"] * 2
    assert run("eval", *names, "--judge", "mnist?class=7", "--samples", 20, "--quiet", "--out", tmp_path / "out") == 0
    data = json.loads((tmp_path / "out/report.json").read_text())
    assert data["n"] == 20 and list(data["judges"]) == ["mnist-judge", "mnist-classifier"]


@pytest.mark.parametrize(("domain", "wanted"), [("mnist", "7"), ("animals", "antlers")])
def test_with_a_threshold_the_bundled_classifier_judges_itself(domain, wanted, monkeypatch):
    """And is what is searched, with no judge beside it that answers by its likeliest class."""
    monkeypatch.setattr(probe, "pool_size", lambda gan, size: 200)
    gan = GAN.load(asset(f"{domain}-gan.safetensors"))
    asked = oracles.Asked(f"{domain}?class={wanted}&threshold=0.9")
    answers = asked.find(asked.oracle, gan)
    found = _judged(asked, answers, gan, None)
    x = gan.sample(300, seed=8)
    sure = answers(x)
    assert 0 < int(sure.sum()) < 300 and torch.equal(verdicts_of(found["judge"], gan)(x).negative, sure)
    _, judges, searched = _who_says(asked, answers, None, None, gan, 0)
    assert list(judges) == [searched]


@pytest.mark.parametrize("image_range", [(0.0, 1.0), (0.0, 255.0)])
def test_real_digits_come_in_the_gans_range_and_with_labels_for_their_own_judge_alone(image_range):
    shape = [1, 32, 32]
    gan = GAN(MLPGenerator(3, shape, hidden=(2,)), MLPDiscriminator(shape, hidden=(2,)), image_range=image_range)
    images, labels = mnist()
    found, their = _real("mnist", gan, "mnist")
    assert torch.equal(their, labels)
    assert (float(found.min()), float(found.max())) == pytest.approx(image_range, abs=1e-4)
    torch.testing.assert_close(map_range(found, image_range, (-1.0, 1.0)), images, atol=1e-5, rtol=0)
    for domain in (None, "animals"):
        assert torch.equal(_real("mnist", gan, domain), found)


def test_eval_says_where_the_judge_had_answered(folder, tmp_path):
    gan, oracle = folder / "gan.safetensors", folder / "oracle.pt"
    assert run(*unlearn(folder, tmp_path / "run", "--oracle", f"{oracle}?class=0")) == 0
    page = (tmp_path / "run/report.html").read_text()
    assert "The oracle that answered during the run also judges" in page
    assert "which answered during the run too" in page and "did not answer" not in page
    for word, spec, again in (("--oracle", oracle, True), ("--judge", folder / "judge.pt", False)):
        out = tmp_path / spec.stem
        command = ["eval", gan, tmp_path / "run", word, spec, "--class", 0, "--samples", 60, "--quiet", "--out", out]
        assert run(*command) == 0
        page = (out / "report.html").read_text()
        assert f"Measured by {spec.name}?class=0" in page
        assert ("It is the oracle that answered during the run" in page) == again
        assert ("which answered during the run too" in page) == again
        assert ("which did not answer during the run" in page) != again
    # A run's result is as its folder; of any other file it is not known what answered.
    shutil.copy(tmp_path / "run/result.safetensors", tmp_path / "moved.safetensors")
    for file, known in (("run/result.safetensors", True), ("moved.safetensors", False)):
        command = ["eval", gan, tmp_path / file, "--judge", oracle, "--class", 0, "--samples", 60]
        assert run(*command, "--quiet", "--out", tmp_path / f"file-{known}") == 0
        assert ("during the run" in (tmp_path / f"file-{known}/report.html").read_text()) == known
    audit = ["audit", gan, tmp_path / "run", "--oracle", f"{oracle}?class=0", "--starts", 2, "--steps", 1]
    assert run(*audit, "--images", 4, "--samples", 200, "--quiet", "--out", tmp_path / "audit") == 0
    data = json.loads((tmp_path / "audit/audit.json").read_text())
    assert data["subject"] == "class 0" and 0 < data["parts"]["before"]["rate"][data["judges"][0]]["share"] < 1


def test_who_answered_is_told_by_hash_of_a_network_and_by_name_too_of_a_function(tmp_path):
    def record(spec, sha256):
        (tmp_path / "run.json").write_text(json.dumps({"identity": {"oracle": {"spec": spec, "sha256": sha256}}}))

    def answered(spec, sha256, own=False):
        return oracles.answered_in(str(tmp_path), Rule(lambda x: x[:, 0] > 0, source=Source(spec, sha256, own)))

    record("rules.py:left?class=0", "a")
    assert answered("rules.py:left", "a") is True
    assert answered("rules.py:left", "b") is None  # edited since
    assert answered("rules.py:right", "a") is False
    assert answered("others.py:left", "b") is False
    assert answered("rules:left", "a") is None  # the same file by another name
    assert answered("plugin:left", None) is None
    assert answered("net.pt", "c", own=True) is False
    record("net.pt?class=0", "c")
    assert answered("copy.pt?class=1", "c", own=True) is True
    assert answered("net.pt?class=0", "d", own=True) is False
    assert answered("rules.py:left", "a") is False


class Means(nn.Module):
    """Features of uint8 images: the channels' means, times a scale."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return self.scale * x.float().mean((2, 3))


def test_two_feature_networks_of_one_kind_have_rows_of_their_own(folder, tmp_path, capsys):
    for name, scale in (("small", 1.0), ("large", 10.0), ("more/small", 1.0)):
        path = tmp_path / f"{name}.pt"
        path.parent.mkdir(exist_ok=True)
        torch.jit.trace(Means(scale), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).save(str(path))
    command = ["eval", *[folder / "gan.safetensors"] * 2, "--judge", f"{folder}/judge.pt?class=0", "--samples", 60]
    command += ["--quiet", "--out", tmp_path / "out", "--features", f"torchscript:{tmp_path}/small.pt", "--features"]
    line = error(capsys, *command, f"torchscript:{tmp_path}/more/small.pt")
    assert line.startswith("Error: features: expected files of different names, got torchscript:")
    assert run(*command, f"torchscript:{tmp_path}/large.pt") == 0
    found = json.loads((tmp_path / "out/report.json").read_text())["distances"]
    assert list(found) == ["torchscript:small", "torchscript:large"]
    small, large = (one["frechet"] for one in found.values())
    assert large == pytest.approx(100 * small, rel=1e-3)


def test_what_is_missing_is_named_and_not_what_was_given(folder, tmp_path, capsys):
    gan, judge = folder / "gan.safetensors", f"{folder}/judge.pt?class=0"
    line = error(capsys, "audit", gan, gan, "--judge", judge, "--out", tmp_path / "out")
    assert line.startswith("Error: --oracle SPEC (a classifier") and "or --negatives FOLDER" in line
    line = error(capsys, "eval", gan, gan, "--out", tmp_path / "out")
    assert line.startswith("Error: --judge SPEC (a classifier")
    assert not (tmp_path / "out").exists()


def test_a_function_of_mine_answers(folder, tmp_path, capsys):
    (tmp_path / "my_rule.py").write_text(
        "def left(x):\n    return x[..., :4].mean((1, 2, 3)) > x[..., 4:].mean((1, 2, 3))\n"
    )
    spec = f"{tmp_path}/my_rule.py:left"
    gan = GAN.load(folder / "gan.safetensors")
    assert run("sample", folder / "gan.safetensors", "--oracle", spec, "--samples", 9, "--out", tmp_path / "left") == 0
    from atu.data.samples import as_samples

    x = as_samples(tmp_path / "left", gan.sample_shape, gan.image_range, "images").tensor
    assert len(x) == 9 and int((Side(1.0)(x).argmax(1) == 0).sum()) >= 8  # 8 bits may move one at the edge
    assert run(*unlearn(folder, tmp_path / "run", "--oracle", spec)) == 0
    line = error(capsys, *unlearn(folder, tmp_path / "other", "--oracle", spec, "--class", 3))
    assert "my_rule.py:left: answers yes or no itself, and takes no class" in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--oracle {f}/none.pt", "none.pt: no such file"),
        ("--oracle {f}/oracle.pt", "say which of its classes are unwanted, one of 0, 1"),
        ("--oracle {f}/oracle.pt?class=7", "class: expected one of 0, 1, got '7'"),
        ("--oracle {f}/oracle.pt?class=0 --judge {f}/oracle.pt?class=0&threshold=0.9", "is the network that answers"),
        ("--judge {f}/judge.pt?class=0&names=a,b,c", "gives 2 numbers a sample, and 3 names"),
        ("--class 3", "--class needs --oracle SPEC that knows classes"),
        ("--oracle {f}/oracle.pt --judge {f}/judge.pt --class 2", "--class is for the oracle and the judge; "),
        ("--oracle no.such.module:rule", "no.such.module cannot be imported"),
        ("--oracle {f}/gan.safetensors --class 1", "expected a file of format atu-classifier"),
        ("--against hats", "--against needs --text"),
        ("--text hats --oracle {f}/oracle.pt?class=0", "--text is an oracle by itself"),
    ],
)
def test_what_cannot_be_used_is_told_before_the_run(options, words, folder, tmp_path, capsys):
    more = shlex.split(options.format(f=folder))
    assert words in error(capsys, *unlearn(folder, tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--oracle", "a.pt?class=3", "--judge", "b.onnx", "--class", "hat", "--class", "cap"],
        ["--text", "eyeglasses", "--against", "no eyeglasses"],
        ["--model", "net.py:build", "--arg", "width=3", "--arg", "name=big one"],
    ],
)
def test_what_a_page_hands_on_to_its_runs_means_the_same(words):
    seen = {}

    @models.model_options
    @oracles.JUDGE
    @oracles.oracle_options
    def command(asked, model):
        seen["asked"], seen["model"] = asked, model

    command = click.command()(command)
    command.main(words, standalone_mode=False)
    first = dict(seen)
    handed = [*first["asked"].recorded(), *first["model"].recorded("weights.pt")]
    command.main(handed, standalone_mode=False)
    assert seen == first and handed


def test_the_page_tells_what_does_not_fit_at_once(folder, tmp_path, capsys):
    pytest.importorskip("starlette")
    line = error(
        capsys, "label", folder / "gan.safetensors", "--oracle", f"{folder}/oracle.pt", "--out", tmp_path / "m"
    )
    assert "say which of its classes are unwanted" in line and not (tmp_path / "m").exists()


def test_the_subject_in_words(folder, tmp_path):
    def of(spec, names=()):
        return Rule(lambda x: x[:, 0] > 0, subject=names, source=Source(spec))

    pictures = tmp_path / "hats"
    assert oracles.subject_of(pictures, "caps", of("text:hat")) == "caps"
    assert oracles.subject_of(pictures, None, None, of("text:a hat?against=a head")) == "a hat"
    assert oracles.subject_of(pictures, None, of("net.pt", ("hat",)), None) == "class hat"
    assert oracles.subject_of(None, None, of("net.pt", ("hat", "cap"))) == "classes hat, cap"
    assert oracles.subject_of(pictures, None, of("rules.py:is_hat")) == "what hats shows"
    assert oracles.subject_of(None, None, of("rules.py:is_hat")) == "what rules.py:is_hat finds"
    gan = GAN.load(folder / "gan.safetensors")
    high = find(f"{folder}/oracle.pt?names=left,right&class=right&threshold=0.9", gan)
    assert (high.subject, high.classes) == (("right",), ())


def test_a_wrong_oracle_is_told_before_a_discriminator_is_fitted(folder, tmp_path, capsys, monkeypatch):
    from atu.training import fit_discriminator

    gan = GAN.load(folder / "gan.safetensors")
    GAN(gan.generator, image_range=(-1.0, 1.0)).save(tmp_path / "alone.safetensors")
    fitted = []
    monkeypatch.setattr(fit_discriminator, "fit_discriminator", lambda gan, *_, **__: fitted.append(gan) or gan)
    arguments = ["unlearn", tmp_path / "alone.safetensors", "--negatives", folder / "negatives"]
    arguments += ["--train-discriminator", 5, "--out", tmp_path / "run", "--oracle"]
    assert "got '9'" in error(capsys, *arguments, f"{folder}/oracle.pt?class=9") and not fitted
    (tmp_path / "wrong.toml").write_text("repel.stepz = 2")
    (tmp_path / "run").mkdir()
    for more, told in (
        (["--config", tmp_path / "none.toml"], "none.toml cannot be read"),
        (["--config", tmp_path / "wrong.toml"], "repel.stepz"),
        (["--negatives", tmp_path / "none"], "none"),
        (["--positives", tmp_path / "none"], "none"),
        (["--from", tmp_path / "run"], "holds no run.json of one"),
    ):
        line = error(capsys, *arguments, f"{folder}/oracle.pt?class=1", *more)
        assert told in line and "discriminator" not in line and not fitted, (line, more)
    assert "it has no discriminator" in error(capsys, *arguments, f"{folder}/oracle.pt?class=1") and len(fitted) == 1


@pytest.mark.parametrize(
    ("domain", "classes", "measured"),
    [("mnist", ("8", "1"), "mnist-judge"), ("animals", ("antlers", "cat"), "animals-judge")],
)
def test_of_a_bundled_domain_the_audit_is_judged_by_the_network_that_never_answers(domain, classes, measured):
    gan = GAN.load(asset(f"{domain}-gan.safetensors"))
    asked = oracles.Asked(domain, classes=classes)
    goal, judges, searched = _who_says(asked, *asked.find_both(gan), None, gan, 0)
    assert list(judges) == [measured, searched] and searched.startswith(f"{domain}?class=")
    x = gan.sample(150, seed=8)
    if domain == "animals":
        view = PartsClassifier.load(asset("animals-judge.safetensors")).view(classes)
        expected = class_rule(view, classes, gan.image_range)(x)
    else:
        expected = torch.isin(Classifier.load(asset("mnist-judge.safetensors")).predict(x), torch.tensor([1, 8]))
    assert 0 < expected.sum() < 150 and torch.equal(judges[measured](x).cpu(), expected)
    assert torch.equal(judges[searched](x), goal(x))
