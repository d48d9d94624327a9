"""A generator learns to draw a labelled data set before it meets a discriminator.

A GAN of few weights and few steps leaves modes out and blurs what is small (drawn animals, 35,000 steps of it alone:
recall 0.03). Where every label of the data is known, it can be taught: what labels a latent stands for is laid down by
`LatentCode`, the mapping network learns to tell them, then the generator to draw an image that has them. In the
adversarial training that follows, this goes on as one term beside the adversarial loss, as in pix2pix (Isola et al.,
arXiv 1611.07004).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atu.data.samples import Samples
from atu.gan import GAN
from atu.networks.stylegan2 import FullyConnectedLayer, MappingNetwork
from atu.training.loop import StageHooks, run_stage
from atu.training.run_folder import RunFolder
from atu.training.schedules import lr_decay, set_lr
from atu.training.state import load_optimizer_state, optimizer_state

MAPPING_LR, DRAW_LR, BETAS = 0.3, 0.01, (0.9, 0.99)
DECAY = 0.4  # last share of a lesson, over which its learning rate decays to 0
CODES, DRAWN = 512, 8  # latents of a step of either lesson: of the second, many small steps go further
SQUARED = 4.0


class LatentCode:
    """Which labels a normal latent stands for: of each pair of its elements the angle, in arcs as long as the shares.

    So a latent of given labels is drawn by drawing the angles, and latents of the data's labels are normal.

    Args:
        labels: int64 [N, K], K kinds of label; their shares are the arcs.
    """

    def __init__(self, labels: Tensor):
        self.sizes = [int(column.max()) + 1 for column in labels.t()]
        counts = [column.bincount(minlength=size) for column, size in zip(labels.t(), self.sizes, strict=True)]
        self.ends = [count.double().cumsum(0) / len(labels) for count in counts]

    def labels(self, z: Tensor) -> Tensor:
        """int64 [N, K] of latents [N, at least 2 K]."""
        pairs = z[:, : 2 * len(self.ends)].double().unflatten(1, (-1, 2))
        turns = torch.atan2(pairs[..., 1], pairs[..., 0]) / (2 * math.pi) % 1.0
        both = zip(self.ends, turns.t().contiguous(), strict=True)
        found = [torch.searchsorted(ends[:-1], turn, right=True) for ends, turn in both]
        return torch.stack(found, 1)

    def latents(self, labels: Tensor, z_dim: int) -> Tensor:
        """Latents [N, z_dim], drawn from torch's global generator, of labels [N, K]."""
        z = torch.randn(len(labels), z_dim)
        pairs = z[:, : 2 * len(self.ends)].unflatten(1, (-1, 2))
        for k, ends in enumerate(self.ends):
            starts = F.pad(ends[:-1], (1, 0))
            turn = torch.lerp(starts[labels[:, k]], ends[labels[:, k]], torch.rand(len(labels), dtype=torch.float64))
            angle = (turn * 2 * math.pi).to(z.dtype)
            pairs[:, k] = pairs[:, k].norm(dim=1, keepdim=True) * torch.stack([angle.cos(), angle.sin()], 1)
        return z


