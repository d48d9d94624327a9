"""One adversarial training step, shared by pretraining, adaptation (stage 1) and repulsion (stage 2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ..config import Adversarial
from ..data.augment import augment
from ..data.samples import Samples
from ..gan import GAN
from ..networks.stylegan2 import MinibatchStdLayer
from ..support import world
from ..support.modules import copied, ema_beta, trainable, update_ema
from ..support.seeding import fork_rng
from . import losses

# n -> (latents, their labels, what the original is called with for the samples wanted in their place)
DrawLatents = Callable[[int], tuple[Tensor, Tensor | None, Tensor | None]]
# (fake, labels, wanted) -> (loss, its parts to log)
FakePenalty = Callable[[Tensor, Tensor | None, Tensor | None], tuple[Tensor, dict[str, float]]]


def draw(gan: GAN, samples: Samples, n: int) -> tuple[Tensor, Tensor | None]:
    """n samples on the GAN's device, drawn with replacement: fewer of them than n is fine.

    With the labels they came with; for a conditional GAN's samples without any, labels are drawn.
    """
    index = torch.randint(len(samples), (n,))
    known: Tensor | None = getattr(samples, "labels", None)
    c = gan.labels(n, torch.default_generator) if known is None else known[index].to(gan.device)
    return samples.batch(index).to(gan.device), c


def together(gan: GAN) -> int | None:
    """How many of a batch's samples the discriminator looks at together: the minibatch deviation's groups."""
    assert gan.discriminator is not None
    layers = [m for m in gan.discriminator.modules() if isinstance(m, MinibatchStdLayer)]
    return layers[0].group_size if layers else 1


class NonFiniteError(RuntimeError):
    """A loss is not finite."""

    def __init__(self, name: str, step: int, value: float):
        super().__init__(
            f"{name} became {value} at step {step}: the training diverged. Lower adversarial.lr or the penalty's "
            "weight, or raise adversarial.r1_gamma; a run folder keeps its last good checkpoint."
        )
        self.step = step


def optimizer_state(optim: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state, by the index of the parameter; its settings are the caller's."""
    return {str(index): slots for index, slots in optim.state_dict()["state"].items()}


