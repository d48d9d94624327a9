"""A map that leads latents of which the pretrained GAN makes negatives to nearby ones of which it makes good samples.

It is a small network and so smooth: latents beside each other go to good samples that are alike, which the generator
can learn from a few thousand of them. Latents moved one by one end each somewhere else, and what it makes then is a
blurred mean of several good samples (docs/trials.md).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...support import progress
from ...training.schedules import lr_decay, set_lr
from ...training.trainer import load_optimizer_state, optimizer_state
from .nearby import MARGIN, NegativeLatents

HIDDEN = 256  # of the map's two layers
BATCH_SIZE = 32
LR, BETAS = 2e-3, (0.9, 0.99)
LATER = 0.1  # of that rate, once stage 2 has begun
LEARN_EVERY = 8  # draws from the bank
MOVE_WEIGHT = 2.5  # of the squared length of what it adds, in deviations of a latent's elements


class LatentMap(nn.Module):
    """A latent and what a small network adds to it, at first nothing.

    Args:
        scale: standard deviations of a latent's elements, [...]. c_dim: of labels, which the network sees too.
        keeps_norm: what is given has the norm of what came, as normal latents of one length are all alike.
    """

    def __init__(self, scale: Tensor, c_dim: int, keeps_norm: bool):
        super().__init__()
        self.scale, self.keeps_norm = scale.flatten(), keeps_norm
        dim = self.scale.numel()
        last = nn.Linear(HIDDEN, dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(
            nn.Linear(dim + c_dim, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU(), last
        ).to(scale)

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """Latents [N, ...] near z, of its dtype; c: labels [N, c_dim]."""
        flat = z.flatten(1).to(self.scale)
        units = flat / self.scale
        out = flat + self.scale * self.net(units if c is None else torch.cat([units, c.to(units)], 1))
        if self.keeps_norm:
            out = out * (flat.norm(dim=1) / out.norm(dim=1).clamp(min=1e-6))[:, None]
        return out.view_as(z).to(z)


class MappedLatents(NegativeLatents):
    """A bank of latents of negatives whose nearby good samples are those of a map, which learns to lower the guide's
    log-odds through the frozen generator, and to move a latent by little. It learns on as the bank grows; a batch's
    gradients are summed over the parts of it that pass at once."""

    def _begin(self, steps: int) -> None:
        self.draws = 0
        self.map = LatentMap(self.scale, 0 if self.c is None else self.c.shape[1], self.keeps_norm)
        self.optim = torch.optim.Adam(self.map.parameters(), LR, BETAS)
        for step in progress.track("nearby good samples", range(steps), steps):
            set_lr(self.optim, LR * lr_decay(step / steps, 0.5))
            self._learn()
        set_lr(self.optim, LR * LATER)

    def draw(self, n: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """As of the bank; at some of the draws the map learns on first."""
        self.draws += 1
        if self.draws % LEARN_EVERY == 0:
            self._learn()
        return super().draw(n)

    def _near(self, index: Tensor) -> Tensor:
        with torch.no_grad():
            near: Tensor = self.map(self.z[index], self._labels(index))
        return near

    def _learn(self) -> None:
        """A step of Adam on softplus(log-odds + MARGIN) and MOVE_WEIGHT times the squared length of the move."""
        self.optim.zero_grad(set_to_none=True)
        for index in torch.randint(len(self.z), (BATCH_SIZE,)).to(self.z.device).split(self.at_once):
            z, c = self.z[index], self._labels(index)
            near = self.map(z, c)
            with self.gan.autocast_unscaled():
                log_odds = self.guide.log_odds(self.original(near, c), c)
            move = ((near - z) / self.scale).flatten(1).square().sum(1)
            loss = F.softplus(log_odds + MARGIN).to(move) + MOVE_WEIGHT * move
            (loss.sum() / BATCH_SIZE).backward()
        self.optim.step()

    # --- resuming

    def state_dict(self) -> dict[str, Any]:
        learnt = {"map": dict(self.map.state_dict()), "optim": optimizer_state(self.optim)}
        return {**super().state_dict(), **learnt, "draws": self.draws}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.draws = state["draws"]
        self.map.load_state_dict(state["map"])
        load_optimizer_state(self.optim, state["optim"])
