"""The `atu` command. Heavy imports happen inside the commands, so that `atu --help` answers at once."""

from __future__ import annotations

import importlib
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from .options import (
    COMPAT,
    CONFIG,
    LABEL,
    METHOD,
    REQUIRE,
    RETRAINED,
    SAMPLES,
    SUBJECT,
    begin,
    choose_labels,
    common,
    find_oracle,
    load_gan,
    oracle_options,
    require,
    show,
)

LAZY = {
    "bench": ("atu.bench.cli:main", "Time the ops, a training step and a whole unlearning."),
    "config": ("atu.cli.config:config", "Print all settings as TOML with comments."),
    "doctor": ("atu.cli.doctor:main", "Say what is installed, built and usable, and why what is off is off."),
    "export": ("atu.cli.formats:export", "Convert a checkpoint to another format."),
    "inspect": ("atu.cli.formats:inspect", "Say what a checkpoint holds, without executing anything in it."),
    "label": ("atu.cli.label:label", "Mark samples as unwanted or good, in a browser on this machine."),
}


class Commands(click.Group):
    """A group whose commands in LAZY are imported only when they are run; those not installed are not listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *(name for name in LAZY if _find(name))])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in LAZY or not _find(cmd_name):
            return super().get_command(ctx, cmd_name)
        target, text = LAZY[cmd_name]
        return _Lazy(cmd_name, target, text)


def _find(name: str) -> bool:
    """Whether the module of a lazy command is there; looks at files only, as importing would be slow."""
    module = LAZY[name][0].partition(":")[0].split(".")
    root = Path(__file__).parents[2] if module[0] == "atu" else None
    if root is None:
        import importlib.util

        try:
            return importlib.util.find_spec(".".join(module)) is not None
        except ModuleNotFoundError:
            return False
    return root.joinpath(*module).with_suffix(".py").exists()


class _Lazy(click.Command):
    """Stands for a command (or a plain function) of another module until it is run."""

    def __init__(self, name: str, target: str, text: str):
        super().__init__(name, help=text, short_help=text, add_help_option=False)
        self.target = target

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.args = list(args)
        return []

    def invoke(self, ctx: click.Context) -> Any:
        module, _, attribute = self.target.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        if isinstance(found, click.Command):
            with found.make_context(ctx.command_path, list(ctx.args), parent=ctx.parent) as sub:
                return found.invoke(sub)
        code = found(list(ctx.args))
        return ctx.exit(code) if isinstance(code, int) and code else None


class _Lists(click.Command):
    """A command whose options --classes and --methods take several words: --classes 1 4 8."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        expanded, option = [], ""
        for word in args:
            if word in ("--classes", "--methods"):
                option = word
            elif option and not word.startswith("-"):
                expanded += [option, word]
            else:
                option = ""
                expanded.append(word)
        return super().parse_args(ctx, expanded)


