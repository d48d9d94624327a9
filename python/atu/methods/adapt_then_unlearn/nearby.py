"""Latents of which the pretrained GAN makes negatives, each with a nearby one of which it makes a good sample.

What is reached is a sample that the pretrained GAN makes, and changed by as little as the guide needs. Where a
classifier's slope in the samples themselves ends in a damaged picture, this cannot; nor the slope in a StyleGAN's w,
which leads to w of no latent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ...gan import GAN
from ...support import progress
from .guide import Guide

MARGIN = 3.0  # log-odds of being negative, were half of the samples so, are to come below minus this
MOST = 4000  # latents that are kept
WAIT = 64  # found ones that are moved together
SHORTEST, LONGEST = 0.01, 0.06  # one move along the slope, in deviations of a latent's element
MOVES = 28  # at most
BEYOND = 0.3  # that a move aims below the margin, so that the last one arrives


def rows(c: Tensor | None, index: Tensor) -> Tensor | None:
    """Labels of these indices, if there are labels."""
    return None if c is None else c[index]


class NegativeLatents(ABC):
    """A bank of latents of which the pretrained GAN makes negatives, and of nearby ones of good samples. A kind of it
    says how these are reached.

    Args:
        original: the pretrained generator's samples of latents and labels, differentiable in the latents.
        guide: whose log-odds are to fall. known: (latents, labels) of negatives. at_once: samples that pass at once;
            what suits small ones when not given. steps: of Adam, by which a kind learns what its moves need. saved: a
            bank (`state_dict`) to go on from, in place of moving those that are known.
    """

    small_at_once = 64

    def __init__(
        self,
        gan: GAN,
        original: Callable[[Tensor, Tensor | None], Tensor],
        guide: Guide,
        known: tuple[Tensor, Tensor | None],
        at_once: int | None = None,
        steps: int = 200,
        saved: dict[str, Any] | None = None,
    ):
        self.gan, self.original, self.guide = gan, original, guide
        self.at_once = at_once or self.small_at_once
        self.scale = gan.inputs(512)[0].std(0).clamp(min=1e-6)
        self.keeps_norm = gan.latent_sampler is None  # normal latents of one length are all alike
        z, c = known
        self.z, self.c = z[:MOST], None if c is None else c[:MOST]
        self.found: list[Tensor] = []
        self.found_c: list[Tensor] = []
        if saved is not None:
            self.load_state_dict(saved)
            return
        self._begin(steps)
        parts = torch.arange(len(self.z)).split(self.at_once)
        self.good = self._moved_all(self.z, self.c, progress.track("nearby good samples", parts, len(self.z)))

    def __len__(self) -> int:
        return len(self.z)

    def draw(self, n: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """n latents drawn with replacement, their labels, and the latents of the nearby good samples."""
        index = torch.randint(len(self.z), (n,)).to(self.z.device)
        return self.z[index], rows(self.c, index), self.good[index]

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

    def _begin(self, steps: int) -> None:
        """Learn what the moves need, from the known latents."""
        return

    def _moved_all(self, z: Tensor, c: Tensor | None, parts: Iterable[Tensor]) -> Tensor:
        """Latents of good samples near z; parts: which of them are moved together."""
        return torch.cat([self._moved(z[part], rows(c, part)) for part in parts])

    @abstractmethod
    def _moved(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Latents z [N, ...] of labels [N, c_dim], moved to where the guide finds their samples clearly good."""

    def _of_norm(self, moved: Tensor, z: Tensor) -> Tensor:
        """Moved latents with the norms of z, where latents are normal."""
        if not self.keeps_norm:
            return moved
        ratio = z.flatten(1).norm(dim=1).to(moved) / moved.flatten(1).norm(dim=1).clamp(min=1e-6)
        return moved * ratio.view(-1, *[1] * (z.ndim - 1))

    # --- resuming

    def state_dict(self) -> dict[str, Any]:
        state = {"z": self.z, "good": self.good}
        if self.c is not None:
            state["c"] = self.c
        if self.found:
            state["found"] = torch.stack(self.found)
        if self.found_c:
            state["found_c"] = torch.stack(self.found_c)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        state = {name: tensor.to(self.z.device) for name, tensor in state.items()}
        self.z, self.good, self.c = state["z"], state["good"], state.get("c")
        self.found, self.found_c = list(state.get("found", ())), list(state.get("found_c", ()))


class MovedLatents(NegativeLatents):
    """Each is moved by itself, down the slope of the guide's log-odds: for StyleGANs, whose mapping network makes the
    way of a move a rough function of the latent."""

    def _moved(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Until the guide finds its samples clearly good, or as far as MOVES go.

        A move is as long as Newton's method has it, within bounds: on the way it is long, near the end short.
        """
        out = z.clone()
        on = torch.arange(len(z), device=z.device)
        for _ in range(MOVES):
            at = out[on].requires_grad_(True)
            with torch.enable_grad(), self.gan.autocast():
                own = rows(c, on)
                log_odds = self.guide.log_odds(self.original(at, own), own)
            (slope,) = torch.autograd.grad(log_odds.sum(), at)
            log_odds = log_odds.detach().to(slope)
            left = log_odds > -MARGIN
            on, log_odds, slope, at = on[left], log_odds[left], slope[left] * self.scale, at.detach()[left]
            if not len(on):
                break
            flat = slope.flatten(1)
            steepness, root = flat.norm(dim=1).clamp(min=1e-12), flat.shape[1] ** 0.5
            length_of_move = ((log_odds + MARGIN + BEYOND) / (steepness * root)).clamp(SHORTEST, LONGEST)
            direction = flat * (root / steepness)[:, None]
            moved = at - (length_of_move[:, None] * direction).view_as(at) * self.scale
            out[on] = self._of_norm(moved, z[on])
        return out
