"""Tables that other packages can add to: methods, metrics, formats, oracles, networks."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Things by name: built in, registered by a decorator, or found as entry points of installed packages.

    A thing is imported when it is asked for, so a table can stand below what it names, and listing it imports nothing.

    Args:
        group: of the entry points, "atu." and a plural; its singular is what error messages call a thing.
        builtin: "module:attribute" by name.
    """

    def __init__(self, group: str, builtin: Mapping[str, str]):
        self.group, self.builtin = group, dict(builtin)
        self.noun = group.rpartition(".")[2].removesuffix("s")
        self._registered: dict[str, T] = {}
        self._found: dict[str, list[EntryPoint]] | None = None

    def names(self) -> list[str]:
        """All names: the built-in ones, then those of other packages."""
        return list(dict.fromkeys([*self.builtin, *self._registered, *self._entry_points()]))

    def added(self) -> list[str]:
        """The names that are not built in."""
        return [name for name in self.names() if name not in self.builtin]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self.builtin or name in self._registered or name in self._entry_points()

    def check(self, name: str) -> str:
        """Return `name`; raise ValueError unless it is in the table."""
        if name not in self:
            names = ", ".join(self.names()) or "none: no installed package adds one"
            raise ValueError(f"{self.noun}: expected one of {names}, got {name!r}")
        return name

    def get(self, name: str) -> T:
        """The thing of that name, imported now if need be.

        Raises:
            ValueError: there is none of that name, or more than one; the packages are named.
            ImportError: it cannot be imported; its package is named.
        """
        self.check(name)
        owners = self._owners(name)
        if len(owners) > 1:
            raise ValueError(f"{self.noun}: {name!r} is given by {' and by '.join(owners)}; keep one of them")
        if name in self._registered:
            return self._registered[name]
        if name in self.builtin:
            module, _, attribute = self.builtin[name].partition(":")
            return getattr(importlib.import_module(module), attribute)
        try:
            return self._entry_points()[name][0].load()
        except Exception as error:
            raise ImportError(
                f"{self.noun}: {name!r} cannot be loaded from {owners[0]} ({type(error).__name__}: {error}); repair or "
                "uninstall it"
            ) from error

    __getitem__ = get

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that adds a thing in this process: `@TABLE.register("name")`, or `TABLE.register("name")(thing)`.

        Raises:
            ValueError: the name is taken.
        """
        if name in self:
            raise ValueError(f"{self.noun}: {name!r} is given by {' and by '.join(self._owners(name))} already")

        def add(thing: T) -> T:
            self._registered[name] = thing
            return thing

        return add

    def name_of(self, thing: Any) -> str | None:
        """The name that a class or function has here, or None. Of other packages' entries only those of its own package
        are imported, so that one which cannot be imported does no harm."""
        target = f"{thing.__module__}:{thing.__qualname__}"
        names = [name for name, own in self.builtin.items() if own == target]
        names += [name for name, one in self._registered.items() if one is thing]
        package = thing.__module__.partition(".")[0]
        near = [name for name, found in self._entry_points().items() if found[0].module.partition(".")[0] == package]
        return next(iter(names), None) or next((name for name in near if self.get(name) is thing), None)

    def _owners(self, name: str) -> list[str]:
        """Who gives a name, in words."""
        owners = ["atu itself"] if name in self.builtin else []
        owners += ["a call of register()"] if name in self._registered else []
        for found in self._entry_points().get(name, []):
            dist = found.dist
            owners.append("an unnamed package" if dist is None else f"the package {dist.name} {dist.version}")
        return owners

    def _entry_points(self) -> dict[str, list[EntryPoint]]:
        if self._found is None:
            self._found = {}
            for found in sorted(entry_points(group=self.group), key=lambda one: one.name):
                same = self._found.setdefault(found.name, [])
                if found not in same:  # a package that lies twice on sys.path is listed twice
                    same.append(found)
        return self._found
