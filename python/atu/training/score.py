"""Scores of a generator during training: how many negatives are left, and how far the rest has drifted."""

from __future__ import annotations

from typing import Any

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

        score = negative_rate / negative_rate before + drift

    drift is the Frechet distance between the scored samples and the positives, in the pretrained discriminator's
    penultimate features. These are whitened on the positives, and the distance is divided by their number. The distance
    of a fresh draw of positives of the same size is subtracted. So drift is 0 for a generator that makes just the
    positives, in any units.
    """

    def __init__(self, gan: GAN, feedback: Feedback, n: int, seed: int):
        self.gan, self.rule, self.n = gan, feedback.rule, n
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
        return {"negative_rate": rate, "drift": drift, "score": rate / self.before + max(drift, 0.0)}


def pictured(gan: GAN) -> int:
    """Number of samples in a picture during training: few if they are big, as each takes seconds."""
    return 16 if gan.is_big else 100


class ScoredStage(StageHooks):
    """Scores the EMA generator and saves a picture every `check_every` steps and at the end; decays the learning rates.

    Args:
        steps: of the stage.
        decay: share of the steps, the last ones, over which the learning rates fall to 0.
    """

    def __init__(
        self,
        stage: str,
        trainer: AdversarialStep,
        score: Score,
        run: RunFolder,
        steps: int,
        check_every: int,
        decay: float = 0.0,
    ):
        self.stage, self.trainer, self.score, self.run = stage, trainer, score, run
        self.steps, self.check_every, self.decay = steps, check_every, decay
        self.last: dict[str, float] = {}  # scores

    def after_step(self, step: int, metrics: dict[str, float]) -> bool:
        self._set_lr(step)
        if step % self.check_every == 0 or step == self.steps:
            self.last = self.score(self.trainer.ema)
            metrics.update(self.last)
            gan = self.score.gan
            x = gan.sample(pictured(gan), self.score.seed, generator=self.trainer.ema)
            self.run.picture(f"{self.stage}-{step:06d}", x, gan.image_range)
        return False

    def decisions(self) -> dict[str, Any]:
        """The number of steps run, and the last scores."""
        scores = {name: self.last.get(name) for name in ("score", "negative_rate", "drift")}
        return {"steps_run": self.trainer.step_count, **scores}

    def _set_lr(self, step: int) -> None:
        self.trainer.set_lr_factor(lr_decay(step / max(self.steps, 1), self.decay))

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last = state["last"]
        self._set_lr(self.trainer.step_count)
