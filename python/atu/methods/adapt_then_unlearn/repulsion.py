"""The repulsion from the adapted weights, and how much it weighs.

Source: Tiwary et al., "Adapt then Unlearn" (arXiv 2309.14054), section 3.3. Beyond the paper: the distance relative to
the start's, and a weight set from the gradients.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from atu_ext.ops import ParamPenalty

from ...config import STRICT, Config, NonNegative, Positive
from ...training.schedules import schedule
from ...training.step import AdversarialStep, Objective


@dataclass(config=STRICT)
class RepulsionLoss:
    """What the paper's losses of repulsion have in common. d is the distance from the adapted weights."""

    reduction: Annotated[
        Literal["sum", "tensor_mean", "relative"],
        Field(
            description="The distance d: the squared one d2 summed over all weights, its mean over the tensors' means, "
            "or d2 / d2(theta_G), which is 1 at the start."
        ),
    ] = "relative"
    gamma: Annotated[
        NonNegative | None,
        Field(description="Weight of the repulsion; unset, chosen at the start by repel.strength."),
    ] = None
    schedule: Annotated[
        Literal["constant", "linear", "cosine"],
        Field(description="Of the weight over the steps; the last two fall to 0."),
    ] = "constant"

    def value(self, d: float) -> tuple[float, float]:
        """The loss at a distance d and its derivative."""
        raise NotImplementedError

    flat: ClassVar[str]  # what to do where it has no slope


@dataclass(config=STRICT)
class EL2(RepulsionLoss):
    """exp(-alpha d)."""

    alpha: Annotated[Positive, Field(description="How fast the repulsion falls with d.")] = 1.0
    flat: ClassVar[str] = "lower methods.el2.alpha"

    def value(self, d: float) -> tuple[float, float]:
        value = math.exp(-self.alpha * d)
        return value, -self.alpha * value


@dataclass(config=STRICT)
class NL2(RepulsionLoss):
    """-d, which has no lower bound: from `ceiling` on it is flat."""

    ceiling: Annotated[Positive, Field(description="Distance from which on it is flat.")] = 4.0
    flat: ClassVar[str] = "raise methods.nl2.ceiling"

    def value(self, d: float) -> tuple[float, float]:
        return -min(d, self.ceiling), (-1.0 if d < self.ceiling else 0.0)


@dataclass(config=STRICT)
class IL2(RepulsionLoss):
    """1 / (d + epsilon)."""

    epsilon: Annotated[Positive, Field(description="Keeps it finite at 0.")] = 1e-3
    flat: ClassVar[str] = "lower methods.il2.epsilon"

    def value(self, d: float) -> tuple[float, float]:
        value = 1 / (d + self.epsilon)
        return value, -value * value


def repulsion_of(cfg: Config) -> RepulsionLoss:
    """The method's own, or the default method's: EL2 in units of the start's distance, falling to 0."""
    own = cfg.methods.get(cfg.method)
    return own if isinstance(own, RepulsionLoss) else EL2(schedule="cosine")


class Repulsion(Objective):
    """The GAN loss and gamma L_repulsion(d), with a fixed gamma or one set from the gradients.

    Args:
        params: of the trained generator. adapted: of each adapted generator. start: those that stage 2 begins with.
        strength: norm of its gradient over all others', at the start, if the loss has no gamma. steps: of stage 2.
    """

    def __init__(
        self,
        params: list[Tensor],
        adapted: list[list[Tensor]],
        start: list[Tensor],
        loss: RepulsionLoss,
        strength: float,
        steps: int,
    ):
        self.params, self.loss, self.strength, self.steps = params, loss, strength, steps
        off = loss.gamma is None and strength == 0
        reduction = "sum" if off else loss.reduction  # which nothing can be wrong with
        self.penalty = ParamPenalty(params, anchor=start, repel_from=adapted, reduction=reduction)
        self.adversarial_norm = 0.0
        _, distance = self.penalty.value()
        self.start_norm = abs(loss.value(distance)[1]) * self.penalty.distance_grad_norm()
        if loss.gamma is None and strength > 0 and self.start_norm == 0:
            raise ValueError(
                f"config: {type(loss).__name__} is flat at the distance {distance:.3g} from the adapted weights, where "
                f"stage 2 begins, and repels nothing; {loss.flat}, or set its reduction to relative"
            )

    def after_backward(self, step: AdversarialStep) -> dict[str, float]:
        """Add gamma d L / d theta to the gradients; returns distance, repulsion and gamma."""
        _, distance = self.penalty.value()
        value, slope = self.loss.value(distance)
        gamma = self._balanced_gamma() if self.loss.gamma is None else self.loss.gamma
        gamma *= schedule(self.loss.schedule, step.step_count, self.steps)
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
        return self.strength * self.adversarial_norm / self.start_norm if self.start_norm > 0 else 0.0

    def state_dict(self) -> dict[str, float]:
        return {"adversarial_norm": self.adversarial_norm}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adversarial_norm = state["adversarial_norm"]
