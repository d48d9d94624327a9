"""Latents of which the pretrained GAN makes negatives, each with a nearby one of which it makes a good sample.

The way there leads down the slope of the guide's log-odds, through the frozen generator: what is reached is a sample
that the pretrained GAN makes, and changed by as little as the guide needs. Where a classifier's slope in the samples
themselves ends in a damaged picture, this cannot; nor the slope in a StyleGAN's w, which leads to w of no latent.
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

SHORTEST, LONGEST = 0.01, 0.06  # one move along the slope, in deviations of a latent's element
MOVES = 28  # at most
MARGIN = 3.0  # log-odds of being negative, were half of the samples so, are to come below minus this
BEYOND = 0.3  # that a move aims below it, so that the last one arrives
MOST = 4000  # latents that are kept
WAIT = 32  # found ones that are moved together


class NegativeLatents(ABC):
    """A bank of latents of which the pretrained GAN makes negatives. A kind of it says which good samples are near.

    Args:
        original: the pretrained generator's samples of latents and labels, differentiable in the latents.
        guide: whose log-odds are to fall. known: (latents, labels) of negatives. at_once: samples that pass at once.
        steps: of Adam, where what leads to good samples learns.
    """

    def __init__(
        self,
        gan: GAN,
        original: Callable[[Tensor, Tensor | None], Tensor],
        guide: Guide,
        known: tuple[Tensor, Tensor | None],
        at_once: int = 64,
        steps: int = 0,
    ):
        self.gan, self.original, self.guide, self.at_once = gan, original, guide, at_once
        self.scale = gan.inputs(512)[0].std(0).clamp(min=1e-6)
        self.keeps_norm = gan.latent_sampler is None  # normal latents of one length are all alike
        z, c = known
        self.z, self.c = z[:MOST], None if c is None else c[:MOST]
        self._begin(steps)

    def __len__(self) -> int:
        return len(self.z)

    def draw(self, n: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """n latents drawn with replacement, their labels, and the latents of the nearby good samples."""
        index = torch.randint(len(self.z), (n,)).to(self.z.device)
        return self.z[index], self._labels(index), self._near(index)

    def add(self, z: Tensor, c: Tensor | None) -> None:
        """Add latents whose sample was found negative; the oldest go."""
        self.z = torch.cat([self.z, z])[-MOST:]
        if self.c is not None and c is not None:
            self.c = torch.cat([self.c, c])[-MOST:]

    @abstractmethod
    def _begin(self, steps: int) -> None:
        """Find what leads from the known latents to good samples."""

    @abstractmethod
    def _near(self, index: Tensor) -> Tensor:
        """Of the latents of these indices those of nearby good samples."""

    def _labels(self, index: Tensor) -> Tensor | None:
        return None if self.c is None else self.c[index]

    # --- resuming

    def state_dict(self) -> dict[str, Any]:
        return {"z": self.z} if self.c is None else {"z": self.z, "c": self.c}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.z.device
        self.z = state["z"].to(device)
        self.c = state["c"].to(device) if "c" in state else None


class MovedLatents(NegativeLatents):
    """Each is moved by itself, until the guide finds its sample clearly good: for StyleGANs, where a small change of
    the latent, through the mapping network, may change the sample much (`MappedLatents` cannot learn that)."""

    def _begin(self, steps: int) -> None:
        parts = torch.arange(len(self.z)).split(self.at_once)
        self.good = self._moved_all(self.z, self.c, progress.track("nearby good samples", parts, len(self.z)))
        self.found: list[Tensor] = []
        self.found_c: list[Tensor] = []

    def add(self, z: Tensor, c: Tensor | None) -> None:
        """As of the bank; they are moved once there are enough to do that together."""
        self.found.extend(z)
        self.found_c.extend([] if c is None else c)
        if len(self.found) < WAIT:
            return
        new = torch.stack(self.found)
        new_c = torch.stack(self.found_c) if self.found_c else None
        moved = self._moved_all(new, new_c, torch.arange(len(new)).split(self.at_once))
        self.good = torch.cat([self.good, moved])[-MOST:]
        super().add(new, new_c)
        self.found, self.found_c = [], []

    def _near(self, index: Tensor) -> Tensor:
        return self.good[index]

    def _moved_all(self, z: Tensor, c: Tensor | None, parts: Iterable[Tensor]) -> Tensor:
        """Latents of good samples near z; parts: which of them pass together."""
        return torch.cat([self._moved(z[part], None if c is None else c[part]) for part in parts])

    def _moved(self, z: Tensor, c: Tensor | None) -> Tensor:
        """z, moved until the guide finds its samples clearly good, or as far as MOVES go.

        A move is as long as Newton's method has it, within bounds: on the way it is long, near the end short.
        """
        out, length = z.clone(), z.flatten(1).norm(dim=1)
        on = torch.arange(len(z), device=z.device)
        for _ in range(MOVES):
            at = out[on].requires_grad_(True)
            with torch.enable_grad(), self.gan.autocast():
                own = None if c is None else c[on]
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
            if self.keeps_norm:
                shape = [-1] + [1] * (moved.ndim - 1)
                moved = moved * (length[on] / moved.flatten(1).norm(dim=1)).view(shape)
            out[on] = moved
        return out

    # --- resuming

    def state_dict(self) -> dict[str, Any]:
        state = {**super().state_dict(), "good": self.good}
        if self.found:
            state["found"] = torch.stack(self.found)
        if self.found_c:
            state["found_c"] = torch.stack(self.found_c)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        device = self.z.device
        self.good = state["good"].to(device)
        self.found = list(state["found"].to(device)) if "found" in state else []
        self.found_c = list(state["found_c"].to(device)) if "found_c" in state else []
