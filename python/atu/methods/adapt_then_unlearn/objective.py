"""All that stage 2 minimises, term by term.

Each step takes two halves of a batch:

    bank      latents of which the pretrained GAN makes negatives
    fresh     latents drawn anew, of which it mostly makes good samples

    L_D = adversarial(real positives, samples of the bank) + R1 + R2
    L_G = adversarial(bank) + repulsion(weights) + guide(bank and fresh) + nearby(bank) + held(fresh)

    term         weight                             formula, mean over samples                        source
    adversarial  1                                  -log sigmoid D(G(z))                              arXiv 1406.2661
    repulsion    gamma, by `strength`               exp(-alpha d) | -d | 1 / (d + epsilon)            arXiv 2309.14054
    guide        `guide_weight`                     -log(1 - P(negative | G(z)))                      docs/method.md
    nearby       `nearby_weight`, 8 or 1            p sqrt(distance(G(z), G0(z_good)) + 0.001)        docs/method.md
    held         `hold_weight`, 45 or 60            p distance(G(z), G0(z))                           docs/method.md

G is the trained generator and G0 the pretrained one, with the same noise; d is the distance of the weights from the
adapted ones; P is the guide's; p is the guide's probability that the sample of G0 is good; z_good is a latent near z of
which G0 makes a good sample. R1 and R2 are those of every training (`AdversarialStep`). If nothing is held there is no
bank: the adversarial loss and the guide take fresh latents, and nearby and held are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...gan import GAN
from ...judging.feedback import Feedback
from ...support import world
from ...support.modules import is_stylegan
from ...support.seeding import fork_rng
from ...training.step import AdversarialStep, Objective
from .guide import Seen
from .nearby import rows
from .preparation import Prepared
from .repulsion import Repulsion

NEAR = 1e-3  # added to a distance before its root is taken, whose slope at 0 has no bound


@dataclass(frozen=True)
class Weights:
    """Weights of the terms. 0 leaves a term out."""

    guide: float = 0.0
    nearby: float = 0.0
    held: float = 0.0


class UnlearnObjective(Objective):
    """Stage 2's loss. prepared: None if no term needs the guide, as in the paper's own losses."""

    def __init__(self, weights: Weights, repulsion: Repulsion, feedback: Feedback, prepared: Prepared | None = None):
        self.weights, self.repulsion, self.feedback, self.prepared = weights, repulsion, feedback, prepared
        self.bank = None if prepared is None else prepared.bank

    def set_modes(self, gan: GAN) -> None:
        if self.bank is not None:
            hold_statistics(gan.generator, gan.discriminator)

    def fakes(self, batch_size: int) -> int:
        """Half a batch if the other half is fresh latents."""
        return batch_size if self.bank is None else max(batch_size // 2, 1)

    def latents(self, gan: GAN, n: int) -> tuple[Tensor, Tensor | None]:
        """Latents of the bank if there is one, else fresh ones."""
        if self.bank is None:
            return super().latents(gan, n)
        z, c, _ = self.bank.latents.draw(n)
        return z, c

    # --- the losses

    def generator_loss(self, step: AdversarialStep) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """held + guide over the fresh half; adversarial + guide + nearby over the bank's half"""
        if self.bank is not None:
            yield _total(self.fresh_half(step))
        yield _total(self.bank_half(step))

    def after_backward(self, step: AdversarialStep) -> dict[str, float]:
        """gamma d repulsion / d theta, added to the gradients of all of the above"""
        return self.repulsion.after_backward(step)

    def bank_half(self, step: AdversarialStep) -> dict[str, Tensor]:
        """Terms of the half that the discriminator meets."""
        target = None
        if self.bank is None:
            z, c = step.latents(step.fakes, step.group)
        else:
            z, c, good = self.bank.latents.draw(step.fakes)
            part = world.part(step.fakes, step.group)
            z, c, good = z[part], rows(c, part), good[part]
            target = self._original(step, good, c)
        fake = step.fake(z, c)
        terms = {"loss_g": self.adversarial(step, fake)}
        if self.prepared is not None:
            seen = self.prepared.guide.look(*fake)
            if target is not None:
                terms["nearby"] = self.nearby(seen, target)
            if self.weights.guide > 0:
                terms["guide"] = self.guide(seen)
        return terms

    def fresh_half(self, step: AdversarialStep) -> dict[str, Tensor]:
        """Terms of fresh latents; those of which the pretrained GAN makes negatives join the bank."""
        assert self.prepared is not None and self.bank is not None
        z, c = super().latents(step.gan, step.fakes)
        part = world.part(step.fakes, step.group)
        target = self._original(step, z[part], rows(c, part))
        fake = step.fake(z[part], rows(c, part))
        flagged = self._flagged(target)
        negative = flagged | self._suspected(target, self.prepared.threshold)
        joining = world.gather(negative, step.group)
        self.bank.latents.add(z[joining], rows(c, joining))
        seen = self.prepared.guide.look(*fake)
        terms = {"held": self.held(seen, target, ~(flagged | self._suspected(target)))}
        if self.weights.guide > 0:
            terms["guide_fresh"] = self.guide(seen, negative | self._flagged(seen) | self._suspected(seen))
        return terms

    # --- the terms that need the guide: `seen` are samples of G, `target` those of G0, `where` is bools or 1

    def guide(self, seen: Seen, where: Tensor | float = 1.0) -> Tensor:
        """guide_weight * mean -log(1 - P(negative)), by the guide's balanced odds."""
        return self.weights.guide * (F.softplus(seen.log_odds) * where).mean()

    def nearby(self, seen: Seen, target: Seen) -> Tensor:
        """nearby_weight * mean p sqrt(distance + NEAR). Like latents have different good samples nearby, and the
        distance itself would draw to their mean, a blurred sample; the root's pull does not grow with it."""
        return self.weights.nearby * (_good(target) * (self._distance(seen, target) + NEAR).sqrt()).mean()

    def held(self, seen: Seen, target: Seen, where: Tensor | float = 1.0) -> Tensor:
        """hold_weight * mean p distance, over samples that are good before."""
        return self.weights.held * (_good(target) * where * self._distance(seen, target)).mean()

    def _distance(self, seen: Seen, target: Seen) -> Tensor:
        assert self.bank is not None
        return self.bank.distance(seen, target)

    @torch.no_grad()
    def _original(self, step: AdversarialStep, z: Tensor, c: Tensor | None) -> Seen:
        """The pretrained GAN's samples of latents. The random state stays, so the next pass has the same noise."""
        assert self.prepared is not None and self.bank is not None
        device = step.gan.device
        with fork_rng(device), step.gan.autocast(), world.own_rng(device):
            x = self.bank.latents.original(z, c)
        return self.prepared.guide.look(x, c)

    def _flagged(self, seen: Seen) -> Tensor:
        """Samples that the oracle or the probe calls negative: bools [N]."""
        return self.feedback.rule(seen.samples.detach()).to(seen.log_odds.device)

    def _suspected(self, seen: Seen, above: float = 0.0) -> Tensor:
        """Samples that the guide takes for negatives, if there is no oracle to decide: bools [N]."""
        suspected = seen.log_odds.detach() > above
        return suspected & (not self.feedback.has_oracle)

    # --- resuming

    def state_dict(self) -> dict[str, Any]:
        bank = {} if self.bank is None else self.bank.latents.state_dict()
        return {"repulsion": self.repulsion.state_dict(), "bank": bank}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.repulsion.load_state_dict(state["repulsion"])
        if self.bank is not None:
            self.bank.latents.load_state_dict(state["bank"])


def _total(terms: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    first, *others = terms.values()
    return sum(others, start=first), terms


def _good(target: Seen) -> Tensor:
    """The guide's probability that a sample is good."""
    return torch.sigmoid(-target.log_odds)


def hold_statistics(*networks: nn.Module | None) -> None:
    """Make batch norm use its running statistics, and StyleGAN3's layers keep their magnitudes. A batch of one kind of
    latents has other statistics than the whole."""
    for network in networks:
        for module in network.modules() if network is not None else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) or is_stylegan(module):
                module.training = False
