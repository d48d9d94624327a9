"""`atu release`: GANs of the user's own class, and that nothing handed over tells what was unlearned."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from atu.cli import main as cli
from atu.config import Config
from atu.evaluation.evaluate import evaluate
from atu.evaluation.metrics import METRICS
from atu.formats.own_model import OwnModel, load_own
from atu.judging.classifier import Classifier
from atu.report import report

MODEL = '''
import torch
from torch import nn
from atu.gan import GAN

class G(nn.Module):
    """Takes labels as indices, which nothing about it shows."""

    latent_dim = 4

    def __init__(self):
        super().__init__()
        self.fc, self.scale = nn.Linear(4, 64), nn.Parameter(torch.tensor([0.3, 1.0, 3.0]))

    def forward(self, z, c):
        return (self.fc(z) * self.scale[c][:, None]).tanh().reshape(-1, 1, 8, 8)

class D(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 3)

    def forward(self, x, c):
        return self.fc(x.flatten(1)).gather(1, c[:, None])

def build(**more):
    torch.manual_seed(3)
    return GAN(G(), D(), c_dim=3, label_format="index", **more)

def drawn():
    return build(label_sampler=lambda n, rng: torch.randint(1, 3, (n,), generator=rng))
'''


def run(*arguments):
    with pytest.raises(SystemExit) as exit_:
        cli.main(list(map(str, arguments)))
    return exit_.value.code


@pytest.mark.parametrize("function", ["build", "drawn"])
def test_a_conditional_gan_of_the_users_own_class(tmp_path, function):
    (tmp_path / "my.py").write_text(MODEL)
    model, out = f"{tmp_path}/my.py:{function}", tmp_path / "handed"
    gan = load_own(OwnModel(model), None)
    gan.save(tmp_path / "run" / "result.safetensors")
    (tmp_path / "run" / "report.json").write_text(json.dumps(dict(pul=93.5, versions={"torch": "2"})))
    (tmp_path / "run" / "config.toml").write_text("seed = 1\n")
    assert run("release", tmp_path / "run", "--model", model, "--out", out) == 0
    found = load_own(OwnModel(model), str(out / "generator.safetensors"))
    assert found.discriminator is None and (found.c_dim, found.label_format) == (3, "index")
    assert torch.equal(found.sample(9, seed=5), gan.sample(9, seed=5))
    assert json.loads((out / "numbers.json").read_text()) == {"pul": 93.5, "versions": {"torch": "2"}}


class Faces(nn.Module):
    """Knows people by how bright they are."""

    def features(self, x):
        return x.flatten(1)

    def head(self, x):
        means = x.mean(1)
        return 20 * torch.stack([means, -means, torch.zeros_like(means)], 1)


PEOPLE = Classifier(Faces(), ["Jane Doe", "Bob Roe", "nobody_known"], name="who_is_it.onnx")


# Whatever the user, or what was unlearned, gave a name to.
NAMES = [*PEOPLE.classes, PEOPLE.name, "text:Jane Doe's face", "alice.py:has_hats", "wears-hats", "jane_features"]
NAMES += ["hats_of_jane", "what Jane Doe shows", "hats-before", "Acme", "/home/alice"]


@pytest.fixture
def reported(image_gan, tmp_path, monkeypatch):
    """A run folder whose report holds such names wherever one can be."""

    def brighter(x):
        return x.flatten(1).mean(1) > 0

    monkeypatch.setitem(METRICS._registered, "hats_of_jane", lambda before, after: 0.25)
    after = image_gan.copy()
    with torch.no_grad():
        after.generator.net[0].weight.mul_(0.5)
    evaluation = evaluate(
        image_gan,
        after,
        PEOPLE,
        ["Jane Doe"],
        real=image_gan.sample(300, seed=9),
        others={"Acme": after.generator},
        attributes={"alice.py:has_hats": brighter, "wears-hats": brighter},
        judges={"text:Jane Doe's face": brighter, "alice.py:has_hats": brighter},
        retrained=after,
        extractors={"jane_features": lambda x: x.flatten(1).double()[:, :6]},
        n=400,
    )
    context = report.Context(
        subject="what Jane Doe shows",
        seconds={"evaluate": 2.0, "hats-before": 1.0},
        command="atu unlearn /home/alice/gan.pt",
        config=Config().to_dict(),
        seed=4,
        decisions={"steps_run": 7, "labels_filled": {"Jane Doe": 3}, "from_run": "/home/alice", "wears-hats": 2},
        notes=["Jane Doe"],
        targets=[{"feature": "wears-hats", "threshold": 0.321}, {"classes": ["Jane Doe"]}],
        earlier=[{"subject": "Bob Roe", "Bob Roe": 12}],
        audit=None,
    )
    data = report.report_data(evaluation, context)
    data["audit"] = dict(
        parts={"before": {"rate": {"text:Jane Doe's face": {"count": 3}}}}, judges=["alice.py:has_hats"]
    )
    data["person"] = dict(
        before=dict(n=20, unwanted=8, ci95=[0.2, 0.6]), after=dict(n=18, unwanted=1, ci95=[None, 0.2])
    )
    folder = tmp_path / "run"
    after.save(folder / "result.safetensors")
    (folder / "report.json").write_text(json.dumps(data))
    Config().save(folder / "config.toml")
    return folder


def keys_of(value):
    if isinstance(value, dict):
        return set(value).union(*map(keys_of, value.values()))
    return set().union(*map(keys_of, value)) if isinstance(value, list) else set()


def test_no_name_that_tells_what_was_unlearned_is_handed_over(reported, tmp_path):
    told = (reported / "report.json").read_text()
    assert all(json.dumps(name)[1:-1] in told for name in NAMES)
    out = tmp_path / "handed"
    assert run("release", reported, "--out", out) == 0
    for path in out.iterdir():
        content = path.read_bytes().lower()
        for word in ("jane", "bob", "alice", "nobody", "hats", "who_is_it", "acme", "face", "0.321"):
            assert word.encode() not in content, (path.name, word)


def without_acme(models):
    assert "Acme" in models
    return {name: value for name, value in models.items() if name != "Acme"}


def test_what_is_handed_over_of_a_report(reported, tmp_path):
    data = json.loads((reported / "report.json").read_text())
    assert run("release", reported, "--out", tmp_path / "handed") == 0
    numbers = json.loads((tmp_path / "handed" / "numbers.json").read_text())
    for name in ("pul", "pul_ci95", "negatives_before", "negatives_after", "kept"):
        assert numbers[name] == data[name] is not None, name
    assert list(numbers["judges"]) == ["1", "2", "3"]
    for mine, theirs in zip(numbers["judges"].values(), data["judges"].values(), strict=True):
        assert mine["pul"] == theirs["pul"] is not None and mine["over_removal"] == theirs["over_removal"]
    assert numbers["distances"]["1"]["real_fid"] == without_acme(data["distances"]["jane_features"]["real_fid"])
    assert numbers["metrics"] == {"1": {"value": 0.25}}
    told = ("negatives", "confident", "fid_cls", "kid_cls")
    models = {name: {key: model[key] for key in told} for name, model in data["models"].items()}
    assert numbers["models"] == without_acme(models)
    assert numbers["landing"]["latents"] == data["landing"]["latents"] > 0
    assert numbers["person"] == data["person"]  # a bound that is not known stays in its place
    assert numbers["decisions"] == {"steps_run": 7}
    # What is by class, even counted, would tell which one is gone; so would targets.
    lists = ("classes", "attributes", "transitions", "targets", "earlier", "audit", "labels_filled")
    assert not [key for key in keys_of(numbers) if key.startswith(lists)]
