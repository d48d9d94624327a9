"""The methods by name: each runs on every kind of GAN, and does what defines it."""

import copy
import math

import pytest
import torch
from torch import nn

import atu_ext
from atu import GAN, Config, adapt, extrapolate, presets, repel, unlearn
from atu.config import Adversarial
from atu.data.samples import TensorSamples
from atu.feedback.feedback import Feedback
from atu.methods.cdc import correspondence_loss
from atu.methods.layers import last_layers, layers_in_order, owner, reinitialise
from atu.methods.penalties import L1, L1Sparse
from atu.methods.registry import METHODS
from atu.methods.retrain import without_negatives
from atu.methods.taps import Taps, tapped_layers
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.networks.stylegan2 import Discriminator, Generator
from atu.training.fisher import diagonal_fisher
from atu.training.trainer import AdversarialTrainer

ADVERSARIAL = {"batch_size": 4}
CHECKS = {"check_every": 2, "check_samples": 50}
SECTIONS = ("ewc", "cf-k", "eu-k", "l1-sparse", "cdc", "rssa", "retrain")
QUICK = {
    "feedback": {"pool": 64},
    "adapt": {"steps": 2, "fisher": {"n": 4}, "adversarial": ADVERSARIAL},
    "repel": {"steps": 3, **CHECKS, "guide_steps": 2, "adversarial": ADVERSARIAL},
    "methods": {
        "extrapolate": {"check_samples": 50},
        **{name: {"steps": 3, **CHECKS, "adversarial": ADVERSARIAL} for name in SECTIONS},
    },
    "log_every": 1,
    "save_every": 2,
}


def quick(section=None, **settings):
    """QUICK with settings of one method changed."""
    config = copy.deepcopy(QUICK)
    if section is not None:
        config["methods"][section].update(settings)
    return config


class DCGenerator(nn.Module):
    """Transposed convolutions and batch norm, a network the package does not know; 1 x 8 x 8."""

    def __init__(self):
        super().__init__()
        self.latent_dim = 5
        self.last = nn.ConvTranspose2d(6, 1, 4, 2, 1)  # registered first, run last
        self.body = nn.Sequential(nn.ConvTranspose2d(5, 6, 4, 1, 0, bias=False), nn.BatchNorm2d(6), nn.ReLU())

    def forward(self, z):
        return torch.tanh(self.last(self.body(z[:, :, None, None])))


class DCDiscriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 6, 4, 2, 1), nn.BatchNorm2d(6), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(96, 1)
        )

    def forward(self, x):
        return self.net(x)


def dcgan():
    return GAN(DCGenerator(), DCDiscriminator())


def stylegan():
    generator = Generator(4, 0, 4, 8, 1, dict(num_layers=2), dict(channel_base=32, channel_max=4))
    return GAN(generator, Discriminator(0, 8, 1, channel_base=32, channel_max=4))


def mlp():
    return GAN(MLPGenerator(4, [1, 8, 8], (16, 12), "tanh"), MLPDiscriminator([1, 8, 8], (16,)))


KINDS = {"stylegan": stylegan, "dcgan": dcgan, "mlp": mlp}


def bright(x):
    """Whether the mean of an image is above 0."""
    return x.flatten(1).mean(1) > 0.0


def marked(gan, count=8):
    x = gan.sample(100, seed=1)
    return x[x.flatten(1).mean(1).argsort(descending=True)[:count]]


def upper_half(gan):
    """An oracle: images brighter than half of the GAN's."""
    middle = gan.sample(100, seed=1).flatten(1).mean(1).median()
    return lambda x: x.flatten(1).mean(1) > middle


def weights(module):
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


# --- all of them


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
        assert result.decisions["kept_step"] == 3
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
    config["methods"]["retrain"]["keep"] = "best"
    call = dict(gan=gan, negatives=marked(gan), is_negative=upper_half(gan), config=config, method=method, seed=1)
    whole = unlearn(**call, out=tmp_path / "whole")
    step, stage = AdversarialTrainer.step, "repel" if method == "nl2" else method

    def die_in_the_second_stage(trainer):
        if trainer.step_count == 2 and (tmp_path / f"broken/checkpoints/{stage}-state.safetensors").exists():
            raise KeyboardInterrupt
        return step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(AdversarialTrainer, "step", die_in_the_second_stage)
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


