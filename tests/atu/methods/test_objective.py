"""Stage 2's terms, and the guide that they go by, against the written formulas."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from atu import config
from atu.data.samples import TensorSamples
from atu.gan import GAN
from atu.judging.feedback import Feedback
from atu.methods.adapt_then_unlearn import preparation
from atu.methods.adapt_then_unlearn.defaults import resolved
from atu.methods.adapt_then_unlearn.distance import SampleDistance
from atu.methods.adapt_then_unlearn.guide import MAX_ROUNDS, UNSURE, Guide, GuideTraining
from atu.methods.adapt_then_unlearn.nearby import MARGIN, MovedLatents
from atu.methods.adapt_then_unlearn.objective import UnlearnObjective, Weights
from atu.methods.adapt_then_unlearn.preparation import prepare
from atu.methods.adapt_then_unlearn.ways import WayLatents
from atu.methods.registry import Task
from atu.support.context import RunContext
from atu.support.modules import copied
from atu.training.step import AdversarialStep
from examples.pretrain import mnist_stylegan2


def prepared_for(gan, feedback, repel, steps=800, saved=None):
    """What is learnt before stage 2 with these settings."""
    return prepare(Task(gan, feedback, config.Config(repel=repel), None, 0), steps, saved)


def stage_2(gan, twin, prepared, repel):
    """(objective, step) of stage 2, without the repulsion."""
    repel = resolved(gan, repel)
    weights = Weights(repel.guide_weight, repel.nearby_weight, repel.hold_weight)
    objective = UnlearnObjective(weights, None, prepared.feedback, prepared)
    return objective, AdversarialStep(twin, prepared.feedback.positives, objective, repel.adversarial)


def size(latents):
    return len(latents) + len(latents.waiting)


def test_the_terms_are_the_formulas(image_gan, monkeypatch):
    """Its three terms against the probabilities of the guide's own discriminator, and distances in the variance."""
    positives, negatives = torch.rand(80, 1, 8, 8) - 1, torch.rand(20, 1, 8, 8)
    twin = image_gan.copy()
    with torch.no_grad():
        twin.generator.net[0].bias.add_(0.3)
    z, _ = image_gan.inputs(5, 3)
    half = config.Adversarial(batch_size=16)
    made = image_gan.sample(40, 5).flatten(1).mean(1)
    above = float(made.median())

    def is_negative(x):
        return x.flatten(1).mean(1) > above

    feedback = Feedback(TensorSamples(negatives), TensorSamples(positives), is_negative, False, 0.2, {}, (z, None))
    cfg = config.Repel(
        guide_weight=0.7,
        hold_weight=0.3,
        nearby_weight=0.2,
        guide_steps=100,
        adversarial=half,
    )
    monkeypatch.setattr(preparation, "SampleDistance", partial(SampleDistance, share=0.0))
    prepared = prepared_for(image_gan, feedback, cfg)
    objective, step = stage_2(image_gan, twin, prepared, cfg)
    fake = torch.cat([positives[:4], negatives[:4]])
    wanted = fake + torch.arange(8.0).reshape(8, 1, 1, 1) / 10
    torch.manual_seed(5)
    parts = objective.fresh_half(step)
    seen, target = prepared.guide.look(fake), prepared.guide.look(wanted)
    parts |= {"guide": objective.guide(seen), "nearby": objective.nearby(seen, target)}
    torch.manual_seed(5)
    latents = torch.randn(8, 4)
    variance = positives.double().var(0).mean()
    judge = prepared.guide.discriminator

    def good(x):
        return torch.sigmoid(-judge(x)).flatten().double()

    before, after = image_gan.generator(latents).detach(), twin.generator(latents)
    kept = (~is_negative(before) & (good(before) >= 0.5)).double()  # no oracle: the guide says too
    assert 0 < kept.sum() < 8
    unwanted = is_negative(before) | is_negative(after) | (good(after) < 0.5)
    assert 0 < unwanted.sum() < 8
    guide, guide_held = -good(fake).log().mean(), -(unwanted * good(after).log()).mean()
    nearby = (good(wanted) * ((torch.arange(8.0).double() / 10) ** 2 / variance + 1e-3).sqrt()).mean()
    held = (kept * good(before) * (after - before).double().square().mean((1, 2, 3)) / variance).mean()
    expected = {"nearby": 0.2 * nearby, "guide": 0.7 * guide, "held": 0.3 * held, "guide_fresh": 0.7 * guide_held}
    assert parts.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(parts[name].double(), value, rtol=1e-4, atol=1e-6)
    assert (
        float(good(fake[:4]).detach().min()) > 0.8 and float(good(fake[4:]).detach().max()) < 0.2
    )  # the guide has learnt


