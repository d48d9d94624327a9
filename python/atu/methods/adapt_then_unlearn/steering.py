"""What steers the generator in stage 2 beside the adversarial loss: away from what looks negative, to good samples
nearby, and back to itself where it was good.

Beyond the paper; docs/trials.md says why.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import config
from ...data.samples import Samples
from ...feedback.feedback import Feedback, doubted, without_doubted
from ...gan import GAN
from ...support import world
from ...support.modules import is_stylegan, still
from ...support.seeding import Stream, fork_rng, stream_seed
from ...training.trainer import together
from .distance import SampleDistance, variance
from .guide import ROUNDS, Guide, Seen
from .nearby import MovedLatents, NegativeLatents
from .ways import WayLatents

NEAR = 1e-3  # added to a distance before its root is taken, whose slope at 0 has no bound


class Steering:
    """The generator's loss beside the adversarial one, a weighted sum:

    guide: mean of -log(1 - P(negative)) by the guide's balanced odds; of fresh latents where the sample looks negative,
    or the original's did. The guide has learnt before the first step and learns no more: to follow what evades it costs
    more good samples than it removes negatives. Where a probe chose the positives, it learns twice: a second one
    without those that the first takes for negatives.
    nearby: root of the distance of samples of latents whose original is negative to good samples that the original
    makes nearby. Like latents have different ones of these; the distance itself draws to their mean, a blurred sample.
    held: distance to the original's sample of the same latent and noise, for fresh latents of which it makes no
    negative; those of which it does join the bank. By the guide's odds, what is on the boundary is not held there.
    Without an oracle nothing that the guide suspects is held, and only the likeliest of it joins the bank.

    Args:
        gan: pretrained pair. twin: the pair that is trained, a copy of it. steps: of stage 2; the guide learns on
            for no more than twice as many, the ways to good samples for no more than these. prepared: what an
            interrupted run had of this (`prepared`), which is not learnt again.
    """

    def __init__(
        self,
        gan: GAN,
        twin: GAN,
        feedback: Feedback,
        cfg: config.Repel,
        steps: int,
        seed: int,
        prepared: dict[str, Any] | None = None,
    ):
        self.gan, self.twin, self.cfg = gan, twin, cfg
        self.nearby_weight = nearby_weight(gan, cfg)
        self.hold_weight = hold_weight(gan, cfg)
        positives = feedback.positives
        some = positives.batch(torch.arange(min(len(positives), 500)))
        # Of big samples no more at once than the training takes, whose batch the user has fitted to the memory.
        at_once = cfg.adversarial.batch_size if gan.is_big else None
        teach = partial(
            Guide,
            gan,
            feedback.negatives,
            batch_size=64 if at_once is None else min(64, at_once),
            r1=cfg.guide_r1,
            scale=float(variance(some).mean()),
            seed=stream_seed(seed, Stream.GUIDE),
            at_once=at_once,
            rounds=min(ROUNDS, 1 + 2 * steps // max(cfg.guide_steps, 1)),
        )
        if prepared is None:
            with fork_rng(gan.device, stream_seed(seed, Stream.GUIDE)):  # labels are drawn; a resumed run draws none
                self.guide, self.feedback, self.doubts, self.bar = _taught(teach, gan, feedback, cfg.guide_steps, seed)
        else:
            _check_positives(prepared["doubts"], positives)
            self.guide, self.doubts, self.bar = teach(positives, steps=0), prepared["doubts"], prepared["bar"]
            self.guide.load_state_dict(prepared["guide"])
            self.feedback = without_doubted(feedback, self.doubts, seed)
        known = feedback.negative_latents
        self.bank: NegativeLatents | None = None
        if self.hold_weight and known is not None and len(known[0]):
            generator = still(gan.sampling_generator)
            self.distance = SampleDistance(self.guide, some.to(gan.device), cfg.hold_features)
            with fork_rng(gan.device, stream_seed(seed, Stream.NEARBY)):
                original = partial(gan.fake, generator=generator)
                learnt = min(cfg.guide_steps, steps)
                kind = MovedLatents if gan.is_stylegan else WayLatents
                bank = None if prepared is None else prepared["bank"]
                self.bank = kind(gan, original, self.guide, self.distance, known, at_once, learnt, bank)

    def __call__(self, fake: Tensor, c: Tensor | None, wanted: Tensor | None) -> tuple[Tensor, dict[str, float]]:
        """Of generated samples, their labels, and good ones wanted in their place, if any: the loss and its parts."""
        seen = self.guide.look(fake, c)
        terms: dict[str, Tensor] = {}
        if wanted is not None:
            with torch.no_grad():
                target = self.guide.look(wanted, c)
            terms["nearby"] = self.nearby_weight * self._apart(seen, target, root=True)
        if self.cfg.guide_weight > 0:
            terms["guide"] = self._guided(seen)
        return sum(terms.values(), start=fake.new_zeros(())), {k: float(v.detach()) for k, v in terms.items()}

    def _found(self, seen: Seen) -> Tensor:
        """Which samples the oracle calls negative, or the probe: bools [N]."""
        return self.feedback.is_negative(seen.samples.detach()).to(seen.log_odds.device)

    def _suspected(self, seen: Seen, above: float = 0.0) -> Tensor:
        """Which the guide takes for negative (log-odds above that), where no oracle has the last word: bools [N]."""
        suspected = seen.log_odds.detach() > above
        return suspected & (not self.feedback.is_oracle)

    def hold(self) -> tuple[Tensor, dict[str, float]]:
        """The loss of fresh latents, half a batch of them, and its parts; those of negatives join the bank."""
        assert self.bank is not None
        gan, rng, group = self.gan, torch.default_generator, together(self.gan)
        n = max(self.cfg.adversarial.batch_size // 2, 1)
        z, c, own = gan.latents(n, rng), gan.labels(n, rng), world.part(n, group)
        own_z, own_c = z[own], None if c is None else c[own]
        with gan.autocast(), world.own_rng(gan.device):
            with torch.no_grad(), fork_rng(gan.device):
                target = self.guide.look(self.bank.original(own_z, own_c), own_c)
            x = gan.fake(own_z, own_c, generator=self.twin.generator)
        found = self._found(target)
        negative = found | self._suspected(target, self.bar)
        flags = world.gather(negative, group)
        self.bank.add(z[flags], None if c is None else c[flags])
        seen = self.guide.look(x, own_c)
        held = self.hold_weight * self._apart(seen, target, ~(found | self._suspected(target)))
        guide = held * 0
        if self.cfg.guide_weight > 0:
            guide = self._guided(seen, negative)
        return held + guide, {"held": float(held.detach()), "guide of held": float(guide.detach())}

    def _guided(self, seen: Seen, were: Tensor | None = None) -> Tensor:
        """The guide's loss of samples; of fresh latents where they `were` negative, or the sample is."""
        loss = F.softplus(seen.log_odds)
        if were is not None:
            loss = loss * (were | self._found(seen) | self._suspected(seen))
        return self.cfg.guide_weight * loss.mean()

    def _apart(self, seen: Seen, target: Seen, where: Tensor | float = 1.0, root: bool = False) -> Tensor:
        """Mean distance, or root of it, each sample weighted by the guide's odds that its target is good, and by
        `where`."""
        good = torch.sigmoid(-target.log_odds) * where
        distance = self.distance(seen, target)
        if root:
            distance = (distance + NEAR).sqrt()
        return (good * distance).mean()

    # --- resuming

    def prepared(self) -> dict[str, Any]:
        """What was learnt before the first step, to go on from: the guide, which positives it doubts, and the bank."""
        return {"guide": self.guide.state_dict(), "doubts": self.doubts, "bar": self.bar, **self.state_dict()}

    def state_dict(self) -> dict[str, Any]:
        return {"bank": {} if self.bank is None else self.bank.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.bank is not None:
            self.bank.load_state_dict(state["bank"])


def _check_positives(doubts: Tensor, positives: Samples) -> None:
    """Raise ValueError where a run was prepared with other positives than are there now."""
    if len(doubts) != len(positives):
        raise ValueError(
            f"out: this run was prepared with {len(doubts)} positives, and now there are {len(positives)}: the samples "
            "that a GAN makes depend on how many it makes at once (batch, or the memory that is free), and on the "
            "device. Go on with those of before, or give another folder"
        )


def hold_weight(gan: GAN, cfg: config.Repel) -> float:
    """The weight of what is held; where it is "auto", what suited either kind best (docs/trials.md)."""
    if cfg.hold_weight == "auto":
        return 45.0 if gan.is_stylegan else 60.0
    return cfg.hold_weight


def goes_by_a_guide(gan: GAN, cfg: config.Repel) -> bool:
    """Whether stage 2 steers or holds anything: both go by the guide."""
    return cfg.guide_weight > 0 or hold_weight(gan, cfg) > 0


def nearby_weight(gan: GAN, cfg: config.Repel) -> float:
    """The weight of the nearby good samples; where it is "auto", what suited images, and what is of few dimensions."""
    if cfg.nearby_weight == "auto":
        return 8.0 if len(gan.sample_shape) == 3 else 1.0
    return cfg.nearby_weight


def _taught(
    teach: Callable[..., Guide], gan: GAN, feedback: Feedback, steps: int, seed: int
) -> tuple[Guide, Feedback, Tensor, float]:
    """A guide that has learnt; the feedback without the positives that are doubted; which these are, bools [N], and
    above which log-odds: without an oracle, of those that a first guide takes for negatives no more than the probe may
    have missed. The one that is given has not learnt from them."""
    guide = teach(feedback.positives, steps=steps)
    if feedback.is_oracle:
        return guide, feedback, torch.zeros(len(feedback.positives), dtype=torch.bool), 0.0
    doubts, bar = doubted(gan, feedback, guide.log_odds)
    if not doubts.any():
        return guide, feedback, doubts, bar
    cleared = without_doubted(feedback, doubts, seed)
    guide = teach(cleared.positives, steps=steps)
    _, bar = doubted(gan, feedback, guide.log_odds)
    return guide, cleared, doubts, bar


def hold_statistics(*networks: nn.Module | None) -> None:
    """Let batch norm use its running statistics, and StyleGAN3's layers keep their magnitudes: a batch of latents of
    one kind has others than the whole."""
    for network in networks:
        for module in network.modules() if network is not None else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) or is_stylegan(module):
                module.training = False
