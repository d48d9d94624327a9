"""The weight of the guide's loss, set step by step from what is left of the negatives."""

from __future__ import annotations

import math

from ... import config


class GuideWeightController:
    """Lets a weight grow while negatives are left, and shrink once they are gone, or few beside the drift.

    Args:
        start: the weight at the start, which its limits are relative to.
        rate: change of its log in a step. drift_weight: of the drift in the score.
    """

    def __init__(self, start: float, rate: float, drift_weight: float, cfg: config.GuideWeight):
        self.start, self.rate, self.drift_weight, self.cfg = start, rate, drift_weight, cfg
        self.weight, self.step = start, 0
        self.left = 1.0  # of the negatives: running mean of the share now over the pretrained GAN's
        self.drift = 0.0  # as last scored

    def observe(self, left: float) -> None:
        """Take in what the last batch held: the share of negatives, over the pretrained GAN's."""
        cfg = self.cfg
        self.left += (left - self.left) * cfg.smoothing
        self.step += 1
        grows = self.left > cfg.grow_above and self.step > cfg.grow_after
        shrinks = self.left < max(cfg.shrink_below, cfg.shrink_below_drift * self.drift_weight * self.drift)
        factor = self.weight / self.start * math.exp((int(grows) - int(shrinks)) * self.rate)
        self.weight = self.start * min(max(factor, cfg.lowest), cfg.highest)

    def state_dict(self) -> dict[str, float]:
        return {"step": self.step, "weight": self.weight, "left": self.left, "drift": self.drift}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.step, self.weight = int(state["step"]), state["weight"]
        self.left, self.drift = state["left"], state["drift"]
