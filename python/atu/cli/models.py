"""--model and --arg: a GAN of the user's own class, wherever a command takes a CKPT."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..support.user_code import is_reference

if TYPE_CHECKING:
    from ..formats.own_model import OwnModel


@dataclass(frozen=True)
class Model:
    """What --model and --arg say; reference is None where a CKPT says all."""

    reference: str | None = None
    arguments: Mapping[str, Any] | None = None

    def of(self, name: str) -> tuple[OwnModel | None, str | None]:
        """(the user's model, or None; its weights, None as built) that a CKPT stands for; "file.py:build" is both."""
        from ..formats.own_model import OwnModel

        own = is_reference(name) and not Path(name).exists()
        reference = self.reference or (name if own else None)
        if reference is None:
            if self.arguments:
                raise click.UsageError("--arg is for --model FILE.py:FUNCTION")
            return None, name
        if own and name != reference:
            raise click.UsageError(f"--model {reference}: the CKPT is another one, {name}; give files of weights")
        return OwnModel(reference, self.arguments or {}), None if own else name

    def recorded(self, name: str) -> list[str]:
        """The options again, for a command that another process runs on the CKPT `name`, or on what comes of it."""
        model, _ = self.of(name)
        if model is None:
            return []
        words = ["--model", model.reference]
        for key, value in model.arguments.items():
            words += ["--arg", f"{key}={value!r}"]
        return words


def model_options(function: Callable) -> Callable:
    """--model and --arg; the command gets them as one `Model`, under `model`."""

    @functools.wraps(function)
    def command(*args: Any, model: str | None, arguments: tuple[str, ...], **rest: Any) -> Any:
        return function(*args, model=Model(model, _arguments(arguments)), **rest)

    options = [
        click.option(
            "--model",
            metavar="FILE.py:FUNCTION",
            help="A GAN of your own class: what builds it; CKPT then is a file of its weights, or several: G.pt,D.pt.",
        ),
        click.option("--arg", "arguments", multiple=True, metavar="NAME=VALUE", help="For --model; may be repeated."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _arguments(texts: tuple[str, ...]) -> dict[str, Any]:
    """Values are Python's numbers, words in quotes, tuples and so on, and otherwise text."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or name in found:
            raise click.UsageError(f"--arg: expected NAME=VALUE, each name once, got {text!r}")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found
