"""One training step of each stage, whole and in parts: ours in each precision, reference, and torch.compile of that.

That of stage 2 is the paper's: the adversarial loss of one batch and the repulsion, with path length besides. What the
default adds, the guide and what is held, is not in it: docs/performance.md says where a whole step of a run goes.
Of other GANs than the bundled one of MNIST only what matters most, as a step of theirs takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import click
import torch
from torch import Tensor

from atu.assets import asset
from atu.bench.cli import measure, on_machine
from atu.bench.measure import Plan, peak_memory, times
from atu.config import Adversarial, Config
from atu.data.samples import TensorSamples
from atu.gan import GAN
from atu.methods.adapt_then_unlearn.adapt import Ewc
from atu.methods.adapt_then_unlearn.defaults import resolved
from atu.methods.adapt_then_unlearn.repulsion import Repulsion, repulsion_of
from atu.networks.stylegan2 import Discriminator, Generator
from atu.support.context import PRECISIONS, RunContext, current
from atu.support.modules import update_ema
from atu.support.seeding import fork_rng
from atu.training.step import AdversarialStep, Objective
from atu_ext.ops import default_impl
from examples.pretrain import mnist_stylegan2

KINDS = ("ours", "reference", "compiled")
STAGES = ("stage 1", "stage 2")
SCRATCH = "from scratch"  # a step of training on real samples alone, on pairs of a real and a generated one
SCALE = 256.0  # of float16's losses


def bundled_gan() -> tuple[GAN, str]:
    """The bundled MNIST GAN and what it is; where the installation has none, the same networks untrained."""
    try:
        return GAN.load(asset("mnist-gan.safetensors")), "bundled MNIST StyleGAN2"
    except FileNotFoundError:
        return mnist_stylegan2(), "MNIST StyleGAN2, untrained"


def gan_of(name: str) -> tuple[GAN, str]:
    """A GAN by name, and what it is: "mnist" and "animals" are bundled; a resolution is an untrained StyleGAN2 of it
    with half of config-f's channels (Karras et al., arXiv 1912.04958).

    Raises:
        ValueError: another name, or a resolution that is no power of two from 32 to 1024.
    """
    if name == "mnist":
        return bundled_gan()
    if name == "animals":
        return GAN.load(asset("animals-gan.safetensors")), "bundled StyleGAN2 of drawn animals, 64 x 64"
    if name not in [str(2**i) for i in range(5, 11)]:
        raise ValueError(f"gan: expected mnist, animals or a resolution (32, 64, ... 1024), got {name!r}")
    size, channels = int(name), dict(channel_base=16384, channel_max=256)
    generator = Generator(512, 0, 512, size, 3, dict(num_layers=8), dict(channels))
    what = f"untrained StyleGAN2 of {size} x {size} with half of config-f's channels"
    return GAN(generator, Discriminator(0, size, 3, **channels)), what


def tiny_gan() -> GAN:
    """The same networks with 8 channels at 8 x 8: steps that compute next to nothing."""
    channels = dict(channel_base=64, channel_max=8)
    return GAN(Generator(8, 0, 8, 8, 1, dict(num_layers=2), dict(channels)), Discriminator(0, 8, 1, **channels))


def make_trainer(
    gan: GAN,
    stage: str,
    adversarial: Adversarial,
    models: int = 1,
    plain: bool = False,
) -> AdversarialStep:
    """A trainer of a stage's adversarial loss and penalty. Its learning rates are 0, so that every step sees the same
    weights.

    models: adapted generators that stage 2 is pushed away from. plain: no penalty, which is fine-tuning.
    """
    cfg = Config()
    twin = gan.copy()
    params: list[Tensor] = list(twin.generator.parameters())
    start = [p.detach().clone() for p in params]
    real = TensorSamples(torch.rand(500, *gan.sample_shape) * 2 - 1)
    objective: Objective = Objective()
    if stage == "stage 1" and not plain:
        fisher = [torch.rand_like(p) for p in start]
        objective = Ewc(twin, start, fisher, cfg.adapt.ewc_weight, cfg.adapt.ewc_relative)
    elif not plain:
        adapted = [[p + 0.01 * torch.randn_like(p) for p in start] for _ in range(models)]
        steps = resolved(gan, cfg.repel).steps or 0
        objective = Repulsion(params, adapted, start, repulsion_of(cfg), cfg.repel.strength, steps)
    trainer = AdversarialStep(twin.to(gan.device), real, objective, adversarial)
    if current().precision == "float16":  # a scale that overflows has steps passed over, which take less time
        trainer.scaler = torch.amp.GradScaler(gan.device.type, init_scale=SCALE)
    trainer.set_lr_factor(0.0)
    return trainer


def settings(stage: str, batch: int) -> Adversarial:
    """The stage's own settings with path length regularisation on, so that it is timed too."""
    if stage == SCRATCH:
        return Adversarial(batch_size=batch, loss="relativistic")
    cfg = Config()
    chosen = cfg.adapt.adversarial if stage == "stage 1" else cfg.repel.adversarial
    chosen.batch_size, chosen.pl_weight = batch, 2.0
    return chosen


