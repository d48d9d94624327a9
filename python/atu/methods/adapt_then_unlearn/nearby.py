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
from .guide import Guide, Seen

MARGIN = 3.0  # log-odds of being negative, were half of the samples so, are to come below minus this
MAX_LATENTS = 4000  # that are kept
WAIT = 64  # new latents that are moved together
MOVES, LENGTH = 28, 0.03  # at most; of one, in deviations of a latent's element
BETAS = (0.8, 0.9)
STAY = 2.0  # log-odds that a distance of 1 to the latent's own sample counts


def rows(c: Tensor | None, index: Tensor | slice) -> Tensor | None:
    """Labels at these indices, if there are labels."""
    return None if c is None else c[index]


class NegativeLatents(ABC):
    """A bank of latents of which the pretrained GAN makes negatives, and of nearby ones of good samples. A kind of it
    says how these are reached.

    Args:
        original: the pretrained generator's samples of latents and labels, differentiable in the latents.
        guide: whose log-odds are to fall. distance: between samples, [N].
        at_once: samples that pass at once; what suits small ones when not given.
    """

    small_at_once = 64
    z: Tensor  # latents of negatives [M, ...]
    c: Tensor | None  # their labels
    good: Tensor  # the latents of good samples near them

    def __init__(
        self,
        gan: GAN,
        original: Callable[[Tensor, Tensor | None], Tensor],
        guide: Guide,
        distance: Callable[[Seen, Seen], Tensor],
        at_once: int | None = None,
    ):
        self.gan, self.original, self.guide, self.distance = gan, original, guide, distance
        self.at_once = at_once or self.small_at_once
        self.scale = gan.inputs(512)[0].std(0).clamp(min=1e-6)
        self.keeps_norm = gan.latent_sampler is None  # normal latents of one length are all alike
        self.waiting: list[Tensor] = []
        self.waiting_c: list[Tensor] = []

    def fill(self, z: Tensor, c: Tensor | None, steps: int = 200) -> None:
        """Begin with latents z of negatives and their labels c; steps: of Adam, by which a kind learns what its moves
        need."""
        self.z, self.c = z[:MAX_LATENTS], None if c is None else c[:MAX_LATENTS]
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
        """Add latents of negatives, once there are enough to move them together; the oldest go."""
        self.waiting.extend(z)
        self.waiting_c.extend([] if c is None else c)
        if len(self.waiting) < WAIT:
            return
        new = torch.stack(self.waiting)
        new_c = torch.stack(self.waiting_c) if self.waiting_c else None
        moved = self._moved_all(new, new_c, torch.arange(len(new)).split(self.at_once))
        self.z, self.good = torch.cat([self.z, new])[-MAX_LATENTS:], torch.cat([self.good, moved])[-MAX_LATENTS:]
        if self.c is not None and new_c is not None:
            self.c = torch.cat([self.c, new_c])[-MAX_LATENTS:]
        self.waiting, self.waiting_c = [], []

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
        if self.waiting:
            state["waiting"] = torch.stack(self.waiting)
        if self.waiting_c:
            state["waiting_c"] = torch.stack(self.waiting_c)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        state = {name: tensor.to(self.gan.device) for name, tensor in state.items()}
        self.z, self.good, self.c = state["z"], state["good"], state.get("c")
        self.waiting, self.waiting_c = list(state.get("waiting", ())), list(state.get("waiting_c", ()))


class MovedLatents(NegativeLatents):
    """Each is moved by itself, down the slope of the guide's log-odds and of the distance to its own sample: for
    StyleGANs, whose mapping network makes the way of a move a rough function of the latent.

    The distance keeps what the guide does not ask for. Without it a face whose whiskers are to go gets another colour
    and other ears on the way.
    """

    def _moved(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Until the guide finds its samples clearly good, or as far as MOVES go.

        By Adam's rule (Kingma and Ba, arXiv 1412.6980) with one second moment a latent, so that each move is about as
        long as any other, and goes down the slope.
        """
        out = z.clone()
        mean, square = torch.zeros_like(z.flatten(1)), z.new_zeros(len(z), 1)
        with torch.no_grad():
            own = self._look(z, c)
        on = torch.arange(len(z), device=z.device)
        for step in range(1, MOVES + 1):
            at = out[on].requires_grad_(True)
            with torch.enable_grad():
                seen = self._look(at, rows(c, on))
                cost = seen.log_odds + STAY * self.distance(seen, own.rows(on))
            (slope,) = torch.autograd.grad(cost.sum(), at)
            left = seen.log_odds.detach() > -MARGIN
            on, at, slope = on[left], at.detach()[left], (slope[left].to(z) * self.scale).flatten(1)
            if not len(on):
                break
            mean[on] = torch.lerp(slope, mean[on], BETAS[0])
            square[on] = torch.lerp(slope.square().mean(1, keepdim=True), square[on], BETAS[1])
            root = (square[on] / (1 - BETAS[1] ** step)).sqrt().clamp(min=1e-12)
            move = LENGTH * mean[on] / (1 - BETAS[0] ** step) / root
            out[on] = self._of_norm(at - move.view_as(at) * self.scale, z[on])
        return out

    def _look(self, z: Tensor, c: Tensor | None) -> Seen:
        with self.gan.autocast():
            return self.guide.look(self.original(z, c), c)
