"""What `atu unlearn` and `atu eval` do: load, run, evaluate, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..api import unlearn
from ..data.mnist import mnist
from ..data.samples import as_samples
from ..evaluation.audit import Budget, attack, class_goal
from ..evaluation.classifier import Classifier
from ..evaluation.evaluate import Evaluation, Real, evaluate
from ..experiments.marking import adapted_generators, mark_negatives, stage_seconds
from ..feedback.probe import fit_probe
from ..gan import GAN
from ..report import report
from ..support import environment
from ..support.seeding import Stream, stream_seed


def _subject(classes: Sequence[str]) -> str:
    return ("class " if len(classes) == 1 else "classes ") + ", ".join(classes)


def unlearn_job(
    gan: GAN,
    negatives: Path,
    positives: Path | None,
    classifier: Classifier | None,
    classes: Sequence[str],
    is_negative: Callable[[Tensor], Tensor] | None,
    config: Path | None,
    out: Path,
    seed: int,
    device: str | None,
    samples: int,
    command: str,
    method: str | None = None,
    compat: str | None = None,
    negative_label: int | None = None,
) -> dict[str, Any]:
    """Unlearn, evaluate by the classifier (or by the probe fitted on the negatives) and write the report."""
    marked = negatives if negative_label is None else (negatives, negative_label)
    result = unlearn(gan, marked, positives, is_negative, config, out, seed, device, method=method, compat=compat)
    start = time.monotonic()
    options: dict[str, Any] = dict(
        others=adapted_generators(gan, result), n=samples, seed=stream_seed(seed, Stream.EVALUATION)
    )
    if classifier is not None:
        evaluation = evaluate(gan, result.gan, classifier, classes, **options)
        notes = ["The oracle that answered during the run also judges the outcome, on other latents."]
    else:
        evaluation = _probe_evaluation(gan, result.gan, negatives, result.config.feedback.recall, seed, options)
        notes = [
            "No oracle was given: a probe fitted on your negatives and the original discriminator's features says what "
            "is negative. Its figures are estimates; look at the grids."
        ]
    seconds = {**stage_seconds(result), "evaluate": time.monotonic() - start}
    context = report.Context(
        subject=_subject(classes) if classes else f"what {negatives.name} shows",
        seconds=seconds,
        command=command,
        config=result.config.to_dict(),
        seed=seed,
        device=str(gan.device),
        history=result.history,
        decisions=result.decisions,
        notes=notes,
    )
    return report.write(out, evaluation, context)


def _probe_evaluation(
    gan: GAN, after: GAN, negatives: Path, recall: float, seed: int, options: dict[str, Any]
) -> Evaluation:
    marked = as_samples(negatives, gan.sample_shape, gan.image_range, "negatives")
    pool = gan.sample(2000, seed=stream_seed(seed, Stream.EVALUATION_PROBE)).cpu()
    return evaluate(gan, after, is_negative=fit_probe(gan, marked, pool, recall), **options)


def eval_job(
    before: GAN,
    after: GAN,
    classifier: Classifier,
    classes: Sequence[str],
    real: str | None,
    out: Path,
    seed: int,
    samples: int,
    command: str,
) -> dict[str, Any]:
    """Evaluate two checkpoints and write the report."""
    if before.sample_shape != after.sample_shape or before.latent_dim != after.latent_dim:
        raise ValueError(
            f"AFTER: expected a GAN of latents {before.latent_dim} and samples {list(before.sample_shape)}, as BEFORE, "
            f"got {after.latent_dim} and {list(after.sample_shape)}"
        )
    start = time.monotonic()
    evaluation = evaluate(before, after, classifier, classes, _real(real, before), n=samples, seed=seed)
    context = report.Context(
        subject=_subject(classes),
        seconds={"evaluate": time.monotonic() - start},
        command=command,
        config={},
        seed=seed,
        device=str(before.device),
    )
    return report.write(out, evaluation, context)


def _real(real: str | None, gan: GAN) -> Real | None:
    if real is None:
        return None
    if real == "mnist" and not Path(real).exists():
        return mnist(gan.sample_shape[-1])
    samples = as_samples(real, gan.sample_shape, gan.image_range, "real")
    return samples.batch(torch.arange(len(samples)))


def attack_job(
    before: GAN,
    after: GAN,
    retrained: GAN | None,
    classifier: Classifier,
    classes: Sequence[str],
    negatives: Path | None,
    budget: Budget,
    out: Path,
    seed: int,
    command: str,
) -> list[list[str]]:
    """Attack AFTER and write OUT/attacks.json and OUT/attacks.html; returns the table."""
    goal = class_goal(classifier, classes, before.image_range)
    if negatives is None:
        known, _ = mark_negatives(before, goal.is_negative, budget.negatives, stream_seed(seed, Stream.MARKS))
    else:
        given = as_samples(negatives, before.sample_shape, before.image_range, "negatives")
        known = given.batch(torch.arange(min(len(given), budget.negatives)))
    start = time.monotonic()
    found = attack(before, after, goal, known, retrained, budget, seed)
    found.update(subject=_subject(classes), command=command, seconds=round(time.monotonic() - start, 1))
    found["machine"] = environment.machine(before.device)
    return report.write_attacks(out, found)


def reproduce_job(
    dataset: str,
    classes: Sequence[str],
    methods: Sequence[str],
    gan: GAN | None,
    folder: Path | None,
    classifiers: Path | None,
    extractor: Path | None,
    config: Path | None,
    device: str | None,
    out: Path,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Plan a recipe and compute it; returns table.json's content."""
    from ..experiments import recipes, reproduce

    options = {**options, "methods": reproduce.check_methods(methods), "config": reproduce.read_config(config)}
    if extractor is not None:
        options["extractor"] = reproduce.load_extractor(extractor)
    if dataset == "mnist":
        plan = recipes.mnist_plan(classes or ("1", "4", "8"), **options)
        if device is not None:
            plan.gan.to(device)
    else:
        assert gan is not None and folder is not None
        plan = recipes.PLANS[dataset](folder, gan, out, classes, classifiers, **options)
    for task in plan.tasks:
        task.judge.to(plan.gan.device)
    return reproduce.reproduce(plan, out)