def test_best_is_kept_when_asked_for():
    gan = dcgan()
    config = quick("cf-k", keep="best", check_every=1, steps=6)
    result = unlearn(gan, marked(gan), is_negative=upper_half(gan), config=config, method="cf-k")
    rows = {row["step"]: row for row in result.history if "score" in row}
    kept = rows[result.decisions["kept_step"]]
    assert len(rows) == 6 and all(result.decisions[key] == kept[key] for key in ("score", "drift", "negative_rate"))
    # The lowest score, or a later one that is as low without the negatives that chance may have added.
    lowest = min(rows.values(), key=lambda row: row["score"])
    assert kept["step"] >= lowest["step"] and kept["drift"] <= lowest["score"]


def test_default_method_is_the_config_alone():
    gan = mlp()
    a = unlearn(gan, marked(gan), config=QUICK)
    b = unlearn(gan, marked(gan), config=QUICK, method=presets.DEFAULT)
    assert a.config == b.config and a.config.method == presets.DEFAULT
    assert torch.equal(a.gan.sample(3), b.gan.sample(3))


# --- settings


@pytest.mark.parametrize("loss", ["el2", "nl2", "il2"])
def test_the_papers_methods_add_nothing_of_ours(loss):
    repel = Config.of(loss).repel
    assert repel.loss == loss and repel.keep == "final" and repel.schedule == "constant"
    assert repel.guide_weight == repel.hold_weight == repel.negatives_weight == repel.warm_start == 0
    assert Config.of(loss, data={"repel": {"guide_weight": 0.5}}).repel.guide_weight == 0.5


def test_config_files_name_their_method(tmp_path):
    config = Config.of("nl2", data={"repel": {"steps": 7}})
    path = config.save(tmp_path / "c.toml")
    assert Config.load(path) == config == Config.load(path, "nl2")
    (tmp_path / "short.toml").write_text('method = "il2"\n[methods.cf-k]\nk = 2\n')
    assert Config.load(tmp_path / "short.toml") == Config.of("il2")  # other methods' tables are checked and left out
    with pytest.raises(ValueError, match="method: expected 'nl2', which the config is for, got 'el2'"):
        Config.load(path, "el2")


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
        (dict(config={"repel": {"loss": "nl2"}}, method="el2"), "config: expected repel.loss 'el2' for .* got 'nl2'"),
        (dict(config={"methods": {"cf-k": {"k": 0}}}), r"config: methods\.cf-k\.k: .*got 0"),
        (dict(config={"methods": {"cfk": {}}}), r"config: methods\.cfk"),
        (dict(config={"methods": {"cdc": {"batch": 2}}}), r"config: methods\.cdc\.batch"),
        (dict(config={"methods": {"cdc": {"layers": ["("]}}}), r"config: methods\.cdc\.layers"),
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


def test_second_stage_alone_is_for_methods_that_have_it():
    gan = mlp()
    adapted = adapt(gan, marked(gan), config=QUICK)
    done = repel(gan, adapted, marked(gan), config={**QUICK, "method": "il2"})
    assert done.decisions["method"] == "il2"
    with pytest.raises(ValueError, match="method: expected one of atu, el2, nl2, il2 for stage 2, got 'ewc'"):
        repel(gan, adapted, marked(gan), config={**QUICK, "method": "ewc"})


# --- compat="reference"


