"""Both stages, one after the other."""

from __future__ import annotations

from ...config import Config
from ...feedback.feedback import Feedback
from ...gan import GAN
from ...training.run_folder import RunFolder
from ..finetune import Outcome
from .adapt import adapt_all
from .repel import repel_gan


def adapt_then_unlearn(gan: GAN, feedback: Feedback, cfg: Config, run: RunFolder, seed: int) -> Outcome:
    """Both stages of Adapt-then-Unlearn (Tiwary et al., arXiv 2309.14054), with the repulsion loss of `cfg.repel`."""
    adapted = adapt_all(gan, feedback, cfg.adapt, run, seed)
    unlearned, decisions = repel_gan(gan, feedback, adapted, cfg.repel, run, seed)
    return Outcome(unlearned, decisions, adapted)
