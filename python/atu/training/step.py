"""One adversarial training step, for any objective: what every training of a GAN in this package is made of.

`AdversarialStep` knows how a step runs: batches, passes, R1, R2 and path length, optimisers, the weight average, and
several processes. `Objective` knows what is minimised. The base class is the plain GAN loss; a method overrides the
hooks of what it changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ..config import Adversarial
from ..data.augment import augment
from ..data.samples import Samples
from ..gan import GAN
from ..networks.stylegan2 import MinibatchStdLayer
from ..support import world
from ..support.context import current
from ..support.modules import copied, ema_beta, trainable, update_ema
from . import losses
from .state import load_optimizer_state, optimizer_state


class Batch(NamedTuple):
    """Samples [N, ...], and their labels [N, c_dim] where the GAN is conditional."""

    samples: Tensor
    labels: Tensor | None


class Objective:
    """What a training minimises. The base class is the plain GAN loss.

    The hooks stand in the order in which a step calls them. The two losses are iterators of (loss, values to log by
    name): each loss is passed backward before the next is made, so that its memory is free again, and gradients add
    up. Random numbers come from torch's global generators, so that a resumed run draws the same.
    """

    def set_modes(self, gan: GAN) -> None:
        """Called once, when the networks have been put into training mode."""

    def fakes(self, batch_size: int) -> int:
        """How many samples are generated for a batch of `batch_size` real ones."""
        return batch_size

    def latents(self, gan: GAN, n: int) -> tuple[Tensor, Tensor | None]:
        """Latents [n, ...] that samples are generated from, and their labels."""
        return gan.latents(n, torch.default_generator), gan.labels(n, torch.default_generator)

    def discriminator_loss(
        self, step: AdversarialStep, real: Batch, fake: Batch
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Losses of the discriminator; `fake` is without gradients."""
        fake_logits, real_logits = step.logits(fake), step.logits(real)
        loss = losses.discriminator_loss(step.settings.loss, real_logits, fake_logits)
        yield loss, {"loss_d": loss, "logit_real": real_logits.mean(), "logit_fake": fake_logits.mean()}

    def generator_loss(self, step: AdversarialStep) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Losses of the generator."""
        loss = self.adversarial(step, step.fake(*step.latents(step.fakes)))
        yield loss, {"loss_g": loss}

    def adversarial(self, step: AdversarialStep, fake: Batch) -> Tensor:
        """The generator's loss in the game with the discriminator."""
        if step.settings.loss == "logistic":
            return losses.generator_loss(step.logits(fake))
        real = step.real_batch()
        with torch.no_grad():
            real_logits = step.logits(real)
        return losses.relativistic_loss(step.logits(fake), real_logits[: len(fake.samples)])

    def after_backward(self, step: AdversarialStep) -> dict[str, float]:
        """Add to the generator's gradients, which are complete and unscaled by now; returns values to log."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nested dicts of tensors and plain data to resume from."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""


class NonFiniteError(RuntimeError):
    """A loss is not finite."""

    def __init__(self, name: str, step: int, value: float):
        super().__init__(
            f"{name} became {value} at step {step}: the training diverged. Lower adversarial.lr or the penalty's "
            "weight, or raise adversarial.r1_gamma; a run folder keeps its last good checkpoint."
        )
        self.step = step


def group_size(gan: GAN) -> int | None:
    """Number of samples that the minibatch deviation compares. They stay together if processes share a batch."""
    assert gan.discriminator is not None
    layers = [m for m in gan.discriminator.modules() if isinstance(m, MinibatchStdLayer)]
    return layers[0].group_size if layers else 1


class AdversarialStep:
    """Trains `gan` in place against `real` samples, one `step()` at a time.

    Args:
        gan: pair to train; its EMA generator is made here when it has none.
        real: samples shown to the discriminator as real.
        objective: what is minimised.
        settings: of the adversarial training.

    All randomness is drawn from torch's global generators, so that saving their states makes a run resumable.

    The networks' passes run in the `RunContext`'s precision: torch.autocast, with scaled losses in float16
    (Micikevicius et al., arXiv 1710.03740). Weights, their gradients, the optimisers, the average and the losses are
    float32, and so is what R1 and path length do with gradients.

    If several processes train together (`atu.support.world`), all draw the whole batch and each passes its part.
    Gradients, buffers and metrics are averaged, so all have the same weights. (DistributedDataParallel's hooks do not
    follow the gradients of gradients that R1 and path length take.)
    """

    def __init__(self, gan: GAN, real: Samples, objective: Objective, settings: Adversarial):
        if gan.discriminator is None:
            raise ValueError("discriminator: this GAN has none, and training needs one")
        self.gan, self.real, self.objective, self.settings = gan, real, objective, settings
        self.r1_gamma, self.r2_gamma = (
            losses.r1_gamma(gan.sample_shape, settings.batch_size) if gamma == "auto" else gamma
            for gamma in (settings.r1_gamma, settings.r2_gamma)
        )
        if gan.generator_ema is None:
            gan.generator_ema = copied(gan.generator)
        self.ema = gan.generator_ema.requires_grad_(False).eval()
        self.generator: nn.Module = gan.generator.train()
        self.discriminator: nn.Module = gan.discriminator.train()
        objective.set_modes(gan)
        self.path_length = losses.PathLength() if settings.pl_weight > 0 and gan.is_stylegan else None
        self.step_count = 0
        self._looks = 0
        self.group = group_size(gan)
        self.fakes = objective.fakes(settings.batch_size)
        for n in (settings.batch_size, self.fakes):
            world.part(n, self.group)  # raises if it cannot be divided
        self.scaler = torch.amp.GradScaler(gan.device.type, enabled=current().precision == "float16")
        self.optim_g = self._adam(self.generator, settings.pl_interval if self.path_length else 0, 1.0)
        self.optim_d = self._adam(
            self.discriminator, settings.r1_interval if self.r1_gamma + self.r2_gamma > 0 else 0, settings.d_lr_ratio
        )
        self.base_lr = [group["lr"] for optim in (self.optim_g, self.optim_d) for group in optim.param_groups]

    def _adam(self, module: nn.Module, lazy_interval: int, ratio: float) -> torch.optim.Adam:
        c = lazy_interval / (lazy_interval + 1) if lazy_interval else 1.0
        lr, beta1, beta2 = self.settings.lr, self.settings.beta1, self.settings.beta2
        if lr is None:
            lr = 0.002 if self.gan.is_stylegan else 0.0005
        params = trainable(module)
        fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in params)
        return torch.optim.Adam(params, lr=lr * ratio * c, betas=(beta1**c, beta2**c), eps=1e-8, fused=fused)

    def set_lr_factor(self, factor: float) -> None:
        """Scale both learning rates."""
        groups = [group for optim in (self.optim_g, self.optim_d) for group in optim.param_groups]
        for group, lr in zip(groups, self.base_lr, strict=True):
            group["lr"] = lr * factor

    # --- one step

    def step(self) -> dict[str, float]:
        """One discriminator and one generator step; returns what to log."""
        self._looks = 0
        metrics = self.discriminator_step()
        metrics.update(self.generator_step())
        metrics = world.mean_of(metrics, self.gan.device)
        self._share_buffers()
        update_ema(self.ema, self.generator, self._ema_beta())
        self.step_count += 1
        self._check_finite(metrics)
        return metrics

    def discriminator_step(self) -> dict[str, float]:
        """One step of the discriminator: the objective's losses, R1 and R2."""
        settings = self.settings
        z, c = self.latents(self.fakes, self.group)
        with torch.no_grad():
            fake = self.fake(z, c)
        real = self.real_batch()
        self.optim_d.zero_grad(set_to_none=True)
        metrics: dict[str, Tensor] = {}
        for loss, values in self.objective.discriminator_loss(self, real, fake):
            self._backward(loss)
            metrics.update(values)
        if self.step_count % settings.r1_interval == 0:
            for name, gamma, batch in (("r1", self.r1_gamma, real), ("r2", self.r2_gamma, fake)):
                if gamma > 0:
                    metrics[name] = self.gradient_penalty(batch, gamma * settings.r1_interval)
        self._share_gradients(self.optim_d)
        self.scaler.step(self.optim_d)
        return _floats(metrics)

    def generator_step(self) -> dict[str, float]:
        """One step of the generator: the objective's losses, path length, and what the objective adds after them."""
        self._hold_discriminator(True)
        self.optim_g.zero_grad(set_to_none=True)
        metrics: dict[str, float] = {}
        for loss, values in self.objective.generator_loss(self):
            metrics.update(_floats(values))
            self._backward(loss)
        if self.path_length is not None and self.step_count % self.settings.pl_interval == 0:
            metrics["path_length"] = self.path_length_step()
        self._share_gradients(self.optim_g)
        self.scaler.unscale_(self.optim_g)
        metrics.update(self.objective.after_backward(self))
        self.scaler.step(self.optim_g)
        self.scaler.update()
        self._hold_discriminator(False)
        return metrics

    # --- batches and passes, for objectives

    def draw(self, samples: Samples) -> Batch:
        """This process's part of a batch drawn from `samples` with replacement.

        A conditional GAN's samples keep their labels; if they have none, labels are drawn.
        """
        n = self.settings.batch_size
        index = torch.randint(len(samples), (n,))
        labels: Tensor | None = getattr(samples, "labels", None)
        c = self.gan.labels(n, torch.default_generator) if labels is None else labels[index].to(self.gan.device)
        x = samples.batch(index).to(self.gan.device)
        part = world.part(n, self.group)
        return Batch(x[part], None if c is None else c[part])

    def real_batch(self) -> Batch:
        """This process's part of a batch of real samples."""
        return self.draw(self.real)

    def latents(self, n: int, group: int | None = 1) -> tuple[Tensor, Tensor | None]:
        """This process's part of n latents and their labels, as the objective draws them."""
        z, c = self.objective.latents(self.gan, n)
        part = world.part(n, group)
        return z[part], None if c is None else c[part]

    def fake(self, z: Tensor, c: Tensor | None) -> Batch:
        """Samples that the generator makes of latents and labels."""
        with self.gan.autocast(), world.own_rng(self.gan.device):
            return Batch(self.gan.fake(z, c, self.settings.style_mixing), c)

    def logits(self, batch: Batch) -> Tensor:
        """The discriminator's logits [N] of a batch, augmented."""
        self._looks += 1  # each pass of a step augments in another way
        x = batch.samples
        with world.own_rng(self.gan.device, self._looks):
            if self.settings.augment:
                x = augment(x, self.settings.augment, self.gan.image_range)
            with self.gan.autocast():
                return self.gan.logits(x, batch.labels)

    # --- regularisers

    def gradient_penalty(self, batch: Batch, weight: float) -> Tensor:
        """R1 or R2 at a batch, passed backward with a weight."""
        x = batch.samples.detach().requires_grad_(True)
        with self.gan.autocast(twice=len(x)):
            logits = self.gan.logits(x, batch.labels)
        penalty = losses.r1_penalty(logits, x)
        self._backward(penalty * weight)
        return penalty

    def path_length_step(self) -> float:
        """The path length penalty of half a batch, passed backward."""
        assert self.path_length is not None
        z, c = self.latents(max(self.settings.batch_size // 2 // world.size(), 1) * world.size())
        synthesis: Any = self.generator.synthesis
        with world.own_rng(self.gan.device):
            ws = self.gan.mixed_ws(z, c, self.settings.style_mixing)
            with self.gan.autocast(twice=len(ws)):
                images = synthesis(ws).to(ws.dtype)
            loss = self.path_length(images, ws)
        world.mean_([self.path_length.mean])
        self._backward(loss * (self.settings.pl_weight * self.settings.pl_interval))
        return float(loss.detach())

    # --- parts of a step

    def _backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def _hold_discriminator(self, hold: bool) -> None:
        """Keep the generator's backward pass from computing gradients of the discriminator's weights."""
        for group in self.optim_d.param_groups:
            for p in group["params"]:
                p.requires_grad_(not hold)

    def _ema_beta(self) -> float:
        settings = self.settings
        seen = settings.batch_size * self.step_count
        half_life = settings.ema_half_life
        if settings.ema_ramp > 0:
            half_life = min(half_life, settings.ema_ramp * seen)
        return ema_beta(settings.batch_size, half_life)

    def _check_finite(self, metrics: dict[str, float]) -> None:
        """Raise NonFiniteError. The weights are checked too: a step may spoil them after its losses were taken, and
        they are what gets saved."""
        norms = {
            f"norm of the {name}'s weights": float(get_total_norm([p.detach() for p in module.parameters()]))
            for name, module in (("generator", self.generator), ("discriminator", self.discriminator))
        }
        for name, value in {**metrics, **norms}.items():
            if not math.isfinite(value):
                raise NonFiniteError(name, self.step_count, value)

    def _share_buffers(self) -> None:
        """Average running means over the processes; in float64, so that what never changes stays as it is."""
        if world.size() > 1:
            both = chain(self.generator.buffers(), self.discriminator.buffers())
            running = [t for t in both if t.is_floating_point()]
            means = [t.double() for t in running]
            world.mean_(means)
            for t, mean in zip(running, means, strict=True):
                t.copy_(mean)

    @staticmethod
    def _share_gradients(optim: torch.optim.Optimizer) -> None:
        params = [p for group in optim.param_groups for p in group["params"]]
        world.mean_([p.grad for p in params if p.grad is not None])

    # --- resuming

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on. Its tensors are those in use, not copies."""
        rng = {"cpu": torch.get_rng_state()}
        if self.gan.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.gan.device)
        return {
            "step": self.step_count,
            "gan": {name: dict(module.state_dict()) for name, module in self.gan.modules().items()},
            "optim_g": optimizer_state(self.optim_g),
            "optim_d": optimizer_state(self.optim_d),
            "objective": self.objective.state_dict(),
            "path_length": {} if self.path_length is None else self.path_length.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": rng,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s result, bit for bit on the CPU."""
        self.step_count = state["step"]
        for name, module in self.gan.modules().items():
            module.load_state_dict(state["gan"][name])
        load_optimizer_state(self.optim_g, state["optim_g"])
        load_optimizer_state(self.optim_d, state["optim_d"])
        self.objective.load_state_dict(state["objective"])
        if self.path_length is not None:
            self.path_length.load_state_dict(state["path_length"], self.gan.device)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"]["cpu"])
        if "cuda" in state["rng"]:
            torch.cuda.set_rng_state(state["rng"]["cuda"], self.gan.device)


def _floats(values: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in values.items()}
