"""Scores of a generator during training: how many negatives are left, and how far the rest has drifted."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..data.samples import Samples
from ..gan import GAN
from ..judging.feedback import Feedback
from ..measures.features import DiscriminatorFeatures, Whitening
from ..measures.frechet import frechet_distance, moments
from ..support.seeding import Stream, stream_seed
from .loop import StageHooks
from .run_folder import RunFolder
from .schedules import lr_decay
from .step import AdversarialStep


class Score:
    """Scores generators on fixed latents. Lower is better.

        score = negative_rate / negative_rate before + drift_weight * drift

    drift is the Frechet distance between the scored samples and the positives, in the pretrained discriminator's
    penultimate features. These are whitened on the positives, and the distance is divided by their number. The distance
    of a fresh draw of positives of the same size is subtracted. So drift is 0 for a generator that makes just the
    positives, in any units.
    """

    def __init__(self, gan: GAN, feedback: Feedback, n: int, drift_weight: float, seed: int):
        self.gan, self.rule, self.n, self.drift_weight = gan, feedback.rule, n, drift_weight
        self.seed, self.features = stream_seed(seed, Stream.SCORE), DiscriminatorFeatures(gan)
        features = self._features_of(feedback.positives)
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(self.seed))
        held = features[order[: min(n, len(features) // 4)]]
        rest = features[order[len(held) :]]
        self.whiten = Whitening(rest)
        self.kept = moments(self.whiten(rest))
        self.size = max(self.kept[0].numel(), 1)
        self.floor = frechet_distance(moments(self.whiten(held)), self.kept) / self.size if len(held) > 1 else 0.0
        self.before = max(feedback.negative_share, 1 / n)

    def _features_of(self, positives: Samples) -> Tensor:
        index = torch.arange(len(positives))
        if len(index) > 5000:  # given samples may come sorted
            index = torch.randperm(len(index), generator=torch.Generator().manual_seed(self.seed))[:5000]
        return self.features.penultimate(positives.batch(part) for part in index.split(self.gan.fitting(100)))

    def __call__(self, generator: nn.Module) -> dict[str, float]:
        """negative_rate, drift and score of a generator."""
        flags, features = [], []
        for x in self.gan.batches(self.n, self.seed, generator=generator):
            flags.append(self.rule(x))
            features.append(self.features.penultimate([x]))
        rate = float(torch.cat(flags).float().mean())
        drift = frechet_distance(moments(self.whiten(torch.cat(features))), self.kept) / self.size - self.floor
        return {
            "negative_rate": rate,
            "drift": drift,
            "score": rate / self.before + self.drift_weight * max(drift, 0.0),
        }

    def allowing_for_chance(self, scores: dict[str, float]) -> float:
        """The score with one standard error taken off the count of negatives (Poisson, as few are left)."""
        rate = scores["negative_rate"]
        error = math.sqrt(rate * self.n + 1) / self.n
        return scores["score"] - min(rate, error) / self.before


def pictured(gan: GAN) -> int:
    """Number of samples in a picture during training: few if they are big, as each takes seconds."""
    return 16 if gan.is_big else 100


class CheckpointKeeper:
    """Scores the EMA generator during a stage and remembers the one to keep.

    keep="best": the latest whose score is within a standard error of the lowest (Breiman et al., "Classification and
    Regression Trees", section 3.4.3). The lowest alone would be the luckiest of small counts, and of equal ones the
    later is better trained. keep="final": the generator after all steps.
    """

    def __init__(
        self, stage: str, trainer: AdversarialStep, score: Score, run: RunFolder, keep: Literal["best", "final"]
    ):
        self.stage, self.trainer, self.score, self.run, self.keep = stage, trainer, score, run, keep
        self.kept: dict[str, Any] = {"step": 0}
        self.kept_state: dict[str, Tensor] = {}
        self.lowest = math.inf
        self.waited = 0  # checks since the kept one

    def check(self, step: int, metrics: dict[str, float]) -> None:
        """Score the generator, add the scores to `metrics`, and save a picture of samples."""
        scores = self.score(self.trainer.ema)
        metrics.update(scores)
        self.lowest = min(self.lowest, scores["score"])
        if self.keep == "final":
            self.kept = {"step": step, **scores}
        elif self.score.allowing_for_chance(scores) <= self.lowest:
            self.kept, self.waited = {"step": step, **scores}, 0
            self.kept_state = copy.deepcopy(self.trainer.ema.state_dict())
        else:
            self.waited += 1
        gan = self.score.gan
        x = gan.sample(pictured(gan), self.score.seed, generator=self.trainer.ema)
        self.run.picture(f"{self.stage}-{step:06d}", x, gan.image_range)

    def restore(self) -> None:
        """Put the kept weights into the trainer's EMA generator."""
        if self.kept_state:
            self.trainer.ema.load_state_dict(self.kept_state)

    def decisions(self) -> dict[str, Any]:
        """The kept step, its scores, and the number of steps run."""
        scores = {name: self.kept.get(name) for name in ("score", "negative_rate", "drift")}
        return {"kept_step": self.kept["step"], "steps_run": self.trainer.step_count, **scores}

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept, "kept_weights": self.kept_state, "lowest": self.lowest, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept, self.kept_state = state["kept"], state["kept_weights"]
        self.lowest, self.waited = state["lowest"], state["waited"]


class ScoredStage(StageHooks):
    """Scores the generator every `check_every` steps, decays the learning rates, and stops when it gets no better.

    Args:
        steps: of the stage.
        decay: share of the steps, the last ones, over which the learning rates fall to 0.
        patience: checks without a better score after which the stage stops; 0: never.
    """

    def __init__(self, keeper: CheckpointKeeper, steps: int, check_every: int, decay: float = 0.0, patience: int = 0):
        self.keeper, self.steps, self.check_every = keeper, steps, check_every
        self.decay, self.patience = decay, patience
        self.stopped = ""

    def after_step(self, step: int, metrics: dict[str, float]) -> bool:
        self._set_lr(step)
        if step % self.check_every and step != self.steps:
            return False
        self.keeper.check(step, metrics)
        if self.patience and self.keeper.waited >= self.patience and step >= self._first_stop():
            self.stopped = f"no better score in {self.keeper.waited} checks"
        return bool(self.stopped)

    def _first_stop(self) -> float:
        """Not before `patience` checks at decaying rates: those alone make the generator better."""
        decays = self.steps * (1 - self.decay) if self.decay else 0
        return decays + self.patience * self.check_every

    def _set_lr(self, step: int) -> None:
        self.keeper.trainer.set_lr_factor(lr_decay(step / max(self.steps, 1), self.decay))

    def state_dict(self) -> dict[str, Any]:
        return {"keeper": self.keeper.state_dict(), "stopped": self.stopped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.keeper.load_state_dict(state["keeper"])
        self.stopped = state["stopped"]
        self._set_lr(self.keeper.trainer.step_count)
