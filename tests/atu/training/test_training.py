"""The adversarial step, the EWC penalty and the repulsion, against the written formulas."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch

from atu.config import Adversarial
from atu.data.samples import TensorSamples
from atu.methods.adapt_then_unlearn.adapt import Ewc
from atu.methods.adapt_then_unlearn.repulsion import EL2, IL2, NL2, Repulsion
from atu.training.losses import r1_gamma
from atu.training.schedules import schedule
from atu.training.step import AdversarialStep, NonFiniteError, Objective

FIRST = SimpleNamespace(step_count=0)  # all that a penalty asks of the first step
REAL = TensorSamples(torch.randn(3, 2, generator=torch.Generator().manual_seed(9)))


def trainer(gan, real=REAL, objective=None, **settings):
    return AdversarialStep(gan, real, objective or Objective(), Adversarial(**{"batch_size": 8, **settings}))


def weights(gan):
    return {f"{n}.{k}": v.clone() for n, m in gan.modules().items() for k, v in m.state_dict().items()}


@pytest.mark.parametrize("extra", [{}, dict(r1_interval=1), dict(augment="color,translation,cutout")])
def test_any_gan_trains(conv_gan, extra):
    """Batch norm, dropout, labels, a sigmoid; and three real samples for a batch of eight."""
    real = TensorSamples(torch.rand(3, 3, 8, 8) * 2 - 1)
    before = weights(conv_gan)
    t = trainer(conv_gan, real, **extra)
    for _ in range(2):
        metrics = t.step()
    assert all(math.isfinite(v) for v in metrics.values()) and t.step_count == 2
    after = weights(conv_gan)
    assert all(not torch.equal(before[k], after[k]) for k in before if k.endswith(("fc.weight", "last.weight")))
    assert all(p.requires_grad for p in conv_gan.discriminator.parameters())


def test_step_is_the_written_one(vector_gan):
    """One step of plain Adam (r1 off) equals a few lines of torch with the same draws."""
    twin = vector_gan.copy()
    torch.manual_seed(4)
    t = trainer(vector_gan, r1_gamma=0.0, lr=0.01, beta1=0.5, beta2=0.9, ema_half_life=80.0)
    t.step()

    torch.manual_seed(4)
    g, d = twin.generator, twin.discriminator
    start = [p.detach().clone() for p in g.parameters()]
    optim_d = torch.optim.Adam(d.parameters(), 0.01, (0.5, 0.9))
    optim_g = torch.optim.Adam(g.parameters(), 0.01, (0.5, 0.9))
    fake = g(torch.randn(8, 4)).detach()
    real = REAL.tensor[torch.randint(3, (8,))]
    (-(torch.sigmoid(d(real))).log().mean() - (1 - torch.sigmoid(d(fake))).log().mean()).backward()
    optim_d.step()
    optim_g.zero_grad()
    (-torch.sigmoid(d(g(torch.randn(8, 4)))).log().mean()).backward()
    optim_g.step()
    for a, b in ((vector_gan.generator, g), (vector_gan.discriminator, d)):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    beta = 0.5 ** (8 / 80)
    for average, s, p in zip(vector_gan.generator_ema.parameters(), start, g.parameters(), strict=True):
        torch.testing.assert_close(average, beta * s + (1 - beta) * p, rtol=1e-4, atol=1e-5)


def test_relativistic_step_is_the_written_one(vector_gan):
    """With R1 and R2 at every step; the penalties' gradients by hand."""
    twin = vector_gan.copy()
    torch.manual_seed(4)
    plain = dict(lr=0.01, beta1=0.5, beta2=0.9)
    trainer(vector_gan, loss="relativistic", r1_gamma=0.3, r2_gamma=0.7, r1_interval=1, **plain).step()

    torch.manual_seed(4)
    g, d = twin.generator, twin.discriminator
    optim_d = torch.optim.Adam(d.parameters(), 0.01 / 2, (0.5**0.5, 0.9**0.5))
    optim_g = torch.optim.Adam(g.parameters(), 0.01, (0.5, 0.9))
    fake = g(torch.randn(8, 4)).detach().requires_grad_(True)
    real = REAL.tensor[torch.randint(3, (8,))].requires_grad_(True)
    loss = (1 + torch.exp(d(fake) - d(real))).log().mean()
    for gamma, x in ((0.3, real), (0.7, fake)):
        (grad,) = torch.autograd.grad(d(x).sum(), x, create_graph=True)
        loss = loss + gamma / 2 * grad.square().sum(1).mean()
    loss.backward()
    optim_d.step()
    optim_g.zero_grad()
    made = g(torch.randn(8, 4))
    other = REAL.tensor[torch.randint(3, (8,))]
    (1 + torch.exp(d(other) - d(made))).log().mean().backward()
    optim_g.step()
    for a, b in ((vector_gan.generator, g), (vector_gan.discriminator, d)):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_lazy_regularisation_rescales_adam(vector_gan):
    t = trainer(vector_gan, lr=0.01, beta1=0.5, beta2=0.99, r1_gamma=1.0, r1_interval=16, d_lr_ratio=2.0)
    g, d = t.optim_g.param_groups[0], t.optim_d.param_groups[0]
    c = 16 / 17
    assert (g["lr"], *g["betas"]) == pytest.approx((0.01, 0.5, 0.99))
    assert (d["lr"], *d["betas"]) == pytest.approx((0.02 * c, 0.5**c, 0.99**c))


