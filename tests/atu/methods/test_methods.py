"""The methods by name: each runs on every kind of GAN, in every way of settings."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import atu_ext
from atu import Config, adapt, presets, repel, unlearn
from atu.gan import GAN
from atu.methods.registry import METHODS
from atu.networks.stylegan2 import Discriminator
from atu.support import world
from atu.training.step import AdversarialStep

from .kinds import KINDS, QUICK, dcgan, marked, mlp, quick, stylegan, upper_half


def test_names():
    assert presets.DEFAULT in METHODS
    asked = {"el2", "nl2", "il2", "extrapolate", "ewc", "cf-k", "eu-k", "l1-sparse", "cdc", "rssa", "retrain"}
    assert asked <= set(METHODS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", presets.METHODS)
def test_every_method_on_every_kind(kind, method, snapshot, unchanged):
    gan = KINDS[kind]()
    if (method, kind) == ("rssa", "mlp"):
        with pytest.raises(ValueError, match="generator: MLPGenerator has no feature maps"):
            unlearn(gan, marked(gan), config=QUICK, method=method)
        return
    negatives, oracle = marked(gan), upper_half(gan)
    before, state = snapshot(gan), torch.get_rng_state()
    result = atu_ext.unlearn(gan, negatives, is_negative=oracle, config=QUICK, method=method, seed=3)
    unchanged(before, snapshot(gan))
    assert torch.equal(torch.get_rng_state(), state)
    assert result.config.method == result.decisions["method"] == method
    assert torch.isfinite(result.gan.sample(5)).all() and not result.generator.training
    needs_stage_1 = method in presets.REPULSION or method == "extrapolate"
    assert len(result.adapted) == needs_stage_1
    stage = "repel" if method in presets.REPULSION else method
    expected = {"adapt-0"} if method == "extrapolate" else {stage, *(["adapt-0"] if needs_stage_1 else [])}
    assert {row["stage"] for row in result.history} == expected
    found = result.decisions["negative_rate"], result.decisions["drift"]
    assert all(math.isfinite(value) for value in found)
    if method != "extrapolate":
        assert [row["step"] for row in result.history if row["stage"] == stage and "score" in row] == [2, 3]
        assert result.decisions["steps_run"] == 3
    if method != presets.DEFAULT and method != "extrapolate":
        assert result.decisions["steps_run"] == 3
    for p, q in zip(result.gan.generator.parameters(), gan.generator.parameters(), strict=True):
        assert p.requires_grad == q.requires_grad


@pytest.mark.parametrize("method", ["eu-k", "cdc", "rssa", "retrain"])
def test_labels_dropout_spectral_norm_and_a_sigmoid(conv_gan, method):
    result = unlearn(conv_gan, marked(conv_gan), is_negative=upper_half(conv_gan), config=QUICK, method=method)
    assert torch.isfinite(result.gan.sample(5)).all()
    rows = [row for row in result.history if row["stage"] == method]
    for key in {"cdc": ["correspondence"], "rssa": ["self_correlation", "disturbance"]}.get(method, []):
        # The same dropout masks on both sides: nothing but rounding differs before the first step.
        assert rows[0][key] == pytest.approx(0, abs=1e-4) and rows[2][key] > 0


@pytest.mark.parametrize("method", ["l1-sparse", "eu-k", "rssa", "retrain", "nl2"])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(method, tmp_path, monkeypatch):
    """Stopped after its step 2 of 3 was saved, and resumed: the same bits, rows and decisions."""
    gan = dcgan()
    config = quick("l1-sparse", schedule="linear", weight=0.01)
    call = dict(gan=gan, negatives=marked(gan), is_negative=upper_half(gan), config=config, method=method, seed=1)
    whole = unlearn(**call, out=tmp_path / "whole")
    step, stage = AdversarialStep.step, "repel" if method == "nl2" else method

    def die_in_the_second_stage(trainer):
        if trainer.step_count == 2 and (tmp_path / f"broken/checkpoints/{stage}-state.safetensors").exists():
            raise KeyboardInterrupt
        return step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(AdversarialStep, "step", die_in_the_second_stage)
        with pytest.raises(KeyboardInterrupt):
            unlearn(**call, out=tmp_path / "broken")
    broken = unlearn(**call, out=tmp_path / "broken")
    for a, b in zip(whole.gan.modules().values(), broken.gan.modules().values(), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert broken.decisions == whole.decisions
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in r.history] for r in (whole, broken)]
    assert rows[0] == rows[1]
    with pytest.raises(ValueError, match=f"holds a run with another config.method \\({method} there, ewc now\\)"):
        unlearn(**{**call, "method": "ewc"}, out=tmp_path / "whole")


def test_default_method_is_the_config_alone():
    gan = mlp()
    a = unlearn(gan, marked(gan), config=QUICK)
    b = unlearn(gan, marked(gan), config=QUICK, method=presets.DEFAULT)
    assert a.config == b.config and a.config.method == presets.DEFAULT
    assert torch.equal(a.gan.sample(3), b.gan.sample(3))


@pytest.mark.parametrize("make", [dcgan, stylegan])
@pytest.mark.parametrize("method, original", [(presets.DEFAULT, True), ("nl2", False)])
def test_the_discriminator_that_saw_negative_latents_alone_is_not_handed_out(make, method, original):
    gan = make()
    result = unlearn(gan, marked(gan), is_negative=upper_half(gan), config=QUICK, method=method)
    pairs = zip(gan.discriminator.state_dict().values(), result.gan.discriminator.state_dict().values(), strict=True)
    assert all(torch.equal(before, after) for before, after in pairs) == original


# --- settings


@pytest.mark.parametrize("loss", ["el2", "nl2", "il2"])
def test_the_papers_methods_add_nothing_of_ours(loss):
    repel = Config.of(loss).repel
    assert Config.of(loss).adapt.steps == Config.of("extrapolate").adapt.steps == 200
    assert type(Config.of(loss).own).__name__ == loss.upper() and Config.of(loss).own.schedule == "constant"
    assert repel.guide_weight == repel.hold_weight == 0 and repel.strength == 4
    assert Config.of(loss, data={"repel": {"guide_weight": 0.5}}).repel.guide_weight == 0.5


def test_config_files_name_their_method(tmp_path):
    config = Config.of("nl2", data={"repel": {"steps": 7}})
    path = config.save(tmp_path / "c.toml")
    assert Config.load(path) == config == Config.load(path, "nl2")
    (tmp_path / "short.toml").write_text('method = "il2"\n[methods.cf-k]\nk = 2\n')
    assert Config.load(tmp_path / "short.toml") == Config.of("il2")  # other methods' tables are checked and left out
    with pytest.raises(ValueError, match="method: expected 'nl2', which the config is for, got 'el2'"):
        Config.load(path, "el2")


def careless():
    """A GAN whose latents are drawn without regard to the generator of random numbers that is given."""
    return GAN(mlp().generator, mlp().discriminator, latent_sampler=lambda n, rng: torch.randn(n, 4))


def grouped():
    """A GAN whose discriminator looks at four samples together."""
    return GAN(mlp().generator, Discriminator(0, 8, 1, channel_base=32, channel_max=4))


class Once(torch.autograd.Function):
    """The mean, whose gradient has none."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return (x.flatten(1) @ weight)[:, None]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        x, weight = ctx.saved_tensors
        return (slope * weight).reshape(x.shape), x.flatten(1).T @ slope[:, 0]


