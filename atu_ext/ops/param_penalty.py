"""EWC and repulsion distance over a whole parameter list.

ewc = 1/2 sum F (theta - theta_G)^2 (METHOD: Kirkpatrick et al., arXiv 1612.00796) and
distance = mean_k ||theta - theta_k||^2 = ||theta - theta_bar||^2 + c for N adapted generators theta_k.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class ParamPenalty:
    """Values and in-place gradients of the two penalties over `params`. Anchors are held here, outside the modules."""

    def __init__(
        self,
        params: Sequence[Tensor],
        anchor: Sequence[Tensor] | None = None,
        fisher: Sequence[Tensor] | None = None,
        repel_from: Sequence | None = None,
        reduction: str = "sum",
    ):
        self.params = list(params)
        self.anchor = None if anchor is None else [t.detach().clone() for t in anchor]
        self.fisher = None if fisher is None else [t.detach().clone() for t in fisher]
        self.reduction = reduction
        self.theta_bar: list[Tensor] | None = None
        count = len(self.params)
        self._constant = torch.zeros(count, dtype=torch.float64)
        if repel_from is not None:
            models = [repel_from] if isinstance(repel_from[0], Tensor) else list(repel_from)
            self.theta_bar = [torch.stack([t.detach() for t in ts]).mean(0) for ts in zip(*models, strict=True)]
            for i in range(count):
                spread = [(m[i].detach().double() - self.theta_bar[i].double()).square().sum() for m in models]
                self._constant[i] = torch.stack(spread).mean().item()
        start = self.anchor if self.anchor is not None else [p.detach() for p in self.params]
        self._start = self._distances(start).sum() if self.theta_bar is not None else None

    def _distances(self, tensors) -> Tensor:
        assert self.theta_bar is not None
        d2 = [(t.detach().double() - b.double()).square().sum() for t, b in zip(tensors, self.theta_bar, strict=True)]
        return torch.stack(d2).cpu() + self._constant

    def _weights(self) -> list[float]:
        """Factor of each tensor's squared distance in the reduced one."""
        if self.reduction == "tensor_mean":
            return [1 / (max(p.numel(), 1) * len(self.params)) for p in self.params]
        if self.reduction == "relative":
            return [1 / float(self._start)] * len(self.params)
        return [1.0] * len(self.params)

    def value(self) -> tuple[float, float]:
        """(ewc, distance); an absent part is 0."""
        ewc = 0.0
        if self.fisher is not None and self.anchor is not None:
            terms = zip(self.params, self.anchor, self.fisher, strict=True)
            ewc = sum(0.5 * (f.double() * (p.detach() - a).double().square()).sum().item() for p, a, f in terms)
        distance = 0.0
        if self.theta_bar is not None:
            distance = float((self._distances(self.params) * torch.tensor(self._weights(), dtype=torch.float64)).sum())
        return ewc, distance

    def distance_grad_norm(self) -> float:
        """Euclidean norm of d distance / d params: 2 sqrt(sum_t w_t^2 ||theta_t - theta_bar_t||^2)."""
        if self.theta_bar is None:
            return 0.0
        d2 = self._distances(self.params) - self._constant
        weights = torch.tensor(self._weights(), dtype=torch.float64)
        return 2 * float((weights.square() * d2).sum().sqrt())

    @torch.no_grad()
    def add_grad_(self, ewc_weight: float = 0.0, distance_weight: float = 0.0) -> None:
        """param.grad += ewc_weight * d ewc/d param + distance_weight * d distance/d param."""
        weights = self._weights()
        for i, p in enumerate(self.params):
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            if ewc_weight and self.fisher is not None and self.anchor is not None:
                p.grad.add_(self.fisher[i] * (p - self.anchor[i]), alpha=ewc_weight)
            if distance_weight and self.theta_bar is not None:
                p.grad.add_(p - self.theta_bar[i], alpha=2 * distance_weight * weights[i])
