"""Latent search: which inputs of a generator give a negative? By someone who has its weights.

Gradient ascent on one judge's score from random latents, all steps long; of each start the sample with the highest
score is then judged, once, by judges that were not searched. Spaces:

z       the latent; it keeps the norm it started with
w       StyleGAN kinds: one w for all layers, no further from the mean than the furthest of 1,000 sampled ones
w+      StyleGAN kinds: a w of its own for each layer, each within that bound
noise   StyleGAN2: the noise inputs of all layers, at a fixed w; each map keeps the norm it started with

so that what is found is something that the generator makes. No figure means much alone: search finds inputs that fool a
judge in any generator. Hence the judge that was not searched, and the same search in a retrained GAN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data.images import thumbnails
from ..gan import GAN
from ..judging.rule import Rule
from ..measures.shares import share_of
from ..support import progress
from ..support.modules import eval_mode
from ..support.seeding import Stream, fork_rng, mix_seed, stream_seed

CLOUD = 1000  # sampled latents that say how far from their mean w lies
AT_ONCE = 64  # starts searched at once
SHOWN = 16  # found samples that are kept to be looked at


@dataclass(frozen=True)
class Space:
    """Where to search: first points (tensors [N, ...]), points -> samples, points -> points within bounds, and their
    unit."""

    start: list[Tensor]
    make: Callable[[list[Tensor]], Tensor]
    bound: Callable[[list[Tensor]], list[Tensor]]
    unit: float


@dataclass(frozen=True)
class Found:
    """numbers: see `latent_search`. shown: the first of the found samples (thumbnails), and which are negative by the
    first judge, bool [SHOWN]."""

    numbers: dict[str, Any]
    shown: Tensor
    marks: Tensor


def spaces_of(gan: GAN) -> list[str]:
    """The spaces that this GAN's generator has."""
    if not gan.is_stylegan:
        return ["z"]
    return ["z", "w", "w+", *["noise"] * bool(_noisy(gan.sampling_generator))]


def _noisy(generator: nn.Module) -> list[Any]:
    return [m for m in generator.modules() if getattr(m, "use_noise", False) and hasattr(m, "noise_strength")]


