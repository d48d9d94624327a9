"""A classifier of negatives grown from the pretrained discriminator: the rejection signal of stage 2.

Beyond the paper. The adversarial game alone is slow to notice a few remaining negatives; the guide tells the generator
about each of them, and says nothing (a gradient near 0) about samples that are clearly not negative.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from .adversarial import Samples
from .augment import augment
from .gan import GAN, fork_rng


class Guide:
    """Binary classifier with the discriminator's architecture, started from its weights.

    Args:
        gan: pretrained pair. negatives, positives: samples of the two classes, drawn equally often.
        steps, batch_size: of Adam on the logistic loss. policy: augmentation while training (see `atu.augment`); unset,
            translations when there are fewer than 100 negatives. With more it only blurs the boundary.
        seed: of the batches; the same seed gives the same guide.
    """

    def __init__(
        self,
        gan: GAN,
        negatives: Samples,
        positives: Samples,
        steps: int,
        batch_size: int = 64,
        policy: str | None = None,
        seed: int = 0,
    ):
        self.gan = gan
        self.discriminator = copy.deepcopy(gan.discriminator).train().requires_grad_(True)  # type: ignore[union-attr]
        lr, betas = (0.002, (0.0, 0.99)) if gan.is_stylegan else (0.001, (0.5, 0.99))
        self.optim = torch.optim.Adam(self.discriminator.parameters(), lr=lr, betas=betas)
        if policy is None:
            policy = "translation" if len(negatives) < 100 else ""
        self.policy, half = policy, max(batch_size // 2, 1)
        with fork_rng(gan.device, seed):
            for _ in range(steps):
                pair = [samples.batch(torch.randint(len(samples), (half,))) for samples in (negatives, positives)]
                self.learn(*pair)
        self.discriminator.eval().requires_grad_(False)

    def learn(self, negatives: Tensor, positives: Tensor) -> None:
        """One step of Adam on samples of either class."""
        labels = torch.cat([torch.ones(len(negatives)), torch.zeros(len(positives))])
        order = torch.randperm(len(labels))  # shuffled, so that minibatch statistics give nothing away
        x = torch.cat([negatives.to(self.gan.device), positives.to(self.gan.device)])[order]
        self.discriminator.train().requires_grad_(True)
        logits = self.log_odds(augment(x, self.policy))
        loss = F.binary_cross_entropy_with_logits(logits, labels[order].to(logits))
        self.optim.zero_grad(set_to_none=True)
        loss.backward()
        self.optim.step()
        self.discriminator.eval().requires_grad_(False)

    def log_odds(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Log-odds of being negative [N] of samples, were half of them so; differentiable in x."""
        if c is None:
            c = self.gan.labels(len(x), torch.default_generator)
        return self.gan.logits(x, c, self.discriminator)
