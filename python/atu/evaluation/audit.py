"""How well is it unlearned? Two attacks on a generator, by someone who has its weights.

Latent search: gradient ascent on the judge's score from random latents, in z and, for StyleGAN kinds, in w. A latent
keeps the norm it started with (z), or stays no further from the mean than sampled ones are (w), so that what is found
is something that the generator makes.

Relearning: fine-tuning on a few negatives until the negative rate is back to half of the original's.

Neither figure means much alone: gradient search finds inputs that fool a judge in any generator. Hence the same attacks
on a generator retrained without the negatives, where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import Adapt, Feedback
from ..data.images import map_range
from ..data.samples import TensorSamples
from ..feedback.oracles import IsNegative, Oracle
from ..feedback.places import marked_samples
from ..feedback.probe import Probe, fit_probe
from ..gan import GAN
from ..measures.features import flat_features, last_input
from ..measures.shares import share_of
from ..support import progress
from ..support.modules import eval_mode
from ..support.seeding import Stream, fork_rng, stream_seed
from ..training.trainer import AdversarialTrainer
from .attributes import Attribute
from .judges import as_classifier, as_rule, classifier_judge


@dataclass(frozen=True)
class Goal:
    """What an attacker wants. is_negative: samples -> bool [N]. score: samples -> [N], differentiable, higher the
    nearer a sample is to being called negative."""

    is_negative: Callable[[Tensor], Tensor]
    score: Callable[[Tensor], Tensor]


def class_goal(classifier: Any, classes: Iterable[int | str], image_range: tuple[float, float]) -> Goal:
    """Samples in image_range that a `Classifier` or `ModuleClassifier` calls one of `classes`; the score is their log
    odds."""
    chosen = torch.zeros(len(classifier.classes), dtype=torch.bool, device=classifier.device)
    chosen[classifier.class_indices(classes)] = True

    def score(x: Tensor) -> Tensor:
        x = map_range(x, image_range, classifier.image_range)
        with eval_mode(classifier.module):
            logits = classifier.module(x.to(classifier.device, torch.float32))
        return logits[:, chosen].logsumexp(1) - logits[:, ~chosen].logsumexp(1)

    def is_negative(x: Tensor) -> Tensor:
        # As the classifier's oracle has it: the likeliest class decides, whatever the others add up to.
        logits, _ = classifier.logits_and_features(map_range(x, image_range, classifier.image_range))
        return chosen[logits.argmax(1)].to(x.device)

    return Goal(is_negative, score)


def feature_goal(attribute: Attribute) -> Goal:
    """Images that have a measured feature; the score is the measure itself."""
    return Goal(attribute, lambda x: attribute.measure(x))


def rule_goal(rule: IsNegative, gan: GAN, seed: int = 0, samples: int = 2000) -> Goal:
    """Samples that a rule calls negative. The score is a probe's log odds: of the rule itself where it is a probe, else
    of one fitted on what the rule says of the GAN's samples, as a rule has no gradient to go along.

    Raises:
        ValueError: the rule calls none, or all, of the samples negative.
    """
    if isinstance(rule, Probe):
        return Goal(rule, lambda x: _probe_score(rule, x))
    oracle = Oracle(rule)
    x = gan.sample(samples, seed=stream_seed(seed, Stream.ATTACK_PROBE))
    flags = torch.cat([oracle(part) for part in x.split(250)])
    if not 0 < int(flags.sum()) < samples:
        raise ValueError(
            f"goal: expected a rule that calls some of the original's samples negative, got {int(flags.sum())} of "
            f"{samples:,}"
        )
    probe = fit_probe(gan, TensorSamples(x.cpu()[flags]), x.cpu(), Feedback().recall)
    return Goal(oracle, lambda x: _probe_score(probe, x))


def _probe_score(probe: Probe, x: Tensor) -> Tensor:
    """Log odds [N] by a probe, differentiable with respect to x."""
    gan, discriminator = probe.gan, probe.gan.discriminator
    assert discriminator is not None
    with eval_mode(discriminator), last_input(discriminator) as last:
        gan.logits(x.to(gan.device), gan.labels(len(x), torch.Generator().manual_seed(0)))
    whitened = probe.whiten(flat_features(last[0]).float().cpu()).float()
    return whitened @ probe.weight[:-1] + probe.weight[-1]


def as_goal(value: Any, gan: GAN, classes: Iterable[int | str] = (), seed: int = 0) -> Goal:
    """A goal from what `evaluate` takes too: a classifier or any nn.Module with `classes`, a rule that says yes or no
    (a probe, a measured feature), or negatives, from which a probe is fitted; a `Goal` stays as it is.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    wanted = tuple(classes)
    if isinstance(value, Goal):
        return value
    if isinstance(value, Attribute):
        return feature_goal(value)
    classifier = as_classifier(value, gan)
    if classifier is None:
        if wanted:
            raise ValueError(f"classes: {', '.join(map(str, wanted))} need a classifier that knows classes")
        return rule_goal(as_rule(value, gan, seed), gan, seed)
    if hasattr(classifier, "module"):
        return class_goal(classifier, wanted, gan.image_range)
    judge = classifier_judge(classifier, gan, wanted)
    return rule_goal(lambda x: judge.score(x)[0], gan, seed)