class Parts:
    """The parts of a trainer's step as calls. Steps number 1, 17, ... have neither R1 nor path length in them."""

    def __init__(self, trainer: AdversarialStep):
        self.trainer = trainer

    def step(self) -> None:
        self.trainer.step_count = 1
        self.trainer.step()

    def discriminator(self) -> None:
        """Generated and real samples through D and back, with the optimiser."""
        self.trainer.step_count = 1
        self.trainer.discriminator_step()
        self.trainer.scaler.update()  # as a whole step does at its end

    def generator(self) -> None:
        """Generated samples through G and D and back, with penalty and optimiser."""
        self.trainer.step_count = 1
        self.trainer.generator_step()

    def r1(self) -> None:
        self.trainer.gradient_penalty(self.trainer.real_batch(), 1.0)

    def path_length(self) -> None:
        self.trainer.path_length_step()

    def penalty(self) -> None:
        self.trainer.objective.after_backward(self.trainer)

    def ema(self) -> None:
        update_ema(self.trainer.ema, self.trainer.generator, 0.999)

    def optimiser(self) -> None:
        self.trainer.optim_d.step()
        self.trainer.optim_g.step()


PARTS = ("step", "discriminator", "generator", "r1", "path_length", "penalty", "ema", "optimiser")
# Of other GANs than the bundled one of MNIST, whose steps take seconds: stage -> parts.
BRIEF = {"stage 2": ("step", "r1"), SCRATCH: ("step", "r1")}
BRIEFEST = {"stage 2": ("step",)}
BRIEF_ROUNDS = 3
COMPILED = ("step", "discriminator", "generator")  # the parts with networks in them and no second gradients


def _as(kind: str, call: Callable[[], None]) -> None:
    """Call it as this kind: our ops or the reference, in the precision that the kind is named after, if it is."""
    precision = kind if kind in PRECISIONS else None
    with default_impl("reference" if kind in ("reference", "compiled") else "auto"), RunContext(precision):
        call()


def compile_networks(trainer: AdversarialStep) -> None:
    """torch.compile of both networks, in place."""
    torch.compiler.reset()
    trainer.generator.compile(dynamic=False)
    trainer.discriminator.compile(dynamic=False)


def _runs(gan: GAN, stage: str, batch: int, compile: bool, low: Sequence[str]) -> tuple[dict[str, Parts], str]:
    kinds = KINDS[: 3 if compile else 2]
    make = partial(make_trainer, gan, stage, settings(stage, batch), plain=stage == SCRATCH)
    parts = {kind: Parts(make()) for kind in kinds}
    for name in low:
        with RunContext(name):
            parts[name] = Parts(make())
    why = ""
    if compile:
        try:
            compile_networks(parts["compiled"].trainer)
            _as("compiled", parts["compiled"].step)
        except Exception as error:
            del parts["compiled"]
            why = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
    for kind, each in parts.items():
        with RunContext(kind if kind in PRECISIONS else None):
            _as("reference", each.step)  # gradients and the optimiser's state exist from here on
    return parts, why