@pytest.mark.parametrize("models", [1, 5])
@pytest.mark.parametrize("loss", ["el2", "nl2", "il2"])
def test_reference_loss_is_the_references(loss, models):
    """Its formulas, tensor by tensor and model by model, against the preset's loss and gradient."""
    from atu.methods.adapt_then_unlearn.repel import Repulsion

    data = None if models == 5 else {"adapt": {"models": models}}
    cfg = Config.of(loss, "reference", data).repel
    shapes = [(3, 2), (4,), ()]
    params = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    adapted = [[torch.randn(s, dtype=torch.float64) for s in shapes] for _ in range(models)]
    push = Repulsion(params, adapted, [p.detach() + 0.1 for p in params], cfg, 100)
    v = torch.zeros((), dtype=torch.float64)
    for index, p in enumerate(params):
        v = v + sum(nn.functional.mse_loss(p, model[index]) for model in adapted) / len(params) / 2 * models
    value = {"el2": 100 * (-v).exp(), "nl2": -v, "il2": 1 / v}[loss]
    expected = torch.autograd.grad(value, params)
    assert push.add_grad()["repulsion"] == pytest.approx(value.item(), rel=1e-8)
    for p, e in zip(params, expected, strict=True):
        torch.testing.assert_close(p.grad, e, rtol=1e-7, atol=1e-12)


def test_reference_settings_are_where_its_users_look():
    config = Config.of("el2", "reference", {"repel": {"steps": 5}})
    assert (config.adapt.models, config.adapt.steps, config.adapt.ewc_weight) == (5, 2000, 5e8)
    assert not config.adapt.ewc_relative and config.adapt.fisher.n == 32 and config.adapt.fisher.of == "logit"
    assert config.repel.reduction == "tensor_mean" and config.repel.gamma == 100 and config.repel.steps == 5
    ewc = Config.of("ewc", "reference").own
    assert (ewc.weight, ewc.relative, ewc.steps, ewc.fisher.n) == (5e8, False, 1000, 32)
    for part in (config.adapt.adversarial, config.repel.adversarial, ewc.adversarial):
        assert (part.batch_size, part.r1_gamma, part.r1_interval) == (16, 10, 16)
        assert (part.pl_weight, part.pl_interval, part.style_mixing, part.augment) == (2, 4, 0.9, "")


def test_reference_adam_and_fisher():
    """lr 0.002 c, betas (0, 0.99^c), c = 4/5 and 16/17; Fisher of the styled convolutions above 4 x 4 and no others."""
    gan = stylegan()
    config = Config.of("el2", "reference")
    trainer = AdversarialTrainer(gan.copy(), TensorSamples(gan.sample(4)), config.repel.adversarial)
    for optim, c in ((trainer.optim_g, 4 / 5), (trainer.optim_d, 16 / 17)):
        group = optim.param_groups[0]
        assert (group["lr"], *group["betas"]) == pytest.approx((0.002 * c, 0, 0.99**c))
    z, _ = gan.inputs(2)
    fisher = diagonal_fisher(gan, z, None, "logit", config.adapt.fisher.parameters)
    held = {n for (n, _), f in zip(gan.generator.named_parameters(), fisher, strict=True) if f.any()}
    assert held and all(name.startswith(("synthesis.b8.conv0.", "synthesis.b8.conv1.")) for name in held)
    assert {"synthesis.b8.conv0.weight", "synthesis.b8.conv1.affine.weight"} <= held


@pytest.mark.parametrize("method", ["el2", "ewc"])
def test_reference_runs(method):
    gan = stylegan()
    small = copy.deepcopy(QUICK)
    small["adapt"]["models"] = 2
    result = unlearn(gan, marked(gan), config=small, method=method, compat="reference")
    assert torch.isfinite(result.gan.sample(3)).all()
    assert any("path_length" in row for row in result.history)


# --- layers


def test_layers_are_in_the_order_of_the_pass():
    names = [layer.name for layer in layers_in_order(dcgan())]
    assert names == ["body.0", "body.1", "last"]
    found = [layer.name for layer in layers_in_order(stylegan())]
    assert found[:3] == ["mapping.fc0", "mapping.fc1", "synthesis.b4"]  # b4 itself holds the constant
    assert found[-2:] == ["synthesis.b8.torgb.affine", "synthesis.b8.torgb"]
    assert layers_in_order(dcgan())[1].parameters == ("body.1.weight", "body.1.bias")


