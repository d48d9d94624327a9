"""Stage 1, negative adaptation: fine-tune the GAN to the negatives under an EWC penalty.

Source: Tiwary et al., "Adapt then Unlearn" (arXiv 2309.14054), section 3.2; EWC: Kirkpatrick et al., arXiv 1612.00796.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atu_ext.ops import ParamPenalty

from ... import config
from ...gan import GAN
from ...support import world
from ...support.seeding import Stream, fork_rng, stream_seed
from ...training.fisher import check_parameters, diagonal_fisher
from ...training.loop import StageHooks, run_stage
from ...training.score import pictured
from ...training.step import AdversarialStep, Objective, group_size
from ..registry import Stage, Task

ADAPT_TITLE = "Stage 1"


def fisher_of(gan: GAN, cfg: config.Fisher, seed: int) -> list[Tensor]:
    """Fisher information of the generator at some of its samples, one tensor a parameter."""
    rng = torch.Generator().manual_seed(stream_seed(seed, Stream.FISHER_LATENTS))
    z, c = gan.latents(cfg.n, rng), gan.labels(cfg.n, rng)
    with fork_rng(gan.device, stream_seed(seed, Stream.FISHER_NOISE)):
        return diagonal_fisher(gan, z, c, cfg.parameters)


class Ewc(Objective):
    """The GAN loss and weight/2 sum F (theta - anchor)^2.

    relative: divide the penalty by 1/2 sum F anchor^2, so that one weight means the same for every network.
    """

    def __init__(self, gan: GAN, anchor: list[Tensor], fisher: list[Tensor], weight: float, relative: bool):
        self.penalty = ParamPenalty(list(gan.generator.parameters()), anchor=anchor, fisher=fisher)
        self.weight = weight
        if relative:
            norm = 0.5 * sum(
                float((f.double() * a.double().square()).sum()) for f, a in zip(fisher, anchor, strict=True)
            )
            self.weight = weight / norm if norm > 0 else 0.0

    def after_backward(self, step: AdversarialStep) -> dict[str, float]:
        """Add the penalty's gradient to the generator's."""
        ewc, _ = self.penalty.value()
        self.penalty.add_grad_(self.weight, 0.0)
        return {"ewc": self.weight * ewc}


def adapt_one(task: Task, fisher: list[Tensor], index: int) -> dict[str, Tensor]:
    """Adapt a copy of the GAN to the negatives; returns its EMA generator's state dict."""
    gan, cfg, run = task.gan, task.config.adapt, task.run
    stage, name = f"adapt-{index}", f"adapted-{index}"
    done = run.load(name)
    if done is not None:
        return done
    twin = gan.copy()
    with fork_rng(gan.device, stream_seed(task.seed, Stream.ADAPT, index)):
        anchor = [p.detach().clone() for p in gan.generator.parameters()]
        ewc = Ewc(twin, anchor, fisher, cfg.ewc_weight, cfg.ewc_relative)
        step = AdversarialStep(twin, task.feedback.negatives, ewc, cfg.adversarial)
        run_stage(run, stage, step, cfg.steps, StageHooks())
    state = {key: value.detach().clone() for key, value in twin.sampling_generator.state_dict().items()}
    run.picture(stage, twin.sample(pictured(twin), seed=stream_seed(task.seed, Stream.ADAPT_PICTURE)), gan.image_range)
    run.save(name, state)
    run.remove(f"{stage}-state")
    return state


def adapt_all(task: Task) -> list[dict[str, Tensor]]:
    """State dicts of the ensemble of N adapted generators, each with its own seed."""
    cfg = task.config.adapt
    fisher = fisher_of(task.gan, cfg.fisher, task.seed)
    return [adapt_one(task, fisher, index) for index in range(cfg.models)]


def adapt_stage(gan: GAN, cfg: config.Config, needed: bool) -> Stage:
    """Stage 1 of a plan. needed: the method uses the adapted weights."""

    def check() -> None:
        check_parameters(gan.generator, cfg.adapt.fisher.parameters, "config: adapt.fisher.parameters")
        if needed and cfg.adapt.steps == 0:
            raise ValueError(
                f"config: adapt.steps: expected some for {cfg.method!r}, which uses the adapted weights, got 0"
            )
        check_shared(gan, "adapt", settings.batch_size)

    settings = cfg.adapt.adversarial
    return Stage.of("adapt", ADAPT_TITLE, cfg.adapt.models * cfg.adapt.steps, settings, check=check)


def check_shared(gan: GAN, stage: str, batch_size: int, note: str = "") -> None:
    """Raise ValueError if several processes cannot share a stage's batch. note: added to the message."""
    try:
        world.part(batch_size, group_size(gan))
    except ValueError as error:
        raise ValueError(f"config: {stage}.{error}{note}") from None