def run_step(
    plan: Plan,
    batch: int,
    compile: bool,
    quick: bool,
    say: Callable[[str], None],
    dtypes: Sequence[str] = ("float32",),
    given: tuple[GAN, str] | None = None,
    brief: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Rows of every part of both stages' steps, memory, and the overhead of a step that computes nothing.

    dtypes: of these, the 16-bit ones are timed too, as precisions of the training. given: a GAN of StyleGAN2's kind and
    what it is; the bundled one otherwise, or a tiny one if `quick`. brief: stage -> parts, where these are to be timed
    alone, in a few turns, without `torch.compile`, memory and overhead.
    """
    low = [name for name in dtypes if name in ("bfloat16", "float16")]
    with fork_rng(torch.device("cpu"), 0):
        gan, what = given or ((tiny_gan(), "tiny StyleGAN2, untrained") if quick else bundled_gan())
        gan = gan.to(plan.device)
        batch = 2 if quick else batch
        if brief is not None:
            plan = Plan(plan.seconds, min(plan.rounds, BRIEF_ROUNDS), plan.threads, plan.device)
            rows = []
            for stage, names in brief.items():
                rows += _stage(gan, stage, plan, batch, False, low, say, names)
            return dict(gan=what, batch=batch, rows=rows)
        # The two stages' steps are much alike, and compiling takes minutes: it is done for stage 2 alone.
        compiled = {"stage 1": False, "stage 2": compile}
        rows = [row for stage in STAGES for row in _stage(gan, stage, plan, batch, compiled[stage], low, say)]
        say("memory")
        memory = _memory(gan, batch, plan.device)
        say("overhead")
        overhead = _overhead(plan)
    return dict(gan=what, batch=batch, rows=rows, memory=memory, overhead=overhead)


def _stage(
    gan: GAN,
    stage: str,
    plan: Plan,
    batch: int,
    compile: bool,
    low: Sequence[str],
    say: Callable[[str], None],
    names: Sequence[str] = PARTS,
) -> list[dict[str, Any]]:
    say(f"{stage}: {'compiling' if compile else 'preparing'}")
    parts, why = _runs(gan, stage, batch, compile, low)
    rows = []
    for part in names:
        say(f"{stage}: {part}")
        kinds = [kind for kind in parts if kind != "compiled" or part in COMPILED]
        runs = {kind: partial(_as, kind, getattr(parts[kind], part)) for kind in kinds}
        memory = {kind: peak_memory(run, plan.device) for kind, run in runs.items()}
        found = times(runs, plan)
        ours = found["ours"]["median"]
        row: dict[str, Any] = dict(name=f"{stage}: {part}", stage=stage, part=part)
        row["times"] = {kind: {**entry, "peak_bytes": memory[kind]} for kind, entry in found.items()}
        row["speedup"] = {kind: entry["median"] / ours for kind, entry in found.items() if kind != "ours"}
        if why:
            row["not_compiled"] = why
        rows.append(row)
    return rows


def _memory(gan: GAN, batch: int, device: str) -> dict[str, Any]:
    """Peak of a stage-2 step (tensors beyond those alive before it) and what the penalty keeps, for N = 1, 2 and 5,
    beside a plain fine-tuning step and the generator's own bytes."""
    generator = sum(p.nbytes for p in gan.generator.parameters())
    plain = Parts(make_trainer(gan, "stage 2", settings("stage 2", batch), plain=True))
    plain.step()
    found: dict[str, Any] = dict(generator=generator, plain=peak_memory(plain.step, device), stage_2={})
    for models in (1, 2, 5):
        trainer = make_trainer(gan, "stage 2", settings("stage 2", batch), models)
        objective: Any = trainer.objective
        arrays = (objective.penalty.anchor, objective.penalty.fisher, objective.penalty.theta_bar)
        kept = sum(t.nbytes for ts in arrays if ts is not None for t in ts)
        step = Parts(trainer)
        step.step()
        found["stage_2"][str(models)] = dict(peak=peak_memory(step.step, device), kept=kept)
    return found


def _overhead(plan: Plan) -> dict[str, float]:
    """Seconds of a stage-2 step of the tiny networks: calls and bookkeeping, with next to nothing to compute."""
    parts = {kind: Parts(make_trainer(tiny_gan(), "stage 2", settings("stage 2", 4))) for kind in KINDS[:2]}
    runs = {kind: partial(_as, kind, each.step) for kind, each in parts.items()}
    return {kind: entry["median"] for kind, entry in times(runs, Plan(plan.seconds, plan.rounds, 1)).items()}


@click.command("step")
@click.option("--batch", default=32, show_default=True, type=click.IntRange(2), help="Samples a step.")
@click.option(
    "--gan",
    default="mnist",
    show_default=True,
    metavar="NAME",
    help="mnist, whole and in parts; animals, whole; or 256 (any resolution, untrained), whole.",
)
@click.option("--compile/--no-compile", default=True, show_default=True, help="Time torch.compile of the reference.")
@on_machine
def main(measured: dict[str, Any], batch: int, gan: str, compile: bool) -> None:
    """Time one training step of each stage, whole and in parts."""
    given = None if gan == "mnist" else gan_of(gan)
    brief = {"mnist": None, "animals": BRIEF}.get(gan, BRIEFEST)
    quick, dtypes = measured["quick"], measured["dtypes"]
    measure(
        "step",
        lambda plan, rates, say: run_step(plan, batch, compile and not quick, quick, say, dtypes, given, brief),
        **measured,
    )


if __name__ == "__main__":
    main()
