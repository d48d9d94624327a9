"""Features of samples, from the discriminator that every GAN here has."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..gan import GAN
from ..support.modules import eval_mode, uncompiled
from .frechet import moments
from .oriented_gradients import FEATURES, oriented_gradients

CELLS = 256  # values of one layer that are kept, unless it has more channels


class DiscriminatorFeatures:
    """Features of samples from a GAN's discriminator, in eval mode.

    It takes two passes to see which layers take in one row a sample (`sample_layers`): keep one for many batches.

    Raises:
        ValueError: the GAN has no discriminator.
    """

    def __init__(self, gan: GAN):
        self.gan, self.discriminator, self.layers = gan, _discriminator(gan), sample_layers(gan)

    @torch.no_grad()
    def penultimate(self, batches: Iterable[Tensor], max_features: int = 1024) -> Tensor:
        """Inputs of the discriminator's last layer with weights, float32 [N, F] on the CPU.

        Args:
            batches: samples [n, ...]. Each batch is passed on its own (minibatch statistics couple a batch's samples).
            max_features: about the most (see `flat_features`).
        """
        features = []
        with eval_mode(self.discriminator), last_input(self.discriminator, self.layers) as last:
            for x in batches:
                x = x.to(self.gan.device)
                last[:] = [x]  # where no layer takes in a row a sample
                self._pass(x)
                features.append(flat_features(last[0], max_features).float().cpu())
        return torch.cat(features) if features else torch.empty(0, 0)

    @torch.no_grad()
    def to_tell_apart(self, batches: Iterable[Tensor]) -> Tensor:
        """Features that tell samples apart, float32 [N, F] on the CPU; see `kinds`.

        They are the inputs of the layers (`layer_inputs`) and, of images, their oriented gradients, which say more of
        shapes where the discriminator is a weak one.

        batches: as of `penultimate`.
        """
        features = [self.of_batch(x).cpu() for x in batches]
        return torch.cat(features) if features else torch.empty(0, 0)

    def of_batch(self, x: Tensor) -> Tensor:
        """`to_tell_apart` of one batch, differentiable in the samples x [N, ...]."""
        x = x.to(self.gan.device)
        inputs = self.layer_inputs(x)
        images = len(self.gan.sample_shape) == 3
        return torch.cat([*inputs, oriented_gradients(x, self.gan.image_range)] if images else inputs, 1)

    def layer_inputs(self, x: Tensor) -> list[Tensor]:
        """float32 [N, F] of each layer with weights but the first, differentiable in the samples x [N, ...].

        Maps are averaged over 4 x 4 cells, 2 x 2 or all of space, whatever leaves at most 256 values, or one a channel.
        Of a discriminator of maps those, and what its last layer takes in.
        """
        inputs: list[Tensor] = []
        before: list[Tensor] = []  # two layers side by side take in the same

        def remember(f: Tensor) -> None:
            if f.ndim > 1 and len(f) == len(x) and not (before and f is before[0]):
                inputs.append(_coarse(f))
                before[:] = [f]

        with eval_mode(self.discriminator), listening(self.discriminator, remember, self.layers):
            x = x.to(self.gan.device)
            self._pass(x)
        inputs = inputs or [flat_features(x)]
        last = inputs[-1]
        if x.ndim == 4:  # no network of labels
            inputs = [f for f in inputs if f.ndim > 2] + ([last] if last.ndim == 2 else [])
        flat = [f.flatten(1).float() for f in inputs]
        return flat[1:] or flat

    def _pass(self, x: Tensor) -> None:
        self.gan.logits(x, self.gan.labels(len(x), torch.Generator().manual_seed(0)))


def kinds(gan: GAN, features: Tensor) -> list[int]:
    """How many of the features [N, F] that tell samples apart are of one kind, in order; kinds share no unit."""
    widths = [features.shape[1] - FEATURES, FEATURES]
    return widths if len(gan.sample_shape) == 3 else [sum(widths)]


def _discriminator(gan: GAN) -> nn.Module:
    if gan.discriminator is None:
        raise ValueError("discriminator: this GAN has none, and features are taken from it")
    return gan.discriminator


def _coarse(f: Tensor) -> Tensor:
    if f.ndim != 4:
        return f
    sides = [side for side in (4, 2) if side <= min(f.shape[2:]) and f.shape[1] * side * side <= CELLS]
    return F.adaptive_avg_pool2d(f, sides[0] if sides else 1)


@torch.no_grad()
def sample_layers(gan: GAN) -> frozenset[str]:
    """Names of the discriminator's layers with weights that take in one row a sample, by passes of two and of three
    samples. Where tokens or frames come first, some do not."""
    discriminator = _discriminator(gan)
    names = list(_layers(discriminator))
    for n in (2, 3):
        x, c = torch.zeros(n, *gan.sample_shape, device=gan.device), gan.labels(n, torch.Generator().manual_seed(0))
        rows: dict[str, list[torch.Size]] = {name: [] for name in names}  # at each call of a layer
        with eval_mode(discriminator), ExitStack() as ears:
            for name, seen in rows.items():
                hear = partial(lambda seen, f: seen.append(f.shape[:1]), seen)
                ears.enter_context(listening(discriminator, hear, (name,)))
            gan.logits(x, c)
        names = [name for name, seen in rows.items() if set(seen) == {(n,)}]
    return frozenset(names)


@contextmanager
def last_input(discriminator: nn.Module, names: Container[str] | None = None) -> Iterator[list[Tensor]]:
    """A list that holds, after each pass, what the discriminator's last layer with weights took in; of the layers of
    these names, where given."""
    last: list[Tensor] = []

    def remember(f: Tensor) -> None:
        last[:] = [f]

    with listening(discriminator, remember, names):
        yield last


@contextmanager
def listening(
    discriminator: nn.Module, hear: Callable[[Tensor], None], names: Container[str] | None = None
) -> Iterator[None]:
    """Have heard what each layer with weights (of these names, where given) takes in, in their order, but for labels:
    they say nothing of samples."""
    labels: list[Any] = []

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        labels[:] = args[1:]

    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        f = args[0] if args else None
        if isinstance(f, Tensor) and f.is_floating_point() and not any(f is one for one in labels):
            hear(f)

    layers = [m for name, m in _layers(discriminator).items() if names is None or name in names]
    hooks = [discriminator.register_forward_pre_hook(keep), *(m.register_forward_pre_hook(hook) for m in layers)]
    try:
        with uncompiled():
            yield
    finally:
        for one in hooks:
            one.remove()


def _layers(discriminator: nn.Module) -> dict[str, nn.Module]:
    """The modules with weights of their own, by name. A parametrized one (spectral norm, say) keeps them in a
    submodule, which takes in weights, not samples."""
    return {
        name: m
        for name, m in discriminator.named_modules()
        if "parametrizations" not in name.split(".") and (list(m.parameters(recurse=False)) or is_parametrized(m))
    }


def flat_features(f: Tensor, max_features: int = 1024) -> Tensor:
    """[N, F] of a layer's input [N, ...]. Maps with more than `max_features` values are averaged over space.

    What is flat and wider than twice that is projected to as many random directions: distances stay, but for chance
    (Johnson and Lindenstrauss), and Frechet distances are within reach.
    """
    if f.ndim == 4 and f[0].numel() > max_features:
        f = f.mean(dim=[2, 3])
    f = f.reshape(len(f), -1)
    if f.shape[1] > 2 * max_features:
        f = f @ _directions(f.shape[1], max_features).to(f)
    return f


@functools.cache
def _directions(features: int, n: int) -> Tensor:
    """The same random directions [features, n] each time."""
    return torch.randn(features, n, generator=torch.Generator().manual_seed(0)) / n**0.5


class Whitening:
    """Principal components of a reference set, scaled to unit variance there: makes distances free of units.

    Args:
        reference: [N, F]. components: the most to keep, of each kind. kinds: how many features are of one kind, in
            order; each is whitened by itself. All are of one kind when not given.
    """

    def __init__(self, reference: Tensor, components: int = 32, kinds: Sequence[int] = ()):
        parts = reference.split(list(kinds) or [reference.shape[1]], 1)
        means, matrices = zip(*(_axes(part, components) for part in parts), strict=True)
        self.mean, self.matrix = torch.cat(means), torch.block_diag(*matrices)
        self.components = self.matrix.shape[1]

    def to(self, device: torch.device) -> Whitening:
        """In place; returns self."""
        self.mean, self.matrix = self.mean.to(device), self.matrix.to(device)
        return self

    def __call__(self, features: Tensor) -> Tensor:
        """float64 [N, components] of features [N, F]."""
        return (features.double() - self.mean) @ self.matrix


def _axes(reference: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """Mean [F], and principal components [F, C] by their standard deviations."""
    if len(reference) < reference.shape[1]:
        mean, values, vectors = _few(reference)
    else:
        mean, cov = moments(reference)
        values, vectors = torch.linalg.eigh(cov)
    keep = values > values[-1].clamp(min=1e-30) * 1e-6
    values, vectors = values[keep][-components:], vectors[:, keep][:, -components:]
    return mean, vectors / values.sqrt()


def _few(reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [F], and variances [N] with axes [F, N], of fewer samples N than features F: by their N x N products."""
    x = reference.double()
    mean = x.mean(0)
    x = (x - mean) / max(len(x) - 1, 1) ** 0.5
    values, vectors = torch.linalg.eigh(x @ x.t())
    return mean, values, x.t() @ vectors / values.clamp(min=1e-30).sqrt()
