"""The door: errors before any work, the caller's modules untouched, and the outcome on a GAN of eight Gaussians."""

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import atu
import atu_ext
from atu import GAN, Config, adapt, extrapolate, repel, unlearn
from atu import gan as gan_module
from atu.config import Adversarial
from atu.data.images import save_folder
from atu.data.samples import TensorSamples
from atu.inputs import Request
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.run import started
from atu.support import memory
from atu.support.context import RunContext, current
from atu.training.step import AdversarialStep, NonFiniteError, Objective

SHORT = {
    "feedback": {"pool": 64},
    "adapt": {"steps": 2, "adversarial": {"batch_size": 4}},
    "repel": {"steps": 3, "check_every": 2, "check_samples": 50, "guide_steps": 2, "adversarial": {"batch_size": 4}},
}


def marked(gan, count):
    """The samples that lie farthest along the first axis: of a kind, as a user's negatives are."""
    x = gan.sample(200, seed=1)
    return x[x[:, 0].argsort(descending=True)[:count]]


def short(**adapt_or_repel):
    return {k: {**v, **adapt_or_repel.get(k, {})} for k, v in SHORT.items()}


def test_the_door_is_reexported():
    for name in atu.__all__:
        assert getattr(atu_ext, name).__module__.startswith("atu.")
    assert {"unlearn", "fit_discriminator", "FeedbackWarning"} <= set(dir(atu_ext))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = atu_ext.nothing


@pytest.mark.parametrize("frozen", [False, True])
def test_nothing_of_the_callers_is_changed(conv_gan, snapshot, unchanged, frozen):
    """Weights, buffers, modes, gradients, flags, negatives, config and random state; batch norm and labels included."""
    for module in conv_gan.modules().values():
        module.requires_grad_(not frozen)
    negatives = conv_gan.sample(10)
    kept, config = negatives.clone(), Config.from_dict(SHORT)
    before, state, settings = snapshot(conv_gan), torch.get_rng_state(), config.to_dict()
    result = unlearn(conv_gan, negatives, is_negative=lambda x: x.mean([1, 2, 3]) > x.mean(), config=config)
    unchanged(before, snapshot(conv_gan))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(negatives, kept) and config.to_dict() == settings
    assert type(result.generator) is type(conv_gan.generator) and not result.generator.training
    assert result.config is not config and result.out is None and result.seconds > 0
    assert {row["stage"] for row in result.history} == {"adapt-0", "repel"}
    assert not set(map(id, result.generator.parameters())) & set(map(id, conv_gan.generator.parameters()))


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.weight_norm])
@pytest.mark.parametrize("method", [None, "ewc", "cdc"])
def test_old_hooks_of_norms_run_and_leave_networks_that_can_be_copied(norm, method):
    d = nn.Sequential(nn.Flatten(), norm(nn.Linear(64, 9)), nn.Tanh(), norm(nn.Linear(9, 1)))
    gan = GAN(MLPGenerator(4, [1, 8, 8], hidden=(8,)), d)
    config = SHORT if method is None else {**SHORT, "methods": {method: {"steps": 2}}}
    result = unlearn(gan, gan.sample(5), config=config, method=method)
    assert all(torch.isfinite(p).all() for p in result.generator.parameters())
    for module in gan.modules().values():
        copy.deepcopy(module)


@pytest.mark.parametrize("batch", [1, 3])
def test_few_samples_at_once(image_gan, batch):
    """As many as fit in memory of big ones may be a single one."""
    with RunContext(batch=batch):
        result = unlearn(image_gan, image_gan.sample(5), config=SHORT)
    assert all(np.isfinite(v) for row in result.history for v in row.values() if isinstance(v, float))


def test_big_samples_are_made_as_many_at_once_as_when_the_run_began(image_gan, tmp_path, monkeypatch):
    """Their noise depends on it, and other programs take memory or give it back."""
    monkeypatch.setattr(gan_module, "BIG", 1)
    monkeypatch.setattr(memory, "measure", lambda *args: (1, 1.0))
    fits = [50]
    monkeypatch.setattr(memory, "fitting", lambda *args: fits[0])
    run = dict(negatives=image_gan.sample(5), config=SHORT, out=tmp_path / "run")

    def at_once(**changes):
        with started(Request(gan=image_gan, **{**run, **changes})):
            return current().batch

    unlearn(image_gan, **run)
    (tmp_path / "run" / "result.safetensors").unlink()
    fits[0] = 25
    assert at_once() == 50 and at_once(out=None) == 25 and current().batch is None
    with RunContext(batch=7):  # where memory is too little by now
        assert at_once() == 7