def test_automatic_penalties_weigh_what_suits_the_samples(vector_gan, conv_gan):
    """0.05 of small images and of what is none; of big ones StyleGAN2-ADA's: at 256 x 256, batch 32, 0.41."""
    for gan, real in ((vector_gan, REAL), (conv_gan, TensorSamples(torch.rand(3, 3, 8, 8)))):
        seen = []
        for gamma in ("auto", 0.05, 0.1):
            torch.manual_seed(4)
            t = trainer(gan.copy(), real, r1_gamma=gamma, r2_gamma=gamma, r1_interval=1, lr=0.01, beta1=0.5)
            t.step()
            seen.append(weights(t.gan)["discriminator." + next(iter(gan.discriminator.state_dict()))])
        assert torch.equal(seen[0], seen[1])
        assert not torch.equal(seen[0], seen[2])
    assert r1_gamma((3, 256, 256), 32) == pytest.approx(0.4096)
    assert r1_gamma((1, 512, 256), 8) == pytest.approx(3.2768)
    assert r1_gamma((65536,), 1) == 0.05


def test_losses_of_an_objective_add_up(vector_gan):
    """Losses with a backward pass each give the gradient of the sum; latents are the objective's, half as many."""
    seen = []
    for weight in (0.0, 3.0):
        twin = vector_gan.copy()
        first = twin.generator.net[0].weight

        class Two(Objective):
            def fakes(self, batch_size):
                return batch_size // 2

            def latents(self, gan, n):
                seen.append(n)
                return torch.ones(n, 4), None

            def generator_loss(self, step, first=first, weight=weight):
                loss = weight * first.square().sum()
                yield loss, {"other": loss / 2}
                yield from super().generator_loss(step)

        torch.manual_seed(6)
        t = trainer(twin, objective=Two(), batch_size=9)
        before = first.detach().clone()
        metrics = t.step()
        assert metrics["other"] == pytest.approx(weight * float(before.square().sum()) / 2) and "loss_g" in metrics
        seen.append(first.grad.clone())
    assert seen[:2] == seen[3:5] == [4, 4]
    torch.testing.assert_close(seen[5] - seen[2], 6 * before)


