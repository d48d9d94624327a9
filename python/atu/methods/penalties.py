"""Positives with a penalty on the generator's weights: EWC, and the sum of absolute values."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import config
from ..adapt import Ewc, fisher_of
from ..adversarial import trainable
from ..feedback import Feedback
from ..gan import GAN
from ..repel import schedule
from ..runs import Run
from .finetune import Outcome, finetune, pretrained_copy


def ewc(gan: GAN, feedback: Feedback, cfg: config.Config, run: Run, seed: int) -> Outcome:
    """Fine-tune on the positives under EWC's penalty around theta_G.

    Source: Li et al., "Few-shot Image Generation with Elastic Weight Consolidation" (arXiv 2012.02780).
    """
    own = cfg.methods.ewc
    fisher = fisher_of(gan, feedback, own.fisher, seed)
    twin = pretrained_copy(gan)
    anchor = [p.detach().clone() for p in twin.generator.parameters()]
    hold = Ewc(twin, anchor, fisher, own.weight, own.relative)
    return finetune(twin, "ewc", gan, feedback, own, run, seed, add_grad=hold.add_grad)


class L1:
    """Adds the gradient of weight * sum |theta|, over the generator's trained parameters, to the gradients."""

    def __init__(self, params: list[Tensor], cfg: config.L1Sparse):
        self.params, self.cfg = params, cfg
        self.step = 0

    @torch.no_grad()
    def add_grad(self) -> dict[str, float]:
        weight = self.cfg.weight * schedule(self.cfg, self.step)
        for p in self.params:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            p.grad.add_(p.sign(), alpha=weight)
        self.step += 1
        return {"l1": weight * sum(float(p.abs().sum(dtype=torch.float64)) for p in self.params)}


def l1_sparse(gan: GAN, feedback: Feedback, cfg: config.Config, run: Run, seed: int) -> Outcome:
    """Fine-tune on the positives under an l1 penalty.

    Source: Jia et al., "Model Sparsity Can Simplify Machine Unlearning" (arXiv 2304.04934).
    """
    own = cfg.methods.l1_sparse
    twin = pretrained_copy(gan)
    penalty = L1(trainable(twin.generator), own)

    def set_step(step: int) -> None:
        penalty.step = step

    return finetune(twin, "l1-sparse", gan, feedback, own, run, seed, add_grad=penalty.add_grad, on_step=set_step)
