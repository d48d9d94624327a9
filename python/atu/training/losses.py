"""Losses of GAN training.

Sources: non-saturating logistic loss (Goodfellow et al., arXiv 1406.2661), relativistic pairing with R1 and R2
(Jolicoeur-Martineau, arXiv 1807.00734; Huang et al., arXiv 2501.05441), R1 (Mescheder et al., arXiv 1801.04406), path
length and lazy regularisation (Karras et al., arXiv 1912.04958).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating: -log sigmoid(D(G(z))), mean over [N]."""
    return F.softplus(-fake_logits).mean()


def real_loss(real_logits: Tensor) -> Tensor:
    """-log sigmoid(D(x)), mean over [N]."""
    return F.softplus(-real_logits).mean()


def fake_loss(fake_logits: Tensor) -> Tensor:
    """-log(1 - sigmoid(D(G(z)))), mean over [N]."""
    return F.softplus(fake_logits).mean()


def relativistic_loss(higher: Tensor, lower: Tensor) -> Tensor:
    """-log sigmoid(higher - lower), mean over pairs of logits [N]: real and fake for D, fake and real for G."""
    return F.softplus(lower - higher).mean()


def discriminator_loss(kind: str, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """D's loss, "logistic" or "relativistic"; there may be more real logits than fake ones."""
    if kind == "relativistic":
        return relativistic_loss(real_logits[: len(fake_logits)], fake_logits)
    return fake_loss(fake_logits) + real_loss(real_logits)


def r1_gamma(shape: Sequence[int], batch_size: int) -> float:
    """Weight of R1 and R2 where it is "auto", for samples [*shape].

    0.05, with which small images come out clear (docs/design-decisions.md); for big images StyleGAN2-ADA's
    0.0002 height width / batch_size.
    """
    return max(0.05, 0.0002 * shape[-2] * shape[-1] / batch_size) if len(shape) == 3 else 0.05


def r1_penalty(real_logits: Tensor, real: Tensor) -> Tensor:
    """1/2 E ||d D(x) / d x||^2 at real samples; `real` must require grad."""
    (grad,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
    return 0.5 * grad.square().flatten(1).sum(1).mean()


class PathLength:
    """Path length penalty E (||J_w^T y|| - a)^2 with the running mean a, y ~ N(0, 1/(H W))."""

    def __init__(self, decay: float = 0.01):
        self.decay = decay
        self.mean = torch.zeros([])

    def __call__(self, images: Tensor, ws: Tensor) -> Tensor:
        """Penalty of images [N, C, H, W] made from ws [N, num_ws, w_dim]."""
        noise = torch.randn_like(images) / math.sqrt(images.shape[2] * images.shape[3])
        (grad,) = torch.autograd.grad((images * noise).sum(), ws, create_graph=True)
        lengths = grad.square().sum(2).mean(1).sqrt()
        mean = self.mean.to(lengths).lerp(lengths.mean(), self.decay)
        self.mean = mean.detach()
        return (lengths - mean).square().mean()

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        self.mean = state["mean"].to(device)
