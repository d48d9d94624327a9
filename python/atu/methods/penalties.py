"""Positives with a penalty on the generator's weights: EWC, and the sum of absolute values."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from .. import config
from ..feedback.feedback import Feedback
from ..gan import GAN
from ..support.modules import eval_mode, trainable
from ..support.seeding import Stream, fork_rng, stream_seed
from ..training.losses import generator_loss
from ..training.run_folder import RunFolder
from ..training.schedules import schedule
from .adapt_then_unlearn.adapt import Ewc, fisher_of
from .finetune import Outcome, finetune, pretrained_copy


def ewc(gan: GAN, feedback: Feedback, cfg: config.Config, run: RunFolder, seed: int) -> Outcome:
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

    def __init__(self, params: list[Tensor], weight: float, cfg: config.L1Sparse):
        self.params, self.weight, self.cfg = params, weight, cfg
        self.step = 0

    @torch.no_grad()
    def add_grad(self) -> dict[str, float]:
        weight = self.weight * schedule(self.cfg.schedule, self.step, self.cfg.steps)
        for p in self.params:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            p.grad.add_(p.sign(), alpha=weight)
        self.step += 1
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


def l1_sparse(gan: GAN, feedback: Feedback, cfg: config.Config, run: RunFolder, seed: int) -> Outcome:
    """Fine-tune on the positives under an l1 penalty.

    Source: Jia et al., "Model Sparsity Can Simplify Machine Unlearning" (arXiv 2304.04934).
    """
    own = cfg.methods.l1_sparse
    twin = pretrained_copy(gan)
    params = trainable(twin.generator)
    weight = own.weight
    if weight is None:
        with fork_rng(gan.device, stream_seed(seed, Stream.L1_WEIGHT)):
            norm = adversarial_norm(twin, params, own.adversarial.batch_size)
        weight = own.strength * norm / math.sqrt(sum(p.numel() for p in params))
    penalty = L1(params, weight, own)

    def set_step(step: int) -> None:
        penalty.step = step

    outcome = finetune(twin, "l1-sparse", gan, feedback, own, run, seed, add_grad=penalty.add_grad, on_step=set_step)
    outcome.decisions["l1_weight"] = weight
    return outcome
