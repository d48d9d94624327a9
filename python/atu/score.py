"""How good a generator is in the course of stage 2: what is left of the negatives, and how far the rest has drifted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .adversarial import Samples
from .features import Whitening, discriminator_features, frechet_distance, moments
from .feedback import Feedback
from .gan import GAN, mix_seed


class Score:
    """Scores generators on fixed latents. Lower is better.

        score = negative_rate / negative_rate before + drift_weight * drift

    drift is the Frechet distance between the scored samples and the positives, in the pretrained discriminator's
    penultimate features whitened on the positives, over the number of features, less that of a fresh draw of the same
    size from the positives: 0 for a generator that makes just the positives, whatever the units of the features.
    """

    def __init__(self, gan: GAN, feedback: Feedback, n: int, drift_weight: float, seed: int):
        self.gan, self.judge, self.n, self.drift_weight = gan, feedback.judge, n, drift_weight
        self.seed = mix_seed(seed, 5)
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
        index = torch.arange(min(len(positives), 5000))
        return discriminator_features(self.gan, (positives.batch(part) for part in index.split(100)))

    def __call__(self, generator: nn.Module) -> dict[str, float]:
        """negative_rate, drift and score of a generator."""
        flags, features = [], []
        for x in self.gan.batches(self.n, self.seed, generator=generator):
            flags.append(self.judge(x))
            features.append(discriminator_features(self.gan, [x]))
        rate = float(torch.cat(flags).float().mean())
        drift = frechet_distance(moments(self.whiten(torch.cat(features))), self.kept) / self.size - self.floor
        return {
            "negative_rate": rate,
            "drift": drift,
            "score": rate / self.before + self.drift_weight * max(drift, 0.0),
        }