def load_optimizer_state(optim: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load what `optimizer_state` gave."""
    slots = {int(index): value for index, value in state.items()}
    optim.load_state_dict({"state": slots, "param_groups": optim.state_dict()["param_groups"]})


class AdversarialTrainer:
    """Trains `gan` in place against `real` samples, one `step` at a time.

    Args:
        gan: pair to train; its EMA generator is made here when it has none.
        real: samples shown to the discriminator as real.
        config: settings of the adversarial training.
        extra_fakes: further samples shown to the discriminator as fakes, weighted by `extra_weight`.
        add_penalty_grad: called after the generator's backward pass; adds to the gradients, returns values to log.
        fake_penalty: differentiable loss of generated samples, added to the generator's. It takes (fake, labels,
            wanted): wanted is what `original` makes with the same noise, if there is one.
        other_loss: gives another loss of the generator and its parts to log. It has a backward pass of its own, before
            the adversarial one, so that its memory is free again.
        latents: where the generated samples' latents come from; drawn from the GAN's own distribution when not given.
            There are half as many of them as real samples then: the other half of a step is that of `other_loss`.
        original: makes samples of the third tensor that `latents` gives, and of labels.

    All randomness is drawn from torch's global generators, so that saving their states makes a run resumable.

    The networks' passes run in `gan.precision`: torch.autocast, with losses scaled where it is float16 (Micikevicius et
    al., arXiv 1710.03740). Weights, their gradients, the optimisers, the average, the losses, and of R1 and path length
    what is done with the gradients, are float32.

    Where several processes train together (`atu.support.world`), all draw the whole batch, each passes its part, and
    gradients, buffers and metrics are averaged, so that all have the same weights. (Not by DistributedDataParallel,
    whose hooks do not follow gradients of gradients, which R1 and path length take.)
    """

    def __init__(
        self,
        gan: GAN,
        real: Samples,
        config: Adversarial,
        extra_fakes: Samples | None = None,
        add_penalty_grad: Callable[[], dict[str, float]] | None = None,
        fake_penalty: FakePenalty | None = None,
        other_loss: Callable[[], tuple[Tensor, dict[str, float]]] | None = None,
        latents: DrawLatents | None = None,
        original: Callable[[Tensor, Tensor | None], Tensor] | None = None,
    ):
        if gan.discriminator is None:
            raise ValueError("discriminator: this GAN has none, and training needs one")
        self.gan, self.real, self.config = gan, real, config
        self.r1_gamma, self.r2_gamma = (
            losses.r1_gamma(gan.sample_shape, config.batch_size) if gamma == "auto" else gamma
            for gamma in (config.r1_gamma, config.r2_gamma)
        )
        self.extra_fakes, self.add_penalty_grad, self.fake_penalty = extra_fakes, add_penalty_grad, fake_penalty
        self.other_loss, self.latents, self.original = other_loss, latents, original
        self.extra_weight = 1.0
        if gan.generator_ema is None:
            gan.generator_ema = copied(gan.generator)
        self.ema = gan.generator_ema.requires_grad_(False).eval()
        self.generator: nn.Module = gan.generator.train()
        self.discriminator: nn.Module = gan.discriminator.train()
        self.path_length = losses.PathLength() if config.pl_weight > 0 and gan.is_stylegan else None
        self.step_count = 0
        self._looks = 0
        self.group = together(gan)
        self.fakes = config.batch_size if latents is None else max(config.batch_size // 2, 1)
        for n in (config.batch_size, self.fakes):
            world.part(n, self.group)  # an error where it cannot be divided
        self.scaler = torch.amp.GradScaler(gan.device.type, enabled=gan.precision == "float16")
        g_interval = config.pl_interval if self.path_length else 0
        self.optim_g = self._adam(self.generator, g_interval, 1.0)
        self.optim_d = self._adam(
            self.discriminator, config.r1_interval if self.r1_gamma + self.r2_gamma > 0 else 0, config.d_lr_ratio
        )
        self.base_lr = [group["lr"] for optim in (self.optim_g, self.optim_d) for group in optim.param_groups]

    def _adam(self, module: nn.Module, lazy_interval: int, ratio: float) -> torch.optim.Adam:
        c = lazy_interval / (lazy_interval + 1) if lazy_interval else 1.0
        lr, beta1, beta2 = self.config.lr, self.config.beta1, self.config.beta2
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
        metrics = self._discriminator_step()
        metrics.update(self._generator_step())
        metrics = world.mean_of(metrics, self.gan.device)
        self._share_buffers()
        update_ema(self.ema, self.generator, self._ema_beta())
        self.step_count += 1
        # The weights too: a step may spoil them after its losses were taken, and they are what gets saved.
        norms = {
            f"norm of the {name}'s weights": float(get_total_norm([p.detach() for p in module.parameters()]))
            for name, module in (("generator", self.generator), ("discriminator", self.discriminator))
        }
        for name, value in {**metrics, **norms}.items():
            if not math.isfinite(value):
                raise NonFiniteError(name, self.step_count, value)
        return metrics

    def _ema_beta(self) -> float:
        cfg = self.config
        seen = cfg.batch_size * self.step_count
        half_life = min(cfg.ema_half_life, cfg.ema_ramp * seen) if cfg.ema_ramp > 0 else cfg.ema_half_life
        return ema_beta(cfg.batch_size, half_life)

    def real_batch(self) -> tuple[Tensor, Tensor | None]:
        """A batch (this process's part of it) of real samples and, for a conditional GAN, their labels."""
        return self._drawn(self.real)

    def _drawn(self, samples: Samples) -> tuple[Tensor, Tensor | None]:
        x, c = draw(self.gan, samples, self.config.batch_size)
        own = world.part(len(x), self.group)
        return x[own], None if c is None else c[own]

    def _latents(self, n: int, group: int | None = 1) -> tuple[Tensor, Tensor | None, Tensor | None]:
        own, rng = world.part(n, group), torch.default_generator
        z, c, wanted = (
            (self.gan.latents(n, rng), self.gan.labels(n, rng), None) if self.latents is None else self.latents(n)
        )
        return z[own], None if c is None else c[own], None if wanted is None else wanted[own]

    def _fake(self, z: Tensor, c: Tensor | None) -> Tensor:
        with self.gan.autocast(), world.own_rng(self.gan.device):
            return self.gan.fake(z, c, self.config.style_mixing)

    def _logits(self, x: Tensor, c: Tensor | None) -> Tensor:
        self._looks += 1  # one after the other augments in its own way
        with world.own_rng(self.gan.device, self._looks):
            if self.config.augment:
                x = augment(x, self.config.augment, self.gan.image_range)
            with self.gan.autocast():
                return self.gan.logits(x, c)

    def _backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def _share_buffers(self) -> None:
        """Running means; in float64, so that what never changes stays as it is."""
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

    def _discriminator_step(self) -> dict[str, float]:
        cfg = self.config
        z, c, _ = self._latents(self.fakes, self.group)
        with torch.no_grad():
            fake = self._fake(z, c)
        real, real_c = self.real_batch()
        self.optim_d.zero_grad(set_to_none=True)
        fake_logits, real_logits = self._logits(fake, c), self._logits(real, real_c)
        if cfg.loss == "relativistic":
            loss = losses.relativistic_loss(real_logits[: len(fake_logits)], fake_logits)
        else:
            loss = losses.fake_loss(fake_logits) + losses.real_loss(real_logits)
        metrics = {"loss_d": loss, "logit_real": real_logits.mean(), "logit_fake": fake_logits.mean()}
        self._backward(loss)
        if self.extra_fakes is not None and self.extra_weight > 0:  # after that, so that its memory is free again
            extra_logits = self._logits(*self._drawn(self.extra_fakes))
            extra_loss = self.extra_weight * losses.fake_loss(extra_logits)
            self._backward(extra_loss)
            metrics["loss_d"] = loss + extra_loss
            metrics["logit_negative"] = extra_logits.mean()
        if self.step_count % cfg.r1_interval == 0:
            for name, gamma, x, labels in (("r1", self.r1_gamma, real, real_c), ("r2", self.r2_gamma, fake, c)):
                if gamma > 0:
                    metrics[name] = self._gradient_penalty(x, labels, gamma * cfg.r1_interval)
        self._share_gradients(self.optim_d)
        self.scaler.step(self.optim_d)
        return {name: float(value.detach()) for name, value in metrics.items()}

    def _gradient_penalty(self, x: Tensor, c: Tensor | None, weight: float) -> Tensor:
        x = x.detach().requires_grad_(True)
        with self.gan.autocast(twice=len(x)):
            logits = self.gan.logits(x, c)
        penalty = losses.r1_penalty(logits, x)
        self._backward(penalty * weight)
        return penalty

    def _generator_loss(self, fake: Tensor, c: Tensor | None) -> Tensor:
        if self.config.loss == "logistic":
            return losses.generator_loss(self._logits(fake, c))
        real, real_c = self.real_batch()
        with torch.no_grad():
            real_logits = self._logits(real, real_c)
        return losses.relativistic_loss(self._logits(fake, c), real_logits[: len(fake)])

    @torch.no_grad()
    def _wanted(self, latents: Tensor | None, c: Tensor | None) -> Tensor | None:
        """What the original makes. The random state is left as it was: the next pass has the same noise."""
        if self.original is None or latents is None:
            return None
        with fork_rng(self.gan.device), self.gan.autocast(), world.own_rng(self.gan.device):
            return self.original(latents, c)

    def _other_backward(self) -> dict[str, float]:
        if self.other_loss is None:
            return {}
        loss, parts = self.other_loss()
        self._backward(loss)
        return parts

    def _generator_step(self) -> dict[str, float]:
        cfg = self.config
        self._hold_discriminator(True)
        self.optim_g.zero_grad(set_to_none=True)
        metrics = self._other_backward()
        z, c, other = self._latents(self.fakes, self.group)
        wanted = self._wanted(other, c)
        fake = self._fake(z, c)
        loss = self._generator_loss(fake, c)
        metrics["loss_g"] = float(loss.detach())
        if self.fake_penalty is not None:
            penalty, parts = self.fake_penalty(fake, c, wanted)
            metrics.update(parts)
            loss = loss + penalty
        self._backward(loss)
        if self.path_length is not None and self.step_count % cfg.pl_interval == 0:
            metrics["path_length"] = self._path_length_step()
        self._share_gradients(self.optim_g)
        self.scaler.unscale_(self.optim_g)
        if self.add_penalty_grad is not None:
            metrics.update(self.add_penalty_grad())
        self.scaler.step(self.optim_g)
        self.scaler.update()
        self._hold_discriminator(False)
        return metrics

    def _hold_discriminator(self, hold: bool) -> None:
        """Keep the generator's backward pass from computing gradients of the discriminator's weights."""
        for group in self.optim_d.param_groups:
            for p in group["params"]:
                p.requires_grad_(not hold)

    def _path_length_step(self) -> float:
        assert self.path_length is not None
        z, c, _ = self._latents(max(self.config.batch_size // 2 // world.size(), 1) * world.size())
        synthesis: Any = self.generator.synthesis
        with world.own_rng(self.gan.device):
            ws = self.gan.mixed_ws(z, c, self.config.style_mixing)
            with self.gan.autocast(twice=len(ws)):
                images = synthesis(ws).to(ws.dtype)
            loss = self.path_length(images, ws)
        world.mean_([self.path_length.mean])
        self._backward(loss * (self.config.pl_weight * self.config.pl_interval))
        return float(loss.detach())

    # --- resuming

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; its tensors are those in use, not copies."""
        rng = {"cpu": torch.get_rng_state()}
        if self.gan.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.gan.device)
        return {
            "step": self.step_count,
            "extra_weight": self.extra_weight,
            "gan": {name: dict(module.state_dict()) for name, module in self.gan.modules().items()},
            "optim_g": optimizer_state(self.optim_g),
            "optim_d": optimizer_state(self.optim_d),
            "path_length": {} if self.path_length is None else self.path_length.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": rng,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s result, bit for bit on the CPU."""
        self.step_count, self.extra_weight = state["step"], state["extra_weight"]
        for name, module in self.gan.modules().items():
            module.load_state_dict(state["gan"][name])
        load_optimizer_state(self.optim_g, state["optim_g"])
        load_optimizer_state(self.optim_d, state["optim_d"])
        if self.path_length is not None:
            self.path_length.load_state_dict(state["path_length"], self.gan.device)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"]["cpu"])
        if "cuda" in state["rng"]:
            torch.cuda.set_rng_state(state["rng"]["cuda"], self.gan.device)
