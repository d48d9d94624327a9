"""Stage 2, unlearning: retrain the original GAN on positives, pushed away from the adapted weights.

Source: Tiwary et al., "Adapt then Unlearn" (arXiv 2309.14054), section 3.3. Beyond the paper: the distance relative to
the start's, a repulsion weight set from the gradients, the guide, holding what is good, and stopping and keeping the
best generator by a stated score.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from atu_ext.ops import ParamPenalty

from ... import config
from ...feedback.feedback import Feedback
from ...gan import GAN
from ...support import progress
from ...support.seeding import Stream, fork_rng, stream_seed
from ...training.run_folder import RunFolder
from ...training.schedules import lr_decay, schedule
from ...training.score import CheckpointKeeper, Score
from ...training.stage import StageHooks, run_stage
from ...training.trainer import AdversarialTrainer
from .steering import Steering, goes_by_a_guide, hold_statistics, hold_weight


def repulsion(distance: float, cfg: config.Repel) -> tuple[float, float]:
    """L_repulsion and its derivative with respect to the (reduced) distance d.

    EL2 exp(-alpha d), NL2 -d, IL2 1 / (d + epsilon). NL2 has no lower bound: from `ceiling` on it is flat.
    """
    if cfg.loss == "el2":
        value = math.exp(-cfg.alpha * distance)
        return value, -cfg.alpha * value
    if cfg.loss == "nl2":
        return -min(distance, cfg.ceiling), (-1.0 if distance < cfg.ceiling else 0.0)
    if cfg.loss == "il2":
        value = 1 / (distance + cfg.epsilon)
        return value, -value * value
    return 0.0, 0.0


class Repulsion:
    """Adds the repulsion's gradient to the generator's, with a fixed weight or one set from the gradients."""

    def __init__(
        self, params: list[Tensor], adapted: list[list[Tensor]], start: list[Tensor], cfg: config.Repel, steps: int
    ):
        self.params, self.cfg, self.steps = params, cfg, steps
        reduction = "sum" if cfg.loss == "none" else cfg.reduction
        self.penalty = ParamPenalty(params, anchor=start, repel_from=adapted, reduction=reduction)
        self.step = 0
        self.adversarial_norm = 0.0
        _, distance = self.penalty.value()
        self.start_norm = abs(repulsion(distance, cfg)[1]) * self.penalty.distance_grad_norm()
        if cfg.loss != "none" and cfg.gamma is None and cfg.strength > 0 and self.start_norm == 0:
            flat = "raise repel.ceiling" if cfg.loss == "nl2" else "lower repel.alpha"
            raise ValueError(
                f"config: repel.loss: {cfg.loss} is flat at the distance {distance:.3g} from the adapted weights, "
                f"where stage 2 begins, and repels nothing; {flat}, or set repel.reduction to relative"
            )

    def add_grad(self) -> dict[str, float]:
        """Add gamma d L / d theta to the gradients; returns distance, repulsion and gamma."""
        _, distance = self.penalty.value()
        value, slope = repulsion(distance, self.cfg)
        gamma = self._balanced_gamma() if self.cfg.gamma is None else self.cfg.gamma
        gamma *= schedule(self.cfg.schedule, self.step, self.steps)
        if gamma and slope:
            self.penalty.add_grad_(0.0, gamma * slope)
        self.step += 1
        return {"distance": distance, "repulsion": gamma * value, "gamma": gamma}

    def _balanced_gamma(self) -> float:
        """gamma at which the repulsion's gradient at the start has `strength` times the (smoothed) norm of all other
        losses' gradient. Later it fades or grows with the distance as the loss says."""
        grads = [p.grad for p in self.params if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(grads))
        if math.isfinite(norm):  # scaled float16 gradients overflow now and then, and the step is left out
            decay = 0.9 if self.adversarial_norm else 0.0
            self.adversarial_norm = decay * self.adversarial_norm + (1 - decay) * norm
        return self.cfg.strength * self.adversarial_norm / self.start_norm if self.start_norm > 0 else 0.0

    def state_dict(self) -> dict[str, float]:
        return {"step": self.step, "adversarial_norm": self.adversarial_norm}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.adversarial_norm = state["step"], state["adversarial_norm"]


