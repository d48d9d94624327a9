"""Stage 2, unlearning: retrain the original GAN on positives, pushed away from the adapted weights.

Source: Tiwary et al., "Adapt then Unlearn" (arXiv 2309.14054), section 3.3. objective.py says what is minimised.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ... import config
from ...gan import GAN
from ...support.seeding import Stream, fork_rng, stream_seed
from ...training.loop import run_stage
from ...training.score import Score, ScoredStage
from ...training.step import AdversarialStep
from ..registry import Stage, Task
from .adapt import check_shared
from .defaults import resolved
from .objective import UnlearnObjective, Weights
from .preparation import Prepared, prepare
from .repulsion import Repulsion, repulsion_of

REPEL_TITLE = "Stage 2"


def repel_gan(task: Task, adapted: list[dict[str, Tensor]]) -> tuple[GAN, dict[str, Any]]:
    """Stage 2 on a copy of the GAN; returns the unlearned GAN and what was decided.

    Where good samples are held, the unlearned GAN's discriminator is the original's.

    adapted: state dicts of generators from stage 1.
    """
    gan, run, feedback = task.gan, task.run, task.feedback
    cfg, twin = resolved(gan, task.config.repel), gan.copy()
    steps = cfg.steps
    assert steps is not None
    names = [name for name, _ in gan.generator.named_parameters()]
    anchors = [[state[name].to(gan.device) for name in names] for state in adapted]
    if twin.generator_ema is not None:  # theta_G, whose samples are seen
        twin.generator.load_state_dict(twin.generator_ema.state_dict())
    params: list[Tensor] = list(twin.generator.parameters())
    start, loss = [p.detach().clone() for p in params], repulsion_of(task.config)
    repulsion = Repulsion(params, anchors, start, loss, cfg.strength, steps)
    with fork_rng(gan.device, stream_seed(task.seed, Stream.REPEL)):
        prepared = _prepared(task, steps) if goes_by_guide(cfg) else None
        if prepared is not None:
            feedback = prepared.feedback
        weights = Weights(cfg.guide_weight, float(cfg.nearby_weight), float(cfg.hold_weight))
        objective = UnlearnObjective(weights, repulsion, feedback, prepared)
        step = AdversarialStep(twin, feedback.positives, objective, cfg.adversarial)
        score = Score(gan, feedback, cfg.check_samples, task.seed)
        hooks = ScoredStage("repel", step, score, run, steps, cfg.check_every, cfg.decay)
        run_stage(run, "repel", step, steps, hooks)
    if objective.bank is not None:
        # Stage 2's has seen samples of negative latents alone, so training on against it brings the negatives back.
        assert gan.discriminator is not None and twin.discriminator is not None
        twin.discriminator.load_state_dict(gan.discriminator.state_dict())
    return twin, {**hooks.decisions(), **feedback.notes}


def goes_by_guide(cfg: config.Repel) -> bool:
    """True if stage 2 has terms that need the guide."""
    return cfg.guide_weight > 0 or cfg.hold_weight != 0


def _prepared(task: Task, steps: int) -> Prepared:
    """The parts that stage 2's terms need; a run folder keeps them."""
    saved = task.run.load("repel-prepared")
    prepared = prepare(task, steps, saved)
    if saved is None:
        task.run.save("repel-prepared", prepared.state_dict())
    return prepared


def repel_stage(gan: GAN, cfg: config.Config) -> Stage:
    """Stage 2 of a plan."""
    repel = resolved(gan, cfg.repel)
    assert repel.steps is not None
    guided, held = goes_by_guide(repel), repel.hold_weight != 0
    learnt_first = 1 if gan.is_stylegan or not held else 2  # the guide, and the ways to good samples
    settings = repel.adversarial
    return Stage.of(
        "repel",
        REPEL_TITLE,
        repel.steps,
        settings,
        before=learnt_first * repel.guide_steps if guided else 0,
        second_order=bool(settings.r1_gamma or settings.r2_gamma or guided),
        batch_statistics=not held,
        check=lambda: _check(gan, cfg),
    )


def _check(gan: GAN, cfg: config.Config) -> None:
    """Raise ValueError if a setting would have no effect, or several processes cannot share a batch."""
    repel = cfg.repel
    held, batch = repel.hold_weight != 0, repel.adversarial.batch_size
    if repel.guide_steps == 0 and goes_by_guide(repel):
        raise ValueError(
            "config: repel.guide_steps: expected at least 1, as the guide's loss and holding need a trained guide, got "
            "0; to do without it, set repel.guide_weight and repel.hold_weight to 0 too"
        )
    if not held and repel.nearby_weight not in ("auto", 0.0):
        raise ValueError(
            f"config: repel.nearby_weight: has no effect without repel.hold_weight, got {repel.nearby_weight:g}: only "
            "with good samples held are there latents of negatives to draw to nearby good samples"
        )
    if held and repel.adversarial.style_mixing > 0:
        raise ValueError(
            "config: repel.adversarial.style_mixing: expected 0 if good samples are held (repel.hold_weight), as a "
            f"sample is compared with the original's of the same latent, got {repel.adversarial.style_mixing:g}"
        )
    check_shared(gan, "repel", batch)
    if held:
        note = f", half of {batch}: if good samples are held, a batch has two halves"
        check_shared(gan, "repel", max(batch // 2, 1), note)
