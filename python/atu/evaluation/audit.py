"""How well is it unlearned? What someone who has the weights gets back out of them, beside the original and, where
there is one, a GAN retrained without the negatives.

rate       the share of negatives among samples
search     latent search in each space that the generator has (search.py)
relearn    curves of relearning from K negatives, at a low learning rate (relearning.py)
unrelated  the same from good samples: does it come back by itself?
residue    a linear probe on the inner maps (residue.py)

OUT/audit/MODEL-MEASURE.json   one finished part; what is there is not computed again, so a stopped audit goes on
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import Adapt
from ..data.images import image_grid
from ..data.samples import TensorSamples
from ..gan import GAN
from ..judging.rule import Rule
from ..measures.shares import share_of
from ..support import progress
from ..support.digest import digest
from ..support.files import write_atomic, write_json
from ..support.lock import FolderLock
from ..support.modules import eval_mode
from ..support.seeding import Stream, fork_rng, stream_seed
from ..training.run_folder import gan_digest
from ..training.step import AdversarialStep, Objective
from .relearning import relearn
from .residue import probeable, probed_layers, residue
from .search import AT_ONCE, latent_search, spaces_of

FOLDER = "audit"  # of the finished parts, within OUT
COLUMNS = 8


@dataclass(frozen=True)
class Budget:
    """How much an attacker may spend.

    starts, steps, rate: of the search, see `latent_search`. marks: how many negatives to relearn from, a curve each.
    unrelated: good samples of the other curve. images, looks, relearn_rate: of each curve, see `relearn`.
    check_samples: at each look. samples: for the rate of negatives, and for the linear probe.
    """

    starts: int = 128
    steps: int = 100
    rate: float = 0.1
    marks: tuple[int, ...] = (1, 5, 20)
    unrelated: int = 200
    images: int = 6400
    looks: int = 8
    relearn_rate: float = 0.1
    check_samples: int = 1000
    samples: int = 4000

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not all(one > 0 for one in (value if isinstance(value, tuple) else (value,))) or value == ():
                raise ValueError(f"{name}: expected a positive number, got {value!r}")


@dataclass
class Audit:
    """What is audited, and by whom.

    Args:
        before, after, retrained: the GANs; of each the EMA generator and, for relearning, its discriminator.
        goal: what the search climbs, a rule with a slope. judges: rules by name; the first gives the figures of the
            table. One that is not the goal tells a negative from what merely fools the goal.
        negatives: to relearn from, [at least max(budget.marks), ...]; good: unrelated samples [n, ...].
        negative_labels, good_labels: theirs [n, c_dim], where a conditional GAN made them.
        seed: of everything random.

    Raises:
        ValueError: models of other samples than the original's, too few negatives, no judge.
    """

    before: GAN
    after: GAN
    goal: Rule
    judges: Mapping[str, Rule]
    negatives: Tensor
    good: Tensor
    retrained: GAN | None = None
    budget: Budget = field(default_factory=Budget)
    seed: int = 0
    negative_labels: Tensor | None = None
    good_labels: Tensor | None = None

    def __post_init__(self) -> None:
        for name, gan in self.models.items():
            if gan.sample_shape != self.before.sample_shape:
                raise ValueError(
                    f"{name}: expected samples of shape {list(self.before.sample_shape)}, got {list(gan.sample_shape)}"
                )
        if len(self.negatives) < max(self.budget.marks):
            raise ValueError(
                f"negatives: expected at least {max(self.budget.marks)} to relearn from, got {len(self.negatives)}"
            )
        if not self.judges or len(self.good) == 0:
            raise ValueError("expected at least one judge and one good sample")

    @property
    def models(self) -> dict[str, GAN]:
        found = {"before": self.before, "after": self.after}
        return found if self.retrained is None else {**found, "retrained": self.retrained}

    @property
    def judge(self) -> Rule:
        """The judge of the table."""
        return next(iter(self.judges.values()))

    def parts(self) -> Iterator[tuple[str, str]]:
        """(model, measure) of each part, in the order in which they are computed."""
        for model in self.models:
            yield model, "rate"
        for model, gan in self.models.items():
            for space in spaces_of(gan):
                yield model, f"search {space}"
        for model, gan in self.models.items():
            if gan.latent_dim == self.before.latent_dim and probed_layers(gan):
                yield model, "residue"
        for model, gan in self.models.items():
            if model != "before" and gan.discriminator is not None:
                yield from ((model, f"relearn {count}") for count in self.budget.marks)
                yield model, "unrelated"

    def identity(self) -> dict[str, Any]:
        """What the parts depend on, as plain data. says: what goal and judges say of the samples, as a name may stand
        for another network by now."""
        labels = {"negative labels": self.negative_labels, "good labels": self.good_labels}
        held = {"negatives": self.negatives, "good": self.good} | {k: c for k, c in labels.items() if c is not None}
        return dict(
            models={name: gan_digest(gan) for name, gan in self.models.items()},
            judges=list(self.judges),
            samples=digest(held),
            says=digest({name: self._said(rule) for name, rule in {**self.judges, "": self.goal}.items()}),
            budget=_budget(self),
            seed=self.seed,
        )

    def _said(self, rule: Rule) -> Tensor:
        parts = torch.cat([self.negatives, self.good]).split(100)
        return torch.cat([rule(x.to(self.before.device)) for x in parts])


def subject_of(
    before: GAN,
    after: GAN,
    goal: Rule,
    judges: Mapping[str, Rule],
    budget: Budget | None = None,
    seed: int = 0,
    retrained: GAN | None = None,
    negatives: Tensor | TensorSamples | None = None,
    most: int = 20_000,
) -> Audit:
    """An audit whose samples are gathered from the original: negatives to relearn from where none are given (those that
    the goal and the first judge call so), and good samples (those that neither does).

    Raises:
        ValueError: `most` samples of the original hold too few of either.
    """
    budget = budget or Budget()
    rule = next(iter(judges.values()))
    wanted = {"good samples": budget.unrelated, "negatives": 0 if negatives is not None else max(budget.marks)}
    found: dict[str, list[Tensor]] = {name: [] for name in wanted}
    places: dict[str, list[Tensor]] = {name: [] for name in wanted}
    latents, looked = stream_seed(seed, Stream.AUDIT_GOOD), 0
    for x in before.batches(most, latents):
        first, second = goal(x), rule(x)
        for name, flags in (("good samples", ~first & ~second), ("negatives", first & second)):
            left = wanted[name] - sum(map(len, found[name]))
            places[name].append(looked + torch.nonzero(flags).flatten()[: max(left, 0)])
            found[name].append(x.cpu()[places[name][-1] - looked])
        looked += len(x)
        if all(sum(map(len, found[name])) >= count for name, count in wanted.items()):
            break
    for name, count in wanted.items():
        got = sum(map(len, found[name]))
        if got < count:
            raise ValueError(f"before: expected {count} {name} among {most:,} samples of the original, got {got}")
    labels = before.inputs(most, latents)[1]
    good, marked = (
        TensorSamples(torch.cat(found[name]), None if labels is None else labels.cpu()[torch.cat(places[name])])
        for name in wanted
    )
    if negatives is not None:
        marked = TensorSamples(negatives) if isinstance(negatives, Tensor) else negatives
    given = marked.tensor, good.tensor, retrained, budget, seed
    return Audit(before, after, goal, judges, *given, negative_labels=marked.labels, good_labels=good.labels)


# --- parts


def compute(audit: Audit, model: str, measure: str, pictures: Path | None = None) -> dict[str, Any]:
    """One part. pictures: a file for the found samples of a search."""
    gan, budget, seed = audit.models[model], audit.budget, audit.seed
    kind, _, argument = measure.partition(" ")
    if kind == "rate":
        return _rate(gan, audit.judges, budget.samples, stream_seed(seed, Stream.ATTACK_RATE))
    if kind == "search":
        found = latent_search(gan, audit.goal, audit.judges, argument, budget.starts, budget.steps, budget.rate, seed)
        if pictures is not None and found.shown.ndim == 4 and found.shown.shape[1] in (1, 3, 4):
            grid = image_grid(found.shown, gan.image_range, COLUMNS)
            write_atomic(pictures, lambda path: grid.save(path, "PNG"))
        return {**found.numbers, "shown": len(found.shown), "marks": found.marks.tolist()}
    if kind == "residue":
        latents = stream_seed(seed, Stream.RESIDUE)
        with torch.no_grad():
            batches = audit.before.batches(budget.samples, latents, audit.before.fitting(250))
            flags = torch.cat([audit.judge(x) for x in batches])
        return residue(gan, flags, latents) if probeable(flags) else {}
    if kind == "unrelated":
        count, tensor, labels = budget.unrelated, audit.good, audit.good_labels
    else:
        count, tensor, labels = int(argument), audit.negatives, audit.negative_labels
    samples = TensorSamples(tensor[:count], None if labels is None else labels[:count])
    return relearn(
        gan, samples, audit.judge, budget.images, budget.looks, budget.relearn_rate, budget.check_samples, seed
    )


@torch.no_grad()
def _rate(gan: GAN, judges: Mapping[str, Rule], n: int, seed: int) -> dict[str, Any]:
    counts = dict.fromkeys(judges, 0)
    for x in progress.track("rate", gan.batches(n, seed), n):
        for name, judge in judges.items():
            counts[name] += int(judge(x).sum())
    return {name: asdict(share_of(count, n)) for name, count in counts.items()}


def part_path(out: Path, model: str, measure: str) -> Path:
    return out / FOLDER / f"{model}-{measure.replace(' ', '-').replace('+', 'plus')}.json"


def run(audit: Audit, out: str | Path) -> dict[str, Any]:
    """Compute every part that is not there yet; to an audit without a retrained GAN one may be added.

    Returns:
        parts: model -> measure -> outcome. seconds_by_part, seconds: kills and pauses left out. judges: their names,
        the first is the table's. spaces: of the original's generator. notes: what was left out, and why. budget, seed.

    Raises:
        ValueError: OUT holds parts of another audit, or another audit is running there.
    """
    out = Path(out)
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    lock = FolderLock(out / FOLDER, "out")
    try:
        _check_identity(audit, out)
        parts = list(audit.parts())
        done = [part for part in parts if part_path(out, *part).is_file()]
        with progress.bar("audit", len(parts), len(done)) as bar:
            for model, measure in parts:
                path = part_path(out, model, measure)
                if path.is_file():
                    continue
                start = time.monotonic()
                found = compute(audit, model, measure, path.with_suffix(".png"))
                write_json(path, dict(found=found, seconds=round(time.monotonic() - start, 2)))
                bar.update()
    finally:
        lock.release()
    return collect(audit, out)


def collect(audit: Audit, out: Path) -> dict[str, Any]:
    """The outcome, from the parts in OUT."""
    parts: dict[str, dict[str, Any]] = {}
    seconds: dict[str, float] = {}
    for model, measure in audit.parts():
        read = json.loads(part_path(out, model, measure).read_text(encoding="utf-8"))
        parts.setdefault(model, {})[measure] = read["found"]
        seconds[f"{model}, {measure}"] = read["seconds"]
    return dict(
        parts=parts,
        seconds_by_part=seconds,
        seconds=round(sum(seconds.values()), 1),
        judges=list(audit.judges),
        budget=_budget(audit),
        seed=audit.seed,
        spaces=spaces_of(audit.before),
        notes=[*_notes(audit), *_unprobed(parts["before"])],
    )


def _budget(audit: Audit) -> dict[str, Any]:
    """As JSON has it: lists, not tuples."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(audit.budget)))
    return found


