"""Both stages, one after the other."""

from __future__ import annotations

from ... import presets
from ...config import Config
from ...feedback.feedback import Feedback
from ...gan import GAN
from ...training.run_folder import RunFolder
from ..finetune import Outcome
from ..registry import Method
from .adapt import adapt_all
from .repel import repel_gan


def adapt_then_unlearn(gan: GAN, feedback: Feedback, cfg: Config, run: RunFolder, seed: int) -> Outcome:
    """Both stages of Adapt-then-Unlearn (Tiwary et al., arXiv 2309.14054), with the repulsion loss of `cfg.repel`."""
    adapted = adapt_all(gan, feedback, cfg.adapt, run, seed)
    unlearned, decisions = repel_gan(gan, feedback, adapted, cfg.repel, run, seed)
    return Outcome(unlearned, decisions, adapted)


def _check_loss(gan: GAN, cfg: Config) -> None:
    loss = presets.METHODS.get(cfg.method).preset["repel"]["loss"]
    if cfg.repel.loss != loss:
        raise ValueError(f"config: expected repel.loss {loss!r} for the method {cfg.method!r}, got {cfg.repel.loss!r}")


STAGES = {"adapt": "Stage 1", "repel": "Stage 2"}


def _of_the_paper(loss: str) -> Method:
    """The paper's method with one of its losses, and nothing added to it."""
    preset = {"adapt": presets.PAPER_ADAPT, "repel": {**presets.PAPER_REPEL, "loss": loss}}
    return Method(adapt_then_unlearn, preset=preset, check=_check_loss, stages=STAGES)


ATU = Method(adapt_then_unlearn, stages=STAGES)
EL2, NL2, IL2 = _of_the_paper("el2"), _of_the_paper("nl2"), _of_the_paper("il2")