def test_fresh_latents_of_negatives_join_the_bank(image_gan):
    """Fresh latents of which the original makes negatives; and the state resumes."""
    images = TensorSamples(torch.rand(9, 1, 8, 8))
    above = float(image_gan.sample(40, 5).flatten(1).mean(1).median())
    known = image_gan.inputs(3, 1)
    feedback = Feedback(images, images, lambda x: x.flatten(1).mean(1) > above, True, 0.5, {}, known)
    settings = config.Repel(guide_steps=1)

    def new():
        prepared = prepared_for(image_gan, feedback, settings)
        return prepared.bank.latents, *stage_2(image_gan, image_gan.copy(), prepared, settings)

    bank, objective, step = new()
    torch.manual_seed(1)
    for _ in range(18):
        before = size(bank)
        objective.fresh_half(step)
        assert size(bank) > before
    assert len(bank) > 3
    flags = feedback.rule(image_gan.generator(bank.z[3:]))
    assert flags.all()
    objective.fresh_half(step)
    other, objective_2, step_2 = new()
    other.load_state_dict(copy.deepcopy(bank.state_dict()))
    for one, at in ((objective, step), (objective_2, step_2)):
        torch.manual_seed(2)
        for _ in range(18):
            one.fresh_half(at)
    assert torch.equal(bank.z, other.z)
    assert torch.equal(bank.good, other.good)


def test_the_banks_half_meets_the_discriminator_with_the_originals_noise():
    """Half as many latents as real samples, of the bank alone; at first the original makes the same samples."""
    gan = mnist_stylegan2()
    with torch.no_grad():
        gan.generator.synthesis.b8.conv1.noise_strength.fill_(1.0)
    images = TensorSamples(torch.rand(9, *gan.sample_shape))
    feedback = Feedback(images, images, lambda x: x.flatten(1).mean(1) > 9, True, 0.5, {}, gan.inputs(2, 1))
    settings = config.Repel(guide_steps=1, adversarial=config.Adversarial(batch_size=7))
    prepared = prepared_for(gan, feedback, settings, 1)
    bank = prepared.bank.latents
    bank.good = bank.z.clone()
    objective, step = stage_2(gan, gan.copy(), prepared, settings)
    assert step.fakes == 3
    z, c = step.latents(step.fakes, step.group)
    assert all(any(torch.equal(row, one) for one in bank.z) for row in z)
    target, fake = objective._original(step, z, c), step.fake(z, c)
    assert torch.equal(target.samples, fake.samples) and not torch.equal(fake.samples, step.fake(z, c).samples)
    terms = objective.bank_half(step)
    assert list(terms) == ["loss_g", "nearby", "guide"]
    assert float(terms["nearby"].detach()) == pytest.approx(float(objective.nearby(target, target)), rel=0.2)


@pytest.mark.parametrize("at_once", [1, 4, 300])
def test_the_features_units_are_variances_however_many_pass_at_once(image_gan, at_once):
    x, images = torch.rand(9, 1, 8, 8), TensorSamples(torch.rand(9, 1, 8, 8))
    guide = Guide(image_gan, GuideTraining(steps=1))
    guide.learn_from(images, images)
    expected = [f.double().var(0).mean() for f in guide.look(x).features]
    with RunContext(batch=at_once):
        found = SampleDistance(guide, x, 0.5).units
    torch.testing.assert_close([unit.double() for unit in found], expected, rtol=1e-4, atol=1e-9)
    one = SampleDistance(guide, x[:1], 0.5)(guide.look(x[:1]), guide.look(x[1:2]))
    assert torch.isfinite(one).all()  # a sample alone has no variance


