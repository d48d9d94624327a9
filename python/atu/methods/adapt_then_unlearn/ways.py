"""A few ways from latents of negatives to latents of good samples, the same for all.

Neighbouring latents go the same way, so their good samples are alike, and the generator can learn them from a few
thousand. Of latents that were each moved by themselves it makes a blurred mean of several good samples
(docs/design-decisions.md).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...support import progress
from ...training.schedules import lr_decay, set_lr
from .nearby import MARGIN, NegativeLatents, rows

WAYS = 4
STEP, MAX_STEPS = 0.25, 24  # a step along a way is in deviations of a latent's elements (the norm of all of them)
BATCH_SIZE = 16  # latents, each of which goes all ways
LR, BETAS, START = 0.02, (0.9, 0.99), 0.1  # START: deviation of the elements of a way before it is learnt
LENGTH_WEIGHT = 1.0  # of the squared length of a way


class WayLatents(NegativeLatents):
    """Moves each latent the way that is shortest for it, until the guide finds its sample clearly good."""

    small_at_once = 256  # without gradients

    def _begin(self, steps: int) -> None:
        """Learn the ways, [WAYS, ...] of length 1, in deviations of a latent's elements, with Adam.

        The cost of a latent and a way is softplus(log-odds + MARGIN) + LENGTH_WEIGHT times the squared length. The loss
        is its soft minimum over the ways: each way learns from the latents that it suits.
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
                cost = F.softplus(self._log_odds(near, rows(self.c, index)) + MARGIN).to(squared)
                loss = -(-cost - LENGTH_WEIGHT * squared).logsumexp(0)
                (loss.sum() / BATCH_SIZE).backward()
            optim.step()
        ways = ways.detach()
        self.ways = ways / ways.flatten(1).norm(dim=1).clamp(min=1e-6).view(-1, *[1] * (ways.ndim - 1))

    @torch.no_grad()
    def _moved(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Move each latent along one way. If its sample becomes clearly good nowhere: to where it is best."""
        out, lowest = z.clone(), torch.full((len(z),), float("inf"), device=z.device)
        on = torch.arange(len(z), device=z.device)
        for step in range(MAX_STEPS + 1):
            ways = self.ways if step else self.ways[:1]  # at the start all ways are one sample
            for index in on.split(self._together()):
                near = torch.stack([self._along(z[index], step * STEP * way) for way in ways])
                log_odds, way = self._log_odds(near, rows(c, index)).float().min(0)
                better = log_odds < lowest[index]
                out[index[better]] = near[way, torch.arange(len(index), device=z.device)][better]
                lowest[index[better]] = log_odds[better]
            on = on[lowest[on] >= -MARGIN]
            if not len(on):
                break
        return out

    def _together(self) -> int:
        """Number of latents whose samples along all ways pass at once."""
        return max(self.at_once // WAYS, 1)

    def _along(self, z: Tensor, way: Tensor) -> Tensor:
        """z [N, ...] moved by a way [...], with z's dtype and norm."""
        out = z.to(self.scale) + self.scale * way
        return self._of_norm(out, z).to(z)

    def _log_odds(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Log-odds [W, N] of latents [W, N, ...] and labels [N, c_dim]."""
        flat, labels = z.flatten(0, 1), None if c is None else c.repeat(len(z), 1)
        with self.gan.autocast_unscaled():
            log_odds = self.guide.log_odds(self.original(flat, labels), labels)
        return log_odds.view(z.shape[:2])

    # --- resuming

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "ways": self.ways}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.ways = state["ways"].to(self.z.device)
