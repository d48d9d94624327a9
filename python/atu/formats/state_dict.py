"""The sampling generator's state dict in a file of torch.save, for `network.load_state_dict(torch.load(file))`."""

from __future__ import annotations

from pathlib import Path

import torch

from ..gan import GAN
from ..support.files import write_atomic
from ..support.modules import state_of


def write_state_dict(gan: GAN, path: Path) -> Path:
    """Write the averaged generator's tensors where there is one, else the generator's, on the CPU; returns the path."""
    state = {name: value.detach().cpu().clone() for name, value in state_of(gan.sampling_generator).items()}
    return write_atomic(path, lambda temporary: torch.save(state, temporary))