def latent_search(
    gan: GAN,
    goal: Rule,
    judges: Mapping[str, Rule],
    space: str = "z",
    starts: int = 128,
    steps: int = 100,
    rate: float = 0.1,
    seed: int = 0,
) -> Found:
    """Search the EMA generator with Adam.

    Args:
        goal: what is searched, a rule with a slope. judges: rules by name, which say what was found.
        starts, steps: random latents, and gradient steps from each. rate: of Adam, in standard deviations of the space.

    Returns:
        numbers: found (by judge: count, share, ci95 of the starts whose best sample is negative), by_chance (by judge,
        of the samples before any step), searched, searched_by_chance (the same by the goal itself), median_steps (to
        the first negative by the goal; None if there are none).

    Raises:
        ValueError: a space that the generator has not.
    """
    if space not in spaces_of(gan):
        raise ValueError(f"space: expected one of {', '.join(spaces_of(gan))} for this generator, got {space!r}")
    z, c = gan.inputs(starts, stream_seed(seed, Stream.ATTACK_LATENTS))
    at_once = min(AT_ONCE, gan.fitting(AT_ONCE))
    parts = []
    with (
        eval_mode(gan.sampling_generator, *gan.modules().values()),
        progress.bar(f"search in {space}", -(-starts // at_once) * steps) as bar,
    ):
        for index, first in enumerate(range(0, starts, at_once)):
            part = slice(first, first + at_once)
            noise = mix_seed(stream_seed(seed, Stream.ATTACK_NOISE), index)
            points = space_of(gan, space, z[part], None if c is None else c[part], seed, noise)
            parts.append(_ascend(gan, goal, points, steps, rate, noise, bar))
    before, best, first_hit = (torch.cat(found) for found in zip(*parts, strict=True))
    verdicts = {name: _judged(judge, best) for name, judge in judges.items()}
    hits = first_hit[first_hit >= 0]
    numbers = dict(
        found={name: asdict(share_of(int(flags.sum()), starts)) for name, flags in verdicts.items()},
        by_chance={name: asdict(share_of(int(_judged(judge, before).sum()), starts)) for name, judge in judges.items()},
        searched=asdict(share_of(int(_judged(goal, best).sum()), starts)),
        searched_by_chance=asdict(share_of(int((first_hit == 0).sum()), starts)),
        median_steps=float(hits.double().quantile(0.5)) if len(hits) else None,
    )
    return Found(numbers, thumbnails(best[:SHOWN].cpu()), next(iter(verdicts.values()))[:SHOWN])


def _judged(judge: Rule, x: Tensor) -> Tensor:
    return torch.cat([judge(part) for part in x.split(250)])


def _ascend(
    gan: GAN, goal: Rule, space: Space, steps: int, rate: float, noise: int, bar: progress.Bar
) -> tuple[Tensor, Tensor, Tensor]:
    """(samples at the start, those with the highest score, the step at which the goal was first reached or -1)."""
    assert goal.slope is not None
    points = [point.clone().requires_grad_(True) for point in space.start]
    optim = torch.optim.Adam(points, lr=rate * space.unit)
    first = best = hit = top = torch.empty(0)
    for step in range(steps + 1):
        with fork_rng(gan.device, noise):  # the same noise in every step
            x = space.make(points)
        score, negative = goal.slope(x), goal(x.detach())
        if step == 0:
            first, best, top = x.detach().clone(), x.detach().clone(), score.detach().clone()
            hit = torch.full((len(x),), -1, device=x.device)
        better = score.detach() > top
        best[better], top[better] = x.detach()[better], score.detach()[better]
        hit[negative.to(hit.device) & (hit < 0)] = step
        if step == steps:
            break
        for point, gradient in zip(points, torch.autograd.grad(score.sum(), points), strict=True):
            point.grad = -gradient.nan_to_num(0.0, 0.0, 0.0)
        optim.step()
        with torch.no_grad():
            for point, bounded in zip(points, space.bound(points), strict=True):
                point.copy_(bounded)
        bar.update()
    return first.cpu(), best.cpu(), hit.cpu()


# --- spaces


@torch.no_grad()
def space_of(gan: GAN, name: str, z: Tensor, c: Tensor | None, seed: int = 0, noise: int = 0) -> Space:
    """The space of that name round the latents z [N, ...] and labels c. noise: seed of the noise to start from."""
    generator: Any = gan.sampling_generator
    if name == "z":
        return Space([z], lambda x: gan.fake(x[0], c, generator=generator), _norm_kept([z]), float(z.std()))
    ws = generator.mapping(*gan.arguments(generator.mapping, z, c))
    if name == "noise":
        layers = _noisy(generator)
        with fork_rng(gan.device, noise):
            maps = [torch.randn(len(z), 1, m.resolution, m.resolution, device=gan.device) for m in layers]

        def with_noise(x: list[Tensor]) -> Tensor:
            with _given_noise(layers, x):
                found: Tensor = generator.synthesis(ws)
            return found

        return Space(maps, with_noise, _norm_kept(maps), 1.0)
    many, labels = gan.inputs(CLOUD, stream_seed(seed, Stream.ATTACK_CLOUD))
    cloud = generator.mapping(*gan.arguments(generator.mapping, many, labels))[:, 0]
    mean = cloud.mean(0)
    radius = (cloud - mean).norm(dim=1).max()

    def bound(x: list[Tensor]) -> list[Tensor]:
        away = x[0] - mean
        return [mean + away * (radius / away.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1)]

    unit = float(cloud.std(0).mean())
    if name == "w+":
        return Space([ws.clone()], lambda x: generator.synthesis(x[0]), bound, unit)
    layers_of = ws.shape[1]
    return Space(
        [ws[:, 0].clone()], lambda x: generator.synthesis(x[0][:, None].expand(-1, layers_of, -1)), bound, unit
    )


def _norm_kept(start: list[Tensor]) -> Callable[[list[Tensor]], list[Tensor]]:
    norms = [_norm(x) for x in start]
    return lambda points: [x * (norm / _norm(x).clamp(min=1e-12)) for x, norm in zip(points, norms, strict=True)]


def _norm(x: Tensor) -> Tensor:
    return x.detach().flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))


@contextmanager
def _given_noise(layers: list[Any], maps: list[Tensor]) -> Iterator[None]:
    """Let StyleGAN2's layers take these noise maps [N, 1, R, R] in place of drawn ones."""
    for layer, noise in zip(layers, maps, strict=True):
        layer.given_noise = noise
    try:
        yield
    finally:
        for layer in layers:
            layer.given_noise = None
