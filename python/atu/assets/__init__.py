"""Files that come with the package. Each was made by a command of the project; its log lies beside it."""

from __future__ import annotations

from pathlib import Path


def asset(name: str) -> Path:
    """Path of a bundled file.

    Raises:
        FileNotFoundError: this installation has no such file.
    """
    path = Path(__file__).parent / name
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the bundled file is missing; reinstall atu-ext")
    return path
