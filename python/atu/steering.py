"""What steers the generator in stage 2 beside the game: away from what looks negative, and back to itself elsewhere.

Beyond the paper; docs/method.md says why.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from . import config
from .adversarial import draw, load_optimizer, optimizer_tensors
from .features import Whitening, discriminator_features, flat_features, last_input
from .feedback import Feedback, pool_size
from .gan import GAN, mix_seed
from .guide import Guide

BALANCE_RATE = 0.05  # of the running mean of features: about twenty batches count
RECENT = 512  # generated samples of either kind that the guide goes on learning from


class Recent:
    """The last `size` samples that were added."""

    def __init__(self, size: int):
        self.size = size
        self.samples = torch.empty(0)

    def add(self, x: Tensor) -> None:
        self.samples = torch.cat([self.samples, x])[-self.size :] if len(self.samples) else x[-self.size :]

    def draw(self, n: int) -> Tensor:
        return self.samples[torch.randint(len(self.samples), (n,))]


class Steering:
    """The generator's loss beside the game, a weighted sum of three:

    guide: mean of -log(1 - P(negative)). With an oracle the guide goes on learning in the course of stage 2, from what
    the oracle says of the generator's samples: it would be evaded otherwise.
    moved: squared distance to the original's sample of the same latent, in units of the positives' variance, where
    that one is not negative.
    imbalance: squared distance of the generated samples' mean feature from the positives', in the pretrained
    discriminator's features whitened on these. A running mean stands for all samples, the batch for its gradient.
    """

    def __init__(self, gan: GAN, feedback: Feedback, cfg: config.Repel, seed: int):
        self.gan, self.feedback, self.cfg = gan, feedback, cfg
        positives = feedback.positives
        self.balance_weight = balance_weight(gan, cfg)
        share = min(max(feedback.negative_share, 0.01), 0.5)
        self.prior = math.log(share / (1 - share))
        self.guide = Guide(gan, feedback.negatives, positives, cfg.guide_steps, seed=mix_seed(seed, 201))
        self.found, self.fine = Recent(pool_size(gan, RECENT)), Recent(pool_size(gan, RECENT))
        some = torch.arange(min(len(positives), 2000))
        self.whiten = Whitening(discriminator_features(gan, (positives.batch(part) for part in some.split(100))))
        self.whiten.to(gan.device)
        self.variance = float(positives.batch(some[:500]).var(0).mean())
        self.view = copy.deepcopy(gan.discriminator).eval().requires_grad_(False)  # type: ignore[union-attr]
        self.mean = torch.zeros(self.whiten.components, dtype=torch.float64, device=gan.device)

    def __call__(self, fake: Tensor, c: Tensor | None, original: Tensor | None) -> tuple[Tensor, dict[str, float]]:
        if self.feedback.is_oracle and self.cfg.guide_weight > 0:
            self._learn(fake.detach())
        terms: dict[str, Tensor] = {}
        if self.cfg.guide_weight > 0:
            terms["guide"] = self.cfg.guide_weight * F.softplus(self.guide.log_odds(fake, c)).mean()
        if original is not None:
            with torch.no_grad():
                wanted = torch.sigmoid(-self.guide.log_odds(original, c) - self.prior)
            moved = (fake - original).square().flatten(1).mean(1) / self.variance
            terms["moved"] = self.cfg.preserve_weight * (wanted * moved).mean()
        if self.balance_weight > 0:
            terms["imbalance"] = self.balance_weight * self._imbalance(fake, c)
        return torch.stack(list(terms.values())).sum(), {name: float(term.detach()) for name, term in terms.items()}

    def _imbalance(self, fake: Tensor, c: Tensor | None) -> Tensor:
        """||m||^2, m the running mean; its gradient is that of 2 m^T (mean of the batch)."""
        with last_input(self.view) as last:
            self.gan.logits(fake, c, self.view)
        features = self.whiten(flat_features(last[0]))
        self.mean = self.mean.lerp(features.detach().mean(0), BALANCE_RATE)
        slope = 2 * features.mean(0) @ self.mean
        return slope + (self.mean.square().sum() - slope.detach())

    def _learn(self, fake: Tensor) -> None:
        """A step of the guide on samples that the oracle has judged, now and lately, and on those it began with."""
        flags = self.feedback.judge(fake).to(fake.device)
        self.found.add(fake[flags])
        self.fine.add(fake[~flags])
        n = self.cfg.adversarial.batch_size // 2
        sides = ((self.found, self.feedback.negatives), (self.fine, self.feedback.positives))
        self.guide.learn(*(torch.cat([*_recent(mine, n), draw(self.gan, base, n)[0]]) for mine, base in sides))

    # --- resuming

    def state(self) -> dict[str, Tensor]:
        tensors = {f"guide.{k}": v for k, v in self.guide.discriminator.state_dict().items()}
        tensors.update(optimizer_tensors("optim", self.guide.optim))
        return tensors | {"mean": self.mean, "found": self.found.samples, "fine": self.fine.samples}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            part, _, rest = key.partition(".")
            parts.setdefault(part, {})[rest] = value
        self.guide.discriminator.load_state_dict(parts["guide"])
        load_optimizer(self.guide.optim, parts.get("optim", {}))
        self.mean = parts["mean"][""].to(self.mean)
        for mine, name in ((self.found, "found"), (self.fine, "fine")):
            mine.samples = parts[name][""].to(self.gan.device)


def balance_weight(gan: GAN, cfg: config.Repel) -> float:
    """The weight given, or by the kind of samples."""
    return (1.0 if len(gan.sample_shape) == 3 else 0.0) if cfg.balance_weight is None else cfg.balance_weight


def _recent(mine: Recent, n: int) -> list[Tensor]:
    return [mine.draw(n)] if len(mine.samples) else []
