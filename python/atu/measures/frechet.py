"""The Frechet distance between two sets of features."""

from __future__ import annotations

import torch
from torch import Tensor


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


def frechet(a: Tensor, b: Tensor) -> float | None:
    """Frechet distance of two sets of features [N, F], [M, F], in float64; None below two samples."""
    if len(a) < 2 or len(b) < 2:
        return None
    return frechet_distance(moments(a), moments(b))
