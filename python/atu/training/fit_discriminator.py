"""A discriminator for a GAN that came without one, fitted on the generator's own samples.

Real samples are the generator's. Fakes come from copies of it whose weights are disturbed, each step by another amount,
so that the discriminator learns which way leads back to the generator's distribution, from near and from far. Loss and
regularisation are those of GAN training (non-saturating logistic, R1).
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from ..gan import GAN
from ..networks import stylegan2
from ..support.modules import copied
from ..support.progress import bar
from ..support.seeding import fork_rng
from .losses import fake_loss, r1_penalty, real_loss

log = logging.getLogger("atu")
R1_INTERVAL = 16
NOISE_LEVELS = (0.02, 0.5)  # disturbance relative to each tensor's standard deviation, drawn log-uniformly
_BLOCK = 8  # steps that share one disturbed generator


def fit_discriminator(
    gan: GAN,
    steps: int,
    batch_size: int = 16,
    lr: float = 0.002,
    r1_gamma: float = 1.0,
    channel_base: int | None = None,
    channel_max: int | None = None,
    seed: int = 0,
) -> GAN:
    """Return a copy of `gan` with a StyleGAN2 discriminator that was fitted for `steps` steps; `gan` is not changed.

    Args:
        gan: its samples must be square images [C, R, R], R a power of two from 8.
        steps: of Adam, a batch of samples and one of fakes each.
        channel_base, channel_max: feature maps min(channel_base / R, channel_max); a StyleGAN generator's own, or
            16384 and 512, where not given.

    Raises:
        ValueError: samples of another shape, steps below 1, or a generator of which label_format="index" alone tells
            that it takes labels so: the discriminator takes them one-hot.
    """
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: expected a positive int, got {steps!r}")
    shape = gan.sample_shape
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] < 8 or shape[1] & (shape[1] - 1):
        raise ValueError(f"gan: a discriminator is fitted for square images of 8, 16, 32 ... pixels, got {list(shape)}")
    base, most = _channels(gan)
    base, most = channel_base or base, channel_max or most
    fitted = _with_labels_apart(gan.copy())
    fitted.discriminator_output = "logit"
    with fork_rng(gan.device, seed):
        network = stylegan2.Discriminator(gan.c_dim, shape[1], shape[0], channel_base=base, channel_max=most)
        fitted.discriminator = network.to(gan.device)
        _Fit(fitted, batch_size, lr, r1_gamma).run(steps)
    network.eval()
    return fitted


def _with_labels_apart(fitted: GAN) -> GAN:
    """The GAN with label_format "auto" in place of "index", as its two networks take labels in different ways now."""
    if fitted.c_dim == 0 or fitted.label_format != "index":
        return fitted
    fitted.label_format = "auto"
    z, c = fitted.inputs(1)
    for name, module in fitted.modules().items():
        if name != "discriminator" and fitted.arguments(module, z, c)[-1].is_floating_point():
            raise ValueError(
                f"label_format: expected 'auto' or 'one-hot', got 'index': the discriminator that is fitted takes "
                f"one-hot labels, and nothing but label_format tells that the {name} takes indices, as it has no "
                f"nn.Embedding of {fitted.c_dim} rows; wrap it in a module that takes one-hot labels: "
                "def forward(self, z, c): return self.inner(z, c.argmax(1))"
            )
    return fitted


def _channels(gan: GAN) -> tuple[int, int]:
    """channel_base and channel_max of a StyleGAN generator, so that the discriminator is as wide."""
    options = getattr(gan.generator, "init_kwargs", {}) if gan.is_stylegan else {}
    options = {**options, **options.get("synthesis_kwargs", {})}
    usual = (32768, 512) if gan.is_stylegan else (16384, 512)
    return options.get("channel_base", usual[0]), options.get("channel_max", usual[1])


class _Fit:
    """One fit: draws samples of the generator and of its disturbed copies, and steps the discriminator."""

    def __init__(self, gan: GAN, batch_size: int, lr: float, r1_gamma: float):
        self.gan, self.batch_size, self.r1_gamma = gan, batch_size, r1_gamma
        self.generator = copied(gan.sampling_generator).eval().requires_grad_(False)
        self.disturbed = copied(self.generator)
        assert gan.discriminator is not None
        ratio = R1_INTERVAL / (R1_INTERVAL + 1)  # lazy regularisation's correction (arXiv 1912.04958, appendix B)
        self.discriminator = gan.discriminator.train()
        betas = (0.0, 0.99**ratio)
        self.optimiser = torch.optim.Adam(self.discriminator.parameters(), lr=lr * ratio, betas=betas, eps=1e-8)

    def run(self, steps: int) -> None:
        with bar("discriminator", steps) as shown:
            for step in range(steps):
                if step % _BLOCK == 0:
                    self._disturb()
                shown.update({"loss": self._step(step)})

    @torch.no_grad()
    def _disturb(self) -> None:
        low, high = torch.tensor(NOISE_LEVELS).log().tolist()
        level = float(torch.empty(()).uniform_(low, high).exp())
        for disturbed, p in zip(self.disturbed.parameters(), self.generator.parameters(), strict=True):
            spread = p.std() if p.numel() > 1 else p.abs()
            disturbed.copy_(p + level * spread * torch.randn_like(p))

    def _sample(self, generator: nn.Module) -> tuple[Tensor, Tensor | None]:
        rng = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        z, c = self.gan.latents(self.batch_size, rng), self.gan.labels(self.batch_size, rng)
        with torch.no_grad():
            return self.gan.fake(z, c, generator=generator), c

    def _step(self, step: int) -> float:
        fake, fake_c = self._sample(self.disturbed)
        real, real_c = self._sample(self.generator)
        regularise = step % R1_INTERVAL == 0 and self.r1_gamma > 0
        real.requires_grad_(regularise)
        real_logits = self.gan.logits(real, real_c)
        loss = real_loss(real_logits) + fake_loss(self.gan.logits(fake, fake_c))
        if not torch.isfinite(loss):
            raise RuntimeError(f"the discriminator's loss became {float(loss)} at step {step}; lower lr")
        total = loss
        if regularise:
            total = loss + self.r1_gamma * R1_INTERVAL * r1_penalty(real_logits, real)
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        self.optimiser.step()
        return float(loss.detach())
