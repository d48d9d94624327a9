"""`atu label`: mark samples in a browser, on a page of this machine."""

from __future__ import annotations

from pathlib import Path

import click

from .options import begin, load_gan


@click.command("label")
@click.argument("ckpt")
@click.option(
    "--samples", default=10_000, show_default=True, type=click.IntRange(1, 1_000_000), help="Samples to look through."
)
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with settings, for runs from the page.")
@click.option(
    "--evaluate",
    default=10_000,
    show_default=True,
    type=click.IntRange(2),
    help="Fixed latents for a run's evaluation.",
)
@click.option("--open", "browser", is_flag=True, help="Open the page in the browser.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the samples and of runs.")
@click.option("--device", help='Where to compute, as torch names it: "cpu", "cuda", "cuda:1".')
@click.option("--quiet", is_flag=True, help="No output but the link.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for the marks.")
def label(
    ckpt: str,
    samples: int,
    config: Path | None,
    evaluate: int,
    browser: bool,
    seed: int,
    device: str | None,
    quiet: bool,
    out: Path,
) -> None:
    """Mark samples as unwanted or good, in a browser on this machine.

    OUT keeps every mark as soon as it is made; the same command goes on from there. `atu unlearn CKPT --negatives OUT`
    unlearns what was marked.
    """
    try:
        from ..label.server import serve
        from ..label.studio import open_studio
    except ImportError as error:
        raise ImportError(f"the page needs the packages of pip install 'atu-ext[label]' ({error})") from error

    begin(quiet, device)
    options = ["--samples", str(evaluate)]
    if device is not None:
        options += ["--device", device]
    if config is not None:
        options += ["--config", str(config.absolute())]
    name = ckpt if ckpt == "mnist" and not Path(ckpt).exists() else str(Path(ckpt).absolute())
    studio = open_studio(load_gan(ckpt, device), name, out, samples, seed, options, config)

    def told(link: str) -> None:
        click.echo(link)
        if not quiet:
            click.echo(f"Open this link once; it is of this machine only. Marks: {out}. Ctrl-C ends.", err=True)
        if browser:
            click.launch(link)

    serve(studio, told)
