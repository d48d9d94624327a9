"""L1 sparsity: positives under weight * sum |theta| over the generator.

Source: Jia et al., "Model Sparsity Can Simplify Machine Unlearning" (arXiv 2304.04934).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.utils import get_total_norm

from ..config import STRICT, NonNegative
from ..gan import GAN
from ..support.modules import eval_mode, trainable
from ..support.seeding import Stream, fork_rng, stream_seed
from ..training.losses import generator_loss
from ..training.schedules import schedule
from ..training.step import AdversarialStep, Objective
from .finetune import Finetune, finetune, finetune_plan, pretrained_copy
from .registry import Method, Outcome, Task


@dataclass(config=STRICT)
class L1Sparse(Finetune):
    """Positives and weight * sum |theta| over the generator."""

    weight: Annotated[NonNegative | None, Field(description="Of the penalty; unset, chosen by strength.")] = None
    strength: Annotated[
        NonNegative,
        Field(description="Norm of the penalty's gradient over the adversarial one's at theta_G, if weight is unset."),
    ] = 0.2
    schedule: Annotated[
        Literal["constant", "linear", "cosine"],
        Field(description="Of the weight over the steps; the last two fall to 0."),
    ] = "constant"


class L1(Objective):
    """The GAN loss and weight * sum |theta| over the generator's trained parameters."""

    def __init__(self, params: list[Tensor], weight: float, cfg: L1Sparse):
        self.params, self.weight, self.cfg = params, weight, cfg

    @torch.no_grad()
    def after_backward(self, step: AdversarialStep) -> dict[str, float]:
        """Add the penalty's gradient to the generator's."""
        weight = self.weight * schedule(self.cfg.schedule, step.step_count, self.cfg.steps)
        for p in self.params:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            p.grad.add_(p.sign(), alpha=weight)
        return {"l1": weight * sum(float(p.abs().sum(dtype=torch.float64)) for p in self.params)}


def adversarial_norm(gan: GAN, params: list[Tensor], batch_size: int, batches: int = 16) -> float:
    """Mean norm, over batches of latents, of the adversarial loss's gradient with respect to `params`."""
    total = 0.0
    rng = torch.default_generator
    assert gan.discriminator is not None
    with eval_mode(gan.generator, gan.discriminator):
        for _ in range(batches):
            z, c = gan.latents(batch_size, rng), gan.labels(batch_size, rng)
            grads = torch.autograd.grad(generator_loss(gan.logits(gan.fake(z, c), c)), params, allow_unused=True)
            total += float(get_total_norm([g for g in grads if g is not None]))
    return total / batches


def l1_sparse(task: Task) -> Outcome:
    """Fine-tune on the positives under the penalty."""
    cfg = task.config.own
    twin = pretrained_copy(task.gan)
    params = trainable(twin.generator)
    weight = cfg.weight
    if weight is None:
        with fork_rng(task.gan.device, stream_seed(task.seed, Stream.L1_WEIGHT)):
            norm = adversarial_norm(twin, params, cfg.adversarial.batch_size)
        weight = cfg.strength * norm / math.sqrt(sum(p.numel() for p in params))
    outcome = finetune(task, twin, L1(params, weight, cfg))
    outcome.decisions["l1_weight"] = weight
    return outcome


L1_SPARSE = Method(l1_sparse, L1Sparse, plan=finetune_plan())
