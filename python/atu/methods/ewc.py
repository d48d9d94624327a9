"""Elastic weight consolidation: positives under a penalty that holds the generator at theta_G.

Source: Li et al., "Few-shot Image Generation with Elastic Weight Consolidation" (arXiv 2012.02780).
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..config import STRICT, Config, Fisher, NonNegative
from ..gan import GAN
from ..training.fisher import check_parameters
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


def ewc(task: Task) -> Outcome:
    """Fine-tune on the positives under EWC's penalty around theta_G."""
    cfg = task.config.own
    fisher = fisher_of(task.gan, cfg.fisher, task.seed)
    twin = pretrained_copy(task.gan)
    anchor = [p.detach().clone() for p in twin.generator.parameters()]
    return finetune(task, twin, Ewc(twin, anchor, fisher, cfg.weight, cfg.relative))


def _check(gan: GAN, cfg: Config) -> None:
    check_parameters(gan.generator, cfg.own.fisher.parameters, f"config: methods.{cfg.method}.fisher.parameters")


EWC = Method(ewc, EwcSettings, plan=finetune_plan(_check))
