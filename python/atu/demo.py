"""Demonstrations: `atu demo mnist` on the bundled GAN, `atu demo mog` on eight Gaussians."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import data, images, plots, pretrain, report, targets
from .adversarial import Adversarial
from .assets import asset
from .attacks import attack
from .attributes import FEATURES, SHARE, Attribute, attributes
from .attributes import feature as feature_of
from .classifier import Classifier
from .config import Config
from .evaluate import Evaluation, Scores, classifier_scorer, evaluate, unlearning
from .gan import GAN, fork_rng, mix_seed
from .networks.mlp import MLPDiscriminator, MLPGenerator
from .parameter_path import ParameterPath, parameter_path
from .unlearn import Result, unlearn


def mark_negatives(
    gan: GAN, is_negative: Callable[[Tensor], Tensor], wanted: int, seed: int, most: int = 100_000
) -> tuple[Tensor, int]:
    """Sample the GAN until `wanted` samples are called negative: what a user who marks them does.

    Returns:
        (negatives [wanted or fewer, ...], samples looked at). Fewer when `most` samples hold no more.

    Raises:
        ValueError: none was found.
    """
    found: list[Tensor] = []
    count = looked = 0
    for part in range(-(-most // 500)):
        x = gan.sample(500, seed=mix_seed(seed, part))
        chosen = x[is_negative(x)].cpu()
        found.append(chosen)
        count, looked = count + len(chosen), looked + len(x)
        if count >= wanted:
            break
    if not count:
        raise ValueError(f"negatives: expected some among {looked:,} generated samples, found none")
    return torch.cat(found)[:wanted], looked


def stage_seconds(result: Result) -> dict[str, float]:
    """Seconds of each stage, from the history, so that a resumed run counts in full."""
    seconds: dict[str, float] = {}
    for row in result.history:
        seconds[row["stage"]] = max(seconds.get(row["stage"], 0.0), row["seconds"])
    return {"prepare": max(result.seconds - sum(seconds.values()), 0.0), **seconds}


def adapted_generators(gan: GAN, result: Result) -> dict[str, torch.nn.Module]:
    """The first adapted generator, under its name in the report; nothing for methods that adapt none."""
    if not result.adapted:
        return {}
    twin = gan.copy().generator
    twin.load_state_dict(result.adapted[0])
    return {"adapted": twin}


def demo_mnist(
    digits: Iterable[int | str],
    out: str | Path,
    negatives: int = 200,
    samples: int = 10_000,
    seed: int = 0,
    device: str | None = None,
    config: Config | Mapping | str | Path | None = None,
    oracle: bool = True,
    method: str | None = None,
    compat: str | None = None,
    feature: str | None = None,
    source: str | Path | None = None,
    attacked: bool = False,
    retrained: str | Path | None = None,
) -> dict[str, Any]:
    """Unlearn digits, or a feature of the stroke, from the bundled MNIST GAN; writes the run folder and its report.

    The bundled classifier (or the feature's measure) plays the user: it marks `negatives` samples of each digit and,
    with `oracle`, answers for generated samples during the run too. It also judges the outcome, on other latents.

    Args:
        feature: one of `atu.attributes.FEATURES`, in place of digits. source: folder of an earlier run to go on from;
            what it had unlearned stays negative, and is counted before and after. attacked: attack the result
            (`atu.attacks`), beside the GAN in `retrained` if given. method, compat: of `unlearn`.

    Returns:
        The content of OUT/report.json.
    """
    first = GAN.load(asset("mnist-gan.safetensors"))
    classifier = Classifier.load(asset("mnist-classifier.safetensors"))
    earlier = [] if source is None else targets.earlier_targets(Path(source))
    gan = first if source is None else GAN.load(Path(source) / "result.safetensors")
    other = None if retrained is None else GAN.load(retrained)
    if device is not None:
        first, gan, classifier = first.to(device), gan.to(device), classifier.to(device)
        other = None if other is None else other.to(device)
    start = time.monotonic()
    known = attributes(first)
    target = _target(digits, feature, classifier, known, gan.image_range)
    before = [targets.from_plain(plain, classifier, gan.image_range) for plain in earlier]
    marked, looked = [], 0
    for name, is_part in target.parts.items():
        chosen, seen = mark_negatives(gan, is_part, negatives, mix_seed(seed, 77))
        images.save_folder(chosen, gan.image_range, Path(out) / "negatives" / name)
        marked.append(chosen)
        looked = max(looked, seen)
    marking = time.monotonic() - start
    judge = targets.any_of([target.is_negative, *(one.is_negative for one in before)]) if oracle else None
    result = unlearn(
        gan,
        torch.cat(marked),
        is_negative=judge,
        config=config,
        out=out,
        seed=seed,
        device=device,
        method=method,
        compat=compat,
    )
    start = time.monotonic()
    kept: dict[str, Callable[[Tensor], Tensor]] = {**known, **{one.subject: one.is_negative for one in before}}
    evaluation = evaluate(
        gan,
        result.gan,
        classifier,
        target.classes,
        data.mnist(),
        is_negative=None if target.classes else target.is_negative,
        others={**adapted_generators(gan, result), **({"first": first.sampling_generator} if before else {})},
        attributes=kept,
        n=samples,
        seed=mix_seed(seed, 999),
    )
    path = parameter_path_of(gan, result, evaluation, classifier_scorer_of(target, classifier, gan), seed)
    if path is not None:
        plots.save_path(Path(out) / "parameter-path.png", path)
    seconds = {"mark negatives": marking, **stage_seconds(result), "evaluate": time.monotonic() - start}
    found = None
    if attacked:
        start = time.monotonic()
        found = attack(gan, result.gan, target.goal, torch.cat(marked), other, seed=mix_seed(seed, 888))
        seconds["attacks"] = time.monotonic() - start
    context = report.Context(
        subject=target.subject,
        seconds=seconds,
        command=_command(target, negatives, seed, oracle, method, compat, source, attacked, retrained),
        config=result.config.to_dict(),
        seed=seed,
        device=str(gan.device),
        history=result.history,
        decisions=result.decisions,
        notes=_notes(target, sum(map(len, marked)), looked, oracle),
        targets=[*earlier, target.plain],
        attacks=found,
        path=path,
        earlier=[still_unlearned(one.subject, evaluation) for one in before],
    )
    return report.write(out, evaluation, context)


def _target(
    digits: Iterable[int | str],
    feature: str | None,
    classifier: Classifier,
    known: Mapping[str, Attribute],
    image_range: tuple[float, float],
) -> targets.Target:
    if feature is None:
        return targets.digits(classifier, digits, image_range)
    if tuple(digits):
        raise ValueError("feature: expected digits or a feature to unlearn, got both")
    feature_of(feature)
    return targets.stroke(known[feature])


def _command(target, negatives, seed, oracle, method, compat, source, attacked, retrained) -> str:
    """The command line of this run."""
    words = ["atu", "demo", "mnist"]
    words += [word for name in target.classes for word in ("--digit", name)] or ["--feature", target.plain["feature"]]
    for name, value in (("from", source), ("method", method), ("compat", compat), ("retrained", retrained)):
        words += [] if value is None else [f"--{name}", str(value)]
    words += ["--negatives", str(negatives), "--seed", str(seed)]
    words += ["--no-oracle"] * (not oracle) + ["--attacks"] * attacked
    return shlex.join([*words, "--out", "DIR"])


def _notes(target: targets.Target, marked: int, looked: int, oracle: bool) -> list[str]:
    judge = "the bundled classifier" if target.classes else "the feature's measure"
    again = "It also answered for generated samples during the run, and judges the outcome on other latents."
    alone = "It was not asked again during the run; it judges the outcome on other latents."
    notes = [f"{marked} negatives, marked by {judge} among {looked:,} samples. {again if oracle else alone}"]
    if not target.classes:
        unit = FEATURES[target.plain["feature"]].unit
        notes.append(
            f"A sample is negative above {target.plain['threshold']:.3g} {unit}, which {100 * SHARE:g} % of the "
            "bundled GAN's samples exceed."
        )
    return notes


def classifier_scorer_of(target: targets.Target, classifier: Classifier, gan: GAN) -> Callable[[Tensor], Scores]:
    """The scorer that `evaluate` uses for a target."""
    if not target.classes:
        return classifier_scorer(classifier, [], gan.image_range, target.is_negative)
    return classifier_scorer(classifier, classifier.class_indices(target.classes), gan.image_range)


def parameter_path_of(
    gan: GAN, result: Result, evaluation: Evaluation, score: Callable[[Tensor], Scores], seed: int
) -> ParameterPath | None:
    """The picture of the line to the first adapted generator; None for methods that adapt none."""
    if not result.adapted:
        return None
    judged = evaluation.models["before"]
    n = min(len(judged.negative), 400)
    kept = judged.features[~judged.negative]
    return parameter_path(gan, result.adapted[0], score, kept, n=n, seed=mix_seed(seed, 998))


def still_unlearned(subject: str, evaluation: Evaluation) -> dict[str, Any]:
    """Counts of an earlier target in the first GAN, before this run and after it, from an evaluation that asked for it.

    stays_unlearned: the percentage unlearned since the first GAN fell by no more than one point in this run.
    """
    flags = {name: judged.attributes[subject] for name, judged in evaluation.models.items()}
    since = {name: unlearning(flags["first"], flags[name]) for name in ("before", "after")}
    counts = {"original": flags["first"], "before": flags["before"], "after": flags["after"]}
    row: dict[str, Any] = {"subject": subject, **{name: int(flag.sum()) for name, flag in counts.items()}}
    for name, numbers in since.items():
        row.update({f"pul_{name}": numbers["pul"], f"pul_ci95_{name}": numbers["pul_ci95"]})
    known = since["after"]["pul"] is not None
    row["stays_unlearned"] = since["after"]["pul"] >= since["before"]["pul"] - 1 if known else None
    return row


# --- eight Gaussians

_NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight")
MOG_RADIUS, MOG_STD, MOG_NEAR = 2.0, 0.1, 0.4
MOG_STEPS = 4000
MOG_ADAM: dict[str, Any] = dict(lr=1e-3, beta1=0.0, beta2=0.9)
MOG_CONFIG = Adversarial(batch_size=256, **MOG_ADAM, r1_gamma=0.1, r1_interval=4, ema_half_life=25_000)

# Points in the plane need a livelier game than images do; the discriminator's features of them say little about drift.
MOG_GAME = dict(batch_size=256, **MOG_ADAM, r1_gamma=0.1, r1_interval=4, ema_half_life=5_000.0, augment="")
MOG_UNLEARN: dict[str, Any] = dict(
    adapt=dict(steps=500, ewc_weight=1.0, adversarial=MOG_GAME),
    repel=dict(steps=1500, check_every=100, drift_weight=0.05, negatives_weight=0.5, adversarial=MOG_GAME),
)


def mog_centres() -> Tensor:
    """The eight centres [8, 2], counter-clockwise from the right."""
    angle = torch.arange(8) * (2 * math.pi / 8)
    return MOG_RADIUS * torch.stack([angle.cos(), angle.sin()], 1)


def mog_data(n: int, seed: int = 0) -> Tensor:
    """n points [n, 2] of the mixture, all centres equally likely."""
    rng = torch.Generator().manual_seed(seed)
    centres = mog_centres()[torch.randint(8, (n,), generator=rng)]
    return centres + MOG_STD * torch.randn(n, 2, generator=rng)


class CentreJudge:
    """Assigns points [N, 2] to the centre less than MOG_NEAR (four standard deviations) away, or to "elsewhere"."""

    def __init__(self) -> None:
        self.classes = [*map(str, range(8)), "elsewhere"]
        self.image_range = (-1.0, 1.0)
        self.feature_source = "samples"

    def judge(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(scores [N, 9]: ten times the distance to spare, points [N, 2] themselves as features)."""
        distance = torch.cdist(x.cpu(), mog_centres())
        elsewhere = torch.full((len(x), 1), MOG_NEAR)
        return -10 * torch.cat([distance, elsewhere], 1), x.cpu()

    def predict(self, x: Tensor) -> Tensor:
        """Index into `classes`, int64 [N]."""
        return self.judge(x)[0].argmax(1)

    def class_indices(self, classes: Iterable[int | str]) -> list[int]:
        return [self.classes.index(str(one)) for one in classes]


def mog_gan(out: Path, seed: int, device: str | None, steps: int) -> GAN:
    """The MLP GAN, trained from scratch (or taken from OUT, where an earlier run left it)."""
    with fork_rng(torch.device("cpu")):
        torch.manual_seed(seed)
        gan = GAN(MLPGenerator(16, [2]), MLPDiscriminator([2]), image_range=(-4.0, 4.0)).to(device or "cpu")
    path = out / "pretrained" / "gan.safetensors"
    if path.exists():
        return GAN.load(path).to(device or "cpu")
    samples = data.TensorSamples(mog_data(50_000, seed))
    pretrain.train(gan, samples, MOG_CONFIG, steps, path.parent, seed, save_every=steps)
    gan.save(path)
    return gan


def demo_mog(
    out: str | Path,
    erase: Sequence[int] = (0, 1),
    negatives: int = 200,
    samples: int = 10_000,
    seed: int = 0,
    device: str | None = None,
    config: Config | Mapping | str | Path | None = None,
    pretrain_steps: int | None = None,
) -> dict[str, Any]:
    """The paper's figure of eight Gaussians: train an MLP GAN, then erase the centres `erase`.

    config: of the unlearning; MOG_UNLEARN when not given. pretrain_steps: MOG_STEPS when not given.

    Returns:
        The content of OUT/report.json; `centres` holds the share of samples at each centre, by model.
    """
    out, judge = Path(out), CentreJudge()
    start = time.monotonic()
    gan = mog_gan(out, seed, device, MOG_STEPS if pretrain_steps is None else pretrain_steps)
    training = time.monotonic() - start
    wanted = torch.tensor(judge.class_indices(erase))

    def is_negative(x: Tensor) -> Tensor:
        return torch.isin(judge.predict(x), wanted).to(x.device)

    marked, _ = mark_negatives(gan, is_negative, negatives, mix_seed(seed, 77))
    settings = MOG_UNLEARN if config is None else config
    result = unlearn(gan, marked, is_negative=is_negative, config=settings, out=out, seed=seed, device=device)
    start = time.monotonic()
    evaluation = evaluate(
        gan,
        result.gan,
        judge,
        erase,
        mog_data(10_000, seed + 1),
        others=adapted_generators(gan, result),
        n=samples,
        seed=mix_seed(seed, 999),
        keep=2000,
    )
    seconds = {"pretrain": training, **stage_seconds(result), "evaluate": time.monotonic() - start}
    context = report.Context(
        subject=f"{_NUMBERS[len(erase)]} of eight Gaussians",
        seconds=seconds,
        command=f"atu demo mog --seed {seed} --out DIR",
        config=result.config.to_dict(),
        seed=seed,
        device=str(gan.device),
        history=result.history,
        decisions=result.decisions,
        notes=[
            f"Eight Gaussians on a circle of radius {MOG_RADIUS:g}; centres {', '.join(map(str, erase))} are erased."
        ],
        figures=mog_figures(evaluation),
    )
    plots.save_scatters(
        out / "mog.png", [(report.LABELS[k], m.first, m.negative) for k, m in evaluation.models.items()]
    )
    return report.write(out, evaluation, context)


def mog_figures(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """One scatter plot a model: (label, caption, SVG)."""
    figures = []
    for name, judged in evaluation.models.items():
        shown = judged.negative[: len(judged.first)]
        svg = plots.scatter(name, judged.first, shown, limit=1.6 * MOG_RADIUS)
        figures.append(
            (report.LABELS.get(name, name), f"{100 * float(judged.negative.float().mean()):.1f} % negative", svg)
        )
    return figures
