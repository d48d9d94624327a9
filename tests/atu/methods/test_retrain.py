"""retrain: from scratch, without what the oracle calls negative; and the average that follows at first."""

import pytest
import torch

from atu import unlearn
from atu.config import Adversarial
from atu.data.samples import TensorSamples
from atu.judging.feedback import Feedback
from atu.methods.retrain import without_negatives
from atu.training.step import AdversarialStep, Objective

from .kinds import bright, marked, mlp, quick


def test_retrain_starts_anew_and_ends_with_a_falling_rate(monkeypatch):
    gan = mlp()
    rates = []

    step = AdversarialStep.step

    def note(trainer):
        rates.append(trainer.optim_g.param_groups[0]["lr"] / trainer.base_lr[0])
        return step(trainer)

    monkeypatch.setattr(AdversarialStep, "step", note)
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
    feedback.rule = lambda x: x[:, 0, 0, 0] > -2
    with pytest.raises(ValueError, match="positives: the oracle calls 10 of 10 negative"):
        without_negatives(mlp(), feedback)
    feedback.has_oracle = False
    assert without_negatives(mlp(), feedback) == (feedback.positives, 0)


def test_average_follows_at_first():
    """half life min(h, ramp * images seen): at the first step the average is the generator."""
    gan = mlp()
    trainer = AdversarialStep(
        gan,
        TensorSamples(torch.rand(9, 1, 8, 8)),
        Objective(),
        Adversarial(batch_size=4, ema_half_life=20.0, ema_ramp=0.5),
    )
    expected = None
    for step in range(14):
        trainer.step()
        half_life = min(20.0, 0.5 * 4 * step)
        beta = 0.5 ** (4 / half_life) if half_life else 0.0
        now = gan.generator.net[0].weight.detach()
        expected = now.clone() if expected is None else beta * expected + (1 - beta) * now
        torch.testing.assert_close(gan.generator_ema.net[0].weight, expected)