def test_an_objectives_state_is_the_steps(vector_gan):
    class Counting(Objective):
        count = 0

        def after_backward(self, step):
            self.count += 1
            return {"count": self.count}

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    first = trainer(vector_gan, objective=Counting())
    assert [first.step()["count"] for _ in range(3)] == [1, 2, 3]
    again = trainer(vector_gan.copy(), objective=Counting())
    again.load_state_dict(first.state_dict())
    assert again.step()["count"] == 4


def test_frozen_networks_are_trained_and_part_frozen_ones_stay_so(vector_gan):
    vector_gan.generator.requires_grad_(False)
    vector_gan.discriminator.net[1].weight.requires_grad_(False)
    before = weights(vector_gan)
    t = trainer(vector_gan)
    t.step()
    after = weights(vector_gan)
    assert not torch.equal(before["generator.net.0.weight"], after["generator.net.0.weight"])
    assert torch.equal(before["discriminator.net.1.weight"], after["discriminator.net.1.weight"])
    assert not torch.equal(before["discriminator.net.3.weight"], after["discriminator.net.3.weight"])
    assert not vector_gan.discriminator.net[1].weight.requires_grad


def test_state_goes_on_bit_for_bit(conv_gan):
    real = TensorSamples(torch.rand(5, 3, 8, 8) * 2 - 1)
    other = conv_gan.copy()
    a = trainer(conv_gan, real, r1_interval=2)
    for _ in range(3):
        a.step()
    state = copy.deepcopy(a.state_dict())
    for _ in range(2):
        a.step()
    b = trainer(other, real, r1_interval=2)
    torch.manual_seed(99)
    b.load_state_dict(state)
    for _ in range(2):
        b.step()
    mine, theirs = weights(conv_gan), weights(other)
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)


@pytest.mark.parametrize("where", ["real", "weights"])
def test_what_is_not_finite_stops_the_training(vector_gan, where):
    class Spoil(Objective):
        def after_backward(self, step):
            step.generator.net[0].bias.grad.fill_(float("inf"))
            return {}

    real = TensorSamples(torch.full((3, 2), float("nan"))) if where == "real" else REAL
    t = trainer(vector_gan, real, Spoil() if where == "weights" else None, batch_size=4)
    with pytest.raises(NonFiniteError, match=r"(loss_d|logit_real|weights) .*at step 1.*adversarial\.lr") as error:
        t.step()
    assert error.value.step == 1


def test_no_discriminator(vector_gan):
    vector_gan.discriminator = None
    with pytest.raises(ValueError, match="discriminator: this GAN has none"):
        trainer(vector_gan)


# --- stage 1: EWC


@pytest.mark.parametrize("relative", [False, True])
def test_ewc_gradient_is_that_of_the_formula(vector_gan, relative):
    params = list(vector_gan.generator.parameters())
    anchor, fisher = [torch.randn_like(p) for p in params], [torch.rand_like(p) for p in params]
    ewc = Ewc(vector_gan, anchor, fisher, 3.0, relative)
    weight = 3.0
    if relative:
        weight /= 0.5 * sum(float((f * a.square()).sum()) for f, a in zip(fisher, anchor, strict=True))
    value = sum((f * (p - a).square()).sum() for p, a, f in zip(params, anchor, fisher, strict=True)) * weight / 2
    expected = torch.autograd.grad(value, params)
    for p in params:
        p.grad = torch.ones_like(p)
    logged = ewc.after_backward(FIRST)
    assert logged["ewc"] == pytest.approx(value.item(), rel=1e-5)
    for p, e in zip(params, expected, strict=True):
        torch.testing.assert_close(p.grad - 1, e, rtol=1e-4, atol=1e-5)
    assert not any("anchor" in k or "fisher" in k for k in vector_gan.generator.state_dict())


# --- stage 2: repulsion


