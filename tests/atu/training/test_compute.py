"""Training in 16 bits: what runs in it and what does not, its gradients, resuming, and the choice by measuring. And the
number of threads."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from atu import unlearn
from atu.assets import asset
from atu.config import Adversarial, Config
from atu.data.samples import TensorSamples
from atu.gan import GAN
from atu.judging.classifier import Classifier
from atu.judging.marking import mark_negatives
from atu.judging.rule import class_rule
from atu.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from atu.networks.stylegan2 import Conv2dLayer, Discriminator, Generator, SynthesisLayer, ToRGBLayer
from atu.networks.stylegan3 import Generator as Generator3
from atu.support.context import RunContext, current
from atu.training import compute
from atu.training.run_folder import RunFolder
from atu.training.step import AdversarialStep, Objective
from atu_ext.ops import default_impl
from examples.pretrain import mnist_stylegan2
from examples.scratch import train

BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "atu" / "precision.json"


def stylegan(c_dim=0, resolution=16, **options):
    torch.manual_seed(0)
    channels = dict(channel_base=128, channel_max=13, **options)
    generator = Generator(5, c_dim, 7, resolution, 3, dict(num_layers=2), dict(channels))
    return GAN(generator, Discriminator(c_dim, resolution, 3, **channels), image_range=(-9, 9))


def dcgan(dtype=torch.float32):
    torch.manual_seed(0)
    gan = GAN(DCGANGenerator(5, 16, 3, 5), DCGANDiscriminator(16, 3, 5))
    for module in gan.modules().values():
        module.to(dtype)
    return gan


def real(dtype=torch.float32, shape=(3, 16, 16)):
    return TensorSamples((torch.rand(31, *shape, generator=torch.Generator().manual_seed(1)) * 2 - 1).to(dtype))


# --- what runs in it


@pytest.mark.parametrize("c_dim", [0, 3])
def test_blocks_of_stylegan_run_in_it_and_nothing_else(c_dim):
    gan = stylegan(c_dim).copy()
    seen = {}

    def watch(name):
        def note(module, args, y):
            seen[name] = (args[0].dtype, y.dtype)

        return note

    for name, module in [*gan.generator.named_modules(), *gan.discriminator.named_modules()]:
        if isinstance(module, (Conv2dLayer, SynthesisLayer, ToRGBLayer)):
            module.register_forward_hook(watch(name))
    z, c = gan.inputs(2)
    with RunContext("bfloat16"), gan.autocast():
        x = gan.fake(z, c)
        y = gan.logits(x, c)
    assert x.dtype == y.dtype == torch.float32
    assert len(seen) == 16 and "b4.conv" in seen and "synthesis.b4.conv1" in seen
    for name, dtypes in seen.items():
        assert dtypes == ((torch.float32,) * 2 if "b4." in name else (BF16,) * 2), name


def test_mapping_and_running_mean_are_those_of_float32():
    gan, twin = stylegan(), stylegan()
    z, _ = gan.inputs(9)
    with torch.autocast("cpu", BF16):
        low = twin.generator.mapping(z)
    assert torch.equal(low, gan.generator.mapping(z))
    assert torch.equal(twin.generator.mapping.w_avg, gan.generator.mapping.w_avg)


def test_stylegan3_keeps_its_input_and_magnitudes():
    torch.manual_seed(0)
    options = dict(channel_base=64, channel_max=8, num_layers=4, num_critical=1, margin_size=4)
    generator = Generator3(4, 0, 4, 16, 3, dict(num_layers=1), **options)
    z = torch.randn(2, 4)
    first = getattr(generator.synthesis, generator.synthesis.layer_names[0])
    magnitudes = []
    for low in (False, True):
        first.magnitude_ema.fill_(1)
        with torch.autocast("cpu", BF16, enabled=low):
            x = generator(z)
        magnitudes.append(first.magnitude_ema.clone())
        assert x.dtype == torch.float32
    assert torch.equal(*magnitudes)


class Probability(nn.Module):
    """A discriminator that is sure: 1 - 1e-6 is 1 in bfloat16."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x):
        return torch.sigmoid(40 + self.layer(x))


def test_probabilities_become_logits_in_float32(vector_gan):
    gan = GAN(vector_gan.generator, Probability(), 4, discriminator_output="probability")
    with RunContext("bfloat16"), gan.autocast():
        assert torch.isfinite(gan.logits(torch.randn(3, 2))).all()


# --- a step