class Odd(nn.Module):
    """A constant at the top, an unused layer, a weight used twice, and spectral norm."""

    def __init__(self):
        super().__init__()
        self.latent_dim = 4
        self.b = nn.Linear(4, 4)
        self.a = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        self.unused = nn.Linear(4, 4)
        self.shift = nn.Parameter(torch.zeros(4))

    def forward(self, z):
        return self.b(torch.relu(self.a(self.b(z + self.shift))))


def test_layers_of_an_odd_network():
    layers = layers_in_order(GAN(Odd()))
    assert [layer.name for layer in layers] == ["", "a", "b"]
    assert set(layers[1].parameters) == {"a.bias", "a.parametrizations.weight.original"}
    assert owner("x.parametrizations.weight.original") == owner("x.weight") == "x"
    assert [layer.name for layer in last_layers(GAN(Odd()), None, "k")] == ["a", "b"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit's own
def test_a_scripted_generator_is_refused():
    class Scripted(nn.Module):
        def __init__(self):
            super().__init__()
            self.latent_dim = 2
            self.inner = torch.jit.trace(nn.Linear(2, 2), torch.zeros(3, 2))

        def forward(self, z):
            return self.inner(z)

    with pytest.raises(ValueError, match="generator: Scripted does not show which parameters its pass uses"):
        layers_in_order(GAN(Scripted()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["cf-k", "eu-k"])
def test_only_the_last_k_layers_change(kind, method):
    gan = KINDS[kind]()
    if kind == "dcgan":  # statistics other than those at the start
        gan.generator.train()(torch.randn(50, 5))
    k = 2
    result = unlearn(gan, marked(gan), is_negative=upper_half(gan), config=quick(method, k=k), method=method)
    trained = {layer.name for layer in layers_in_order(gan)[-k:]}
    assert set(result.decisions["trained_layers"]) == trained and result.decisions["k"] == k
    before = gan.generator.state_dict()
    for module in (result.gan.generator, result.generator):
        for name, value in module.state_dict().items():
            if owner(name) not in trained:
                assert torch.equal(value, before[name]), f"{name} was changed"
        changed = {owner(n) for n, v in module.state_dict().items() if not torch.equal(v, before[n])}
        assert changed == trained


@pytest.mark.parametrize("kind", KINDS)
def test_eu_k_forgets_the_weights_of_its_layers(kind):
    """Two GANs that differ only in the last layer give the same result: nothing of it is left."""
    gan = KINDS[kind]()
    other = gan.copy()
    last = layers_in_order(gan)[-1]
    with torch.no_grad():
        for module in (gan.generator, other.generator):
            for name, p in module.named_parameters():
                if name in last.parameters:
                    p.add_(torch.randn_like(p))
    config = quick("eu-k", k=1, steps=0)
    negatives, positives = marked(gan), torch.rand(20, 1, 8, 8)
    a, b = (unlearn(g, negatives, positives, config=config, method="eu-k", seed=5) for g in (gan, other))
    for name in last.parameters:
        p, q = (dict(r.generator.named_parameters())[name] for r in (a, b))
        assert torch.equal(p, q) and not torch.equal(p, dict(gan.generator.named_parameters())[name])


def test_part_frozen_generators_stay_so():
    gan = mlp()
    gan.generator.net[4].weight.requires_grad_(False)
    result = unlearn(gan, marked(gan), config=quick("cf-k", k=1), method="cf-k")
    assert torch.equal(result.gan.generator.net[4].weight, gan.generator.net[4].weight)
    assert not torch.equal(result.gan.generator.net[4].bias, gan.generator.net[4].bias)
    gan.generator.net[4].bias.requires_grad_(False)
    with pytest.raises(ValueError, match="generator: expected a parameter that requires grad in its last 1 layers"):
        unlearn(gan, marked(gan), config=quick("cf-k", k=1), method="cf-k")


def test_reinitialise_known_networks_as_they_are_built():
    trained = stylegan().generator
    with torch.no_grad():
        for p in trained.parameters():
            p.add_(1.0)
        trained.mapping.w_avg.add_(1.0)
    torch.manual_seed(7)
    fresh = type(trained)(**trained.init_kwargs)
    torch.manual_seed(7)
    assert reinitialise(trained) == []
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in trained.state_dict().items())


def test_reinitialise_other_networks_by_their_own_rule_or_by_their_moments():
    module = Odd()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn_like(p) * 3 + 10)
    before = weights(module)
    left = reinitialise(module)
    assert set(left) == {"shift", "a.parametrizations.weight.original"}
    after = weights(module)
    assert all(not torch.equal(before[k], after[k]) for k in dict(module.named_parameters()))
    assert module.b.weight.abs().max() <= 0.5, "nn.Linear starts within 1 / sqrt(4)"
    big = nn.ParameterList([torch.randn(40_000) * 3 + 10])
    reinitialise(big)
    assert big[0].mean().item() == pytest.approx(10, abs=0.1) and big[0].std().item() == pytest.approx(3, abs=0.1)


