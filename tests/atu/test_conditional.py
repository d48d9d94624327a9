"""Labels of a conditional GAN's own samples stay with them through both stages."""

from typing import ClassVar

import pytest
import torch
from torch import nn

import atu
from atu.config import Adversarial
from atu.data.samples import TensorSamples
from atu.gan import label_choice
from atu.judging.positives import fill_labels
from atu.training.step import AdversarialStep, Objective


class LabelledGenerator(nn.Module):
    """Samples whose first coordinate is the index of their label."""

    z_dim, c_dim = 2, 3

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones([]))

    def forward(self, z, c):
        return torch.cat([(c @ torch.arange(3.0))[:, None], self.scale * z[:, :1]], 1)


class LabelRecorder(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.pairs = []

    def forward(self, x, c):
        self.pairs.append((x.detach().clone(), c.clone()))
        return x @ self.weight


def test_generated_positives_keep_their_labels():
    gan = atu.GAN(LabelledGenerator(), LabelRecorder())
    _, c = gan.inputs(50, seed=3)
    samples = TensorSamples(gan.sample(50, seed=3), c)
    trainer = AdversarialStep(gan, samples, Objective(), Adversarial(batch_size=8))
    for _ in range(3):
        x, labels = trainer.real_batch()
        assert torch.equal(x[:, 0], labels.argmax(1).float())


def test_the_discriminator_sees_matching_labels_in_both_roles():
    gan = atu.GAN(LabelledGenerator(), LabelRecorder())
    negatives = gan.sample(40, seed=1)[:20]
    config = dict(
        feedback=dict(pool=64),
        adapt=dict(steps=0, fisher=dict(n=1)),
        repel=dict(steps=2, strength=0.0, guide_weight=0.0, check_samples=20),
    )
    result = atu.unlearn(gan, negatives, is_negative=lambda x: x[:, 1] > 1, config=config)  # across labels
    recorder = result.gan.discriminator
    seen = [(x, c) for x, c in recorder.pairs if len(x) == 32]
    assert seen
    for x, c in seen:
        assert torch.equal(x[:, 0], c.argmax(1).float())


def test_given_labels_stay_with_the_negatives():
    """As real ones in stage 1; without labels they are drawn."""

    class Shared(LabelRecorder):
        pairs: ClassVar[list] = []  # of its copies too

        def __init__(self):
            super().__init__()
            del self.pairs

    negatives = torch.full((20, 2), 7.0)
    config = dict(feedback=dict(pool=64), adapt=dict(steps=2, fisher=dict(n=1)))
    for given, expected in (((negatives, 1), {1}), ((negatives, torch.zeros(20).long()), {0}), (negatives, {0, 1, 2})):
        Shared.pairs.clear()
        atu.adapt(atu.GAN(LabelledGenerator(), Shared()), given, lambda x: x[:, 0] > 5, config)
        seen = [(x, c) for x, c in Shared.pairs if len(x) == 32 and (x == 7).all()]
        assert len(seen) >= 2
        assert {int(k) for _, c in seen for k in c.argmax(1)} == expected


def test_a_label_that_lost_its_positives_gets_those_of_the_others():
    labels = torch.eye(3)[torch.arange(60) % 3]
    x = labels.argmax(1).float()[:, None].expand(-1, 2)
    kept = labels[:, 1] == 0
    filled, added = fill_labels(TensorSamples(x[kept], labels[kept]), labels, seed=0)
    assert added == {1: 20}
    assert filled.labels.sum(0).tolist() == [20, 20, 20]
    assert set(filled.tensor[filled.labels[:, 1] == 1][:, 0].tolist()) == {0.0, 2.0}
    # Nothing is done where each label keeps some, or where labels are no classes.
    same, added = fill_labels(TensorSamples(x, labels), labels, seed=0)
    assert not added and len(same) == 60
    soft = labels * 0.5
    assert fill_labels(TensorSamples(x[kept], soft[kept]), soft, seed=0)[1] == {}


@pytest.mark.parametrize(
    ("labels", "message"),
    [(5, "expected labels 0 to 2, got 5"), (torch.tensor([0, 1]), "a label for each of 20 samples, got 2")],
)
def test_wrong_labels_of_negatives(labels, message):
    gan = atu.GAN(LabelledGenerator(), LabelRecorder())
    with pytest.raises(ValueError, match=message):
        atu.unlearn(gan, (torch.zeros(20, 2), labels))


def test_label_choice_draws_in_proportion():
    draw = label_choice(4, {1: 3.0, 3: 1.0})
    c = draw(4000, torch.Generator().manual_seed(0))
    share = c.mean(0)
    assert share[0] == share[2] == 0
    assert abs(float(share[1]) - 0.75) < 5 * (0.75 * 0.25 / 4000) ** 0.5
    assert draw(0, torch.Generator()).shape == (0, 4)
    for weights in ({4: 1.0}, {0: 0.0}, {-1: 1.0}):
        with pytest.raises(ValueError, match="label: expected"):
            label_choice(4, weights)