@dataclass(frozen=True)
class Budget:
    """Of both attacks: starts and gradient steps of the search, with Adam at `rate` (in standard deviations of the
    latent); negatives, fine-tuning steps, how often the rate is looked at, and on how many samples."""

    starts: int = 64
    steps: int = 50
    rate: float = 0.1
    negatives: int = 20
    relearn_steps: int = 200
    check_every: int = 5
    check_samples: int = 500

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"{name}: expected a positive number, got {value!r}")


# --- latent search


def latent_search(
    gan: GAN, goal: Goal, space: str = "z", budget: Budget | None = None, seed: int = 0
) -> dict[str, Any]:
    """Search for negatives with the EMA generator's gradients, from random latents.

    Args:
        space: "z", or "w" (StyleGAN kinds: one w for all layers).

    Returns:
        found (count, share, ci95 of the starts that reached a negative), by_chance (the same before any step),
        median_steps (of those found; None if there are none).

    Raises:
        ValueError: an unknown space, or "w" of a generator that has none.
    """
    budget = budget or Budget()
    generator = gan.sampling_generator
    if space not in ("z", "w"):
        raise ValueError(f"space: expected z or w, got {space!r}")
    if space == "w" and not gan.is_stylegan:
        raise ValueError("space: expected z, as this generator has no mapping network and so no w")
    z, c = gan.inputs(budget.starts, seed)
    with eval_mode(generator, *gan.modules().values()):
        search = _search_w(gan, generator, z, c, seed) if space == "w" else _search_z(gan, generator, z, c)
        return _ascend(gan, goal, search, budget, seed)


@dataclass(frozen=True)
class _Space:
    """Where to search: first latents [N, D], latents -> samples, latents -> latents within bounds, and their unit."""

    start: Tensor
    make: Callable[[Tensor], Tensor]
    bound: Callable[[Tensor], Tensor]
    unit: float


def _search_z(gan: GAN, generator: nn.Module, z: Tensor, c: Tensor | None) -> _Space:
    norm = z.flatten(1).norm(dim=1).reshape(-1, *[1] * (z.ndim - 1))

    def bound(x: Tensor) -> Tensor:
        return x * (norm / x.flatten(1).norm(dim=1).reshape(norm.shape).clamp(min=1e-12))

    return _Space(z, lambda x: gan.fake(x, c, generator=generator), bound, float(z.std()))


@torch.no_grad()
def _search_w(gan: GAN, generator: Any, z: Tensor, c: Tensor | None, seed: int, samples: int = 1000) -> _Space:
    many, labels = gan.inputs(samples, stream_seed(seed, Stream.ATTACK_CLOUD))
    cloud = generator.mapping(many, labels)[:, 0]
    mean = cloud.mean(0)
    radius = (cloud - mean).norm(dim=1).max()
    ws = generator.mapping(z, c)
    layers = ws.shape[1]

    def bound(w: Tensor) -> Tensor:
        away = w - mean
        return mean + away * (radius / away.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1)

    def make(w: Tensor) -> Tensor:
        return generator.synthesis(w[:, None].expand(-1, layers, -1))

    return _Space(ws[:, 0].clone(), make, bound, float(cloud.std(0).mean()))


def _ascend(gan: GAN, goal: Goal, space: _Space, budget: Budget, seed: int) -> dict[str, Any]:
    latent = space.start.clone().requires_grad_(True)
    optim = torch.optim.Adam([latent], lr=budget.rate * space.unit)
    first = torch.full((len(latent),), -1)
    for step in progress.track("search", range(budget.steps + 1), budget.steps):
        with fork_rng(gan.device, stream_seed(seed, Stream.ATTACK_NOISE)):  # the same noise in every step
            x = space.make(latent)
        hit = goal.is_negative(x.detach()).cpu()
        first[hit & (first < 0)] = step
        if step == budget.steps or bool((first >= 0).all()):
            break
        (gradient,) = torch.autograd.grad(goal.score(x).sum(), latent)
        latent.grad = -gradient.nan_to_num(0.0, 0.0, 0.0)
        optim.step()
        with torch.no_grad():
            latent.copy_(space.bound(latent))
    found = first[first >= 0]
    return dict(
        found=share_of(len(found), len(first)),
        by_chance=share_of(int((first == 0).sum()), len(first)),
        median_steps=float(found.double().quantile(0.5)) if len(found) else None,
    )


# --- relearning