def step(gan, name, impl="auto", batch=8, **settings):
    """Gradients [discriminator, generator] of one step with R1 and path length, its metrics, and the trainer."""
    dtype = next(gan.generator.parameters()).dtype
    chosen = Adversarial(batch_size=batch, pl_weight=2.0, style_mixing=0.5, lr=1e-6, **settings)
    with RunContext(name), default_impl(impl):
        trainer = AdversarialStep(gan, real(dtype), Objective(), chosen)
        if name == "float16":  # the usual 2^16 overflows here at once, and would be halved from step to step
            trainer.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        torch.manual_seed(3)
        metrics = trainer.step()
    networks = (gan.discriminator, gan.generator)
    return [torch.cat([p.grad.double().flatten() for p in m.parameters()]) for m in networks], metrics, trainer


def errors(found, exact):
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]


def test_gradients_of_a_step_of_stylegan():
    """Against float32, whose own error is 1e-6: measured 0.03 and 0.04; torch's own operators 0.11 and 0.065."""
    exact, ours, torchs = (
        step(stylegan(), *how)[0] for how in (("float32",), ("bfloat16",), ("bfloat16", "reference"))
    )
    for mine, theirs in zip(errors(ours, exact), errors(torchs, exact), strict=True):
        assert 1e-3 < mine < min(0.1, 1.5 * theirs)


def test_few_samples_that_are_differentiated_twice_pass_in_float32():
    """On processors with AMX oneDNN's bfloat16 convolutions with kernels as large as the map are noise below 16
    channels, which are the samples of R1 and of path length."""
    gan = stylegan()
    for samples, on in ((None, True), (15, False), (16, True)):
        with RunContext("bfloat16"), gan.autocast(twice=samples):
            assert torch.is_autocast_enabled("cpu") is on


def test_gradients_of_a_step_in_float16():
    """Measured 0.004 and 0.005. The kernels have no float16 on the CPU: torch's operators run."""
    exact = step(stylegan(), "float32")[0]
    found, _, trainer = step(stylegan(), "float16")
    assert trainer.scaler.get_scale() == 64
    assert 1e-4 < max(errors(found, exact)) < 0.02


@pytest.mark.parametrize(("name", "bound"), [("float32", 1e-5), ("bfloat16", 0.1)])
def test_gradients_of_a_step_of_any_pair_against_float64(name, bound):
    exact, told, _ = step(dcgan(torch.float64), "float32")
    found, metrics, trainer = step(dcgan(), name)
    assert max(errors(found, exact)) < bound
    assert all(abs(metrics[key] - told[key]) < bound * max(1, abs(told[key])) for key in told)
    for module in trainer.gan.modules().values():
        assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert {t.dtype for slots in trainer.optim_g.state.values() for t in slots.values()} == {torch.float32}


def test_float16_skips_a_step_that_overflows_and_lowers_its_scale():
    gan = dcgan()
    with RunContext("float16"):
        trainer, twin = (AdversarialStep(gan, real(), Objective(), Adversarial(batch_size=4)) for _ in range(2))
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
        before = [p.clone() for p in gan.generator.parameters()]
        trainer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, gan.generator.parameters(), strict=True))
    twin.load_state_dict(trainer.state_dict())
    assert twin.scaler.get_scale() == trainer.scaler.get_scale() == 2.0**39


# --- resuming

SMALL = {
    "feedback": {"pool": 60},
    "adapt": {"steps": 3, "fisher": {"n": 2}, "adversarial": {"batch_size": 4}},
    "repel": {
        "steps": 5,
        "check_every": 2,
        "check_samples": 40,
        "guide_steps": 2,
        "adversarial": {"batch_size": 4, "pl_weight": 2.0, "pl_interval": 2},
    },
    "save_every": 2,
}


def weights(gan):
    return {f"{n}.{k}": v.clone() for n, m in gan.modules().items() for k, v in m.state_dict().items()}


def interrupt_at(monkeypatch, stage, step):
    def log(self, name, at, seconds, metrics):
        if (name, at) == (stage, step):
            raise KeyboardInterrupt
        return original(self, name, at, seconds, metrics)

    original = RunFolder.log
    monkeypatch.setattr(RunFolder, "log", log)


def test_a_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    gan = stylegan()
    x = gan.sample(60)
    middle = x.mean([1, 2, 3]).median()

    def bright(x):
        return x.mean([1, 2, 3]) > middle

    request = dict(negatives=x[bright(x)], is_negative=bright, config={**SMALL, "log_every": 1}, seed=2)
    whole = unlearn(gan, **request, precision="bfloat16", out=tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, "repel", 5)
        unlearn(gan, **request, precision="bfloat16", out=tmp_path / "broken")
    with pytest.raises(ValueError, match=r"another config.precision \(bfloat16 there, float32 now\)"):
        unlearn(gan, **request, precision="float32", out=tmp_path / "broken")
    # auto keeps to what the run was begun with, whatever it would choose now.
    monkeypatch.setattr(compute, "faster", lambda *_: "float32")
    rest = unlearn(gan, **request, precision="auto", out=tmp_path / "broken")
    a, b = weights(whole.gan), weights(rest.gan)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert rest.decisions["precision"] == "bfloat16" and rest.config.precision == "bfloat16"
    assert current().precision == "float32"
    plain = unlearn(gan, **request)
    assert plain.decisions["precision"] == "float32"
    assert any(not torch.equal(a[k], v) for k, v in weights(plain.gan).items())


