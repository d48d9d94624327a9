"""What the commands of `atu` share: options, what they stand for, and the checks before any work."""

from __future__ import annotations

import functools
import json
import shlex
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import presets
from ..assets import DOMAINS, asset
from ..support import torchrun
from .models import Model

if TYPE_CHECKING:
    from ..gan import GAN

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER_OR_FILE = click.Path(path_type=Path)
FOLDER_OR_FILE.name = FOLDER.name  # of --out, which is shown alike in every command
MARKED = click.Path(path_type=Path)  # a folder of images or of marks, or a labels.json


@dataclass(frozen=True)
class Common:
    """What --out, --seed, --device and --quiet say."""

    out: Path
    seed: int
    device: str | None
    quiet: bool


def common(
    out_help: str,
    *,
    seed: bool = True,
    device: bool = True,
    threads: bool = False,
    several: bool = False,
    file: bool = False,
) -> Callable:
    """Add --out, --quiet and, unless left out, --device and --seed; the command gets them as one `Common`, first.

    Before the command runs, the folder and the device are checked. threads: add --threads too. several: the command
    knows what to do as one of several processes of torchrun; others refuse. file: --out may be a file, and the command
    knows what to do with one that is there.
    """
    options = [
        click.option("-o", "--out", required=True, type=FOLDER_OR_FILE if file else FOLDER, help=out_help),
        click.option("--quiet", is_flag=True, help="No progress output."),
    ]
    if device:
        options.append(click.option("--device", help='Where to compute, as torch names it: "cpu", "cuda", "cuda:1".'))
    if seed:
        options.append(
            click.option(
                "--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of everything random."
            )
        )

    if threads:
        text = "CPU threads; OMP_NUM_THREADS, or torch's own number, when not given."
        options.append(_in_context("--threads", text))

    def add(function: Callable) -> Callable:
        @functools.wraps(function)
        def command(out: Path, quiet: bool, device: str | None = None, seed: int = 0, **rest: Any) -> Any:
            if not several and torchrun.is_one_of_several():
                path = click.get_current_context().command_path.removeprefix("atu ")
                raise click.UsageError(f"{path} runs in one process: start it without torchrun")
            check_writable(out.parent if out.is_file() else out)
            begin(quiet, device)
            return function(Common(out, seed, device, quiet), **rest)

        for option in options:
            command = option(command)
        return command

    return add


def _in_context(option: str, text: str) -> Callable:
    """An option of the `RunContext` that the command runs in."""

    def enter(ctx: click.Context, param: click.Parameter, value: int | None) -> None:
        if value is not None:
            from ..support.context import RunContext

            given: dict[str, Any] = {str(param.name): value}
            ctx.with_resource(RunContext(**given))

    return click.option(option, type=click.IntRange(1), help=text, expose_value=False, callback=enter)


def begin(quiet: bool = False, device: str | None = None) -> None:
    """Set this process up for computing on `device`.

    Raises:
        ValueError: there is no such device.
    """
    import torch

    from ..support import progress
    from ..support.environment import keep_freed_memory

    keep_freed_memory()
    progress.set_quiet(quiet)
    progress.show_messages()
    if device is None:
        return
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device: expected one as torch names it (cpu, cuda, cuda:1), got {device!r}") from None
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device: {device} was asked for, but torch sees no CUDA device; leave --device out for the CPU"
        )


def join_world(run: Common) -> Common:
    """`run` in the process that this is of those that torchrun started: its own device, and the first alone speaks."""
    from ..support import progress, world
    from ..support.remarks import InputWarning

    device = world.join(run.device)
    quiet = run.quiet or not world.is_first()
    progress.set_quiet(quiet)
    if not world.is_first():  # the first says the same
        warnings.simplefilter("ignore", InputWarning)
    return replace(run, device=device, quiet=quiet)


def check_writable(folder: Path, name: str = "out") -> None:
    """Raise ValueError unless files can be written below `folder`, which need not be there; creates nothing."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ValueError(f"{name}: {folder} cannot be written ({error.strerror})") from error


def check_replaceable(out: Path, name: str, key: str) -> None:
    """Raise ValueError where OUT/NAME.json or NAME.html would be overwritten, and atu did not write it.

    key: of the JSON files that atu writes under that name.
    """
    found = [path for path in (out / f"{name}.json", out / f"{name}.html") if path.exists()]
    if not found:
        return
    try:
        ours = key in json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        ours = False
    if not ours:
        raise ValueError(f"out: {found[0]} was not written by atu, and would be overwritten; give another folder")


def check_no_run(out: Path) -> None:
    """Raise ValueError for a run folder, whose report would be overwritten by another one."""
    if (out / "run.json").exists():
        raise ValueError(f"out: {out} is the folder of a run, which holds the run's own report; give another folder")


def command_line() -> str:
    """This process's command, for reports."""
    return shlex.join(torchrun.command(*sys.argv[1:]))


# --- options

PROBE_JUDGES = (
    "No oracle was given: a probe fitted on your negatives and the original discriminator's features says what is "
    "negative. Its figures are estimates; look at the grids."
)

