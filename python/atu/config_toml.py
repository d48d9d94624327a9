"""Settings as TOML with comments: what each one is, its unit, what it may be and its default."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import tomli_w
from pydantic.fields import FieldInfo

from . import presets
from .config import Config, Unit

_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text"}


class Setting(NamedTuple):
    """A field of a settings dataclass. allowed: the values that it may have, in words; empty for a nested dataclass."""

    name: str
    description: str
    unit: str
    allowed: str


def settings(kind: type) -> list[Setting]:
    """The fields of a settings dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    found = []
    for one in dataclasses.fields(kind):
        hint = hints[one.name]
        extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        description = next((e.description for e in extras if isinstance(e, FieldInfo) and e.description), "")
        unit = next((e.name for e in extras if isinstance(e, Unit)), "")
        found.append(Setting(one.name, description, unit, _allowed(hint)))
    return found


def _allowed(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = [bound for extra in arguments[1:] if isinstance(extra, FieldInfo) for bound in extra.metadata]
        return _allowed(arguments[0]) + _range(bounds)
    if origin is Literal:
        return " or ".join(repr(value).replace("'", '"') for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join("unset" if one is type(None) else _allowed(one) for one in arguments)
    if origin is list:
        return f"list of {_allowed(arguments[0])}"
    return _WORDS.get(hint, "")


def _range(bounds: list[Any]) -> str:
    low, high = (
        next((f"{word} {getattr(b, key)}" for b in bounds for key, word in words if hasattr(b, key)), "")
        for words in ((("ge", "from"), ("gt", "above")), (("le", "to"), ("lt", "below")))
    )
    return "".join(f" {part}" for part in (low, high) if part)


def commented(method: str | None = None) -> str:
    """All settings as TOML that `Config.load` reads: those that `method` uses, or those of every method.

    Values are the defaults of the method, or of the default method where none is given.

    Raises:
        ValueError: there is no such method.
    """
    config = Config.of(method)
    stages = presets.METHODS.get(config.method).stages
    lines = [
        f"# Settings of atu unlearn --method {config.method}, at their defaults. What is left out keeps its default.",
        "# Another method has other defaults: atu config --method NAME.",
        "",
        *_table(config, ()),
    ]
    for name in ("feedback", "adapt", "repel"):
        if method is None or name == "feedback" or name in stages:
            lines += _table(getattr(config, name), (name,))
    for name in presets.METHODS if method is None else (config.method,):
        if presets.METHODS.get(name).settings is not None:
            lines += _table(Config.of(name).own, ("methods", name))
    return "\n".join(lines).rstrip() + "\n"


def _table(group: Any, path: tuple[str, ...]) -> Iterator[str]:
    """Lines of a table, then those of the tables in it (Config's own are left to `commented`)."""
    if path:
        header: dict[str, Any] = {}
        for name in reversed(path):
            header = {name: header}
        yield from _comment((type(group).__doc__ or "").strip().partition("\n")[0])
        yield tomli_w.dumps(header).strip()
        yield ""
    nested = []
    for one in settings(type(group)):
        value = getattr(group, one.name)
        if dataclasses.is_dataclass(value):
            nested.append((value, (*path, one.name)))
        elif not isinstance(value, dict):
            yield from _setting(one, value)
    for value, inner in nested if path else ():
        yield from _table(value, inner)


def _setting(one: Setting, value: Any) -> Iterator[str]:
    text = "unset" if value is None else tomli_w.dumps({one.name: value}).strip()
    default = text.partition(" = ")[2] if value is not None else text
    unit = f" [{one.unit}]" if one.unit else ""
    yield from _comment(f"{one.description}{unit}")
    yield from _comment("; ".join(part for part in (one.allowed, f"default {' '.join(default.split())}") if part))
    yield f"# {one.name} =" if value is None else text
    yield ""


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