def test_training_from_scratch_goes_on_bit_for_bit(tmp_path, monkeypatch):
    phases = [(4, Adversarial(batch_size=4)), (7, Adversarial(batch_size=4, r1_gamma=0.3))]
    options = dict(seed=1, log_every=1, save_every=2, precision="bfloat16")
    one, two = stylegan(), stylegan()
    train(one, real(), phases, tmp_path / "whole", **options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, "pretrain", 5)
        train(stylegan(), real(), phases, tmp_path / "broken", **options)
    train(two, real(), phases, tmp_path / "broken", **{**options, "precision": "auto"})
    assert all(torch.equal(v, weights(two)[k]) for k, v in weights(one).items())


# --- the choice


@pytest.fixture
def ratio(monkeypatch):
    """Says how many times as fast bfloat16 is; holds the number of measurements."""

    class Timed:
        value, count = 1.0, 0

    def clocked(passes, name):
        Timed.count += 1
        passes.run(name)
        return 1.0 if name == "float32" else 1 / Timed.value

    Timed.value, Timed.count = 1.0, 0
    monkeypatch.setattr(compute, "_clocked", clocked)
    monkeypatch.setattr(compute, "LITTLE", 0.0)
    monkeypatch.setattr(compute, "SECONDS", 1e9)
    monkeypatch.setattr(compute, "TURNS", 2)
    return Timed


@pytest.mark.parametrize(("times", "expected"), [(1.31, "bfloat16"), (1.29, "float32"), (0.5, "float32")])
def test_auto_takes_bfloat16_where_it_wins(ratio, times, expected):
    ratio.value = times
    assert compute.precision_for(stylegan(), 8, "auto") == expected


def test_auto_measures_once_for_each_shape_and_number_of_threads(ratio, cache, monkeypatch):
    gan = stylegan()
    state, before = weights(gan), torch.get_rng_state()
    ratio.value = 2.0
    assert compute.faster(gan, 8) == "bfloat16"
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(state[k], v) for k, v in weights(gan).items())
    count, ratio.value = ratio.count, 0.5
    assert compute.faster(stylegan(), 8) == "bfloat16" and ratio.count == count
    assert compute.faster(stylegan(resolution=8), 8) == "float32" and ratio.count == 2 * count
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert compute.faster(gan, 8) == "float32" and ratio.count == 3 * count
    rows = json.loads(cache.read_text()).values()
    assert [row["threads"] for row in rows] == [1, 1, 2] and [row["sample"][1] for row in rows] == [16, 8, 16]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"a": 1}', '{"a": {"seconds": {"float32": "x"}}}', '{"a": {"seconds": []}}', "\x00"]
)
def test_a_cache_that_cannot_be_read_is_made_anew(ratio, cache, content):
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    ratio.value = 1.5
    assert compute.faster(stylegan(), 8) == "bfloat16"
    assert len(compute.measurements()) == 1


def test_a_cache_that_cannot_be_written_is_done_without(ratio, cache):
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file where the folder would be")
    ratio.value = 1.5
    assert compute.faster(stylegan(), 8) == "bfloat16"


def test_auto_of_little_work_is_float32_without_measuring(vector_gan, cache):
    assert compute.precision_for(vector_gan, 32, "auto") == "float32" and not cache.exists()


class Stubborn(nn.Module):
    """Sums in place what autocast makes 16 bit, as running means of one's own do."""

    latent_dim = 3

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, z):
        x = self.layer(z)
        self.mean.lerp_(x.detach().mean(0), 0.1)
        return x


def test_networks_that_cannot_run_in_it(ratio, vector_gan):
    gan = GAN(Stubborn(), vector_gan.discriminator)
    ratio.value = 2.0
    assert compute.precision_for(gan, 8, "auto") == "float32"
    with pytest.raises(ValueError, match="precision: bfloat16 was asked for, but the networks do not run under"):
        compute.precision_for(gan, 8, "bfloat16")