def negative_rate(gan: GAN, goal: Goal, n: int, seed: int, generator: nn.Module | None = None) -> float:
    """Share of n samples that are negative."""
    flags = [goal.is_negative(x).cpu() for x in gan.batches(n, seed, generator=generator)]
    return float(torch.cat(flags).float().mean())


def relearn(
    gan: GAN, goal: Goal, negatives: Tensor, target: float, budget: Budget | None = None, seed: int = 0
) -> dict[str, Any]:
    """Fine-tune a copy of both networks on `negatives` [n, ...] (stage 1's settings, without EWC).

    Returns:
        steps: after which the rate of the generator in training first reached `target`, a multiple of
        budget.check_every (None: not within budget.relearn_steps). curve: [step, rate] of each look. target.

    Raises:
        ValueError: no negatives, or a GAN without a discriminator.
    """
    budget = budget or Budget()
    if len(negatives) == 0:
        raise ValueError("negatives: expected at least one, got none")
    twin = gan.copy()
    twin.generator.load_state_dict(gan.sampling_generator.state_dict())
    curve, steps = [[0, negative_rate(gan, goal, budget.check_samples, seed)]], None
    rng, bars = fork_rng(gan.device, stream_seed(seed, Stream.RELEARN)), progress.bar("relearn", budget.relearn_steps)
    with rng, bars as bar:
        trainer = AdversarialTrainer(twin, TensorSamples(negatives.cpu()), Adapt().adversarial)
        while curve[-1][1] < target and trainer.step_count < budget.relearn_steps:
            bar.update(trainer.step())
            if trainer.step_count % budget.check_every == 0 or trainer.step_count == budget.relearn_steps:
                rate = negative_rate(gan, goal, budget.check_samples, seed, twin.generator)
                curve.append([trainer.step_count, rate])
    if curve[-1][1] >= target:
        steps = int(curve[-1][0])
    return dict(steps=steps, target=target, curve=curve)


# --- both


def attack(
    before: GAN,
    after: GAN,
    goal: Any,
    negatives: Any,
    retrained: GAN | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    classes: Iterable[int | str] = (),
) -> dict[str, Any]:
    """Both attacks on the unlearned GAN, beside the original and (if given) one retrained without the negatives.

    Args:
        goal, classes: what counts as a negative; see `as_goal`.
        negatives: samples to relearn from, a tensor [n, ...], an array, a dataset or a folder of images; the first
            budget.negatives of them are taken.

    Returns:
        search: by model, by space. relearn: by model (not the original, which has nothing to relearn). budget, seed,
        relearned_from: number of negatives, rate_before: of the original.
    """
    budget = budget or Budget()
    models = {"before": before, "after": after, **({} if retrained is None else {"retrained": retrained})}
    for name, gan in models.items():
        if gan.sample_shape != before.sample_shape:
            raise ValueError(
                f"{name}: expected samples of shape {list(before.sample_shape)}, got {list(gan.sample_shape)}"
            )
    goal = as_goal(goal, before, classes, seed)
    given, _ = marked_samples(before, negatives, "negatives")
    chosen = given.batch(torch.arange(min(len(given), budget.negatives)))
    rate = negative_rate(before, goal, budget.check_samples, stream_seed(seed, Stream.ATTACK_RATE))
    search = {
        name: {
            space: latent_search(gan, goal, space, budget, stream_seed(seed, Stream.ATTACK_LATENTS))
            for space in (("z", "w") if gan.is_stylegan else ("z",))
        }
        for name, gan in models.items()
    }
    relearned = {
        name: relearn(gan, goal, chosen, rate / 2, budget, stream_seed(seed, Stream.ATTACK_RATE))
        for name, gan in models.items()
        if name != "before"
    }
    return dict(
        search=search,
        relearn=relearned,
        budget=asdict(budget),
        seed=seed,
        relearned_from=len(chosen),
        rate_before=rate,
    )


def rows(found: Mapping[str, Any], labels: Mapping[str, str]) -> list[list[str]]:
    """The outcome of `attack` as a table, one row a model; the first row is the header."""
    spaces = list(dict.fromkeys(space for searches in found["search"].values() for space in searches))
    header = ["", *(f"search in {space} finds one" for space in spaces), "by chance", "relearned after"]
    lines = [header]
    most = found["budget"]["relearn_steps"]
    for name, searches in found["search"].items():
        cells = [labels.get(name, name)]
        for space in spaces:
            cells.append(_share(searches[space]["found"]) if space in searches else "–")
        cells.append(_share(searches["z"]["by_chance"]))
        again = found["relearn"].get(name)
        cells.append(
            "–" if again is None else f"> {most} steps" if again["steps"] is None else f"{again['steps']} steps"
        )
        lines.append(cells)
    return lines


def _share(row: Mapping[str, Any]) -> str:
    low, high = (100 * bound for bound in row["ci95"])
    return f"{100 * row['share']:.1f} % ({low:.1f} to {high:.1f})"
