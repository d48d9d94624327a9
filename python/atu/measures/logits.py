"""What kind of logits a discriminator gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..gan import GAN
from ..support.modules import eval_mode

# Of a graph, what keeps a bounded tensor bounded.
_SHAPES = ("View", "UnsafeView", "Squeeze", "Unsqueeze", "Select", "Slice", "Cat", "ToCopy", "Clone")
_KEEPING = (*_SHAPES, "Mean", "Sum", "Add", "Sub", "Mul", "Neg", "AccumulateGrad")
_BOUNDED = ("Sigmoid", "Tanh", "Hardtanh", "Softmax")


def has_bounded_logits(gan: GAN, x: Tensor) -> bool:
    """Whether the discriminator ends in what has two bounds (sigmoids, say), by its graph for samples x [N, ...]."""
    if gan.discriminator is None:
        return False
    x = x.detach().to(gan.device).clone().requires_grad_(True)
    with eval_mode(gan.discriminator), torch.enable_grad():
        y = gan.logits(x, gan.labels(len(x), torch.Generator().manual_seed(0)))
    return _is_bounded(y.grad_fn, x)


def _is_bounded(node: Any, x: Tensor) -> bool:
    """Whether what this node of a graph gave is bounded whatever x is."""
    if node is None:  # a constant
        return True
    name = node.name().removeprefix("torch::autograd::")
    if name.startswith(_BOUNDED):
        return True
    if not name.startswith(_KEEPING) or getattr(node, "variable", None) is x:
        return False
    return all(_is_bounded(inner, x) for inner, _ in node.next_functions)