@click.group(cls=Commands, context_settings=dict(help_option_names=["-h", "--help"]))
@click.version_option(None, "--version", package_name="atu-ext", prog_name="atu")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Make a GAN forget what some of its samples show.

    CKPT is a checkpoint file, or "mnist" for the GAN that comes with the package; a CLASSIFIER likewise.
    """
    ctx.ensure_object(dict)["debug"] = debug


# --- commands


@cli.command("unlearn")
@click.argument("ckpt")
@click.option(
    "--negatives",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of images that must not be made, or of marks.",
)
@click.option("--positives", type=click.Path(path_type=Path), help="Folder of images that may be made.")
@click.option(
    "--train-discriminator",
    type=click.IntRange(1),
    metavar="STEPS",
    help="For a checkpoint without a discriminator: first fit one on generated samples.",
)
@click.option(
    "--negative-label", type=click.IntRange(0), metavar="K", help="Conditional GANs: the label of all the negatives."
)
@LABEL
@oracle_options
@METHOD
@COMPAT
@CONFIG
@SAMPLES
@SUBJECT
@REQUIRE
@common("Run folder; the same command goes on from a run that was stopped.")
def unlearn_command(
    ckpt,
    negatives,
    positives,
    train_discriminator,
    negative_label,
    labels,
    oracle,
    classes,
    method,
    compat,
    config,
    samples,
    subject,
    required,
    seed,
    device,
    quiet,
    out,
) -> None:
    """Unlearn what the images in a folder show, and report on it."""
    from ..data.marks import marks_folder
    from .jobs import unlearn_job

    begin(quiet, device)
    if positives is None:
        negatives, positives = marks_folder(negatives)
    classifier, is_negative = find_oracle(oracle, classes, device)
    gan = load_gan(ckpt, device)
    choose_labels(gan, labels)
    if train_discriminator is not None and gan.discriminator is None:
        from ..training.fit_discriminator import fit_discriminator

        gan = fit_discriminator(gan, train_discriminator, seed=seed)
    command = shlex.join(["atu", *sys.argv[1:]])
    data = unlearn_job(
        gan,
        negatives,
        positives,
        classifier,
        classes,
        is_negative,
        config,
        out,
        seed,
        device,
        samples,
        command,
        method,
        compat,
        negative_label,
        subject,
    )
    show(data, out, quiet)
    require(data, required)


@cli.command("sample")
@click.argument("ckpt")
@click.option("--n", default=64, show_default=True, type=click.IntRange(1), help="How many images.")
@click.option("--truncation", default=1.0, show_default=True, help="Truncation psi (StyleGAN kinds).")
@click.option("--noise", type=click.Choice(["random", "const", "none"]), help="Noise mode (StyleGAN kinds).")
@click.option("--grid", is_flag=True, help="One picture OUT/grid.png instead of one file an image.")
@LABEL
@oracle_options
@common("Folder for the images.")
def sample_command(ckpt, n, truncation, noise, grid, labels, oracle, classes, seed, device, quiet, out) -> None:
    """Write samples as PNG files; with --oracle, only those it calls one of the classes."""
    from ..data import images
    from ..experiments.marking import mark_negatives

    begin(quiet, device)
    gan = load_gan(ckpt, device)
    choose_labels(gan, labels)
    _, wanted = find_oracle(oracle, classes, device)
    options: dict[str, Any] = {} if truncation == 1 else {"truncation_psi": truncation}
    if noise is not None:
        options["noise_mode"] = noise
    if wanted is None:
        x = gan.sample(n, seed=seed, **options)
    elif options:
        raise click.UsageError("--oracle cannot be combined with --truncation or --noise")
    else:
        x, looked = mark_negatives(gan, wanted, n, seed)
        click.echo(f"{len(x)} of {looked} samples", err=True)
    if grid:
        click.echo(str(images.save_grid(x, gan.image_range, out / "grid.png")))
    else:
        click.echo(str(images.save_folder(x, gan.image_range, out)))


@cli.command("eval")
@click.argument("before")
@click.argument("after")
@oracle_options
@click.option("--negatives", type=click.Path(path_type=Path), help="Without --oracle: folder that a probe learns from.")
@click.option("--real", help="Folder of real images without the class, or mnist, for FID_cls.")
@SAMPLES
@SUBJECT
@REQUIRE
@common("Folder for report.json and report.html.")
def eval_command(
    before, after, oracle, classes, negatives, real, samples, subject, required, seed, device, quiet, out
) -> None:
    """Compare two checkpoints of one GAN, BEFORE and AFTER unlearning, on the same latents."""
    from .jobs import eval_job

    begin(quiet, device)
    if (oracle is None) == (negatives is None):
        raise click.UsageError(
            "--oracle CLASSIFIER and --class K are needed, or --negatives FOLDER, to say which samples are negative"
        )
    classifier, _ = find_oracle(oracle, classes, device)
    gans = load_gan(before, device), load_gan(after, device)
    command = shlex.join(["atu", *sys.argv[1:]])
    data = eval_job(*gans, classifier, classes, real, out, seed, samples, command, negatives, subject)
    show(data, out, quiet)
    require(data, required)


@cli.command("attack")
@click.argument("before")
@click.argument("after")
@oracle_options
@RETRAINED
@click.option("--negatives", type=click.Path(path_type=Path), help="Folder to relearn from; BEFORE's own if not given.")
@click.option("--starts", default=64, show_default=True, type=click.IntRange(1), help="Random starts of the search.")
@click.option("--steps", default=50, show_default=True, type=click.IntRange(1), help="Gradient steps of the search.")
@click.option("--relearn-steps", default=200, show_default=True, type=click.IntRange(1), help="Most fine-tuning steps.")
@common("Folder for attacks.json and attacks.html.")
def attack_command(
    before, after, oracle, classes, retrained, negatives, starts, steps, relearn_steps, seed, device, quiet, out
) -> None:
    """Try to get unlearned samples back out of AFTER: latent search, and relearning from a few negatives."""
    from ..evaluation.audit import Budget
    from .jobs import attack_job

    begin(quiet, device)
    if oracle is None and negatives is None:
        raise click.UsageError(
            "--oracle CLASSIFIER and --class K are needed, or --negatives FOLDER, to say which samples are negative"
        )
    classifier, _ = find_oracle(oracle, classes, device)
    first, last = load_gan(before, device), load_gan(after, device)
    other = None if retrained is None else load_gan(retrained, device)
    budget = Budget(starts=starts, steps=steps, relearn_steps=relearn_steps)
    command = shlex.join(["atu", *sys.argv[1:]])
    table = attack_job(first, last, other, classifier, classes, negatives, budget, out, seed, command)
    if not quiet:
        for row in table:
            click.echo("  ".join(f"{cell:>28}" for cell in row))
    for name in ("attacks.html", "attacks.json"):
        click.echo(str(out / name))


@cli.group("demo")
def demo_group() -> None:
    """See it work: on the bundled MNIST GAN, and on eight Gaussians."""


@demo_group.command("mnist")
@click.option("--digit", "digits", multiple=True, help="Digit to unlearn (8 unless --feature); may be repeated.")
@click.option("--feature", metavar="NAME", help="Unlearn a measured feature instead: thick, left (leaning) or wide.")
@click.option(
    "--from", "source", type=click.Path(path_type=Path), metavar="RUN", help="Go on from the result of an earlier demo."
)
@click.option("--negatives", default=200, show_default=True, type=click.IntRange(1), help="Negatives marked, a digit.")
@click.option("--no-oracle", is_flag=True, help="Give the negatives only; the classifier answers nothing else.")
@click.option("--attacks", "attacked", is_flag=True, help="Attack the result: latent search and relearning.")
@RETRAINED
@METHOD
@COMPAT
@CONFIG
@SAMPLES
@common("Run folder.")
def demo_mnist_command(
    digits,
    feature,
    source,
    negatives,
    no_oracle,
    attacked,
    retrained,
    method,
    compat,
    config,
    samples,
    seed,
    device,
    quiet,
    out,
) -> None:
    """Unlearn a digit, or a feature of the stroke, from the bundled MNIST StyleGAN2."""
    from ..experiments.mnist import demo_mnist

    begin(quiet, device)
    if retrained is not None and not attacked:
        raise click.UsageError("--retrained needs --attacks")
    data = demo_mnist(
        digits or (("8",) if feature is None else ()),
        out,
        negatives,
        samples,
        seed,
        device,
        config,
        not no_oracle,
        method,
        compat,
        feature,
        source,
        attacked,
        retrained,
    )
    show(data, out, quiet)


@demo_group.command("mog")
@CONFIG
@SAMPLES
@common("Run folder.")
def demo_mog_command(config, samples, seed, device, quiet, out) -> None:
    """Train an MLP GAN on eight Gaussians and erase two of them."""
    from ..experiments.mog import demo_mog

    begin(quiet, device)
    data = demo_mog(out, samples=samples, seed=seed, device=device, config=config)
    show(data, out, quiet)
    if not quiet:
        _print_centres(data)
    click.echo(str(out / "mog.png"))


def _print_centres(data: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..report.report import LABELS

    names = list(data["negatives"])
    grid = Table(title="% of samples at each centre", title_justify="left")
    for title in ("centre", *(LABELS[name] for name in names)):
        grid.add_column(title, justify="right")
    for centre in data["class_histogram_before"]:
        shares = [data[f"class_histogram_{name}"][centre]["share"] for name in names]
        grid.add_row(centre, *(f"{100 * share:.1f}" for share in shares))
    Console().print(grid)


@cli.command("reproduce", cls=_Lists)
@click.argument("dataset", type=click.Choice(["mnist", "afhq", "celebahq"]))
@click.option("--class", "--classes", "classes", multiple=True, help="Class or attribute to unlearn; may be repeated.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Seeds of each cell, from 0 on.")
@click.option("--method", "--methods", "methods", multiple=True, help="Method; may be repeated. All when not given.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of AFHQ or CelebA-HQ (see the docs).")
@click.option("--ckpt", help="Checkpoint of the GAN to unlearn from (afhq, celebahq).")
@click.option("--classifiers", type=click.Path(path_type=Path), help="Folder of classifiers; trained when not given.")
@click.option("--extractor", type=click.Path(path_type=Path), help="TorchScript file of Inception, for FID.")
@click.option("--negatives", default=200, show_default=True, type=click.IntRange(1), help="Negatives marked.")
@CONFIG
@click.option("--samples", default=10_000, show_default=True, type=click.IntRange(2), help="Fixed latents a cell.")
@click.option("--device", help='Where to compute, as torch names it: "cpu", "cuda", "cuda:1".')
@click.option("--quiet", is_flag=True, help="No progress output.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder; goes on from it.")
def reproduce_command(
    dataset,
    classes,
    seeds,
    methods,
    data,
    ckpt,
    classifiers,
    extractor,
    negatives,
    config,
    samples,
    device,
    quiet,
    out,
) -> None:
    """Compute the published table: every method, class and seed, beside the paper's rows. A stopped one goes on."""
    from .jobs import reproduce_job

    begin(quiet, device)
    if (dataset == "mnist") != (data is None and ckpt is None) or (data is None) != (ckpt is None):
        raise click.UsageError("afhq and celebahq need --data FOLDER and --ckpt FILE; mnist takes neither")
    gan = None if ckpt is None else load_gan(ckpt, device)
    options = dict(seeds=seeds, negatives=negatives, samples=samples)
    found = reproduce_job(dataset, classes, methods, gan, data, classifiers, extractor, config, device, out, options)
    click.echo(f"{found['cells_done']} of {found['cells']} cells", err=True)
    for name in ("table.md", "table.json", "figure.png"):
        click.echo(str(out / name))


