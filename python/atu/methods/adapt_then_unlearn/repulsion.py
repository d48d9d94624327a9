"""The repulsion from the adapted weights, and how much it weighs.

Source: Tiwary et al., "Adapt then Unlearn" (arXiv 2309.14054), section 3.3. Beyond the paper: the distance relative to
the start's, and a weight set from the gradients.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from atu_ext.ops import ParamPenalty

from ... import config
from ...training.schedules import schedule
from ...training.step import AdversarialStep, Objective


def repulsion(distance: float, cfg: config.Repel) -> tuple[float, float]:
    """L_repulsion and its derivative with respect to the (reduced) distance d.

    EL2 exp(-alpha d), NL2 -d, IL2 1 / (d + epsilon). NL2 has no lower bound: from `ceiling` on it is flat.
    """
    if cfg.loss == "el2":
        value = math.exp(-cfg.alpha * distance)
        return value, -cfg.alpha * value
    if cfg.loss == "nl2":
        return -min(distance, cfg.ceiling), (-1.0 if distance < cfg.ceiling else 0.0)
    if cfg.loss == "il2":
        value = 1 / (distance + cfg.epsilon)
        return value, -value * value
    return 0.0, 0.0


class Repulsion(Objective):
    """The GAN loss and gamma L_repulsion(d), with a fixed gamma or one set from the gradients.

    Args:
        params: of the trained generator. adapted: of each adapted generator. start: those that stage 2 begins with.
        steps: of stage 2.
    """

    def __init__(
        self, params: list[Tensor], adapted: list[list[Tensor]], start: list[Tensor], cfg: config.Repel, steps: int
    ):
        self.params, self.cfg, self.steps = params, cfg, steps
        reduction = "sum" if cfg.loss == "none" else cfg.reduction
        self.penalty = ParamPenalty(params, anchor=start, repel_from=adapted, reduction=reduction)
        self.adversarial_norm = 0.0
        _, distance = self.penalty.value()
        self.start_norm = abs(repulsion(distance, cfg)[1]) * self.penalty.distance_grad_norm()
        if cfg.loss != "none" and cfg.gamma is None and cfg.strength > 0 and self.start_norm == 0:
            flat = "raise repel.ceiling" if cfg.loss == "nl2" else "lower repel.alpha"
            raise ValueError(
                f"config: repel.loss: {cfg.loss} is flat at the distance {distance:.3g} from the adapted weights, "
                f"where stage 2 begins, and repels nothing; {flat}, or set repel.reduction to relative"
            )

    def after_backward(self, step: AdversarialStep) -> dict[str, float]:
        """Add gamma d L / d theta to the gradients; returns distance, repulsion and gamma."""
        _, distance = self.penalty.value()
        value, slope = repulsion(distance, self.cfg)
        gamma = self._balanced_gamma() if self.cfg.gamma is None else self.cfg.gamma
        gamma *= schedule(self.cfg.schedule, step.step_count, self.steps)
        if gamma and slope:
            self.penalty.add_grad_(0.0, gamma * slope)
        return {"distance": distance, "repulsion": gamma * value, "gamma": gamma}

    def _balanced_gamma(self) -> float:
        """gamma with which the repulsion's gradient at the start has `strength` times the (smoothed) norm of all other
        losses' gradient. Later the gradient fades or grows with the distance."""
        grads = [p.grad for p in self.params if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(grads))
        if math.isfinite(norm):  # scaled float16 gradients overflow now and then; such a step is skipped
            decay = 0.9 if self.adversarial_norm else 0.0
            self.adversarial_norm = decay * self.adversarial_norm + (1 - decay) * norm
        return self.cfg.strength * self.adversarial_norm / self.start_norm if self.start_norm > 0 else 0.0

    def state_dict(self) -> dict[str, float]:
        return {"adversarial_norm": self.adversarial_norm}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adversarial_norm = state["adversarial_norm"]
