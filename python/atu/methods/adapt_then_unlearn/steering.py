"""What steers the generator in stage 2 beside the game: away from what looks negative, and back to itself elsewhere.

Beyond the paper; docs/method.md says why.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import config
from ...feedback.feedback import Feedback, pool_size
from ...gan import BIG, GAN
from ...support.seeding import mix_seed
from ...training.trainer import draw, load_optimizer, optimizer_tensors
from .guide import Guide

LEFT = (0.005, 0.05)  # share of the negatives: the guide's weight shrinks below, stays between and grows above
LEFT_OF_DRIFT = 0.25  # of the drift's part of the score: it shrinks below that too, being the smaller part by far
EARLY = 100  # steps in which it does not grow: what is left is still falling by itself
LEFT_RATE = 0.05  # of the running share: about twenty batches count
RANGE = (0.1, 3.0)  # of the guide's weight, in units of where it starts
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
    """The generator's loss beside the game, a weighted sum of two:

    guide: mean of -log(1 - P(negative)) over the share of negatives that the pretrained GAN makes. Its weight grows
    while negatives are left and shrinks once they are gone, or few beside the drift. With an oracle the guide goes on
    learning in stage 2, from what the oracle says of the generator's samples: it would be evaded otherwise.
    moved: squared distance to the original's sample of the same latent, in units of the positives' variance, where
    that one is not negative, by the guide's balanced odds: what is on the boundary is not held there. The more samples
    are negative, the less it counts, as the rest has to make room for them.
    """

    def __init__(self, gan: GAN, feedback: Feedback, cfg: config.Repel, seed: int):
        self.gan, self.feedback, self.cfg = gan, feedback, cfg
        positives = feedback.positives
        share = min(max(feedback.negative_share, 0.01), 0.5)
        self.share, self.prior = share, math.log(share / (1 - share))
        self.guide_weight, self.left, self.step_count = cfg.guide_weight, 1.0, 0
        self.drift = 0.0  # as last scored
        self.preserve_weight = cfg.preserve_weight * max(1 - 3 * share, 0.0)
        some = torch.arange(min(len(positives), 500))
        self.variance = float(positives.batch(some).var(0).mean())
        self.guide = Guide(
            gan,
            feedback.negatives,
            positives,
            cfg.guide_steps,
            # Of big samples no more at once than the training takes, whose batch the user has fitted to the memory.
            64 if math.prod(gan.sample_shape) < BIG else min(64, cfg.adversarial.batch_size),
            r1=cfg.guide_r1,
            scale=self.variance,
            seed=mix_seed(seed, 201),
        )
        self.found, self.fine = Recent(pool_size(gan, RECENT)), Recent(pool_size(gan, RECENT))

    def __call__(self, fake: Tensor, c: Tensor | None, original: Tensor | None) -> tuple[Tensor, dict[str, float]]:
        terms: dict[str, Tensor] = {}
        steers = self.cfg.guide_weight > 0
        if steers:
            self._observe(fake.detach())
            log_odds = self.guide.log_odds(fake, c) + self.prior
            terms["guide"] = self.guide_weight / self.share * F.softplus(log_odds).mean()
        if original is not None:
            with torch.no_grad():
                wanted = torch.sigmoid(-self.guide.log_odds(original, c))
            moved = (fake - original).square().flatten(1).mean(1) / self.variance
            terms["moved"] = self.preserve_weight * (wanted * moved).mean()
        logged = {name: float(term.detach()) for name, term in terms.items()}
        if steers:
            logged.update(guide_weight=self.guide_weight, negatives_left=self.left)
        return sum(terms.values(), start=fake.new_zeros(())), logged

    def _observe(self, fake: Tensor) -> None:
        """Judge the samples just made: for the guide's weight, and, with an oracle, for the guide to learn from."""
        flags = self.feedback.is_negative(fake).to(fake.device)
        self.left += (float(flags.float().mean()) / self.share - self.left) * LEFT_RATE
        self.step_count += 1
        grows = self.left > LEFT[1] and self.step_count > EARLY
        shrinks = self.left < max(LEFT[0], LEFT_OF_DRIFT * self.cfg.drift_weight * self.drift)
        direction = int(grows) - int(shrinks)
        factor = self.guide_weight / self.cfg.guide_weight * math.exp(direction * self.cfg.guide_rate)
        self.guide_weight = self.cfg.guide_weight * min(max(factor, RANGE[0]), RANGE[1])
        if self.feedback.is_oracle:
            self._learn(fake, flags)

    def _learn(self, fake: Tensor, flags: Tensor) -> None:
        """A step of the guide on samples that the oracle has judged, now and lately, and on those it began with."""
        self.found.add(fake[flags])
        self.fine.add(fake[~flags])
        n = self.cfg.adversarial.batch_size // 2
        sides = ((self.found, self.feedback.negatives), (self.fine, self.feedback.positives))
        self.guide.learn(*(torch.cat([*_recent(mine, n), draw(self.gan, base, n)[0]]) for mine, base in sides))

    # --- resuming

    def state(self) -> dict[str, Tensor]:
        tensors = {f"guide.{k}": v for k, v in self.guide.discriminator.state_dict().items()}
        tensors.update(optimizer_tensors("optim", self.guide.optim))
        numbers = [self.step_count, self.guide.step_count, self.guide_weight, self.left, self.drift]
        return tensors | {
            "numbers": torch.tensor(numbers, dtype=torch.float64),
            "found": self.found.samples,
            "fine": self.fine.samples,
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            part, _, rest = key.partition(".")
            parts.setdefault(part, {})[rest] = value
        self.guide.discriminator.load_state_dict(parts["guide"])
        load_optimizer(self.guide.optim, parts.get("optim", {}))
        *counts, self.guide_weight, self.left, self.drift = parts["numbers"][""].tolist()
        self.step_count, self.guide.step_count = map(int, counts)
        for mine, name in ((self.found, "found"), (self.fine, "fine")):
            mine.samples = parts[name][""].to(self.gan.device)


def _recent(mine: Recent, n: int) -> list[Tensor]:
    return [mine.draw(n)] if len(mine.samples) else []
