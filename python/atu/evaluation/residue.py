"""What is left inside: can a linear probe on a generator's inner maps tell which latents gave negatives?

The labels are the original's: whether its sample of a latent is negative. A generator whose samples no longer show it
may hold it in its maps all the same, where a few weights bring it back. A retrained GAN has never tied these latents to
it: what a probe finds there is what any network of its kind tells about a latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..gan import GAN
from ..measures.features import Whitening
from ..support import progress
from ..support.modules import eval_mode, uncompiled
from ..support.seeding import fork_rng, mix_seed

LAYERS = 8  # probed at most, evenly spread
COMPONENTS = 64  # principal components of a layer that the probe is fitted on


def auc(scores: Tensor, labels: Tensor) -> tuple[float, list[float]]:
    """Area under the ROC curve of scores [N] for labels bool [N], and its 95 % interval.

    Source of the interval: Hanley and McNeil, Radiology 143, 1982.
    """
    order = scores.double().argsort(stable=True)
    ranked = torch.empty(len(scores), dtype=torch.double)
    ranked[order] = torch.arange(1, len(scores) + 1, dtype=torch.double)
    values, inverse = scores.double().unique(return_inverse=True)
    means = torch.zeros(len(values), dtype=torch.double).scatter_add_(0, inverse, ranked)
    ranked = (means / torch.bincount(inverse, minlength=len(values)))[inverse]  # ties share their mean rank
    n, m = int(labels.sum()), int((~labels).sum())
    a = float((ranked[labels].sum() - n * (n + 1) / 2) / (n * m))
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    deviation = math.sqrt(max(a * (1 - a) + (n - 1) * (q1 - a * a) + (m - 1) * (q2 - a * a), 0.0) / (n * m))
    return a, [max(a - 1.96 * deviation, 0.0), min(a + 1.96 * deviation, 1.0)]


@torch.no_grad()
def probed_layers(gan: GAN) -> list[str]:
    """Names of the modules to probe, in the order in which they compute: where a generator has maps, the last vector
    before them and then the maps (of four channels or more); else its vectors. LAYERS at most, evenly spread, the first
    and the last among them."""
    generator = gan.sampling_generator
    weights = {name: [p.ndim for p in m.parameters(recurse=False)] for name, m in generator.named_modules()}
    own = [name for name, sizes in weights.items() if max(sizes, default=0) > 1]
    own = own or [name for name, sizes in weights.items() if sizes]
    shapes: dict[str, torch.Size] = {}
    z, c = gan.inputs(2)
    watched = _watched(generator, own, lambda name, x: shapes.update({name: x.shape}))
    with watched, eval_mode(generator), fork_rng(gan.device, 0):
        generator(*gan.arguments(generator, z, c))
    fits = {name: shape for name, shape in shapes.items() if len(shape) > 1 and shape[0] == 2}
    maps = [name for name, shape in fits.items() if len(shape) > 2 and shape[1] >= 4]
    before = list(fits)[: list(fits).index(maps[0])] if maps else []
    names = [*before[-1:], *maps] if maps else list(fits)
    if len(names) <= LAYERS:
        return names
    return [names[round(i * (len(names) - 1) / (LAYERS - 1))] for i in range(LAYERS)]


@contextmanager
def _watched(generator: nn.Module, names: list[str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Calls `see` with a module's name and what it gave, for each of these modules in each pass."""

    def hook_of(name: str) -> Any:
        def hook(_: nn.Module, args: Any, out: Any) -> None:
            see(name, (out[0] if isinstance(out, tuple) else out).detach())

        return hook

    modules = dict(generator.named_modules())
    hooks = [modules[name].register_forward_hook(hook_of(name)) for name in names]
    try:
        with uncompiled():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def pooled(x: Tensor) -> Tensor:
    """float32 [N, F] of vectors [N, F], or of maps [N, C, ...]: mean and deviation over space of each channel."""
    x = x.float()
    if x.ndim > 2:
        x = torch.cat([x.flatten(2).mean(2), x.flatten(2).std(2, correction=0)], 1)
    return x.cpu()


@torch.no_grad()
def inner_maps(gan: GAN, n: int, seed: int, batch_size: int | None = None) -> dict[str, Tensor]:
    """Features [n, F] of each probed layer of the EMA generator, for the latents and noise of `gan.sample(n, seed)`."""
    generator = gan.sampling_generator
    names = probed_layers(gan)
    batch_size = batch_size or gan.fitting(250)
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    z, c = gan.inputs(n, seed)
    watched = _watched(generator, names, lambda name, x: parts[name].append(pooled(x)))
    with watched, eval_mode(generator), progress.bar("inner maps", n) as bar:
        for start in range(0, n, batch_size):
            part = slice(start, start + batch_size)
            with fork_rng(gan.device, mix_seed(seed, start)):
                generator(*gan.arguments(generator, z[part], None if c is None else c[part]))
            bar.update(steps=len(z[part]))
    return {name: torch.cat(found) for name, found in parts.items() if sum(map(len, found)) == n}


def probeable(labels: Tensor) -> bool:
    """Whether labels bool [N] are of both kinds in both halves, the even and the odd."""
    return all(0 < int(half.sum()) < len(half) for half in (labels[::2], labels[1::2]))


def linear_probe(features: Tensor, labels: Tensor, steps: int = 60) -> tuple[float, list[float]]:
    """AUC and its interval of a logistic regression on features [N, F] (their principal components), fitted on the even
    rows and tested on the odd ones.

    Raises:
        ValueError: labels of one kind only in either half.
    """
    halves = [(features[i::2], labels[i::2]) for i in (0, 1)]
    if not probeable(labels):
        raise ValueError("labels: expected negatives and others in both halves of the latents")
    whiten = Whitening(halves[0][0], COMPONENTS)
    x, y = whiten(halves[0][0]), halves[0][1].double()
    weight = torch.zeros(x.shape[1] + 1, dtype=torch.double, requires_grad=True)
    optim = torch.optim.LBFGS([weight], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optim.zero_grad()
        value = F.binary_cross_entropy_with_logits(x @ weight[:-1] + weight[-1], y) + weight.square().sum() / len(y)
        value.backward()
        return value

    optim.step(loss)
    with torch.no_grad():
        scores = whiten(halves[1][0]) @ weight[:-1] + weight[-1]
    return auc(scores, halves[1][1])


def residue(gan: GAN, labels: Tensor, seed: int) -> dict[str, Any]:
    """AUC and interval of a linear probe on each probed layer, in the generator's order.

    Args:
        labels: bool [n], whether the original's samples of the latents of `gan.sample(n, seed)` are negative.
    """
    found = {}
    for name, features in inner_maps(gan, len(labels), seed).items():
        area, interval = linear_probe(features, labels)
        found[name] = dict(auc=area, ci95=interval)
    return found
