"""`atu label`: mark samples in a browser, on a page of this machine."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .help import Command
from .models import Model, model_options
from .options import CONFIG, FILE, Common, checkpoint_of, common, is_bundled, load_gan
from .oracles import JUDGE, Asked, oracle_options

if TYPE_CHECKING:
    from ..label.studio import Studio


@click.command("label", cls=Command)
@click.argument("ckpt")
@model_options
@click.option(
    "--samples", default=10_000, show_default=True, type=click.IntRange(1, 1_000_000), help="Samples to look through."
)
@JUDGE
@oracle_options
@CONFIG
@click.option(
    "--evaluate",
    default=10_000,
    show_default=True,
    type=click.IntRange(2),
    help="Fixed latents for a run's evaluation.",
)
@click.option(
    "--like",
    multiple=True,
    type=FILE,
    metavar="PICTURE",
    help="Offer the samples that are like this picture first; may be repeated.",
)
@click.option("--open", "browser", is_flag=True, help="Open the page in the browser.")
@common("Folder for the marks.")
def label(
    run: Common,
    ckpt: str,
    model: Model,
    samples: int,
    asked: Asked,
    config: Path | None,
    evaluate: int,
    like: tuple[Path, ...],
    browser: bool,
) -> None:
    """Mark samples as unwanted or good, in the browser.

    OUT keeps every mark as soon as it is made; the same command goes on from there. `atu unlearn CKPT --negatives OUT`
    unlearns what was marked.

    CKPT: a checkpoint, a run folder, mnist or animals.
    """
    try:
        from ..label.server import serve
        from ..label.studio import open_studio
    except ImportError as error:
        raise ImportError(f"the page needs the packages of pip install 'atu-ext[label]' ({error})") from error

    options = ["--samples", str(evaluate), *asked.recorded(), *model.recorded(ckpt)]
    if run.device is not None:
        options += ["--device", run.device]
    if config is not None:
        options += ["--config", str(config.absolute())]
    own = model.of(ckpt)[0] is not None or is_bundled(ckpt)
    name = ckpt if own else str(checkpoint_of(ckpt).absolute())
    gan = load_gan(ckpt, run.device, model=model)
    oracle, _ = asked.find_both(gan)  # what does not fit is told now, not by the first run
    studio = open_studio(gan, name, run.out, samples, run.seed, options, config, like, oracle)

    def told(link: str) -> None:
        click.echo(link)
        if not run.quiet:
            click.echo(f"Open this link once; it is of this machine only. Marks: {run.out}. Ctrl-C ends.", err=True)
        if browser:
            click.launch(link)

    serve(studio, told)
    if not run.quiet:
        click.echo(_goodbye(studio), err=True)


def _goodbye(studio: Studio) -> str:
    """What is there, and how it goes on."""
    session, runs = studio.session, studio.runs
    marked = ", ".join(f"{count} {label}" for label, count in session.counts().items())
    told = f"{marked}, in {session.folder}. The same command opens the page again."
    if session.counts()["unwanted"] == 0:
        return told
    if runs.finished(studio.number):
        return f"{told}\nThe last run: {runs.report(studio.number)}, {runs.result(studio.number)}"
    return f"{told}\nTo unlearn without the page:\n  {shlex.join(['atu', *runs.command(studio.number)])}"
