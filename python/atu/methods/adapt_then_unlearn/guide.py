"""The guide: a classifier of negatives grown from the pretrained discriminator.

Beyond the paper. The adversarial loss alone is slow to notice a few remaining negatives. The guide's gradient points at
each of them, and is near 0 for samples that are clearly not negative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.augment import augment
from ...data.samples import Samples
from ...gan import GAN
from ...measures.features import last_input, listening, sample_layers
from ...measures.logits import has_bounded_logits
from ...support import progress
from ...support.modules import copied
from ...support.seeding import fork_rng
from ...training.schedules import lr_decay, set_lr
from .defaults import defaults_for

# Share of the steps, the last ones, over which the learning rate falls to 0. At a full rate the verdict on samples at
# the boundary is chance.
DECAY = 0.5
MAX_ROUNDS = 5  # of its steps
UNSURE = 0.05  # another round follows if the guide is wrong about more than this share in the last quarter of its steps
PENALTY_INTERVAL = 4  # steps from one gradient penalty to the next, which counts that many times


class Seen(NamedTuple):
    """Samples [N, ...], the guide's log-odds [N] that they are negative, and the inputs [N, ...] of each of its layers
    but the first, in the precision of the pass."""

    samples: Tensor
    log_odds: Tensor
    features: list[Tensor]

    def rows(self, index: Tensor) -> Seen:
        return Seen(self.samples[index], self.log_odds[index], [f[index] for f in self.features])


@dataclass(frozen=True)
class GuideTraining:
    """How a guide is trained.

    steps, batch_size: of Adam on the logistic loss. rounds: of so many steps, at most; more than one only while the
    guide is often wrong, as it is at first about small things. slope_weight: of the gradient penalty. policy:
    augmentation (see `atu.data.augment`). seed: of the batches; the same seed gives the same guide. at_once: samples
    that pass at once (gradients are summed over the parts of a batch); all when not given.
    """

    steps: int
    batch_size: int = 64
    slope_weight: float = 0.0
    policy: str = ""
    seed: int = 0
    at_once: int | None = None
    rounds: int = MAX_ROUNDS


class Guide:
    """Binary classifier with the discriminator's architecture, started from its weights.

    Its gradient moves the generator, so its slope at the samples is penalised as R1 does a discriminator's (Mescheder
    et al., arXiv 1801.04406): by slope_weight mean |d logit / d x|^2. Bounded logits could call nothing clearly good,
    so a linear head, of what the last layer takes in, is added to them.
    """

    def __init__(self, gan: GAN, training: GuideTraining):
        self.gan, self.training, self.step_count = gan, training, 0
        assert gan.discriminator is not None
        self.layers = sample_layers(gan)  # the guide's layers have the same names
        self.discriminator = copied(gan.discriminator).eval().requires_grad_(False)
        self.head = self._head()
        self.networks = nn.ModuleList([self.discriminator] if self.head is None else [self.discriminator, self.head])
        own = defaults_for(gan)
        self.lr, betas = own.guide_lr, (own.guide_beta1, 0.99)
        self.optim = torch.optim.Adam(self.networks.parameters(), lr=self.lr, betas=betas)

    def _head(self) -> nn.Linear | None:
        """Gives 0 before it is trained; None if the discriminator's own is unbounded."""
        x = torch.zeros(2, *self.gan.sample_shape, device=self.gan.device)
        if not has_bounded_logits(self.gan, x):
            return None
        with torch.no_grad():
            _, last = self._logits(x, self.gan.labels(2, torch.Generator().manual_seed(0)))
        head = nn.Linear(last.shape[1], 1, device=self.gan.device).requires_grad_(False)
        for weight in head.parameters():
            nn.init.zeros_(weight)
        return head

    def learn_from(self, negatives: Samples, positives: Samples) -> None:
        """Train on samples of the two classes, drawn equally often."""
        steps, half = self.training.steps, max(self.training.batch_size // 2, 1)
        with fork_rng(self.gan.device, self.training.seed):
            for _ in range(self.training.rounds if steps else 0):
                wrong = []
                for step in progress.track("guide", range(steps), steps):
                    set_lr(self.optim, self.lr * lr_decay(step / steps, DECAY))
                    pair = [samples.batch(torch.randint(len(samples), (half,))) for samples in (negatives, positives)]
                    wrong.append(self.learn(*pair))
                if float(torch.stack(wrong[-max(steps // 4, 1) :]).mean()) <= UNSURE:
                    break
        # Gradients and moments would take memory all through stage 2.
        self.optim.zero_grad(set_to_none=True)
        self.optim.state.clear()

    def learn(self, negatives: Tensor, positives: Tensor) -> Tensor:
        """One step of Adam on samples of both classes; returns the share that it was wrong about before the step."""
        labels = torch.cat([torch.ones(len(negatives)), torch.zeros(len(positives))])
        order = torch.randperm(len(labels))  # so that minibatch statistics do not tell the classes apart
        x = torch.cat([negatives.to(self.gan.device), positives.to(self.gan.device)])[order]
        self.networks.train().requires_grad_(True)
        x, labels = augment(x, self.training.policy, self.gan.image_range), labels[order]
        at_once = self.training.at_once or len(x)
        self.optim.zero_grad(set_to_none=True)
        log_odds = []
        for part, part_labels in zip(x.split(at_once), labels.split(at_once), strict=True):
            loss, part_log_odds = self._loss(part, part_labels)
            (loss * (len(part) / len(x))).backward()
            log_odds.append(part_log_odds.detach())
        self.optim.step()
        self.step_count += 1
        self.networks.eval().requires_grad_(False)
        return ((torch.cat(log_odds) > 0) != (labels > 0).to(self.gan.device)).float().mean()

    def _loss(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(logistic loss, with the gradient penalty in the steps that have one; log-odds [N])."""
        lazy = self.training.slope_weight > 0 and self.step_count % PENALTY_INTERVAL == 0
        logits = self.log_odds(x.requires_grad_(lazy), twice=len(x) if lazy else None)
        loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits))
        if lazy:
            (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
            loss = loss + PENALTY_INTERVAL * self.training.slope_weight * slope.square().flatten(1).sum(1).mean()
        return loss, logits

    def log_odds(self, x: Tensor, c: Tensor | None = None, twice: int | None = None) -> Tensor:
        """Log-odds [N] that samples are negative, if half of all were; differentiable in x. twice: as in
        `GAN.autocast`."""
        if c is None:
            c = self.gan.labels(len(x), torch.default_generator)
        with self.gan.autocast_unscaled(twice):
            if self.head is None:
                return self.gan.logits(x, c, self.discriminator)
            logits, last = self._logits(x, c)
        with torch.autocast(x.device.type, enabled=False):
            return logits + self.head(last.to(self.head.weight)).squeeze(1)

    def _logits(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """The discriminator's own logits [N], and what its last layer takes in [N, F]."""
        with last_input(self.discriminator, self.layers) as last:
            last[:] = [x]  # where no layer takes in a row a sample
            return self.gan.logits(x, c, self.discriminator), last[0].flatten(1)

    def look(self, x: Tensor, c: Tensor | None = None) -> Seen:
        """Log-odds and features of samples, from one pass. Labels are not features."""
        if c is None:
            c = self.gan.labels(len(x), torch.default_generator)
        taken: list[Tensor] = []

        def remember(f: Tensor) -> None:
            if len(f) == len(x) and not any(f is other for other in taken):
                taken.append(f)

        with listening(self.discriminator, remember, self.layers):
            log_odds = self.log_odds(x, c)
        return Seen(x, log_odds, taken[1:])

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.networks.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.networks.load_state_dict(state)