class RepelHooks(StageHooks):
    """Decays the learning rates, has the generator scored, and stops when it gets no better."""

    def __init__(
        self, keeper: CheckpointKeeper, repulsion: Repulsion, steering: Steering | None, cfg: config.Repel, steps: int
    ):
        self.keeper, self.repulsion, self.steering, self.cfg, self.steps = keeper, repulsion, steering, cfg, steps
        self.trainer = keeper.trainer
        self.stopped = ""

    def after_step(self, step: int, metrics: dict[str, float]) -> bool:
        self._set_lr(step)
        if step % self.cfg.check_every and step != self.steps:
            return False
        self.keeper.check(step, metrics)
        if self.keeper.waited >= self.cfg.patience and step >= self._first_stop():
            self.stopped = f"no better score in {self.keeper.waited} checks"
        return bool(self.stopped)

    def _first_stop(self) -> float:
        """Not before `patience` checks at decaying rates: those alone make the generator better."""
        decays = self.steps * (1 - self.cfg.decay) if self.cfg.decay else 0
        return decays + self.cfg.patience * self.cfg.check_every

    def _set_lr(self, step: int) -> None:
        """Decay of the learning rates to 0 over the last share `decay` of the steps."""
        self.trainer.set_lr_factor(lr_decay(step / max(self.steps, 1), self.cfg.decay))

    def state_dict(self) -> dict[str, Any]:
        return {
            "keeper": self.keeper.state_dict(),
            "repulsion": self.repulsion.state_dict(),
            "steering": {} if self.steering is None else self.steering.state_dict(),
            "stopped": self.stopped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.keeper.load_state_dict(state["keeper"])
        self.repulsion.load_state_dict(state["repulsion"])
        if self.steering is not None:
            self.steering.load_state_dict(state["steering"])
        self.stopped = state["stopped"]
        self._set_lr(self.trainer.step_count)


def _bears_twice_the_rate(gan: GAN, cfg: config.Repel) -> bool:
    """Whether half of the steps at twice the learning rate do as well (docs/trials.md, "Half of the steps"): of
    StyleGANs whose good samples are held. Those of big samples were not measured."""
    return gan.is_stylegan and hold_weight(gan, cfg) > 0 and not gan.is_big


def most_steps(gan: GAN, cfg: config.Repel) -> int:
    """Steps of stage 2, at most. When unset: other kinds than StyleGANs learn at a lower rate, so it takes more."""
    if cfg.steps is not None:
        return cfg.steps
    if not gan.is_stylegan:
        return 2500
    return 400 if _bears_twice_the_rate(gan, cfg) else 800


def learning_rate(gan: GAN, cfg: config.Repel) -> float | None:
    """Adam's in stage 2; None: the trainer's own."""
    if cfg.adversarial.lr is None and _bears_twice_the_rate(gan, cfg):
        return 0.004
    return cfg.adversarial.lr


def planned_steps(gan: GAN, cfg: config.Config) -> tuple[int, int]:
    """Steps of stage 1 and, at most, of stage 2 of a run."""
    return cfg.adapt.models * cfg.adapt.steps, most_steps(gan, cfg.repel)


def _start(gan: GAN, adapted: list[list[Tensor]], warm_start: float) -> None:
    """Set the generator to theta_G - warm_start (mean theta_N - theta_G); theta_G is the EMA generator's."""
    if gan.generator_ema is not None:
        gan.generator.load_state_dict(gan.generator_ema.state_dict())
    if warm_start:
        with torch.no_grad():
            for p, *anchors in zip(gan.generator.parameters(), *adapted, strict=True):
                p.sub_(torch.stack(anchors).mean(0) - p, alpha=warm_start)
            if gan.generator_ema is not None:
                gan.generator_ema.load_state_dict(gan.generator.state_dict())


def repel_gan(
    gan: GAN, feedback: Feedback, adapted: list[dict[str, Tensor]], cfg: config.Repel, run: RunFolder, seed: int
) -> tuple[GAN, dict[str, Any]]:
    """Stage 2 on a copy of `gan`; returns the unlearned GAN and what was decided.

    Where good samples are held, the unlearned GAN's discriminator is the original's.

    adapted: state dicts of generators from stage 1.
    """
    steps = most_steps(gan, cfg)
    twin = gan.copy()
    names = [name for name, _ in gan.generator.named_parameters()]
    anchors = [[state[name].to(gan.device) for name in names] for state in adapted]
    _start(twin, anchors, cfg.warm_start)
    params: list[Tensor] = list(twin.generator.parameters())
    push = Repulsion(params, anchors, [p.detach().clone() for p in params], cfg, steps)
    with fork_rng(gan.device, stream_seed(seed, Stream.REPEL)):
        steering, bank = None, None
        if cfg.guide_steps and goes_by_a_guide(gan, cfg):
            prepared = run.load("repel-prepared")
            steering = Steering(gan, twin, feedback, cfg, steps, seed, prepared)
            if prepared is None:
                run.save("repel-prepared", steering.prepared())
            feedback, bank = steering.feedback, steering.bank
        trainer = AdversarialTrainer(
            twin,
            feedback.positives,
            dataclasses.replace(cfg.adversarial, lr=learning_rate(gan, cfg)),
            extra_fakes=feedback.negatives,
            add_penalty_grad=push.add_grad,
            fake_penalty=steering,
            other_loss=None if steering is None or bank is None else steering.hold,
            latents=None if bank is None else bank.draw,
            original=None if bank is None else bank.original,
        )
        if bank is not None:
            hold_statistics(twin.generator, twin.discriminator)
        trainer.extra_weight = cfg.negatives_weight
        score = Score(gan, feedback, cfg.check_samples, cfg.drift_weight, seed)
        keeper = CheckpointKeeper("repel", trainer, score, run, cfg.keep)
        hooks = RepelHooks(keeper, push, steering, cfg, steps)
        run_stage(run, "repel", trainer, steps, hooks)
    keeper.restore()
    if bank is not None:
        # Its own has met the samples of negative latents alone: whoever trains on against that gets the negatives back.
        assert gan.discriminator is not None and twin.discriminator is not None
        twin.discriminator.load_state_dict(gan.discriminator.state_dict())
    decisions = {**keeper.decisions(), "stopped": hooks.stopped or "all steps done", **feedback.notes}
    progress.log.info("repel: kept step %s (%s)", decisions["kept_step"], decisions["stopped"])
    return twin, decisions