class OnceDifferentiable(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64) / 8)

    def forward(self, x):
        return Once.apply(x, self.weight)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(method="l2"), r"method: expected one of atu, el2, .*, retrain, got 'l2'"),
        (dict(compat="paper"), "compat: expected reference, got 'paper'"),
        (dict(compat="reference"), "compat: the reference's settings are those of a StyleGAN2, and MLPGenerator"),
        (dict(config={"method": "l2"}), "method: expected one of"),
        (dict(config={"method": 3}), "config: method"),
        (dict(config={"method": "nl2"}, method="el2"), "method: expected 'nl2', .* got 'el2'"),
        (dict(config=Config(), method="el2"), "method: expected 'atu', which the config is for, got 'el2'"),
        (dict(config=Config(), compat="reference"), "compat: a Config holds every setting"),
        (dict(config={"methods": {"cf-k": {"k": 0}}}), r"config: methods\.cf-k\.k: .*got 0"),
        (dict(config={"methods": {"cfk": {}}}), r"config: methods\.cfk"),
        (dict(config={"methods": {"cdc": {"batch": 2}}}), r"config: methods\.cdc\.batch"),
        (dict(config={"methods": {"cdc": {"layers": ["("]}}}), r"config: methods\.cdc\.layers"),
        (dict(config={"repel": {"guide_steps": 0}}), r"repel\.guide_steps: expected at least 1, .* got 0"),
        (
            dict(config={"repel": {"nearby_weight": 8.0}}, method="el2"),
            r"repel\.nearby_weight: has no effect .* got 8:",
        ),
        (
            dict(config={"repel": {"adversarial": {"style_mixing": 0.5}}}),
            r"repel\.adversarial\.style_mixing: expected 0 if good samples are held .* got 0\.5",
        ),
        (dict(config={"adapt": {"fisher": {"parameters": ["convs"]}}}), r"adapt\.fisher\.parameters: 'convs' matches"),
        (
            dict(config=quick("ewc", fisher={"parameters": ["x"]}), method="ewc"),
            r"methods\.ewc\.fisher\.parameters: 'x' matches none",
        ),
        (dict(config={"adapt": {"steps": 0}}), r"adapt\.steps: expected some for 'atu'"),
        (dict(config={"adapt": {"steps": 0}}, method="extrapolate"), r"adapt\.steps: expected some for 'extrapolate'"),
        (dict(config=Config(method="el2")), "config: holds the settings of 'atu' under the name of 'el2'"),
        (dict(gan=careless()), "gan: expected a latent_sampler that draws by the torch.Generator that it is given"),
        (dict(config=quick("cf-k", k=4), method="cf-k"), r"methods\.cf-k\.k: expected at most 3, .* got 4"),
        (dict(config=quick("eu-k", k=9), method="eu-k"), r"methods\.eu-k\.k: expected at most 3, .* got 9"),
        (
            dict(config=quick("cdc", layers=["conv"]), method="cdc"),
            r"methods\.cdc\.layers: expected some of net.2, net.4 to match, got \['conv'\]",
        ),
    ],
)
def test_mistakes_are_named_before_any_work(change, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        unlearn(**{**dict(gan=mlp(), negatives=torch.ones(4, 1, 8, 8), out=tmp_path / "run"), **change})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "settings, method, words",
    [
        ({}, "atu", r"repel\.adversarial\.batch_size: .* 8 processes times 4 .*got 16, half of 32: if good samples"),
        ({}, "el2", None),
        ({"repel": {"adversarial": {"batch_size": 64}}}, "atu", None),
        ({"adapt": {"adversarial": {"batch_size": 20}}}, "el2", r"adapt\.adversarial\.batch_size: .* got 20$"),
    ],
)
def test_batches_that_processes_cannot_share_are_told_at_once(monkeypatch, settings, method, words):
    monkeypatch.setattr(world, "size", lambda: 8)
    monkeypatch.setattr(world, "rank", lambda: 0)
    config = Config.of(method, data=settings)
    with pytest.raises(ValueError, match=words) if words else nullcontext():
        METHODS[method].plan(grouped(), config).check()


