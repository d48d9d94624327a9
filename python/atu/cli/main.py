"""The `atu` command. Heavy imports happen inside the commands, so that `atu --help` answers at once."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import click

from ..bench.cli import bench
from ..support import terminal, torchrun
from .audit import audit
from .config import config
from .demo import demo
from .doctor import doctor
from .evaluate import evaluate
from .formats import export, inspect
from .help import Group
from .label import label
from .release import release
from .sample import sample
from .train import train_classifier
from .unlearn import unlearn

# Former spellings of options that mean the same.
SPELLINGS = {"digit": "class", "n": "samples"}
# Arguments of the Python functions, which their errors name, and the options that stand for them here.
OPTIONS = {"from_run": "from", "is_negative": "oracle"}
RESUMABLE = ("unlearn", "demo", "audit")


@click.group(
    cls=Group,
    context_settings=dict(
        help_option_names=["-h", "--help"], token_normalize_func=lambda word: SPELLINGS.get(word, word)
    ),
)
@click.version_option(None, "--version", package_name="atu-ext", prog_name="atu")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Remove what you don't want from a trained GAN.

    \b
      atu demo mnist --class 8 --out out
      atu label network.pkl --out marks
      atu unlearn network.pkl --negatives marks --out run
      atu export run unlearned.pkl

    CKPT is a checkpoint (.pkl of NVIDIA's StyleGAN2 and 3, .pt of rosinality's, atu's own), a run folder, or "mnist" or
    "animals" for a bundled GAN; with --model it holds weights of a GAN of your own class. A SPEC says who tells what is
    unwanted: a classifier's file, module:function, text:WORDS, "mnist" or "animals".
    """


for command in (
    *(demo, sample, label, unlearn, evaluate, audit, export, doctor),
    *(inspect, config, train_classifier, release, bench),
):
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors become one line on stderr and exit code 2 (130 after Ctrl-C, 143 after SIGTERM)."""
    with terminal.guarded():
        _run(sys.argv[1:] if arguments is None else list(arguments))


def _run(arguments: list[str]) -> None:
    debug = "--debug" in arguments
    if debug:
        sys.excepthook = terminal.show_error
    try:
        code = cli.main(arguments, prog_name="atu", standalone_mode=False) or 0
        if not torchrun.is_first():
            _end(code)
        sys.exit(code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort) as error:
        if debug:
            raise
        if torchrun.is_first():
            click.echo(f"\n{_stopped(arguments)}", err=True)
        sys.exit(getattr(error.__cause__ or error, "exit_code", 130))  # the cause: what click.Abort stands for
    except Exception as error:
        if debug:
            raise
        click.ClickException(message(error, arguments)).show()
        sys.exit(2)


def _end(code: int) -> NoReturn:
    """End a process of several, at once: the threads of torch's store, which the first one serves, now and then abort
    one that takes its interpreter down meanwhile, and torchrun would stop the first one for it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _stopped(arguments: list[str]) -> str:
    if not arguments or arguments[0] not in RESUMABLE:
        return "Stopped."
    return f"Stopped; the same command goes on from here:\n  {shlex.join(torchrun.command(*arguments))}"


def message(error: Exception, arguments: list[str]) -> str:
    """One line for an error. What is no fault of the input is named as such, with the way to its traceback."""
    text = " ".join(str(error).split()) or type(error).__name__
    if _is_expected(error):
        name, colon, rest = text.partition(":")
        return f"{OPTIONS.get(name, name)}{colon}{rest}"
    again = shlex.join(torchrun.command("--debug", *arguments))
    return f"{type(error).__name__}: {text} ({again} shows the traceback)"


def _is_expected(error: Exception) -> bool:
    """Whether an error says what is wrong with the input, or what the machine lacks.

    Checks of the input are `raise` statements in the package's own code. A ValueError that comes out of torch, numpy
    or a built-in function was not checked for: it is a fault of atu's, or of the user's network.
    """
    import torch

    from ..support.world import WorldError
    from ..training.step import NonFiniteError

    if isinstance(error, (OSError, NonFiniteError, WorldError, torch.OutOfMemoryError)):
        return True
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = Path(__file__).parents[1] in Path(last.filename).parents
    return isinstance(error, (ValueError, TypeError, ImportError)) and ours and (last.line or "").startswith("raise ")


if __name__ == "__main__":
    main()
