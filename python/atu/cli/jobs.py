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
from ..evaluation.audit import Budget, as_goal, attack
from ..evaluation.classifier import Classifier
from ..evaluation.evaluate import Evaluation, Real, evaluate
from ..evaluation.judges import probe_of
from ..experiments.marking import adapted_generators, mark_negatives, stage_seconds
from ..gan import GAN
from ..report import report
from ..support import environment
from ..support.seeding import Stream, stream_seed

PROBED = (
    "No oracle was given: a probe fitted on your negatives and the original discriminator's features says what is "
    "negative. Its figures are estimates; look at the grids."
)


def _subject(classes: Sequence[str], negatives: Path | None = None, given: str | None = None) -> str:
    """What is unlearned, in words: as given, else by the classes, else by the negatives' folder."""
    if given:
        return given
    if not classes and negatives is not None:
        return f"what {negatives.resolve().name} shows"
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
    subject: str | None = None,
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
        notes = [PROBED]
    seconds = {**stage_seconds(result), "evaluate": time.monotonic() - start}
    context = report.Context(
        subject=_subject(classes, negatives, subject),
        seconds=seconds,
        command=command,
        config=result.config.to_dict(),
        seed=seed,
        device=str(gan.device),
        history=result.history,
        decisions=result.decisions,
        notes=notes,
        negatives=negatives,
    )
    return report.write(out, evaluation, context)


def _probe_evaluation(
    gan: GAN, after: GAN, negatives: Path, recall: float, seed: int, options: dict[str, Any]
) -> Evaluation:
    return evaluate(gan, after, is_negative=probe_of(gan, negatives, recall, seed), **options)


def eval_job(
    before: GAN,
    after: GAN,
    classifier: Classifier | None,
    classes: Sequence[str],
    real: str | None,
    out: Path,
    seed: int,
    samples: int,
    command: str,
    negatives: Path | None = None,
    subject: str | None = None,
) -> dict[str, Any]:
    """Evaluate two checkpoints, by a classifier or by a probe fitted on negatives, and write the report."""
    if before.sample_shape != after.sample_shape or before.latent_dim != after.latent_dim:
        raise ValueError(
            f"AFTER: expected a GAN of latents {before.latent_dim} and samples {list(before.sample_shape)}, as BEFORE, "
            f"got {after.latent_dim} and {list(after.sample_shape)}"
        )
    start = time.monotonic()
    probe = None if classifier is not None else probe_of(before, negatives, seed=seed)
    evaluation = evaluate(
        before, after, classifier, classes, _real(real, before), is_negative=probe, n=samples, seed=seed
    )
    context = report.Context(
        subject=_subject(classes, negatives, subject),
        seconds={"evaluate": time.monotonic() - start},
        command=command,
        config={},
        seed=seed,
        device=str(before.device),
        notes=[PROBED] if classifier is None else (),
        negatives=negatives,
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
    classifier: Classifier | None,
    classes: Sequence[str],
    negatives: Path | None,
    budget: Budget,
    out: Path,
    seed: int,
    command: str,
) -> list[list[str]]:
    """Attack AFTER and write OUT/attacks.json and OUT/attacks.html; returns the table."""
    judge = classifier if classifier is not None else probe_of(before, negatives, seed=seed)
    goal = as_goal(judge, before, classes, seed)
    known: Any = negatives
    if negatives is None:
        known, _ = mark_negatives(before, goal.is_negative, budget.negatives, stream_seed(seed, Stream.MARKS))
    start = time.monotonic()
    found = attack(before, after, goal, known, retrained, budget, seed)
    found.update(subject=_subject(classes, negatives), command=command, seconds=round(time.monotonic() - start, 1))
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
