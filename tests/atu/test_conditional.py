"""Labels of a conditional GAN's own samples stay with them through both stages."""

import torch
from torch import nn

import atu
from atu.adversarial import AdversarialTrainer
from atu.config import Adversarial
from atu.data import TensorSamples


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
    trainer = AdversarialTrainer(gan, samples, Adversarial(batch_size=8))
    for _ in range(3):
        x, labels = trainer.real_batch()
        assert torch.equal(x[:, 0], labels.argmax(1).float())


def test_the_discriminator_sees_matching_labels_in_both_roles():
    gan = atu.GAN(LabelledGenerator(), LabelRecorder())
    negatives = gan.sample(40, seed=1)[:20]
    config = dict(
        feedback=dict(pool=64),
        adapt=dict(steps=0, fisher=dict(n=1)),
        repel=dict(steps=2, loss="none", guide_weight=0.0, negatives_weight=0.0, check_samples=20),
    )
    result = atu.unlearn(gan, negatives, is_negative=lambda x: x[:, 0] == 2, config=config)
    recorder = result.gan.discriminator
    seen = [(x, c) for x, c in recorder.pairs if len(x) == 32]
    assert seen
    for x, c in seen:
        assert torch.equal(x[:, 0], c.argmax(1).float())
