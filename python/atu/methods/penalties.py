"""Positives with a penalty on the generator's weights: EWC, and the sum of absolute values."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.utils import get_total_norm

from ..config import STRICT, Config, Fisher, NonNegative
from ..gan import GAN
from ..support.modules import eval_mode, trainable
from ..support.seeding import Stream, fork_rng, stream_seed
from ..training.fisher import check_parameters
from ..training.losses import generator_loss
from ..training.schedules import schedule
from ..training.step import AdversarialStep, Objective
from .adapt_then_unlearn.adapt import Ewc, fisher_of
from .finetune import Finetune, finetune, finetune_plan, pretrained_copy
from .registry import Method, Outcome, Task


@dataclass(config=STRICT)
class EwcSettings(Finetune):
    """Positives and an EWC penalty that holds the generator at theta_G."""

    weight: Annotated[
        NonNegative,
        Field(
            description="Weight lambda of EWC, lambda/2 sum F (theta - theta_G)^2; with relative it is divided by "
            "1/2 sum F theta_G^2."
        ),
    ] = 5.0
    relative: Annotated[
        bool,
        Field(description="Divide EWC by 1/2 sum F theta_G^2, so that one weight means the same for every network."),
    ] = True
    fisher: Annotated[Fisher, Field(description="The Fisher information F.")] = field(default_factory=Fisher)


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


def ewc(task: Task) -> Outcome:
    """Fine-tune on the positives under EWC's penalty around theta_G.

    Source: Li et al., "Few-shot Image Generation with Elastic Weight Consolidation" (arXiv 2012.02780).
    """
    own = task.config.own
    fisher = fisher_of(task.gan, task.feedback, own.fisher, task.seed)
    twin = pretrained_copy(task.gan)
    anchor = [p.detach().clone() for p in twin.generator.parameters()]
    return finetune(task, twin, Ewc(twin, anchor, fisher, own.weight, own.relative))


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
    """Fine-tune on the positives under an l1 penalty.

    Source: Jia et al., "Model Sparsity Can Simplify Machine Unlearning" (arXiv 2304.04934).
    """
    own = task.config.own
    twin = pretrained_copy(task.gan)
    params = trainable(twin.generator)
    weight = own.weight
    if weight is None:
        with fork_rng(task.gan.device, stream_seed(task.seed, Stream.L1_WEIGHT)):
            norm = adversarial_norm(twin, params, own.adversarial.batch_size)
        weight = own.strength * norm / math.sqrt(sum(p.numel() for p in params))
    outcome = finetune(task, twin, L1(params, weight, own))
    outcome.decisions["l1_weight"] = weight
    return outcome


def _check(gan: GAN, cfg: Config) -> None:
    check_parameters(gan.generator, cfg.own.fisher.parameters, f"config: methods.{cfg.method}.fisher.parameters")


EWC = Method(ewc, EwcSettings, plan=finetune_plan(_check))
L1_SPARSE = Method(l1_sparse, L1Sparse, plan=finetune_plan())