def _notes(audit: Audit) -> list[str]:
    found = []
    if not audit.before.is_stylegan:
        found.append("The generator has no mapping network, and so no w: the search is in z alone.")
    for name, gan in audit.models.items():
        if name != "before" and gan.discriminator is None:
            found.append(f"{name} has no discriminator: relearning is left out for it.")
        if gan.latent_dim != audit.before.latent_dim:
            found.append(f"{name} takes other latents than the original: no linear probe for it.")
    if audit.retrained is None:
        found.append("No retrained GAN was given, and search alone finds what fools a judge in any generator.")
    return found


def _unprobed(original: Mapping[str, Any]) -> list[str]:
    if original.get("residue") != {}:
        return []
    return ["Too few samples of the original are negative, or too few are not, for a linear probe."]


def _check_identity(audit: Audit, out: Path) -> None:
    path, own = out / FOLDER / "identity.json", audit.identity()
    there = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else own
    # A retrained GAN may come later: no part of the others changes.
    there["models"] = {**own["models"], **there["models"]}
    differs = [name for name, value in own.items() if there.get(name, value) != value]
    if differs:
        raise ValueError(f"out: {out} holds an audit with other {', '.join(differs)}; give another folder")
    write_json(path, own)


# --- what it will cost


def audited(out: str | Path, searched: str, *given: Any, **options: Any) -> dict[str, Any]:
    """`run` of `subject_of(*given, **options)` in OUT, with the estimate and the name of what is searched beside it."""
    subject = subject_of(*given, **options)
    thought = estimate(subject, Path(out))
    return dict(run(subject, out), estimated_seconds=thought, searched=searched)


