"""The command `atu config`."""

from __future__ import annotations

import click

from .. import presets


@click.command("config")
@click.option(
    "--method",
    type=click.Choice(presets.METHODS.names()),
    metavar="NAME",
    help="Only the settings that this method uses, at its defaults.",
)
def config(method: str | None) -> None:
    """Print all settings as TOML, each explained.

    Save it as a file, change what you like, and give the file to --config.
    """
    from ..config_toml import commented

    click.echo(commented(method), nl=False)