def test_each_kind_of_gan_has_its_bank(image_gan):
    """In a StyleGAN latents are moved one by one, in others they go a few ways."""
    for gan, kind in ((image_gan, WayLatents), (mnist_stylegan2(), MovedLatents)):
        images = TensorSamples(torch.rand(9, *gan.sample_shape))
        feedback = Feedback(images, images, lambda x: x.flatten(1).mean(1) > 9, False, 0.5, {}, gan.inputs(2, 1))
        bank = prepared_for(gan, feedback, config.Repel(guide_steps=1), 1).bank.latents
        z, c, near = bank.draw(3)
        assert isinstance(bank, kind) and near.shape == z.shape and c is None


@pytest.mark.parametrize("at_once", [None, 3])
def test_guide_slope_is_penalised(image_gan, at_once):
    """One step with the gradient penalty is Adam on the written sum, in parts or not; the next three are without it."""
    negatives, positives = torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8) - 1
    guide = Guide(image_gan, GuideTraining(steps=0, slope_weight=0.6, at_once=at_once))
    other = copy.deepcopy(guide.discriminator).requires_grad_(True)
    optim = torch.optim.Adam(other.parameters(), lr=0.001, betas=(0.5, 0.99))
    x = torch.cat([negatives, positives])
    for step in range(5):
        guide.learn(negatives, positives)
        x.requires_grad_(True)
        p = torch.sigmoid(other(x)).flatten()
        loss = -(p[:4].log().sum() + (1 - p[4:]).log().sum()) / 8
        if step % 4 == 0:
            (slope,) = torch.autograd.grad(other(x).sum(), x, create_graph=True)
            loss = loss + 4 * 0.3 * 2.0 * slope.square().sum((1, 2, 3)).mean()
        optim.zero_grad()
        loss.backward()
        optim.step()
    for p, q in zip(guide.discriminator.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_weights_that_are_auto_suit_the_kind_of_gan(image_gan, vector_gan):
    gans, settings = (mnist_stylegan2(), image_gan, vector_gan), config.Repel()
    assert [resolved(gan, settings).hold_weight for gan in gans] == [45, 60, 60]
    assert [resolved(gan, settings).nearby_weight for gan in gans] == [8, 8, 1]
    for given in (0.0, 7.0):
        settings = config.Repel(hold_weight=given, nearby_weight=given)
        for gan in gans:
            assert resolved(gan, settings).hold_weight == resolved(gan, settings).nearby_weight == given


def test_a_stylegan_that_is_held_takes_half_of_the_steps_at_twice_the_rate(image_gan):
    held, paper = config.Repel(), config.Config.of("el2").repel
    own = config.Repel(steps=7, adversarial=config.Adversarial(lr=0.03))
    gan, big = mnist_stylegan2(), mnist_stylegan2()
    big._sample_shape = (3, 256, 256)

    def steps_and_rate(gan, cfg):
        return resolved(gan, cfg).steps, resolved(gan, cfg).adversarial.lr

    assert steps_and_rate(big, held) == (800, None)
    assert [steps_and_rate(gan, cfg) for cfg in (held, paper, own)] == [(400, 0.004), (800, None), (7, 0.03)]
    assert [steps_and_rate(image_gan, cfg) for cfg in (held, paper, own)] == [(2500, None), (2500, None), (7, 0.03)]


@pytest.mark.parametrize("steps, rounds", [(400, MAX_ROUNDS), (1, 3)])
def test_guide_learns_from_batches_of_one(image_gan, steps, rounds):
    """Big samples may leave room for one at a time; and a guide that is never sure learns on for no more than twice
    the steps of stage 2."""
    images = TensorSamples(torch.rand(5, 1, 8, 8))
    settings = config.Repel(guide_steps=1, adversarial=config.Adversarial(batch_size=1))
    guide = prepared_for(image_gan, Feedback(images, images, is_bright, True, 0.2, {}), settings, steps).guide
    guide.look(torch.rand(1, 1, 8, 8))
    assert guide.step_count == rounds  # the same samples are negatives and positives
    assert all(torch.isfinite(p).all() for p in guide.discriminator.parameters())


def test_guide_learns_on_while_it_errs(image_gan):
    """Bright and dark images are soon told apart; a few pixels take longer; and what cannot be told takes all."""
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(64, 1, 8, 8, generator=rng) - 0.5

    def steps(negatives, steps=120):
        guide = Guide(image_gan, GuideTraining(steps, batch_size=16))
        guide.learn_from(TensorSamples(negatives), TensorSamples(images))
        return guide, guide.step_count // steps

    assert steps(images + 1)[1] == 1
    dotted = images.clone()
    dotted[..., 3, 4] = 1.0
    guide, rounds = steps(dotted)
    assert 1 < rounds < MAX_ROUNDS
    right = (guide.log_odds(dotted) > 0).float().mean() + (guide.log_odds(images) < 0).float().mean()
    assert float(right) / 2 > 1 - UNSURE - 0.03  # of other draws of the same
    assert steps(images)[1] == MAX_ROUNDS


class Bounded(nn.Module):
    """A discriminator's logits between -1 and 1."""

    def __init__(self, discriminator):
        super().__init__()
        self.inner = discriminator

    def forward(self, x):
        y = self.inner(x)
        return torch.sigmoid(y) - torch.sigmoid(-y)


def test_guide_of_bounded_logits_has_a_head(image_gan):
    """It says at first what the discriminator says, learns what -1 to 1 cannot say, and is saved with its head."""
    gan = GAN(image_gan.generator, Bounded(copied(image_gan.discriminator)))
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    guide = Guide(gan, GuideTraining(1200, batch_size=16))
    torch.testing.assert_close(guide.log_odds(images), gan.logits(images), rtol=0, atol=0)
    guide.learn_from(TensorSamples(images + 1), TensorSamples(images))
    assert float(guide.log_odds(images).mean()) < -MARGIN < MARGIN < float(guide.log_odds(images + 1).mean())
    loaded = Guide(gan, GuideTraining(0))
    loaded.load_state_dict(guide.state_dict())
    torch.testing.assert_close(loaded.look(images).log_odds, guide.log_odds(images), rtol=0, atol=0)
    assert Guide(image_gan, GuideTraining(0)).head is None


@pytest.mark.parametrize("is_oracle", [True, False])
def test_guide_rests_in_stage_2(image_gan, is_oracle):
    """It says of a sample what it said before the first step, an oracle or not."""
    bright = torch.rand(60, 1, 8, 8) * 0.2 + 0.7
    sides = bright[:20] * torch.tensor([1.0, 1, 1, 1, -1, -1, -1, -1])
    feedback = Feedback(
        TensorSamples(sides), TensorSamples(bright * 0), is_bright, is_oracle, 0.2, {}, image_gan.inputs(3, 1)
    )

    settings = config.Repel(guide_steps=40)
    prepared = prepared_for(image_gan, feedback, settings)
    _, step = stage_2(image_gan, image_gan.copy(), prepared, settings)
    before = prepared.guide.log_odds(bright)
    step.objective.after_backward = lambda step: {}
    for _ in range(20):
        step.step()
    assert torch.equal(prepared.guide.log_odds(bright), before)


@pytest.mark.parametrize("is_stylegan", [False, True])
def test_what_was_prepared_is_not_learnt_again(image_gan, is_stylegan, monkeypatch):
    """An interrupted run goes on with the guide, the positives and the bank that it had, of either kind."""
    gan = mnist_stylegan2() if is_stylegan else image_gan
    rng = torch.Generator().manual_seed(0)
    dark = torch.rand(80, *gan.sample_shape, generator=rng) * 0.2 - 0.9
    images = torch.cat([dark[:40] + 1.6, dark])
    marked, positives = TensorSamples(images[:20]), TensorSamples(images[20:])
    known = gan.inputs(3, 1)
    feedback = Feedback(marked, positives, lambda x: is_bright(x) & False, False, 0.2, {}, known, missed=0.2)
    settings = config.Repel(guide_steps=12)
    first = prepared_for(gan, feedback, settings, 12)
    saved = copy.deepcopy(first.state_dict())
    monkeypatch.setattr(Guide, "learn", None)
    monkeypatch.setattr(type(first.bank.latents), "_moved_all", None)
    again = prepared_for(gan, feedback, settings, 12, saved)
    left = [one.feedback.positives.tensor for one in (first, again)]
    assert torch.equal(*left) and 80 <= len(left[0]) < 100 and first.threshold == again.threshold
    assert torch.equal(first.guide.log_odds(images), again.guide.log_odds(images))
    for name, value in first.bank.latents.state_dict().items():
        assert torch.equal(value, again.bank.latents.state_dict()[name]), name


def test_preparing_leaves_the_runs_random_state_alone(conv_gan):
    """Of a conditional GAN it draws labels; a run that was stopped after it goes on as if it had not been."""
    images = conv_gan.sample(60, 1)
    feedback = Feedback(
        TensorSamples(images[:20]),
        TensorSamples(images[20:]),
        is_bright,
        False,
        0.2,
        {},
        conv_gan.inputs(3, 1),
        missed=9,
    )
    saved, drawn = None, []
    for _ in range(2):
        torch.manual_seed(4)
        prepared = prepared_for(conv_gan, feedback, config.Repel(guide_steps=3), 3, saved)
        drawn.append(torch.rand(3))
        saved = copy.deepcopy(prepared.state_dict())
    assert torch.equal(*drawn)


def test_a_run_that_was_prepared_with_other_positives_is_told(image_gan):
    images = TensorSamples(torch.rand(30, 1, 8, 8) - 1)
    feedback = Feedback(images, images, is_bright, False, 0.2, {}, image_gan.inputs(3, 1))
    saved = prepared_for(image_gan, feedback, config.Repel(guide_steps=1), 3).state_dict()
    feedback.positives = TensorSamples(images.tensor[:29])
    with pytest.raises(ValueError, match="out: this run was prepared with 30 positives, and now there are 29"):
        prepared_for(image_gan, feedback, config.Repel(guide_steps=1), 3, saved)


@pytest.mark.parametrize("is_oracle", [True, False])
def test_guide_learns_anew_without_what_the_probe_passed_over(image_gan, is_oracle):
    """A third of the positives are like the marks: an oracle has said that they are not, a probe is not believed. The
    guide's word counts beside the probe's from then on."""
    rng = torch.Generator().manual_seed(0)
    dark = torch.rand(110, 1, 8, 8, generator=rng) * 0.2 - 0.9
    images = torch.cat([dark[:60] + 1.6, dark])
    marked, positives = TensorSamples(images[:30]), TensorSamples(images[30:])
    known = image_gan.inputs(3, 1)
    feedback = Feedback(marked, positives, lambda x: is_bright(x) & False, is_oracle, 0.2, {}, known, missed=0.4)
    settings = config.Repel(guide_steps=150)
    prepared = prepared_for(image_gan, feedback, settings)
    left = prepared.feedback.positives.tensor
    says = torch.sigmoid(prepared.guide.log_odds(images))
    if is_oracle:
        assert left is positives.tensor
        assert 0.6 < float(says[30:60].mean()) < 0.85  # of marks and positives 1 and 3/8 are so: 8/11
    else:
        assert not is_bright(left).any() and torch.equal(left, images[60:]) and float(says[:60].min()) > 0.9
    objective, step = stage_2(image_gan, image_gan.copy(), prepared, settings)
    bank = prepared.bank.latents
    original, bank.original = bank.original, lambda z, c: original(z, c) * 0 + 0.7
    before = size(bank)
    objective.fresh_half(step)
    assert (size(bank) > before) != is_oracle
    before, prepared.threshold = size(bank), 1e9
    terms = objective.fresh_half(step)  # suspected, but not of the likeliest: neither held nor in the bank
    assert size(bank) == before
    assert (float(terms["held"].detach()) > 0) == is_oracle


def is_bright(x):
    return x.flatten(1).mean(1) > 0.5