def test_what_cannot_be_is_said(tmp_path):
    gan = dcgan(torch.float64)
    assert compute.precision_for(gan, 8, "auto") == "float32"
    with pytest.raises(ValueError, match=r"generator's weights are float64, which torch\.autocast leaves"):
        compute.precision_for(gan, 8, "bfloat16")
    with pytest.raises(ValueError, match="float16 is for CUDA devices"):
        unlearn(stylegan(), torch.rand(2, 3, 16, 16), precision="float16", out=tmp_path / "run")
    with pytest.raises(ValueError, match="precision: Input should be 'auto'"):
        Config().having(precision="half")
    assert not (tmp_path / "run").exists()


def test_the_measurement_itself(monkeypatch, cache):
    """Real clocks: both precisions are timed, and the answer follows from what was kept."""
    monkeypatch.setattr(compute, "LITTLE", 0.0)
    chosen = compute.faster(stylegan(), 4)
    (row,) = compute.measurements().values()
    wins = row["seconds"]["float32"] / row["seconds"]["bfloat16"] >= compute.WINS
    assert chosen == ("bfloat16" if wins else "float32") and row["network"] == "Generator"


# --- that it still unlearns


@pytest.mark.slow
def test_a_digit_goes_in_bfloat16():
    gan = GAN.load(asset("mnist-gan.safetensors"))
    classifier = Classifier.load(asset("mnist-classifier.safetensors"))
    oracle = class_rule(classifier, ["1"], gan.image_range)
    marked, _ = mark_negatives(gan, oracle, 50, 0)
    settings = {
        "feedback": {"pool": 300},
        "adapt": {"steps": 5, "fisher": {"n": 2}, "adversarial": {"batch_size": 4}},
        "repel": {"steps": 40, "check_every": 40, "check_samples": 100, "guide_steps": 20, "guide_weight": 3.0},
    }
    settings["repel"]["adversarial"] = {"batch_size": 12, "ema_half_life": 60.0}
    result = unlearn(gan, marked, is_negative=oracle, config=settings, precision="bfloat16")
    share = [float(oracle(g.sample(500, seed=9)).float().mean()) for g in (gan, result.gan)]
    assert share[0] > 0.05 and share[1] < share[0] / 2
    x, y = (g.sample(64, seed=1) for g in (gan, result.gan))
    assert torch.isfinite(y).all() and float((x - y).square().mean()) < 0.5 * float(x.var())


# --- threads


@pytest.fixture
def four(monkeypatch):
    """A machine that is said to have four cores; holds the numbers that were set."""
    counts = [4]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: counts[-1])
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    return counts


def test_tiny_networks_take_one_thread_and_others_all(four, vector_gan):
    assert compute.threads_for(vector_gan, 32) == 1
    assert compute.threads_for(mnist_stylegan2(), 32) == 4
    assert compute.threads_for(mnist_stylegan2(), 1) == 1


def test_who_says_so_goes_first(four, monkeypatch, vector_gan):
    before = {"threads": 3}
    assert compute.threads_for(vector_gan, 32, recorded=before) == 3
    with RunContext(threads=5):
        assert compute.threads_for(vector_gan, 32, recorded=before) == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert compute.threads_for(vector_gan, 32, recorded=before) == 4
    assert compute.threads_for(vector_gan, 32, wanted=2, recorded=before) == 2


def test_a_run_keeps_to_its_number_and_gives_torch_its_own_back(tmp_path, vector_gan, four):
    x = vector_gan.sample(40)
    config = {
        "feedback": {"pool": 64},
        "adapt": {"steps": 1, "adversarial": {"batch_size": 4}},
        "repel": {"steps": 1, "check_samples": 50, "guide_steps": 1, "adversarial": {"batch_size": 4}},
    }
    result = unlearn(vector_gan, x[x[:, 0] > x[:, 0].median()], config=config, out=tmp_path / "run")
    assert result.decisions["threads"] == result.config.threads == 1
    assert 1 in four[1:] and torch.get_num_threads() == 4
    assert json.loads((tmp_path / "run" / "run.json").read_text())["identity"]["config"]["threads"] == 1
    (tmp_path / "run" / "result.safetensors").unlink()
    again = unlearn(vector_gan, x[x[:, 0] > x[:, 0].median()], config={**config, "threads": 2}, out=tmp_path / "run")
    assert again.decisions["threads"] == 2, "a run may go on with others"


def test_training_from_scratch_too(tmp_path, vector_gan, four):
    train(vector_gan, TensorSamples(torch.randn(9, 2)), [(2, Adversarial(batch_size=4))], tmp_path, save_every=1)
    assert 1 in four[1:] and torch.get_num_threads() == 4
    assert json.loads((tmp_path / "run.json").read_text())["identity"]["config"]["threads"] == 1
    assert vector_gan.generator_ema is not None