CONFIG = click.option("--config", type=FILE, help="TOML file with settings; what it leaves out keeps its default.")
METHOD = click.option(
    "--method",
    type=click.Choice(list(presets.METHODS)),
    metavar="NAME",
    help=f"How to unlearn: {', '.join(presets.METHODS)}; {presets.DEFAULT} unless --config says otherwise.",
)
COMPAT = click.option(
    "--compat",
    type=click.Choice(presets.COMPAT),
    help="Settings to start from: those of the paper's reference implementation (StyleGAN kinds).",
)
PRECISION = click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    help="What the networks run in while training; auto measures. float16 needs CUDA.",
)
RETRAINED = click.option("--retrained", metavar="CKPT", help="A GAN retrained without the negatives, to compare with.")
SAMPLES = click.option(
    "--samples", default=10_000, show_default=True, type=click.IntRange(2), help="Fixed latents for the evaluation."
)
SUBJECT = click.option("--subject", metavar="TEXT", help='What is unlearned, in words, for the report: "hats".')
REQUIRE = click.option(
    "--require",
    type=click.FloatRange(0, 100),
    metavar="PERCENT",
    help="Exit code 1 when less than this percentage of the negatives is gone.",
)
BATCH = _in_context("--batch", "Samples to make at once; 100 to 250, or what memory allows, if not given.")
MARKS = click.option(
    "--marks", default=200, show_default=True, type=click.IntRange(1), help="Negatives to mark, of each class."
)
TRAIN_DISCRIMINATOR = click.option(
    "--train-discriminator",
    type=click.IntRange(1),
    metavar="STEPS",
    help="For a checkpoint without a discriminator: first fit one on generated samples.",
)
LABEL = click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="K[=WEIGHT]",
    help="Conditional GANs: draw only this label; may be repeated, with weights. All labels equally when not given.",
)


def class_option(text: str) -> Callable:
    return click.option("--class", "classes", multiple=True, metavar="K", help=f"{text}; may be repeated.")


# --- what they stand for


def is_bundled(name: str | Path) -> bool:
    """Whether a name means what comes with the package, and no file of the user's."""
    return str(name) in DOMAINS and not Path(name).exists()


def checkpoint_of(name: str | Path, argument: str = "CKPT") -> Path:
    """The file that a checkpoint's name stands for: itself, a bundled GAN ("mnist"), or a run folder's result.

    Raises:
        ValueError: there is none, naming the argument.
    """
    path = Path(name)
    if is_bundled(name):
        return asset(f"{name}-gan.safetensors")
    if not path.exists():
        parts = str(name).split(",")
        if len(parts) > 1 and all(Path(part).exists() for part in parts):
            raise ValueError(
                f"{argument}: {name}: several files are the weights of a GAN of your own class; say which by "
                "--model FILE.py:FUNCTION"
            )
        raise ValueError(f"{argument}: {name}: no such file")
    if not path.is_dir():
        return path
    result = path / "result.safetensors"
    if not result.is_file():
        raise ValueError(f"{argument}: {name}: a folder without result.safetensors; is the run finished?")
    return result


def weights_of(text: str, argument: str = "CKPT") -> str:
    """A model's weights as given, with run folders as their results; errors as of `checkpoint_of`."""
    if Path(text).exists():
        return str(checkpoint_of(text, argument))
    parts = []
    for part in text.split(","):
        role, equals, file = part.rpartition("=")
        file, mark, name = (file, "", "") if Path(file).exists() else file.partition("#")
        parts.append(f"{role}{equals}{checkpoint_of(file, argument)}{mark}{name}")
    return ",".join(parts)


def load_gan(name: str | Path, device: str | None = None, argument: str = "CKPT", model: Model | None = None) -> GAN:
    """The GAN that a CKPT stands for, on `device`."""
    from ..formats.own_model import load_own
    from ..gan import GAN
    from ..support.environment import give_back_freed_memory

    own, weights = (model or Model()).of(str(name))
    if own is None:
        gan = GAN.load(checkpoint_of(name, argument))
    else:
        gan = load_own(own, None if weights is None else weights_of(weights, argument))
    if gan.is_big:
        give_back_freed_memory()
    return gan if device is None else gan.to(device)


def choose_labels(gan: GAN, labels: tuple[str, ...]) -> None:
    """Let `gan` draw the labels that were asked for."""
    from ..gan import label_choice

    if not labels:
        return
    weights: dict[int, float] = {}
    for text in labels:
        index, _, weight = text.partition("=")
        try:
            weights[int(index)] = float(weight) if weight else 1.0
        except ValueError:
            raise click.UsageError(f"--label: expected K or K=WEIGHT, got {text!r}") from None
    gan.label_sampler = label_choice(gan.c_dim, weights)


def with_discriminator(gan: GAN, steps: int | None, seed: int = 0) -> GAN:
    """The GAN, with a discriminator fitted for `steps` steps where it has none and that was asked for."""
    if steps is None or gan.discriminator is not None:
        return gan
    from ..training.fit_discriminator import fit_discriminator

    return fit_discriminator(gan, steps, seed=seed)


def require_gone(data: dict[str, Any], percent: float | None) -> None:
    """Exit code 1 unless `percent` of the negatives are gone."""
    from ..report.words import meets

    if percent is not None and not meets(data, percent):
        click.echo(f"{percent:g} % were required to be gone", err=True)
        raise click.exceptions.Exit(1)


def show(data: dict[str, Any], run: Common) -> None:
    """Print a report's table, and the files that were written."""
    from ..report import report

    if not run.quiet:
        report.print_table(data)
    for name in ("report.html", "report.json", "result.safetensors"):
        if (run.out / name).exists():
            click.echo(str(run.out / name))