@pytest.mark.parametrize("loss", ["el2", "nl2", "il2"])
@pytest.mark.parametrize("d", [0.0, 0.3, 1.0, 3.9, 7.0])
def test_repulsion_is_the_formula_and_its_derivative(loss, d):
    settings = {"el2": EL2(alpha=1.7), "nl2": NL2(ceiling=4.0), "il2": IL2(epsilon=0.01)}[loss]
    x = torch.tensor(d, dtype=torch.float64, requires_grad=True)
    value = {
        "el2": (-1.7 * x).exp(),
        "nl2": -x.clamp(max=4.0),
        "il2": 1 / (x + 0.01),
    }[loss]
    value.backward()
    assert settings.value(d) == pytest.approx((value.item(), x.grad.item()), rel=1e-12)


def test_schedules():
    for name, middle, end in (("constant", 1, 1), ("linear", 0.5, 0), ("cosine", 0.5, 0)):
        values = [schedule(name, step, 100) for step in range(121)]
        assert values[0] == 1 and values[50] == pytest.approx(middle) and values[100:] == pytest.approx([end] * 21)
        assert values == sorted(values, reverse=True)
    assert schedule("linear", 0, 0) == 1


@pytest.mark.parametrize("loss", ["el2", "nl2", "il2"])
@pytest.mark.parametrize("reduction", ["sum", "tensor_mean", "relative"])
@pytest.mark.parametrize("n", [1, 3])
def test_repulsion_gradient_is_that_of_the_formula(loss, reduction, n):
    """The ensemble folded into one anchor against the mean over its members."""
    shapes = [(3, 2), (4,), ()]
    params = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    start = [p.detach() + 0.1 * torch.randn_like(p) for p in params]
    adapted = [[torch.randn(s, dtype=torch.float64) for s in shapes] for _ in range(n)]
    kind, own = {"el2": (EL2, {"alpha": 0.3}), "nl2": (NL2, {"ceiling": 1e9}), "il2": (IL2, {"epsilon": 0.1})}[loss]
    push = Repulsion(params, adapted, start, kind(reduction=reduction, gamma=2.5, **own), 0.0, 100)

    def d2(theta):
        members = [[(p - a).square() for p, a in zip(theta, model, strict=True)] for model in adapted]
        if reduction == "tensor_mean":
            return sum(sum(s.mean() for s in model) / len(shapes) for model in members) / n
        return sum(sum(s.sum() for s in model) for model in members) / n

    d = d2(params) / (d2(start) if reduction == "relative" else 1)
    value = {"el2": (-0.3 * d).exp(), "nl2": -d, "il2": 1 / (d + 0.1)}[loss]
    expected = torch.autograd.grad(2.5 * value, params)
    logged = push.after_backward(FIRST)
    assert logged["distance"] == pytest.approx(d.item(), rel=1e-9)
    assert logged["repulsion"] == pytest.approx(2.5 * value.item(), rel=1e-9)
    for p, e in zip(params, expected, strict=True):
        torch.testing.assert_close(p.grad, e, rtol=1e-8, atol=1e-12)


def test_gamma_is_set_from_the_gradients():
    params = [torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    start = [p.detach().clone() for p in params]
    push = Repulsion(params, [[torch.zeros(4, dtype=torch.float64)] * 2], start, EL2(), 0.25, 100)
    adversarial = [torch.randn_like(p) for p in params]
    for p, a in zip(params, adversarial, strict=True):
        p.grad = a.clone()
    push.after_backward(FIRST)
    added = torch.cat([p.grad - a for p, a in zip(params, adversarial, strict=True)])
    assert added.norm().item() == pytest.approx(0.25 * torch.cat(adversarial).norm().item(), rel=1e-6)
    # away from the adapted weights (0): against the gradient step's sign, the parameters grow
    torch.testing.assert_close(-added / added.norm(), torch.cat(start) / torch.cat(start).norm())


def test_adapted_weights_that_are_the_start_are_refused():
    params = [torch.randn(3, requires_grad=True)]
    with pytest.raises(ValueError, match="repel_from"):
        Repulsion(params, [[params[0].detach().clone()]], [params[0].detach().clone()], EL2(), 1.0, 100)
