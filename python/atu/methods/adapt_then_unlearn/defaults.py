"""What stage 2 takes where its settings leave it open, by the kind of GAN (docs/design-decisions.md).

kind                          steps   learning rate   hold_weight   the guide's Adam   good samples nearby
StyleGAN                        400   0.004                    45   0.002, beta1 0     a latent is moved to them
  nothing held, or big images   800   that of stage 1          45   0.002, beta1 0     a latent is moved to them
other                         2,500   that of stage 1          60   0.001, beta1 0.5   a way leads to them

nearby_weight: 8 for images, 1 for samples of few dimensions
"""

from __future__ import annotations

import dataclasses

from ... import config
from ...gan import GAN


@dataclasses.dataclass(frozen=True)
class Defaults:
    """lr: Adam's; None is that of any training (`config.Adversarial.lr`)."""

    steps: int
    lr: float | None
    hold_weight: float
    nearby_weight: float
    guide_lr: float
    guide_beta1: float


def defaults_for(gan: GAN, held: bool = True) -> Defaults:
    """held: if good samples are held to what they were. Then a StyleGAN bears twice the learning rate, and half of the
    steps do as well; of big samples this was not measured."""
    nearby = 8.0 if len(gan.sample_shape) == 3 else 1.0
    if not gan.is_stylegan:
        return Defaults(2500, None, 60.0, nearby, guide_lr=0.001, guide_beta1=0.5)
    steps, lr = (400, 0.004) if held and not gan.is_big else (800, None)
    return Defaults(steps, lr, 45.0, nearby, guide_lr=0.002, guide_beta1=0.0)


def resolved(gan: GAN, cfg: config.Repel) -> config.Repel:
    """The settings with nothing left open that depends on the kind of GAN; the given ones are kept."""
    own = defaults_for(gan, held=cfg.hold_weight != 0)
    adversarial = cfg.adversarial
    return dataclasses.replace(
        cfg,
        steps=own.steps if cfg.steps is None else cfg.steps,
        hold_weight=own.hold_weight if cfg.hold_weight == "auto" else cfg.hold_weight,
        nearby_weight=own.nearby_weight if cfg.nearby_weight == "auto" else cfg.nearby_weight,
        adversarial=dataclasses.replace(adversarial, lr=own.lr if adversarial.lr is None else adversarial.lr),
    )
