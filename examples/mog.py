"""Two of eight Gaussians erased from an MLP GAN: `python -m examples.mog --out OUT`."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from atu.api import adapted_generators, stage_seconds, unlearn
from atu.cli.options import CONFIG, PRECISION, SAMPLES, Common, check_replaceable, common, show
from atu.config import Adversarial, Config
from atu.data.samples import TensorSamples
from atu.evaluation.evaluate import Evaluation, evaluate
from atu.gan import GAN
from atu.judging.classifier import Classifier
from atu.judging.marking import mark_negatives
from atu.judging.rule import class_rule
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.report import plots, report
from atu.support.seeding import Stream, fork_rng, stream_seed

from .scratch import train

# --- eight Gaussians

_NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight")


MOG_RADIUS, MOG_STD, MOG_NEAR = 2.0, 0.1, 0.4


MOG_STEPS = 4000


MOG_ADAM: dict[str, Any] = dict(lr=1e-3, beta1=0.0, beta2=0.9)


MOG_CONFIG = Adversarial(batch_size=256, **MOG_ADAM, r1_gamma=0.1, r1_interval=4, ema_half_life=25_000)


# Points in the plane need faster training than images do; the discriminator's features of them say little about drift.
MOG_TRAINING = dict(batch_size=256, **MOG_ADAM, r1_gamma=0.1, r1_interval=4, ema_half_life=5_000.0, augment="")


# Points in the plane: all that steers at a tenth, or half of what was negative ends inside the ring.
_STEERED = dict(hold_weight=3.0, guide_weight=0.4, nearby_weight=0.1)


MOG_UNLEARN: dict[str, Any] = dict(
    adapt=dict(steps=500, ewc_weight=1.0, adversarial=MOG_TRAINING),
    repel=dict(steps=1500, adversarial=dict(MOG_TRAINING, r2_gamma=1.0), **_STEERED),
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


class Centres(nn.Module):
    """Assigns points [N, 2] to the centre less than MOG_NEAR (four standard deviations) away, or to "elsewhere"."""

    def features(self, x: Tensor) -> Tensor:
        """The points [N, 2] themselves."""
        return x.cpu()

    def head(self, x: Tensor) -> Tensor:
        """Scores [N, 9]: ten times the distance to spare."""
        elsewhere = torch.full((len(x), 1), MOG_NEAR)
        return -10 * torch.cat([torch.cdist(x, mog_centres()), elsewhere], 1)


def centre_judge() -> Classifier:
    """The centres 0 to 7, and "elsewhere", as classes."""
    return Classifier(Centres(), [*map(str, range(8)), "elsewhere"], name="CentreJudge")


def mog_gan(out: Path, seed: int, device: str | None, steps: int) -> GAN:
    """The MLP GAN, trained from scratch (or taken from OUT, where an earlier run left it)."""
    with fork_rng(torch.device("cpu")):
        torch.manual_seed(seed)
        gan = GAN(MLPGenerator(16, [2]), MLPDiscriminator([2]), image_range=(-4.0, 4.0)).to(device or "cpu")
    path = out / "pretrained" / "gan.safetensors"
    if path.exists():
        return GAN.load(path).to(device or "cpu")
    samples = TensorSamples(mog_data(50_000, seed))
    train(gan, samples, [(steps, MOG_CONFIG)], path.parent, seed)
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
    precision: str | None = None,
) -> dict[str, Any]:
    """The paper's figure of eight Gaussians: train an MLP GAN, then erase the centres `erase`.

    config: of the unlearning; MOG_UNLEARN when not given. pretrain_steps: MOG_STEPS when not given. precision: of the
    unlearning.

    Returns:
        The content of OUT/report.json; `centres` holds the share of samples at each centre, by model.
    """
    out = Path(out)
    settings = MOG_UNLEARN if config is None else config
    if isinstance(settings, (str, Path)):
        settings = Config.load(settings)  # what is wrong with it is told before the GAN is trained
    start = time.monotonic()
    gan = mog_gan(out, seed, device, MOG_STEPS if pretrain_steps is None else pretrain_steps)
    training = time.monotonic() - start
    rule = class_rule(centre_judge(), erase, gan.image_range)
    marked, _ = mark_negatives(gan, rule, negatives, stream_seed(seed, Stream.MARKS))
    options: dict[str, Any] = dict(config=settings, out=out, seed=seed, device=device, precision=precision)
    result = unlearn(gan, marked, is_negative=rule, **options)
    start = time.monotonic()
    evaluation = evaluate(
        gan,
        result.gan,
        rule,
        real=mog_data(10_000, seed + 1),
        others=adapted_generators(gan, result),
        answered=True,
        n=samples,
        seed=stream_seed(seed, Stream.EVALUATION),
        keep=2000,
    )
    seconds = {"pretrain": training, **stage_seconds(result), "evaluate": time.monotonic() - start}
    given = dict(seed=seed, samples=samples, config=config, precision=precision, device=device)
    told = {f"--{name}": str(value) for name, value in given.items() if isinstance(value, int | str | Path)}
    words = [word for pair in told.items() for word in pair]
    context = report.Context(
        subject=f"{_NUMBERS[len(erase)]} of eight Gaussians",
        seconds=seconds,
        command=shlex.join(["python", "-m", "examples.mog", *words, "--out", "DIR"]),
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


@click.command("mog")
@CONFIG
@PRECISION
@SAMPLES
@common("Run folder.", threads=True)
def mog(run: Common, config: Path | None, precision: str | None, samples: int) -> None:
    """Train an MLP GAN on eight Gaussians and erase two of them."""
    check_replaceable(run.out, "report", "negatives_before")
    options: dict[str, Any] = dict(config=config, precision=precision)
    data = demo_mog(run.out, samples=samples, seed=run.seed, device=run.device, **options)
    show(data, run)
    if not run.quiet:
        _print_centres(data)
    click.echo(str(run.out / "mog.png"))


def _print_centres(data: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from atu.report.report import LABELS

    names = list(data["models"])
    grid = Table(title="% of samples at each centre", title_justify="left")
    for title in ("centre", *(LABELS[name] for name in names)):
        grid.add_column(title, justify="right")
    for centre in data["models"]["before"]["classes"]:
        shares = [data["models"][name]["classes"][centre]["share"] for name in names]
        grid.add_row(centre, *(f"{100 * share:.1f}" for share in shares))
    Console().print(grid)


if __name__ == "__main__":
    mog()
