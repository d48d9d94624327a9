"""Relearning: how soon do negatives come back when the networks are trained on?

On few negatives (K of them), and on good samples that have nothing to do with them, at a low learning rate: a curve of
the share of negatives over the images seen, and its area.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..config import Adapt
from ..data.samples import TensorSamples
from ..gan import GAN
from ..judging.rule import Rule
from ..support import progress
from ..support.seeding import Stream, fork_rng, stream_seed
from ..training.step import AdversarialStep, Objective


def negative_rate(gan: GAN, rule: Rule, n: int, seed: int, generator: nn.Module | None = None) -> float:
    """Share of n samples that are negative by `rule`."""
    with torch.no_grad():
        flags = [rule(x).cpu() for x in gan.batches(n, seed, generator=generator)]
    return float(torch.cat(flags).float().mean())


def relearn(
    gan: GAN,
    samples: Tensor | TensorSamples,
    rule: Rule,
    images: int = 6400,
    looks: int = 8,
    rate: float = 0.1,
    check_samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Fine-tune a copy of both networks on `samples` [K, ...], with their labels where they have some: stage 1's
    settings, without EWC.

    Args:
        rule: samples -> bool [N], what is negative; looked at on check_samples latents, the same each time, of the
            generator in training. images: samples that the discriminator is shown as real. looks: how often, evenly.
            rate: times stage 1's learning rate.

    Returns:
        curve: [images seen, share of negatives] of each look. area: the curve's mean over the images seen (trapezoids).

    Raises:
        ValueError: no samples, or a GAN without a discriminator.
    """
    if len(samples) == 0:
        raise ValueError("samples: expected at least one, got none")
    held = TensorSamples(samples.cpu()) if isinstance(samples, Tensor) else samples
    twin = gan.copy()
    twin.generator.load_state_dict(gan.sampling_generator.state_dict())
    settings = Adapt().adversarial
    batch = min(settings.batch_size, max(images // looks, 1))
    settings = dataclasses.replace(settings, batch_size=batch)
    steps = max(images // batch, 1)
    at = sorted({round(steps * look / looks) for look in range(1, looks + 1)} - {0})
    latents = stream_seed(seed, Stream.ATTACK_RATE)
    curve = [[0, negative_rate(gan, rule, check_samples, latents, gan.sampling_generator)]]
    with fork_rng(gan.device, stream_seed(seed, Stream.RELEARN)), progress.bar("relearn", steps) as bar:
        trainer = AdversarialStep(twin, held, Objective(), settings)
        trainer.set_lr_factor(rate)
        while trainer.step_count < steps:
            bar.update(trainer.step())
            if trainer.step_count in at:
                share = negative_rate(gan, rule, check_samples, latents, twin.generator)
                curve.append([trainer.step_count * batch, share])
    return dict(curve=curve, area=area(curve), samples=len(samples))


def area(curve: list[list[Any]]) -> float:
    """Mean height of a curve of [x, y] points over x, by trapezoids."""
    width = curve[-1][0] - curve[0][0]
    parts = [(b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(curve)]
    return float(sum(parts)) / width if width else float(curve[0][1])