@cli.group("pretrain")
def pretrain_group() -> None:
    """Train a GAN from scratch."""


def _pretrain_command(name: str, text: str) -> None:
    """Add `atu pretrain NAME`, which calls atu.experiments.pretrain.pretrain_NAME."""

    @pretrain_group.command(name, help=f"{text} A stopped training goes on when called again.")
    @click.option("--steps", type=click.IntRange(1), help="Training steps; the recipe's own number when not given.")
    @click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
    @click.option("--quiet", is_flag=True, help="No progress output.")
    @click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False))
    def command(steps, seed, quiet, out) -> None:
        from ..experiments import pretrain

        begin(quiet)
        options = {} if steps is None else dict(steps=steps)
        click.echo(str(getattr(pretrain, f"pretrain_{name}")(out, seed=seed, **options)))


_pretrain_command("mnist", "The command that made the bundled MNIST StyleGAN2.")
_pretrain_command("dcgan", "A DCGAN with batch norm on MNIST, to develop on.")
_pretrain_command("mlp", "A fully connected GAN with BCE on MNIST of very unequal classes (2 to 35 %), to develop on.")


@cli.group("train-classifier")
def classifier_group() -> None:
    """Train a classifier to judge samples with."""


@classifier_group.command("mnist")
@click.option("--epochs", default=40, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--quiet", is_flag=True, help="No progress output.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False))
def classifier_mnist_command(epochs, seed, quiet, out) -> None:
    """The command that made the bundled MNIST classifier."""
    from ..experiments.classifiers import train_mnist

    begin(quiet)
    path, accuracy = train_mnist(out, epochs, seed)
    click.echo(f"{100 * accuracy:.1f} % of the held-out images right", err=True)
    click.echo(str(path))


