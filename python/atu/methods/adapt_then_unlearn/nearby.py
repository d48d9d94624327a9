"""Latents of which the pretrained GAN makes negatives, each with a nearby one of which it makes a good sample.

A few ways lead there, the same for all latents, and each takes the one that is shortest for it. So latents beside each
other go the same way, and what the generator is to make of them is alike, which it can learn from a few thousand; of
latents that were each moved down their own slope it makes a blurred mean of several good samples (docs/trials.md). What
is reached is a sample that the pretrained GAN makes: a classifier's slope in the samples themselves ends in a damaged
picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...gan import GAN
from ...support import progress
from ...training.schedules import lr_decay, set_lr
from .guide import Guide

WAYS = 4
MARGIN = 3.0  # log-odds of being negative, were half of the samples so, are to come below minus this
STEP, STEPS = 0.25, 24  # along a way, in deviations of a latent's elements (the norm of all of them), and how many
BATCH_SIZE = 16  # latents, each of which goes all ways
LR, BETAS, START = 0.02, (0.9, 0.99), 0.1  # START: deviation of the elements of a way before it is learnt
WAY_WEIGHT = 1.0  # of the squared length of a way
MOST = 4000  # latents that are kept
WAIT = 32  # found ones that are moved together


class NegativeLatents:
    """A bank of latents of which the pretrained GAN makes negatives, and of nearby ones of good samples.

    Args:
        original: the pretrained generator's samples of latents and labels, differentiable in the latents.
        guide: whose log-odds are to fall. known: (latents, labels) of negatives. at_once: samples that pass at once.
        steps: of Adam, by which the ways are learnt.
    """

    def __init__(
        self,
        gan: GAN,
        original: Callable[[Tensor, Tensor | None], Tensor],
        guide: Guide,
        known: tuple[Tensor, Tensor | None],
        at_once: int = 64,
        steps: int = 200,
    ):
        self.gan, self.original, self.guide, self.at_once = gan, original, guide, at_once
        self.scale = gan.inputs(512)[0].std(0).clamp(min=1e-6)
        self.keeps_norm = gan.latent_sampler is None  # normal latents of one length are all alike
        z, c = known
        self.z, self.c = z[:MOST], None if c is None else c[:MOST]
        self.ways = self._learnt_ways(steps)
        parts = torch.arange(len(self.z)).split(self.at_once)
        self.good = self._moved_all(self.z, self.c, progress.track("nearby good samples", parts, len(self.z)))
        self.found: list[Tensor] = []
        self.found_c: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.z)

    def draw(self, n: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """n latents drawn with replacement, their labels, and the latents of the nearby good samples."""
        index = torch.randint(len(self.z), (n,)).to(self.z.device)
        return self.z[index], _rows(self.c, index), self.good[index]

    def add(self, z: Tensor, c: Tensor | None) -> None:
        """Add latents whose sample was found negative, once there are enough to move them together; the oldest go."""
        self.found.extend(z)
        self.found_c.extend([] if c is None else c)
        if len(self.found) < WAIT:
            return
        new = torch.stack(self.found)
        new_c = torch.stack(self.found_c) if self.found_c else None
        moved = self._moved_all(new, new_c, torch.arange(len(new)).split(self.at_once))
        self.z, self.good = torch.cat([self.z, new])[-MOST:], torch.cat([self.good, moved])[-MOST:]
        if self.c is not None and new_c is not None:
            self.c = torch.cat([self.c, new_c])[-MOST:]
        self.found, self.found_c = [], []

    def _learnt_ways(self, steps: int) -> Tensor:
        """[WAYS, ...] of length 1, in deviations of a latent's elements, learnt with Adam.

        Of each latent and way the cost is softplus(log-odds + MARGIN) + WAY_WEIGHT times the squared length, and the
        loss its soft minimum over the ways: each way learns from the latents that it suits.
        """
        shape = (WAYS, *self.z.shape[1:])
        ways = (START * torch.randn(shape, device=self.z.device, dtype=self.scale.dtype)).requires_grad_(True)
        optim = torch.optim.Adam([ways], LR, BETAS)
        for step in progress.track("ways to good samples", range(steps), steps):
            set_lr(optim, LR * lr_decay(step / steps, 0.5))
            optim.zero_grad(set_to_none=True)
            for index in torch.randint(len(self.z), (BATCH_SIZE,)).to(self.z.device).split(self._together()):
                near = torch.stack([self._along(self.z[index], way) for way in ways])
                squared = ways.flatten(1).square().sum(1, keepdim=True)
                cost = F.softplus(self._log_odds(near, _rows(self.c, index)) + MARGIN).to(squared)
                loss = -(-cost - WAY_WEIGHT * squared).logsumexp(0)
                (loss.sum() / BATCH_SIZE).backward()
            optim.step()
        ways = ways.detach()
        return ways / ways.flatten(1).norm(dim=1).clamp(min=1e-6).view(-1, *[1] * (ways.ndim - 1))

    def _moved_all(self, z: Tensor, c: Tensor | None, parts: Iterable[Tensor]) -> Tensor:
        """Latents of good samples near z; parts: which of them are reported together."""
        return torch.cat([self._moved(z[part], _rows(c, part)) for part in parts])

    @torch.no_grad()
    def _moved(self, z: Tensor, c: Tensor | None) -> Tensor:
        """z, each moved along one of the ways, no farther than until the guide finds its sample clearly good; where
        that comes nowhere, to where it finds it best."""
        out, lowest = z.clone(), torch.full((len(z),), float("inf"), device=z.device)
        on = torch.arange(len(z), device=z.device)
        for step in range(STEPS + 1):
            for index in on.split(self._together()):
                near = torch.stack([self._along(z[index], step * STEP * way) for way in self.ways])
                log_odds, way = self._log_odds(near, _rows(c, index)).float().min(0)
                better = log_odds < lowest[index]
                out[index[better]] = near[way, torch.arange(len(index), device=z.device)][better]
                lowest[index[better]] = log_odds[better]
            on = on[lowest[on] >= -MARGIN]
            if not len(on):
                break
        return out

    def _together(self) -> int:
        """Latents whose samples along all ways pass at once."""
        return max(self.at_once // WAYS, 1)

    def _along(self, z: Tensor, way: Tensor) -> Tensor:
        """z [N, ...] moved by a way [...], of z's dtype and norm."""
        out = z.to(self.scale) + self.scale * way
        if self.keeps_norm:
            longer = out.flatten(1).norm(dim=1) / z.flatten(1).norm(dim=1).to(out)
            out = out / longer.clamp(min=1e-6).view(-1, *[1] * (z.ndim - 1))
        return out.to(z)

    def _log_odds(self, z: Tensor, c: Tensor | None) -> Tensor:
        """[WAYS, N] of latents [WAYS, N, ...] and labels [N, c_dim]."""
        flat, labels = z.flatten(0, 1), None if c is None else c.repeat(len(z), 1)
        with self.gan.autocast_unscaled():
            log_odds = self.guide.log_odds(self.original(flat, labels), labels)
        return log_odds.view(z.shape[:2])

    # --- resuming

    def state_dict(self) -> dict[str, Any]:
        state = {"z": self.z, "good": self.good, "ways": self.ways}
        if self.c is not None:
            state["c"] = self.c
        if self.found:
            state["found"] = torch.stack(self.found)
        if self.found_c:
            state["found_c"] = torch.stack(self.found_c)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        state = {name: tensor.to(self.z.device) for name, tensor in state.items()}
        self.z, self.good, self.ways, self.c = state["z"], state["good"], state["ways"], state.get("c")
        self.found, self.found_c = list(state.get("found", ())), list(state.get("found_c", ()))


def _rows(c: Tensor | None, index: Tensor) -> Tensor | None:
    return None if c is None else c[index]
