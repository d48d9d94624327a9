"""Features of samples, from the discriminator that every GAN here has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..gan import GAN
from ..support.modules import eval_mode, uncompiled
from .frechet import moments


@torch.no_grad()
def discriminator_features(gan: GAN, batches: Iterable[Tensor], max_features: int = 1024) -> Tensor:
    """Penultimate features of the discriminator: what its last layer with weights takes in.

    Args:
        batches: samples [n, ...]. Each batch is passed on its own (minibatch statistics couple a batch's samples).
        max_features: maps with more values than this are averaged over space.

    Returns:
        float32 [N, F] on the CPU.
    """
    discriminator = gan.discriminator
    if discriminator is None:
        raise ValueError("discriminator: this GAN has none, and features are taken from it")
    features = []
    with eval_mode(discriminator), last_input(discriminator) as last:
        for x in batches:
            x = x.to(gan.device)
            c = gan.labels(len(x), torch.Generator().manual_seed(0))
            gan.logits(x, c)
            features.append(flat_features(last[0], max_features).float().cpu())
    return torch.cat(features) if features else torch.empty(0, 0)


@contextmanager
def last_input(discriminator: nn.Module) -> Iterator[list[Tensor]]:
    """A list that holds, after each pass, what the discriminator's last layer with weights took in."""
    last: list[Tensor] = []

    def remember(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        last[:] = args[:1]

    # A parametrized layer (spectral norm, say) keeps its weights in a submodule, which takes in weights, not samples.
    layers = [
        m
        for name, m in discriminator.named_modules()
        if "parametrizations" not in name.split(".") and (list(m.parameters(recurse=False)) or is_parametrized(m))
    ]
    hooks = [m.register_forward_pre_hook(remember) for m in layers]
    try:
        with uncompiled():
            yield last
    finally:
        for hook in hooks:
            hook.remove()


def flat_features(f: Tensor, max_features: int = 1024) -> Tensor:
    """[N, F] of a layer's input [N, ...]; maps with more than `max_features` values are averaged over space."""
    if f.ndim == 4 and f[0].numel() > max_features:
        f = f.mean(dim=[2, 3])
    return f.reshape(len(f), -1)


class Whitening:
    """Principal components of a reference set, scaled to unit variance there: makes distances free of units."""

    def __init__(self, reference: Tensor, components: int = 32):
        self.mean, cov = moments(reference)
        values, vectors = torch.linalg.eigh(cov)
        keep = values > values[-1].clamp(min=1e-30) * 1e-6
        values, vectors = values[keep][-components:], vectors[:, keep][:, -components:]
        self.matrix = vectors / values.sqrt()
        self.components = self.matrix.shape[1]

    def to(self, device: torch.device) -> Whitening:
        """In place; returns self."""
        self.mean, self.matrix = self.mean.to(device), self.matrix.to(device)
        return self

    def __call__(self, features: Tensor) -> Tensor:
        """float64 [N, components] of features [N, F]."""
        return (features.double() - self.mean) @ self.matrix
