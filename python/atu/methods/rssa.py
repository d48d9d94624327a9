"""Relaxed spatial structural alignment: the layout of each sample, and its layout against its neighbours', stay.

Source: Xiao et al., "Few Shot Generative Model Adaption via Relaxed Spatial Structural Alignment" (arXiv 2203.04121),
section 3.2. The relaxation, a projection of the latents towards those of ten target images, is left out: the positives
are thousands, and their latents span the whole space. Large maps are averaged down instead of cut into windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from itertools import combinations
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from ..config import SAMPLES, STRICT, Config, Expression, Fraction, NonNegative, Unit
from ..gan import GAN
from ..training.step import AdversarialStep, Objective
from .finetune import Finetune, finetune, finetune_plan, pretrained_copy
from .registry import Method, Outcome, Task
from .taps import Taps, tapped_layers


@dataclass(config=STRICT)
class Rssa(Finetune):
    """Spatial structural alignment on the positives."""

    self_weight: Annotated[NonNegative, Field(description="Of the loss between places of one sample.")] = 0.8
    disturbance_weight: Annotated[
        NonNegative, Field(description="Of the loss between places of samples of neighbouring latents.")
    ] = 0.4
    disturbance: Annotated[
        Fraction, Field(description="Share of fresh noise in latents that are compared with each other.")
    ] = 0.15
    max_size: Annotated[int, Unit("places a side"), Field(ge=2, description="Larger maps are averaged to it.")] = 16
    batch: Annotated[int, SAMPLES, Field(ge=2, description="Latents compared with each other in one step.")] = 4
    layers: Annotated[
        list[Expression],
        Field(
            description="Regular expressions of the modules whose inputs are compared; when empty all that take in "
            "feature maps."
        ),
    ] = field(default_factory=list)


def _layers(gan: GAN, cfg: Config) -> list[str]:
    return tapped_layers(gan, cfg.own.layers, "methods.rssa.layers", maps_only=True)


def places(features: Tensor, max_size: int) -> Tensor:
    """Unit vectors [N, P, C] of the P places of maps [N, C, H, W], averaged down to at most max_size a side."""
    h, w = (min(size, max_size) for size in features.shape[2:])
    if (h, w) != tuple(features.shape[2:]):
        features = F.adaptive_avg_pool2d(features, (h, w))
    return F.normalize(features.flatten(2).transpose(1, 2), dim=2)


def self_correlation_loss(before: Sequence[Tensor], after: Sequence[Tensor], max_size: int) -> Tensor:
    """Sum over layers of the mean smooth l1 distance between the two P x P matrices of cosines between places."""
    total = []
    for source, trained in zip(before, after, strict=True):
        a, b = places(source, max_size), places(trained, max_size)
        total.append(F.smooth_l1_loss(b @ b.transpose(1, 2), a @ a.transpose(1, 2)))
    return torch.stack(total).sum()


def disturbance_loss(before: Sequence[Tensor], after: Sequence[Tensor], max_size: int) -> Tensor:
    """Sum over layers of the mean, over pairs of samples and places of the first, of KL(before || after).

    The distributions are the softmax, over the second sample's places, of the cosines between places.
    """
    total = []
    for source, trained in zip(before, after, strict=True):
        i, j = (list(side) for side in zip(*combinations(range(len(source)), 2), strict=True))
        a, b = places(source, max_size), places(trained, max_size)
        p = (a[i] @ a[j].transpose(1, 2)).log_softmax(2)
        q = (b[i] @ b[j].transpose(1, 2)).log_softmax(2)
        total.append((p.exp() * (p - q)).sum(2).mean())
    return torch.stack(total).sum()


class Structure(Objective):
    """The GAN loss and both structural losses, which are passed backward by themselves."""

    def __init__(self, cfg: Rssa, taps: Taps):
        self.cfg, self.taps = cfg, taps

    def after_backward(self, step: AdversarialStep) -> dict[str, float]:
        cfg = self.cfg
        z, c = self.latents(step.gan, cfg.batch)
        structure = cfg.self_weight * self_correlation_loss(*self.taps(z, c), cfg.max_size)
        # Neighbours: one latent, disturbed; with one label.
        z = (1 - cfg.disturbance) * z[:1] + cfg.disturbance * step.gan.latents(cfg.batch, torch.default_generator)
        c = None if c is None else c[:1].expand_as(c)
        relation = cfg.disturbance_weight * disturbance_loss(*self.taps(z, c), cfg.max_size)
        (structure + relation).backward()
        return {"self_correlation": float(structure.detach()), "disturbance": float(relation.detach())}


def rssa(task: Task) -> Outcome:
    """Fine-tune on the positives under both losses."""
    names = _layers(task.gan, task.config)
    twin = pretrained_copy(task.gan)
    outcome = finetune(task, twin, Structure(task.config.own, Taps(twin, names)))
    outcome.decisions["compared_layers"] = names
    return outcome


RSSA = Method(rssa, Rssa, plan=finetune_plan(_layers))
