"""The pool: generated samples of the pretrained GAN that the positives are chosen from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .. import config
from ..data.samples import TensorSamples
from ..gan import GAN
from ..support import progress

POOL_BYTES = 2**30  # of a pool, on the CPU
CHEAP_POOL_BYTES = 2**28  # of one of more than 5,000 samples that nobody asked for


def pool_size(gan: GAN, wanted: int, budget_bytes: int = POOL_BYTES) -> int:
    """How many samples to keep in memory at once: `wanted`, unless they take more than a GiB; 64 at least."""
    bytes_each = 4 * int(np.prod(gan.sample_shape))
    return max(min(wanted, budget_bytes // bytes_each), 64)


def wanted_pool(gan: GAN, cfg: config.Feedback, has_oracle: bool) -> int:
    """How many samples to draw; where it is "auto", what is cheap and of use (docs/trials.md)."""
    if cfg.pool != "auto":
        return cfg.pool
    if not has_oracle or gan.is_stylegan or len(gan.sample_shape) != 3:
        return 5000
    return max(pool_size(gan, 20_000, CHEAP_POOL_BYTES), 5000)


def draw_pool(gan: GAN, size: int, seed: int) -> tuple[TensorSamples, Tensor]:
    """Samples of the pretrained GAN on the CPU, with their labels where it has any; and their latents."""
    pool = torch.cat([part.cpu() for part in progress.track("pool", gan.batches(size, seed=seed), size)])
    z, labels = gan.inputs(size, seed)
    return TensorSamples(pool, None if labels is None else labels.cpu()), z


def subset(samples: TensorSamples, index: Tensor) -> TensorSamples:
    """Some of the samples, by bools [N] or indices [n], with their labels."""
    labels = samples.labels
    return TensorSamples(samples.tensor[index], None if labels is None else labels[index])
