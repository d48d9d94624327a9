"""Reading TOML that may come from anybody."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

_MOST = 2**18  # characters; all settings with their comments are an eighth of it
_DOTS = 100  # in a line: the parser's time grows with the square of a dotted key's parts
_DEEP = 32  # tables in tables, and lists in lists


def read_toml(path: str | Path, name: str = "config") -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        ValueError: it cannot be read, is not valid TOML, or is larger or deeper than settings are; `name` names the
            argument.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(_MOST + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{name}: {path} cannot be read ({error})") from error
    if len(text) > _MOST or any(line.count(".") > _DOTS for line in text.splitlines()):
        raise ValueError(
            f"{name}: {path} has more than {_MOST} characters, or {_DOTS} dots in a line: no settings have"
        )
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: {path} is not valid TOML ({error})") from error
    if _is_deeper(data, _DEEP):
        raise ValueError(f"{name}: {path} is nested more than {_DEEP} deep, which no settings are")
    return data


def _is_deeper(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most):
        mappings = [list(one.values()) for one in level if isinstance(one, dict)]
        level = [item for items in mappings + [one for one in level if isinstance(one, list)] for item in items]
    return bool(level)
