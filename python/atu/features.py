"""Features of samples, and distances between sets of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from .gan import GAN, eval_mode


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
        yield last
    finally:
        for hook in hooks:
            hook.remove()


def flat_features(f: Tensor, max_features: int = 1024) -> Tensor:
    """[N, F] of a layer's input [N, ...]; maps with more than `max_features` values are averaged over space."""
    if f.ndim == 4 and f[0].numel() > max_features:
        f = f.mean(dim=[2, 3])
    return f.reshape(len(f), -1)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [F] and covariance [F, F] (0 for a single sample) of features [N, F], in float64."""
    features = features.double()
    cov = torch.cov(features.t(), correction=min(len(features) - 1, 1))
    return features.mean(0), cov.reshape(features.shape[1], features.shape[1])


def frechet_distance(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """Squared Frechet distance between the Gaussians of two (mean, covariance) pairs.

    Source: Heusel et al., arXiv 1706.08500. The trace of (Sa Sb)^(1/2) is taken from the eigenvalues of the symmetric
    Sa^(1/2) Sb Sa^(1/2), which stays real for singular covariances.
    """
    (mean_a, cov_a), (mean_b, cov_b) = a, b
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.t()
    trace = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * trace)


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
