"""Both stages, one after the other."""

from __future__ import annotations

from ... import presets
from ...config import Config
from ...feedback.feedback import Feedback
from ...gan import GAN
from ...support import world
from ...training.run_folder import RunFolder
from ...training.trainer import together
from ..finetune import Outcome
from ..registry import Method
from .adapt import adapt_all
from .repel import repel_gan
from .steering import goes_by_a_guide, hold_weight


def adapt_then_unlearn(gan: GAN, feedback: Feedback, cfg: Config, run: RunFolder, seed: int) -> Outcome:
    """Both stages of Adapt-then-Unlearn (Tiwary et al., arXiv 2309.14054), with the repulsion loss of `cfg.repel`."""
    adapted = adapt_all(gan, feedback, cfg.adapt, run, seed)
    unlearned, decisions = repel_gan(gan, feedback, adapted, cfg.repel, run, seed)
    return Outcome(unlearned, decisions, adapted)


def _check(gan: GAN, cfg: Config) -> None:
    """Raise ValueError where a setting would have no effect, or several processes cannot share a batch."""
    repel = cfg.repel
    held = hold_weight(gan, repel) > 0
    if repel.guide_steps == 0 and goes_by_a_guide(gan, repel):
        raise ValueError(
            "config: repel.guide_steps: expected some, as what steers and what is held go by the guide, got 0; without "
            "it repel.guide_weight and repel.hold_weight are 0 too"
        )
    if not held and repel.nearby_weight not in ("auto", 0.0):
        raise ValueError(
            f"config: repel.nearby_weight: has no effect without repel.hold_weight, got {repel.nearby_weight:g}: it is "
            "of the negatives' latents, which are told apart where good samples are held"
        )
    if held and repel.adversarial.style_mixing > 0:
        raise ValueError(
            "config: repel.adversarial.style_mixing: expected 0 where good samples are held (repel.hold_weight), as "
            f"what is wanted in a sample's place is of its one latent, got {repel.adversarial.style_mixing:g}"
        )
    batches = {"adapt": cfg.adapt.adversarial.batch_size, "repel": repel.adversarial.batch_size}
    for stage, batch in batches.items():
        _check_shared(gan, stage, batch, held and stage == "repel")


def _check_shared(gan: GAN, stage: str, batch: int, halves: bool) -> None:
    for n in (batch, max(batch // 2, 1)) if halves else (batch,):
        try:
            world.part(n, together(gan))
        except ValueError as error:
            half = f", half of {batch}: where good samples are held, a batch comes in two halves" if n != batch else ""
            raise ValueError(f"config: {stage}.{error}{half}") from None


def _check_loss(gan: GAN, cfg: Config) -> None:
    _check(gan, cfg)
    loss = presets.METHODS.get(cfg.method).preset["repel"]["loss"]
    if cfg.repel.loss != loss:
        raise ValueError(f"config: expected repel.loss {loss!r} for the method {cfg.method!r}, got {cfg.repel.loss!r}")


STAGES = {"adapt": "Stage 1", "repel": "Stage 2"}


def _of_the_paper(loss: str) -> Method:
    """The paper's method with one of its losses, and nothing added to it."""
    preset = {"adapt": presets.PAPER_ADAPT, "repel": {**presets.PAPER_REPEL, "loss": loss}}
    return Method(adapt_then_unlearn, preset=preset, check=_check_loss, stages=STAGES)


ATU = Method(adapt_then_unlearn, check=_check, stages=STAGES)
EL2, NL2, IL2 = _of_the_paper("el2"), _of_the_paper("nl2"), _of_the_paper("il2")