# --- extrapolate


def test_extrapolate_is_the_closed_form():
    gan = mlp()
    config = {**quick("extrapolate", s=0.7), "adapt": {**QUICK["adapt"], "models": 2}}
    result = unlearn(gan, marked(gan), config=config, method="extrapolate", seed=2)
    adapted = adapt(gan, marked(gan), config=config, seed=2)
    alone = extrapolate(gan, adapted, 0.7).sampling_generator.state_dict()
    for key, value in gan.sampling_generator.state_dict().items():
        expected = value - 0.7 * ((adapted[0][key] + adapted[1][key]) / 2 - value)
        torch.testing.assert_close(result.generator.state_dict()[key], expected)
        assert torch.equal(result.generator.state_dict()[key], alone[key])


# --- ewc and l1


class Scale(nn.Module):
    """G(z) = theta z, one weight a coordinate."""

    def __init__(self, theta):
        super().__init__()
        self.latent_dim = len(theta)
        self.theta = nn.Parameter(theta.clone())

    def forward(self, z):
        return self.theta * z


class Blind(nn.Module):
    """A logit whose gradient for samples is known: the sum of the coordinates."""

    def __init__(self, slope):
        super().__init__()
        self.register_buffer("slope", torch.tensor(slope))
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.slope * x.sum(1) + 0 * self.weight


def test_ewc_on_a_quadratic():
    """A discriminator of slope a is met by Fisher a^2 z^2; with a strong weight the weights stay, with none they go."""
    theta = torch.tensor([1.0, -2.0, 0.5])
    gan = GAN(Scale(theta), Blind(3.0))
    z, _ = gan.inputs(6)
    (fisher,) = diagonal_fisher(gan, z)
    torch.testing.assert_close(fisher, 9 * z.square().mean(0))
    moved = []
    for weight in (0.0, 1e6):
        config = quick(
            "ewc", steps=30, weight=weight, relative=False, adversarial={"batch_size": 8, "lr": 0.01, "r1_gamma": 0}
        )
        result = unlearn(gan, torch.ones(4, 3), torch.zeros(9, 3), config=config, method="ewc")
        moved.append((result.gan.generator.theta - theta).abs().max().item())
    assert moved[1] < 0.1 * moved[0] and moved[0] > 0.05


def test_ewc_penalty_at_the_optimum_of_a_quadratic():
    """Gradient descent on b theta + w/2 F (theta - a)^2 ends at a - b / (w F)."""
    from atu.methods.adapt_then_unlearn.adapt import Ewc

    gan = GAN(Scale(torch.tensor([1.0, 2.0])))
    theta, anchor = gan.generator.theta, torch.tensor([1.0, 2.0])
    fisher, slope = torch.tensor([0.5, 2.0]), torch.tensor([0.3, -0.4])
    ewc = Ewc(gan, [anchor], [fisher], 4.0, False)
    optim = torch.optim.SGD([theta], lr=0.1)
    for _ in range(300):
        theta.grad = slope.clone()
        value = ewc.add_grad()["ewc"]
        optim.step()
    torch.testing.assert_close(theta.detach(), anchor - slope / (4 * fisher), rtol=1e-5, atol=1e-5)
    assert value == pytest.approx((4 / 2 * fisher * (slope / (4 * fisher)).square()).sum().item(), rel=1e-4)