def estimate(audit: Audit, out: Path | None = None) -> float:
    """Seconds that the parts not yet in OUT will take, from one step of each kind on this machine."""
    gan, budget = audit.before, audit.budget
    left = [part for part in audit.parts() if out is None or not part_path(out, *part).is_file()]
    kinds = [measure.partition(" ")[0] for _, measure in left]
    sample = _seconds_of_sample(audit) if left else 0.0
    total = kinds.count("rate") * budget.samples * sample * len(audit.judges)
    total += kinds.count("residue") * 2 * budget.samples * sample
    if "search" in kinds:
        total += kinds.count("search") * budget.starts * budget.steps * _seconds_of_search(audit)
    curves = kinds.count("relearn") + kinds.count("unrelated")
    if curves and gan.discriminator is not None:
        total += curves * (budget.images * _seconds_of_training(audit) + budget.looks * budget.check_samples * sample)
    return total


def _timed(work: Callable[[], Any]) -> float:
    work()  # what is set up on first use does not count
    start = time.monotonic()
    work()
    return time.monotonic() - start


def _seconds_of_sample(audit: Audit) -> float:
    def work() -> None:
        with torch.no_grad():
            for x in audit.before.batches(50):
                audit.judge(x)

    return _timed(work) / 50


def _seconds_of_search(audit: Audit) -> float:
    gan = audit.before
    n = min(AT_ONCE, gan.fitting(AT_ONCE), audit.budget.starts)
    z, c = gan.inputs(n)

    def work() -> None:
        point = z.clone().requires_grad_(True)
        x = gan.fake(point, c, generator=gan.sampling_generator)
        assert audit.goal.slope is not None
        audit.goal(x.detach())
        torch.autograd.grad(audit.goal.slope(x).sum(), point)

    with eval_mode(gan.sampling_generator, *gan.modules().values()), fork_rng(gan.device, 0):
        return _timed(work) / n