class _Lesson(ABC):
    """A training of some of a GAN's modules by one loss, with what `run_stage` asks of a trainer."""

    def __init__(self, gan: GAN, modules: list[nn.Module], lr: float, steps: int):
        self.gan, self.module, self.lr, self.steps, self.step_count = gan, nn.ModuleList(modules), lr, steps, 0
        self.optim = torch.optim.Adam(self.module.parameters(), lr=lr, betas=BETAS, fused=True)

    @abstractmethod
    def loss(self) -> Tensor: ...

    def step(self) -> dict[str, float]:
        set_lr(self.optim, self.lr * lr_decay(self.step_count / self.steps, DECAY))
        loss = self.loss()
        self.optim.zero_grad(set_to_none=True)
        loss.backward()
        self.optim.step()
        self.step_count += 1
        return {"loss": float(loss.detach())}

    def state_dict(self) -> dict[str, Any]:
        own, optim = dict(self.module.state_dict()), optimizer_state(self.optim)
        return {"step": self.step_count, "module": own, "optim": optim, "rng": torch.get_rng_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step_count = state["step"]
        self.module.load_state_dict(state["module"])
        load_optimizer_state(self.optim, state["optim"])
        torch.set_rng_state(state["rng"])


class TellLabels(_Lesson):
    """The mapping network learns w of which a linear layer tells the latent's labels; w ends with deviation 1."""

    def __init__(self, gan: GAN, code: LatentCode, steps: int):
        self.code, self.mapping = code, cast(MappingNetwork, gan.generator.mapping)
        # Of the mapping's own learning rate multiplier, so that one rate does for both.
        self.head = FullyConnectedLayer(self.mapping.w_dim, sum(code.sizes), lr_multiplier=0.01).to(gan.device)
        super().__init__(gan, [self.mapping, self.head], MAPPING_LR, steps)

    def step(self) -> dict[str, float]:
        metrics = super().step()
        if self.step_count == self.steps:
            self._unit_deviation()
        return metrics

    def loss(self) -> Tensor:
        z = self.gan.latents(CODES, torch.default_generator)
        wanted = self.code.labels(z.cpu()).to(z.device)
        logits = self.head(self.mapping(z)[:, 0]).split(self.code.sizes, 1)
        return torch.stack([F.cross_entropy(one, column) for one, column in zip(logits, wanted.t(), strict=True)]).sum()

    @torch.no_grad()
    def _unit_deviation(self) -> None:
        last = getattr(self.mapping, f"fc{self.mapping.num_layers - 1}")  # leaky ReLU is homogeneous
        scale = self.mapping(self.gan.latents(CODES, torch.default_generator)).std()
        last.weight.div_(scale)
        last.bias.div_(scale)
        self.mapping.w_avg.div_(scale)


class Draw(_Lesson):
    """The generator learns to draw the images from latents of their labels."""

    def __init__(self, gan: GAN, supervision: Supervision, steps: int):
        self.supervision = supervision
        super().__init__(gan, [gan.generator.train()], DRAW_LR, steps)

    def loss(self) -> Tensor:
        return self.supervision.distance(self.gan)


@dataclass
class Supervision:
    """How a labelled data set teaches a StyleGAN2 generator, before and during its adversarial training.

    images: N of them. labels: int64 [N, K]. label_steps, draw_steps: of the two lessons before. weight: of the distance
    of what is drawn from the images, during the adversarial training.
    """

    images: Samples
    labels: Tensor
    label_steps: int
    draw_steps: int
    weight: float = 30.0

    def __post_init__(self) -> None:
        self.code = LatentCode(self.labels)

    def distance(self, gan: GAN) -> Tensor:
        """Of DRAWN images from what the generator makes of latents of their labels, the mean of |d| + SQUARED d^2.

        The absolute difference draws edges; the squared one what few images have, which a median leaves out.
        """
        index = torch.randint(len(self.labels), (DRAWN,))
        z = self.code.latents(self.labels[index], cast(int, gan.latent_dim)).to(gan.device)
        with gan.autocast():
            drawn = gan.fake(z, None)
        difference = drawn - self.images.batch(index).to(drawn)
        return difference.abs().mean() + SQUARED * difference.square().mean()

    def loss(self, gan: GAN) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted distance, and what to log of it."""
        distance = self.distance(gan)
        return self.weight * distance, {"drawn": distance}

    def teach(self, run: RunFolder, gan: GAN) -> None:
        """Both lessons, one after the other."""
        run_stage(run, "labels", TellLabels(gan, self.code, self.label_steps), self.label_steps, StageHooks())
        run_stage(run, "draw", Draw(gan, self, self.draw_steps), self.draw_steps, StageHooks())
