"""Python of the user's own, named on the command line: "file.py:name" or "package.module:name". It is executed."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

_REFERENCE = re.compile(r"(?P<module>.+):(?P<name>[^\W\d]\w*(\.[^\W\d]\w*)*)")
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_reference(text: str) -> bool:
    """Whether a text is "file.py:name" or "package.module:name"."""
    found = _REFERENCE.fullmatch(text)
    return found is not None and (found["module"].endswith(".py") or _MODULE.fullmatch(found["module"]) is not None)


def load_object(reference: str, what: str) -> tuple[Any, str]:
    """The object that "file.py:name" or "package.module:name" names, and the SHA-256 of the source that defines it.

    The module is imported, which runs it. The file's folder (or the working directory, for a module) joins sys.path, as
    it does when Python runs a file, so that a module finds its neighbours. what: names the argument in errors.

    Raises:
        ValueError: it is no such reference, there is no such file, or nothing of that name in it.
        ImportError: the module cannot be imported; the error's own words are told.
    """
    found = _REFERENCE.fullmatch(reference)
    if found is None or not is_reference(reference):
        raise ValueError(f"{what}: expected FILE.py:NAME or MODULE:NAME, got {reference!r}")
    where = found["module"]
    if where.endswith(".py") and not Path(where).is_file():
        raise ValueError(f"{what}: {where}: no such file")
    try:
        module = _from_file(Path(where).resolve()) if where.endswith(".py") else _by_name(where)
    except Exception as error:
        raise ImportError(f"{what}: {where} cannot be imported ({type(error).__name__}: {error})") from error
    value: Any = module
    for part in found["name"].split("."):
        if not hasattr(value, part):
            raise ValueError(f"{what}: {where} has no {found['name']!r}")
        value = getattr(value, part)
    return value, _sha256(module)


def _sha256(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    return hashlib.sha256(Path(file).read_bytes() if file else module.__name__.encode()).hexdigest()


def _by_name(name: str) -> ModuleType:
    _add_path(Path.cwd())
    return importlib.import_module(name)


def _from_file(path: Path) -> ModuleType:
    """The module of a file, executed once a process; named as the file, unless another module has that name."""
    for module in list(sys.modules.values()):
        if getattr(module, "_atu_file", None) == path:
            return module
    _add_path(path.parent)
    name = path.stem
    while name in sys.modules:
        name += "_"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    module._atu_file = path  # type: ignore[attr-defined]
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _add_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
