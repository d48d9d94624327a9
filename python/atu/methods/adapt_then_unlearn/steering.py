"""What steers the generator in stage 2 beside the adversarial loss: away from what looks negative, and back to itself
elsewhere.

Beyond the paper; docs/method.md says why.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import config
from ...data.samples import Samples
from ...feedback.feedback import Feedback, pool_size
from ...gan import BIG, GAN
from ...support import world
from ...support.seeding import Stream, stream_seed
from ...training.trainer import draw, together
from .guide import Guide
from .guide_weight import GuideWeightController


class Recent:
    """The last `size` samples that were added."""

    def __init__(self, size: int):
        self.size = size
        self.samples = torch.empty(0)

    def add(self, x: Tensor) -> None:
        self.samples = torch.cat([self.samples, x])[-self.size :] if len(self.samples) else x[-self.size :]

    def draw(self, n: int) -> list[Tensor]:
        """n of them with replacement, as the one tensor of a list; an empty list where there are none."""
        return [self.samples[torch.randint(len(self.samples), (n,))]] if len(self.samples) else []

    def state_dict(self) -> dict[str, Tensor]:
        return {"samples": self.samples}

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        self.samples = state["samples"].to(device)


class Steering:
    """The generator's loss beside the adversarial one, a weighted sum of two:

    guide: mean of -log(1 - P(negative)) over the share of negatives that the pretrained GAN makes; its weight is set by
    a `GuideWeightController`. With an oracle the guide goes on learning in stage 2, from what the oracle says of the
    generator's samples: it would be evaded otherwise.
    moved: squared distance to the original's sample of the same latent, in units of the positives' variance, where
    that one is not negative, by the guide's balanced odds: what is on the boundary is not held there. The more samples
    are negative, the less it counts, as the rest has to make room for them.
    """

    def __init__(self, gan: GAN, feedback: Feedback, cfg: config.Repel, seed: int):
        self.gan, self.feedback, self.cfg = gan, feedback, cfg
        positives = feedback.positives
        share = min(max(feedback.negative_share, 0.01), 0.5)
        self.share, self.prior = share, math.log(share / (1 - share))
        self.control = GuideWeightController(cfg.guide_weight, cfg.guide_rate, cfg.drift_weight, cfg.guide_control)
        self.preserve_weight = cfg.preserve_weight * max(1 - 3 * share, 0.0)
        some = torch.arange(min(len(positives), 500))
        self.variance = float(positives.batch(some).var(0).mean())
        # Of big samples no more at once than the training takes, whose batch the user has fitted to the memory.
        at_once = None if math.prod(gan.sample_shape) < BIG else cfg.adversarial.batch_size
        self.guide = Guide(
            gan,
            feedback.negatives,
            positives,
            cfg.guide_steps,
            64 if at_once is None else min(64, at_once),
            r1=cfg.guide_r1,
            scale=self.variance,
            seed=stream_seed(seed, Stream.GUIDE),
            at_once=at_once,
        )
        size = pool_size(gan, cfg.guide_control.recent_samples)
        self.recent_negatives, self.recent_others = Recent(size), Recent(size)

    def __call__(self, fake: Tensor, c: Tensor | None, original: Tensor | None) -> tuple[Tensor, dict[str, float]]:
        terms: dict[str, Tensor] = {}
        steers = self.cfg.guide_weight > 0
        if steers:
            self._observe(fake.detach())
            log_odds = self.guide.log_odds(fake, c) + self.prior
            terms["guide"] = self.control.weight / self.share * F.softplus(log_odds).mean()
        if original is not None:
            with torch.no_grad():
                wanted = torch.sigmoid(-self.guide.log_odds(original, c))
            moved = (fake - original).square().flatten(1).mean(1) / self.variance
            terms["moved"] = self.preserve_weight * (wanted * moved).mean()
        logged = {name: float(term.detach()) for name, term in terms.items()}
        if steers:
            logged.update(guide_weight=self.control.weight, negatives_left=self.control.left)
        return sum(terms.values(), start=fake.new_zeros(())), logged

    def _observe(self, fake: Tensor) -> None:
        """Ask about the samples just made: for the guide's weight, and, with an oracle, for the guide to learn from."""
        fake = world.gather(fake, together(self.gan))
        flags = self.feedback.is_negative(fake).to(fake.device)
        self.control.observe(float(flags.float().mean()) / self.share)
        if self.feedback.is_oracle:
            self._learn(fake, flags)

    def _learn(self, fake: Tensor, flags: Tensor) -> None:
        """A step of the guide on samples that the oracle answered for, now and lately, and on those it began with."""
        self.recent_negatives.add(fake[flags])
        self.recent_others.add(fake[~flags])
        n = max(self.cfg.adversarial.batch_size // 2, 1)

        def batch(recent: Recent, first: Samples) -> Tensor:
            return torch.cat([*recent.draw(n), draw(self.gan, first, n)[0]])

        negatives = batch(self.recent_negatives, self.feedback.negatives)
        self.guide.learn(negatives, batch(self.recent_others, self.feedback.positives))

    # --- resuming

    def state_dict(self) -> dict[str, Any]:
        return {
            "guide": self.guide.state_dict(),
            "control": self.control.state_dict(),
            "recent_negatives": self.recent_negatives.state_dict(),
            "recent_others": self.recent_others.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.guide.load_state_dict(state["guide"])
        self.control.load_state_dict(state["control"])
        self.recent_negatives.load_state_dict(state["recent_negatives"], self.gan.device)
        self.recent_others.load_state_dict(state["recent_others"], self.gan.device)