# --- errors


def _fail(text: str, code: int = 2) -> NoReturn:
    click.echo(f"atu: error: {text}", err=True)
    sys.exit(code)


def _resume_hint(arguments: list[str]) -> str:
    resumable = bool(arguments) and arguments[0] in ("unlearn", "demo", "pretrain", "reproduce")
    if not resumable:
        return "stopped"
    return f"stopped; the same command goes on from here:\n  atu {shlex.join(arguments)}"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors become one line on stderr and exit code 2 (130 after Ctrl-C, 143 after SIGTERM)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in arguments
    try:
        sys.exit(cli.main(arguments, prog_name="atu", standalone_mode=False) or 0)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort) as error:
        if debug:
            raise
        click.echo(f"\natu: {_resume_hint(arguments)}", err=True)
        sys.exit(getattr(error.__cause__ or error, "exit_code", 130))  # the cause: what click.Abort stands for
    except Exception as error:
        if debug:
            raise
        # Bad input and what the machine lacks have a message of their own; anything else is a fault of ours.
        expected = isinstance(error, (ValueError, TypeError, OSError, ImportError)) or _is_expected(error)
        text = " ".join(str(error).split()) or type(error).__name__
        _fail(text if expected else f"{type(error).__name__}: {text} (atu --debug ... shows the traceback)")


def _is_expected(error: Exception) -> bool:
    import torch

    from ..training.trainer import NonFiniteError

    return isinstance(error, (NonFiniteError, torch.OutOfMemoryError))


if __name__ == "__main__":
    main()