def test_same_seed_same_result(vector_gan):
    x = marked(vector_gan, 9)
    a, b, c = (unlearn(vector_gan, x, config=SHORT, seed=seed) for seed in (4, 4, 5))
    assert all(torch.equal(p, q) for p, q in zip(a.generator.parameters(), b.generator.parameters(), strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(a.generator.parameters(), c.generator.parameters(), strict=True))


def test_stages_on_their_own_make_the_same_as_the_whole(vector_gan):
    x = marked(vector_gan, 9)
    config = short(adapt={"models": 2})
    whole = unlearn(vector_gan, x, config=config, seed=2)
    adapted = adapt(vector_gan, x, config=config, seed=2)
    assert len(adapted) == 2 and not torch.equal(adapted[0]["net.0.weight"], adapted[1]["net.0.weight"])
    parts = repel(vector_gan, adapted, x, config=config, seed=2)
    for p, q in zip(whole.generator.parameters(), parts.generator.parameters(), strict=True):
        assert torch.equal(p, q)


def test_result_is_saved_and_loaded(vector_gan, tmp_path):
    result = unlearn(vector_gan, marked(vector_gan, 5), config=SHORT)
    again = GAN.load(result.save(tmp_path / "x.safetensors"))
    assert torch.equal(again.sample(4), result.gan.sample(4))


@pytest.mark.parametrize("oracle", [None, lambda x: x[:, 0] > x[:, 0].mean()])
def test_result_writes_its_report(vector_gan, tmp_path, oracle):
    result = unlearn(vector_gan, marked(vector_gan, 30), is_negative=oracle, config=SHORT, out=tmp_path / "run")
    judge = "probe" if oracle is None else "oracle"
    data = result.report(n=60, subject="the right side")
    assert data == json.loads((tmp_path / "run" / "report.json").read_text())
    page = (tmp_path / "run" / "report.html").read_text()
    assert "the right side" in page and f"The {judge} that answered during the run also judges" in page
    assert data["models"].keys() == {"before", "adapted", "after"} and data["n"] == 60
    flags = result.rule(vector_gan.sample(60, seed=data["seed"], batch_size=250))
    assert data["negatives_before"] == int(flags.sum())
    other = result.report(tmp_path / "other", lambda x: x[:, 1] > -99, n=40)
    assert other["negatives_after"] == 40 and (tmp_path / "other" / "report.html").exists()
    assert "also judges" not in (tmp_path / "other" / "report.html").read_text()


def test_a_report_needs_a_folder_and_a_result_is_short(vector_gan):
    result = unlearn(vector_gan, marked(vector_gan, 12), config=SHORT)
    with pytest.raises(ValueError, match="out: expected a folder for the report, as this run had none"):
        result.report(n=20)
    text = repr(result)
    assert len(text) < 300 and text.startswith("Result(method='atu', negatives ") and text.endswith("out=None)")


@pytest.mark.parametrize("count", [1, 2, 10])
@pytest.mark.parametrize("oracle", [None, lambda x: x[:, 0] > x[:, 0].mean()])
def test_a_handful_of_negatives(vector_gan, count, oracle):
    negatives = marked(vector_gan, count)
    config = short(adapt={"adversarial": {"batch_size": 16}})
    result = unlearn(vector_gan, negatives, is_negative=oracle, config=config)
    assert torch.isfinite(result.gan.sample(5)).all()


def test_gan_without_latent_dim_and_config_from_a_file(tmp_path):
    gan = GAN(nn.Linear(3, 2), nn.Linear(2, 1), latent_sampler=lambda n, rng: torch.rand(n, 3, generator=rng))
    path = Config.from_dict(SHORT).save(tmp_path / "c.toml")
    used = unlearn(gan, gan.sample(5), config=str(path)).config
    told = dataclasses.replace(used, threads=None, precision="auto")  # what was chosen stands there
    assert told == Config.load(path) and used.threads >= 1 and used.precision == "float32"


# --- errors


def spoiled(gan, value):
    with torch.no_grad():
        next(gan.discriminator.parameters()).fill_(value)
    return gan


def upwards():
    """The beginning of a DCGAN, whose latents are [N, 5, 1, 1]."""
    return nn.Sequential(nn.ConvTranspose2d(5, 3, 4), nn.BatchNorm2d(3), nn.Tanh())


def latents_of(generator, latent_dim, **kwargs):
    return dict(gan=GAN(generator, nn.Linear(2, 1), latent_dim, **kwargs))


@pytest.mark.parametrize(
    "change, error, words",
    [
        (lambda g: dict(gan=g.generator), TypeError, "gan: expected an atu_ext.GAN, got MLPGenerator"),
        (
            lambda g: dict(gan=GAN(g.generator)),
            ValueError,
            r"gan: it has no discriminator.* atu_ext\.fit_discriminator\(gan",
        ),
        (lambda g: dict(gan=spoiled(g, math.nan)), ValueError, r"gan: discriminator\.net\.1\.weight .* not finite"),
        (lambda g: dict(gan=GAN(g.generator, nn.Linear(2, 3))), ValueError, "discriminator: expected one logit"),
        (lambda g: latents_of(upwards(), 5), ValueError, r"latent_dim: expected \(5, 1, 1\), .* got 5 .*3D .*or 4D"),
        (lambda g: latents_of(g.generator, (2, 1, 2)), ValueError, r"latent_dim: expected 4, .* got \(2, 1, 2\) "),
        (lambda g: latents_of(nn.LSTM(4, 2), 4), ValueError, "generator: expected a tensor of 1 samples, got tuple"),
        (lambda g: latents_of(g.generator, 7), RuntimeError, "gan: .* fails for latents of latent_dim=7 .*shapes"),
        (
            lambda g: latents_of(g.generator, None, latent_sampler=lambda n, rng: torch.rand(n, 9, generator=rng)),
            RuntimeError,
            "gan: .* fails for latent_sampler's .*shapes",
        ),
        (lambda g: dict(negatives=torch.zeros(3, 5)), ValueError, r"negatives: expected samples of shape \[2\]"),
        (lambda g: dict(negatives=torch.zeros(0, 2)), ValueError, "negatives: expected at least one sample"),
        (lambda g: dict(negatives=torch.full((3, 2), math.nan)), ValueError, "negatives: .* not finite"),
        (lambda g: dict(negatives=None), TypeError, "negatives: .* got NoneType"),
        (lambda g: dict(positives=torch.zeros(3, 5)), ValueError, r"positives: expected samples of shape \[2\]"),
        (
            lambda g: dict(positives=torch.ones(4, 2)),
            ValueError,
            "positives: expected samples other than the negatives",
        ),
        (lambda g: dict(is_negative=7), TypeError, "is_negative: expected a callable, got int"),
        (lambda g: dict(is_negative="x"), ValueError, "x: no such file"),
        (lambda g: dict(is_negative=lambda x: x), ValueError, r"is_negative: expected a bool tensor \[4\]"),
        (lambda g: dict(config=5), TypeError, "config: expected a Config, dict or path .*, got int"),
        (lambda g: dict(config={"a": 1}), ValueError, "config: a"),
        (lambda g: dict(config="none.toml"), ValueError, r"config: none\.toml cannot be read"),
        (lambda g: dict(seed=-1), ValueError, "seed: expected a non-negative int, got -1"),
        (lambda g: dict(seed=1.5), ValueError, "seed: .* got 1.5"),
        (lambda g: dict(device="gpu"), ValueError, "device: expected cpu, cuda .* got 'gpu'"),
    ],
)
def test_errors_name_the_argument_before_any_work(vector_gan, tmp_path, change, error, words):
    kwargs = dict(gan=vector_gan, negatives=torch.ones(4, 2), out=tmp_path / "run")
    with pytest.raises(error, match=words):
        unlearn(**{**kwargs, **change(vector_gan)})
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_cuda_asked_for_and_absent(vector_gan):
    with pytest.raises(ValueError, match=r"device: .* got 'cuda:1', but torch sees no CUDA device"):
        unlearn(vector_gan, torch.ones(4, 2), device="cuda:1")


@pytest.mark.parametrize("adapted", [[], {}, "x", [3], [{}], [{"net.0.weight": torch.zeros(1)}]])
def test_adapted_of_another_kind(vector_gan, adapted):
    for call in (lambda: extrapolate(vector_gan, adapted), lambda: repel(vector_gan, adapted, torch.ones(4, 2))):
        with pytest.raises(ValueError, match="adapted: expected"):
            call()


def test_divergence_is_told(vector_gan):
    with pytest.raises(NonFiniteError, match="diverged"):
        unlearn(vector_gan, marked(vector_gan, 5), config=short(adapt={"steps": 50, "adversarial": {"lr": 1e30}}))


@pytest.mark.parametrize(
    ("negatives", "out", "words"),
    [
        (".", "run", "out: expected a folder outside of negatives"),
        ("run", "run", "out: expected a folder outside of negatives"),
        ("marked", "marked/a/run", "out: expected a folder outside of negatives"),
        (("marked", 1), "marked/run", "out: expected a folder outside of negatives"),
        ("run/samples", "run", "negatives: expected a folder other than .*samples"),
        ("run/samples/mine", "./run", "negatives: expected a folder other than .*samples"),
    ],
)
def test_folders_that_overlap_are_refused_at_the_start(image_gan, tmp_path, monkeypatch, negatives, out, words):
    monkeypatch.chdir(tmp_path)
    for call in (lambda: unlearn(image_gan, negatives, out=out), lambda: adapt(image_gan, negatives, out=out)):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(ValueError, match=words.replace("negatives", "positives")):
        unlearn(image_gan, image_gan.sample(4), negatives, out=out)
    assert not list(tmp_path.iterdir())


def test_folders_beside_each_other_are_read_once(image_gan, tmp_path):
    """Negatives within the run folder, where the run writes none, and gone after they were read."""
    marked = save_folder(image_gan.sample(5), image_gan.image_range, tmp_path / "run" / "marked")

    def forgetful(x):
        for path in marked.glob("*.png"):
            path.unlink()
        return x.mean([1, 2, 3]) > x.mean()

    result = unlearn(image_gan, marked, is_negative=forgetful, config=SHORT, out=tmp_path / "run")
    assert result.out == tmp_path / "run" and not list(marked.iterdir())


# --- the closed form


@pytest.mark.parametrize("ema", [False, True])
def test_extrapolate(vector_gan, ema):
    if ema:
        vector_gan.generator_ema = MLPGenerator(4, [2], hidden=(16,))
    base = {k: v.clone() for k, v in vector_gan.sampling_generator.state_dict().items()}
    adapted = [{k: torch.randn_like(v) for k, v in base.items()} for _ in range(3)]
    for s in (0.0, 0.4, -1.0):
        got = extrapolate(vector_gan, adapted, s).sampling_generator.state_dict()
        for key, value in base.items():
            mean = (adapted[0][key] + adapted[1][key] + adapted[2][key]) / 3
            torch.testing.assert_close(got[key], value - s * (mean - value))
            assert torch.equal(vector_gan.sampling_generator.state_dict()[key], value)


# --- the outcome

CENTRES = 2 * torch.tensor([[math.cos(i * math.pi / 4), math.sin(i * math.pi / 4)] for i in range(8)])


def ring(n):
    return CENTRES[torch.randint(8, (n,))] + 0.1 * torch.randn(n, 2)


def centre(x):
    """Number of the nearest centre, [N]."""
    return torch.cdist(x, CENTRES).argmin(1)


def shares(x):
    return np.bincount(centre(x).numpy(), minlength=8) / len(x)


@pytest.fixture(scope="module")
def ring_gan():
    torch.manual_seed(1)
    gan = GAN(MLPGenerator(8, [2], hidden=(64, 64)), MLPDiscriminator([2], hidden=(64, 64)))
    cfg = Adversarial(batch_size=128, lr=1e-3, beta1=0.0, beta2=0.99, r1_gamma=0.1, ema_half_life=5000)
    trainer = AdversarialStep(gan, TensorSamples(ring(4000)), Objective(), cfg)
    for _ in range(1500):
        trainer.step()
    return gan


@pytest.mark.slow
def test_two_of_eight_gaussians_are_unlearned_by_the_probe(ring_gan):
    def is_negative(x):
        return centre(x) < 2

    before = shares(ring_gan.sample(4000, seed=8))
    assert before.min() > 0.05, f"the pretrained GAN misses a mode: {before}"
    x = ring_gan.sample(1500, seed=9)
    game = {"batch_size": 128, "lr": 1e-3, "beta1": 0.0, "beta2": 0.99, "r1_gamma": 0.1}
    config = {
        "feedback": {"pool": 2000},
        "adapt": {"steps": 60, "adversarial": game},
        "repel": {"steps": 500, "check_samples": 500, "adversarial": game},
    }
    result = unlearn(ring_gan, x[is_negative(x)][:100], config=config)
    after = shares(result.gan.sample(4000, seed=8))
    assert after[:2].sum() < 0.2 * before[:2].sum(), f"negatives: {before} -> {after}"
    assert after[2:].min() > 0.04, f"kept modes: {before} -> {after}"
