"""Diagonal empirical Fisher information of a generator (Kirkpatrick et al., arXiv 1612.00796)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..gan import GAN
from ..support import progress
from ..support.modules import eval_mode


def check_parameters(generator: nn.Module, patterns: Sequence[str], name: str = "parameters") -> None:
    """Raise ValueError if a regular expression matches none of the generator's parameters; `name` is the setting."""
    parameters = [parameter for parameter, _ in generator.named_parameters()]
    for pattern in patterns:
        if not any(re.search(pattern, parameter) for parameter in parameters):
            raise ValueError(f"{name}: {pattern!r} matches none of the generator's, such as {parameters[0]}")


def diagonal_fisher(gan: GAN, z: Tensor, c: Tensor | None = None, parameters: Sequence[str] = ()) -> list[Tensor]:
    """F_i = E[(d D(G(z)) / d theta_i)^2], D the logit, over the samples made from z, one at a time.

    Each sample passes both networks alone and in eval mode, so no statistics of a batch couple samples.

    Args:
        z: latents [N, latent_dim]; c: labels [N, c_dim] of a conditional GAN.
        parameters: regular expressions (searched) of the parameters to measure; the others get 0. Empty: all.

    Returns:
        one tensor a generator parameter, of its shape and dtype.

    Raises:
        ValueError: z is empty, or an expression matches no parameter.
    """
    if len(z) == 0:
        raise ValueError("z: expected at least one latent, got none")
    gan = gan.copy()  # it may be frozen, and passes with gradients may leave what cannot be copied
    named = list(gan.generator.named_parameters())
    check_parameters(gan.generator, parameters)
    chosen = [not parameters or any(re.search(pattern, name) for pattern in parameters) for name, _ in named]
    fisher = [torch.zeros_like(p) for _, p in named]
    params = [p for (_, p), take in zip(named, chosen, strict=True) if take]
    totals = [f for f, take in zip(fisher, chosen, strict=True) if take]
    for p in params:
        p.requires_grad_(True)
    assert gan.discriminator is not None
    with eval_mode(gan.generator, gan.discriminator):
        for i in progress.track("Fisher", range(len(z)), len(z)):
            label = None if c is None else c[i : i + 1]
            logit = gan.logits(gan.fake(z[i : i + 1], label), label).sum()
            grads = torch.autograd.grad(logit, params, allow_unused=True)
            for total, grad in zip(totals, grads, strict=True):
                if grad is not None:
                    total.add_(grad.square(), alpha=1 / len(z))
    return fisher