def _seconds_of_training(audit: Audit) -> float:
    settings = Adapt().adversarial
    settings = dataclasses.replace(settings, batch_size=min(settings.batch_size, audit.budget.images))
    with fork_rng(audit.before.device, 0):
        samples = TensorSamples(audit.negatives.cpu())
        trainer = AdversarialStep(audit.before.copy(), samples, Objective(), settings)
        return _timed(trainer.step) / settings.batch_size


# --- the table


def rows(found: Mapping[str, Any], labels: Mapping[str, str]) -> list[list[str]]:
    """The outcome of `run` as a table, one column a model; the first row is the header."""
    parts, judge = found["parts"], found["judges"][0]
    original = parts["before"]["rate"][judge]["share"]
    models = list(parts)
    lines = [["", *(labels.get(name, name) for name in models)]]

    def line(text: str, cell: Callable[[Any], str], measure: str) -> None:
        if any(measure in parts[name] for name in models):
            lines.append([text, *(cell(parts[name][measure]) if parts[name].get(measure) else "–" for name in models)])

    line("negative samples, %", lambda one: _percent(one[judge]), "rate")
    for space in found["spaces"]:
        line(f"search in {space} finds one, %", lambda one: _percent(one["found"][judge]), f"search {space}")
        line(
            f"search in {space}: so says what was searched, %", lambda one: _percent(one["searched"]), f"search {space}"
        )
    line("before any step, %", lambda one: _percent(one["by_chance"][judge]), "search z")
    for count in found["budget"]["marks"]:
        what = f"{count} negative{'s' * (count > 1)}"
        line(f"relearned from {what}, % of the original’s rate", lambda one: _level(one, original), f"relearn {count}")
    good = found["budget"]["unrelated"]
    line(f"trained on with {good} good samples, %", lambda one: _level(one, original), "unrelated")
    line(
        "linear probe on the inner maps, highest AUC",
        lambda one: _auc(one, max(one, key=lambda k: one[k]["auc"])),
        "residue",
    )
    line("linear probe on the last maps, AUC", lambda one: _auc(one, list(one)[-1]), "residue")
    return lines


def _percent(row: Mapping[str, Any]) -> str:
    low, high = (100 * bound for bound in row["ci95"])
    return f"{100 * row['share']:.1f} ({low:.1f} to {high:.1f})"


def _level(one: Mapping[str, Any], original: float) -> str:
    """Mean over the images seen, and the end of the curve, of the original's rate."""
    if not original:
        return "–"
    return f"{100 * one['area'] / original:.0f}, at the end {100 * one['curve'][-1][1] / original:.0f}"


def _auc(one: Mapping[str, Any], layer: str) -> str:
    low, high = one[layer]["ci95"]
    return f"{one[layer]['auc']:.3f} ({low:.3f} to {high:.3f})"


def probe_table(found: Mapping[str, Any], labels: Mapping[str, str]) -> list[list[str]]:
    """AUC of the linear probe on each layer, one column a model; empty where nothing was probed."""
    probed = {name: parts["residue"] for name, parts in found["parts"].items() if parts.get("residue")}
    if not probed:
        return []
    layers = list(dict.fromkeys(layer for one in probed.values() for layer in one))
    lines = [["layer", *(labels.get(name, name) for name in probed)]]
    return lines + [
        [layer, *(_auc(one, layer) if layer in one else "–" for one in probed.values())] for layer in layers
    ]