def test_a_repulsion_that_is_flat_where_it_begins_is_told():
    gan = mlp()
    adapted = [{k: v + 1.0 for k, v in gan.generator.state_dict().items()}]
    for method, words in (("nl2", r"raise methods\.nl2\.ceiling"), ("el2", r"lower methods\.el2\.alpha")):
        config = {**QUICK, "method": method, "methods": {method: {"reduction": "sum"}}}
        with pytest.raises(ValueError, match=f"{method.upper()} is flat at the distance .*{words}"):
            repel(gan, adapted, marked(gan), config=config)


def test_adapted_weights_of_another_precision_are_taken():
    gan = mlp()
    adapted = adapt(gan, marked(gan), config=QUICK)
    done = repel(gan, [{k: v.double() for k, v in adapted[0].items()}], marked(gan), config=QUICK)
    assert done.gan.generator.net[0].weight.dtype == torch.float32


def test_a_training_is_rehearsed_with_its_methods_own_settings():
    """R1 needs gradients of gradients, which this discriminator has not."""
    gan = mlp()
    gan.discriminator = OnceDifferentiable()
    off = {"r1_gamma": 0.0, "r2_gamma": 0.0}
    config = {**QUICK, "adapt": {**QUICK["adapt"], "adversarial": off}, "repel": {"adversarial": off}}
    with pytest.raises(ValueError, match="gan: a step of training fails"):
        unlearn(gan, marked(gan), config=config, method="ewc")
    assert unlearn(gan, marked(gan), config=quick("ewc", adversarial=off), method="ewc").decisions["method"] == "ewc"


def test_second_stage_alone_is_for_methods_that_have_it():
    gan = mlp()
    adapted = adapt(gan, marked(gan), config=QUICK)
    done = repel(gan, adapted, marked(gan), config={**QUICK, "method": "il2"})
    assert done.decisions["method"] == "il2"
    with pytest.raises(ValueError, match="method: expected one of atu, el2, nl2, il2 for stage 2, got 'ewc'"):
        repel(gan, adapted, marked(gan), config={**QUICK, "method": "ewc"})