@pytest.mark.parametrize(
    "schedule, factor", [("constant", 1.0), ("linear", 0.75), ("cosine", 0.5 * (1 + math.sqrt(0.5)))]
)
def test_l1_is_the_sum_of_absolute_values(schedule, factor):
    params = [torch.randn(3, 2, dtype=torch.float64, requires_grad=True), torch.randn((), requires_grad=True)]
    cfg = L1Sparse(weight=0.3, schedule=schedule, steps=8)
    value = 0.3 * factor * sum(p.abs().sum() for p in params)
    expected = torch.autograd.grad(value, params)
    params[0].grad = torch.ones_like(params[0])
    penalty = L1(params, cfg.weight, cfg)
    penalty.step = 2
    assert penalty.add_grad()["l1"] == pytest.approx(value.item(), rel=1e-6)
    torch.testing.assert_close(params[0].grad - 1, expected[0], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(params[1].grad, expected[1], rtol=1e-6, atol=1e-9)
    assert penalty.step == 3


def test_l1_sparse_shrinks_the_weights():
    gan = mlp()
    norms = []
    for weight in (0.0, 10.0):
        config = quick("l1-sparse", weight=weight, steps=20)
        result = unlearn(gan, marked(gan), config=config, method="l1-sparse")
        norms.append(sum(p.abs().sum().item() for p in result.gan.generator.parameters()))
    assert norms[1] < norms[0] - 1


def test_l1_weight_is_set_from_the_gradients():
    """With one batch of all the same latents: strength times the norm of the adversarial gradient, by hand."""
    gan = mlp()
    gan.latent_sampler = lambda n, rng: torch.ones(n, 4)
    result = unlearn(
        gan,
        torch.full((4, 1, 8, 8), 2.0),
        torch.rand(9, 1, 8, 8),
        lambda x: x[:, 0, 0, 0] > 1.5,
        quick("l1-sparse", strength=0.5),
        method="l1-sparse",
    )
    params = list(gan.generator.parameters())
    loss = -torch.sigmoid(gan.discriminator(gan.generator(torch.ones(1, 4)))).log().mean()
    norm = torch.cat([g.flatten() for g in torch.autograd.grad(loss, params)]).norm().item()
    size = sum(p.numel() for p in params)
    assert result.decisions["l1_weight"] * math.sqrt(size) == pytest.approx(0.5 * norm, rel=1e-4)


# --- cdc and rssa


def test_tapped_layers():
    assert tapped_layers(mlp(), [], "s") == ["net.2", "net.4"]  # hidden activations, not the latents
    assert tapped_layers(dcgan(), [], "s") == ["body.1", "last"]
    # Not b4.conv1, which takes in the constant; b8.conv0 takes in what b4.torgb does.
    assert tapped_layers(stylegan(), [], "s") == ["synthesis.b4.torgb", "synthesis.b8.conv1", "synthesis.b8.torgb"]
    assert tapped_layers(stylegan(), ["b8"], "s") == ["synthesis.b8.conv1", "synthesis.b8.torgb"]


@pytest.mark.parametrize("kind", KINDS)
def test_untrained_copies_see_the_same(kind):
    """The same latents, noise and batch statistics: no loss at the start, whatever the kind."""
    gan = KINDS[kind]()
    with torch.no_grad():
        for name, p in gan.generator.named_parameters():
            if name.endswith("noise_strength"):
                p.fill_(0.5)
    gan.generator.train()
    taps = Taps(gan, tapped_layers(gan, [], "s"))
    z, _ = gan.inputs(4)
    before, after = taps(z, None)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(b.requires_grad for b in before) and all(a.requires_grad for a in after)
    with torch.no_grad():
        next(p for n, p in gan.generator.named_parameters() if n.endswith(("conv1.weight", "0.weight"))).mul_(2).add_(1)
    assert correspondence_loss(*taps(z, None)).item() > 1e-9


@pytest.mark.parametrize("method, key", [("cdc", "correspondence"), ("rssa", "self_correlation")])
def test_a_heavier_loss_keeps_the_structure_nearer(method, key):
    gan = dcgan()
    ends = []
    for weight in (1e-6, 1e2):
        settings = {"weight": weight} if method == "cdc" else {"self_weight": weight}
        adversarial = {"batch_size": 8, "lr": 0.003}
        config = quick(method, steps=60, adversarial=adversarial, **settings)
        result = unlearn(gan, marked(gan), -torch.ones(20, 1, 8, 8), upper_half(gan), config, method=method)
        rows = [row[key] / weight for row in result.history if row["stage"] == method]
        ends.append(sum(rows[-10:]))
    assert ends[1] < 0.5 * ends[0], ends


# --- retrain


def test_retrain_starts_anew_and_ends_with_a_falling_rate(monkeypatch):
    gan = mlp()
    rates = []

    step = AdversarialTrainer.step

    def note(trainer):
        rates.append(trainer.optim_g.param_groups[0]["lr"] / trainer.base_lr[0])
        return step(trainer)

    monkeypatch.setattr(AdversarialTrainer, "step", note)
    config = quick("retrain", steps=8, decay=0.5)
    a = unlearn(gan, marked(gan), torch.rand(20, 1, 8, 8), config=config, method="retrain", seed=6)
    assert rates == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    other = mlp()
    b = unlearn(other, marked(gan), torch.rand(20, 1, 8, 8), config=quick("retrain", steps=0), method="retrain", seed=6)
    c = unlearn(gan, marked(gan), torch.rand(20, 1, 8, 8), config=quick("retrain", steps=0), method="retrain", seed=6)
    assert torch.equal(b.gan.sample(3), c.gan.sample(3)), "something of the pretrained weights is left"
    assert a.decisions["trained_on"] == 20 and a.decisions["steps_run"] == 8


def test_retrain_leaves_out_what_the_oracle_calls_negative():
    x = torch.linspace(-1, 1, 10)[:, None, None, None].expand(10, 1, 8, 8).clone()
    feedback = Feedback(TensorSamples(x[:1]), TensorSamples(x, torch.arange(10)), bright, True, 0.5, {})
    kept, dropped = without_negatives(mlp(), feedback)
    assert (len(kept), dropped) == (5, 5)
    assert torch.equal(kept.batch(torch.tensor([4, 0])), x[[4, 0]]) and kept.labels.tolist() == [0, 1, 2, 3, 4]
    feedback.is_negative = lambda x: x[:, 0, 0, 0] > -2
    with pytest.raises(ValueError, match="positives: the oracle calls 10 of 10 negative"):
        without_negatives(mlp(), feedback)
    feedback.is_oracle = False
    assert without_negatives(mlp(), feedback) == (feedback.positives, 0)


# --- the ramp of the average


def test_average_follows_at_first():
    """half life min(h, ramp * images seen): at the first step the average is the generator."""
    gan = mlp()
    trainer = AdversarialTrainer(
        gan, TensorSamples(torch.rand(9, 1, 8, 8)), Adversarial(batch_size=4, ema_half_life=20.0, ema_ramp=0.5)
    )
    expected = None
    for step in range(14):
        trainer.step()
        half_life = min(20.0, 0.5 * 4 * step)
        beta = 0.5 ** (4 / half_life) if half_life else 0.0
        now = gan.generator.net[0].weight.detach()
        expected = now.clone() if expected is None else beta * expected + (1 - beta) * now
        torch.testing.assert_close(gan.generator_ema.net[0].weight, expected)
