"""compat="reference": the losses and settings of the published code."""

import copy

import pytest
import torch
from torch import nn

from atu import Config, unlearn
from atu.data.samples import TensorSamples
from atu.training.fisher import diagonal_fisher
from atu.training.step import AdversarialStep, Objective

from .kinds import FIRST, QUICK, marked, stylegan


@pytest.mark.parametrize("models", [1, 5])
@pytest.mark.parametrize("loss", ["el2", "nl2", "il2"])
def test_reference_loss_is_the_references(loss, models):
    """Its formulas, tensor by tensor and model by model, against the preset's loss and gradient."""
    from atu.methods.adapt_then_unlearn.repulsion import Repulsion

    data = None if models == 5 else {"adapt": {"models": models}}
    own = Config.of(loss, "reference", data).own
    shapes = [(3, 2), (4,), ()]
    params = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    adapted = [[torch.randn(s, dtype=torch.float64) for s in shapes] for _ in range(models)]
    push = Repulsion(params, adapted, [p.detach() + 0.1 for p in params], own, 0.0, 100)
    v = torch.zeros((), dtype=torch.float64)
    for index, p in enumerate(params):
        v = v + sum(nn.functional.mse_loss(p, model[index]) for model in adapted) / len(params) / 2 * models
    value = {"el2": 100 * (-v).exp(), "nl2": -v, "il2": 1 / v}[loss]
    expected = torch.autograd.grad(value, params)
    assert push.after_backward(FIRST)["repulsion"] == pytest.approx(value.item(), rel=1e-8)
    for p, e in zip(params, expected, strict=True):
        torch.testing.assert_close(p.grad, e, rtol=1e-7, atol=1e-12)


def test_reference_settings_are_where_its_users_look():
    config = Config.of("el2", "reference", {"repel": {"steps": 5}})
    assert (config.adapt.models, config.adapt.steps, config.adapt.ewc_weight) == (5, 2000, 5e8)
    assert not config.adapt.ewc_relative and config.adapt.fisher.n == 32
    assert config.own.reduction == "tensor_mean" and config.own.gamma == 100 and config.repel.steps == 5
    assert Config.of(compat="reference").method == "el2"
    with pytest.raises(ValueError, match="compat: expected a method of the paper, such as el2, got 'atu'"):
        Config.of("atu", "reference")
    ewc = Config.of("ewc", "reference").own
    assert (ewc.weight, ewc.relative, ewc.steps, ewc.fisher.n) == (5e8, False, 1000, 32)
    for part in (config.adapt.adversarial, config.repel.adversarial, ewc.adversarial):
        assert (part.batch_size, part.r1_gamma, part.r1_interval) == (16, 10, 16)
        assert (part.pl_weight, part.pl_interval, part.style_mixing, part.augment) == (2, 4, 0.9, "")


def test_reference_adam_and_fisher():
    """lr 0.002 c, betas (0, 0.99^c), c = 4/5 and 16/17; Fisher of the styled convolutions above 4 x 4 and no others."""
    gan = stylegan()
    config = Config.of("el2", "reference")
    trainer = AdversarialStep(gan.copy(), TensorSamples(gan.sample(4)), Objective(), config.repel.adversarial)
    for optim, c in ((trainer.optim_g, 4 / 5), (trainer.optim_d, 16 / 17)):
        group = optim.param_groups[0]
        assert (group["lr"], *group["betas"]) == pytest.approx((0.002 * c, 0, 0.99**c))
    z, _ = gan.inputs(2)
    fisher = diagonal_fisher(gan, z, None, config.adapt.fisher.parameters)
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
