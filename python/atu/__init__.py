"""Adapt-then-Unlearn for GANs: the training API. `atu_ext` re-exports what users need."""

from .config import Config
from .gan import GAN
from .unlearn import Result, adapt, extrapolate, repel, unlearn

__all__ = ["GAN", "Config", "Result", "adapt", "extrapolate", "repel", "unlearn"]
