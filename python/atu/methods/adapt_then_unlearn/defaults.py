"""Defaults of stage 2 that depend on the kind of GAN (docs/design-decisions.md)."""

from __future__ import annotations

from ... import config
from ...gan import GAN


def hold_weight(gan: GAN, cfg: config.Repel) -> float:
    """Weight of the held term."""
    if cfg.hold_weight == "auto":
        return 45.0 if gan.is_stylegan else 60.0
    return cfg.hold_weight


def nearby_weight(gan: GAN, cfg: config.Repel) -> float:
    """Weight of the nearby term: images need more than samples of few dimensions."""
    if cfg.nearby_weight == "auto":
        return 8.0 if len(gan.sample_shape) == 3 else 1.0
    return cfg.nearby_weight


def goes_by_guide(gan: GAN, cfg: config.Repel) -> bool:
    """True if stage 2 has terms that need the guide."""
    return cfg.guide_weight > 0 or hold_weight(gan, cfg) > 0


def _bears_twice_the_rate(gan: GAN, cfg: config.Repel) -> bool:
    """True if half of the steps at twice the learning rate do as well: for StyleGANs whose good samples are held. This
    was not measured for big samples."""
    return gan.is_stylegan and hold_weight(gan, cfg) > 0 and not gan.is_big


def most_steps(gan: GAN, cfg: config.Repel) -> int:
    """Steps of stage 2, at most. Other kinds than StyleGANs have a lower learning rate, so they need more."""
    if cfg.steps is not None:
        return cfg.steps
    if not gan.is_stylegan:
        return 2500
    return 400 if _bears_twice_the_rate(gan, cfg) else 800


def learning_rate(gan: GAN, cfg: config.Repel) -> float | None:
    """Adam's learning rate in stage 2; None: that of any training."""
    if cfg.adversarial.lr is None and _bears_twice_the_rate(gan, cfg):
        return 0.004
    return cfg.adversarial.lr
