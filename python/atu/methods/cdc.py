"""Cross-domain correspondence: samples of different latents stay as like or unlike each other as they were.

Source: Ojha et al., "Few-shot Image Generation via Cross-domain Correspondence" (arXiv 2104.06820), section 3.1. Its
second part, a patch discriminator away from anchor latents, is against overfitting to ten images. The positives are
thousands, and it is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from ..config import SAMPLES, STRICT, Config, Expression, NonNegative
from ..gan import GAN
from ..training.step import AdversarialStep, Objective
from .finetune import Finetune, finetune, finetune_plan, pretrained_copy
from .registry import Method, Outcome, Task
from .taps import Taps, tapped_layers


@dataclass(config=STRICT)
class Cdc(Finetune):
    """Cross-domain correspondence on the positives."""

    weight: Annotated[NonNegative, Field(description="Of the correspondence loss.")] = 1000.0
    batch: Annotated[int, SAMPLES, Field(ge=3, description="Latents compared with each other in one step.")] = 4
    layers: Annotated[
        list[Expression],
        Field(
            description="Regular expressions of the modules whose inputs are compared; when empty all that take in "
            "feature maps (hidden activations, where the generator has no maps)."
        ),
    ] = field(default_factory=list)


def _layers(gan: GAN, cfg: Config) -> list[str]:
    return tapped_layers(gan, cfg.own.layers, "methods.cdc.layers")


def log_similarities(features: Tensor) -> Tensor:
    """Log softmax of each sample's cosine similarities to the others: [N, ...] to [N, N - 1]."""
    x = F.normalize(features.flatten(1), dim=1)
    n = len(x)
    others = ~torch.eye(n, dtype=torch.bool, device=x.device)
    return (x @ x.t())[others].reshape(n, n - 1).log_softmax(1)


def correspondence_loss(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    """Mean over layers and samples of KL(after || before) between the distributions of `log_similarities`.

    before, after: features [N, ...] of each layer, of the pretrained and of the trained generator.
    """
    terms = []
    for source, trained in zip(before, after, strict=True):
        p, q = log_similarities(trained), log_similarities(source)
        terms.append((p.exp() * (p - q)).sum(1).mean())
    return torch.stack(terms).mean()


class Correspondence(Objective):
    """The GAN loss and weight * `correspondence_loss`, which is passed backward by itself."""

    def __init__(self, cfg: Cdc, taps: Taps):
        self.cfg, self.taps = cfg, taps

    def after_backward(self, step: AdversarialStep) -> dict[str, float]:
        before, after = self.taps(*self.latents(step.gan, self.cfg.batch))
        loss = self.cfg.weight * correspondence_loss(before, after)
        loss.backward()
        return {"correspondence": float(loss.detach())}


def cdc(task: Task) -> Outcome:
    """Fine-tune on the positives under the correspondence loss."""
    names = _layers(task.gan, task.config)
    twin = pretrained_copy(task.gan)
    outcome = finetune(task, twin, Correspondence(task.config.own, Taps(twin, names)))
    outcome.decisions["compared_layers"] = names
    return outcome


CDC = Method(cdc, Cdc, plan=finetune_plan(_layers))
