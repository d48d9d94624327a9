"""The bank: latents of which the pretrained GAN makes negatives, each with a nearby latent of a good sample.

The good sample is one that the pretrained GAN makes, changed as little as the guide needs. The guide's slope in the
samples themselves would lead to damaged pictures, and its slope in a StyleGAN's w to a w that no latent maps to.
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

MARGIN = 3.0  # a sample is clearly good if its log-odds of being negative are below minus this
MAX_LATENTS = 4000  # that are kept
WAIT = 64  # new latents that are moved together
MAX_MOVES, MOVE_LENGTH = 28, 0.03  # the length is in deviations of a latent's element
BETAS = (0.8, 0.9)  # Adam's
STAY = 2.0  # log-odds that a distance of 1 from the latent's first sample costs


def rows(c: Tensor | None, index: Tensor | slice) -> Tensor | None:
    """Labels at these indices, if there are labels."""
    return None if c is None else c[index]


class NegativeLatents(ABC):
    """A bank of latents of which the pretrained GAN makes negatives, and of nearby latents of good samples. A subclass
    says how it moves from one to the other.

    Args:
        original: the pretrained generator's samples of latents and labels, differentiable in the latents.
        guide: its log-odds are to fall. distance: between samples, [N].
        at_once: samples that pass at once; `small_at_once` when not given.
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
        """Begin with latents z of negatives and their labels c. steps: of Adam, if the moves must be learnt."""
        self.z, self.c = z[:MAX_LATENTS], None if c is None else c[:MAX_LATENTS]
        self._begin(steps)
        parts = torch.arange(len(self.z)).split(self.at_once)
        self.good = self._moved_all(self.z, self.c, progress.track("nearby good samples", parts, len(self.z)))

    def __len__(self) -> int:
        return len(self.z)

    def draw(self, n: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """Draw n latents with replacement: (latents, labels, latents of the nearby good samples)."""
        index = torch.randint(len(self.z), (n,)).to(self.z.device)
        return self.z[index], rows(self.c, index), self.good[index]

    def add(self, z: Tensor, c: Tensor | None) -> None:
        """Add latents of negatives. They are moved once there are WAIT of them; the oldest of the bank are dropped."""
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
        """Learn how to move, from the latents of the bank."""
        return

    def _moved_all(self, z: Tensor, c: Tensor | None, parts: Iterable[Tensor]) -> Tensor:
        """Latents of good samples near z; parts: indices that are moved together."""
        return torch.cat([self._moved(z[part], rows(c, part)) for part in parts])

    @abstractmethod
    def _moved(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Move latents z [N, ...] of labels c [N, c_dim] until the guide finds their samples clearly good."""

    def _of_norm(self, moved: Tensor, z: Tensor) -> Tensor:
        """Moved latents with the norms of z, if latents are normal."""
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
    """Moves each latent by itself, down the slope of the guide's log-odds and of the distance to its first sample.

    For StyleGANs: their mapping network makes the direction of a move a rough function of the latent. The distance
    keeps what the guide does not ask for. Without it a face that loses its whiskers also changes colour and ears.
    """

    def _moved(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Move until the guide finds the samples clearly good, MAX_MOVES times at most.

        By Adam's rule (Kingma and Ba, arXiv 1412.6980) with one second moment a latent, so that all moves are about
        equally long and go down the slope.
        """
        out = z.clone()
        mean, square = torch.zeros_like(z.flatten(1)), z.new_zeros(len(z), 1)
        with torch.no_grad():
            first = self._look(z, c)
        on = torch.arange(len(z), device=z.device)
        for step in range(1, MAX_MOVES + 1):
            at = out[on].requires_grad_(True)
            with torch.enable_grad():
                seen = self._look(at, rows(c, on))
                cost = seen.log_odds + STAY * self.distance(seen, first.rows(on))
            (slope,) = torch.autograd.grad(cost.sum(), at)
            left = seen.log_odds.detach() > -MARGIN
            on, at, slope = on[left], at.detach()[left], (slope[left].to(z) * self.scale).flatten(1)
            if not len(on):
                break
            mean[on] = torch.lerp(slope, mean[on], BETAS[0])
            square[on] = torch.lerp(slope.square().mean(1, keepdim=True), square[on], BETAS[1])
            root = (square[on] / (1 - BETAS[1] ** step)).sqrt().clamp(min=1e-12)
            move = MOVE_LENGTH * mean[on] / (1 - BETAS[0] ** step) / root
            out[on] = self._of_norm(at - move.view_as(at) * self.scale, z[on])
        return out

    def _look(self, z: Tensor, c: Tensor | None) -> Seen:
        with self.gan.autocast():
            return self.guide.look(self.original(z, c), c)
