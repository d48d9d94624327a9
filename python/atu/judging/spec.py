"""The text that names a rule: "SOURCE?option=value&option=value".

SOURCE is a file (written by `atu train-classifier`, TorchScript or ONNX), "module:function" or "file.py:function", or
"text:WORDS". docs/oracles.md explains the options; `OPTIONS` lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

OPTIONS = {
    "class": "class=NAME or class=INDEX, several joined by commas: the unwanted ones",
    "threshold": "threshold=P: from what probability on a sample is unwanted",
    "output": "output=softmax, sigmoid or probabilities: what the network gives",
    "names": "names=A,B,C, or a text file with one name a line: the classes, in order",
    "size": "size=R or size=HxW: what the network takes",
    "channels": "channels=1 or channels=3",
    "range": "range=LOW,HIGH of what it takes",
    "mean": "mean=M or mean=R,G,B: subtracted, in that range",
    "std": "std=S or std=R,G,B: divided by",
}
TEXT_OPTIONS = ("against", "model", "weights", "threshold")
OUTPUTS = ("softmax", "sigmoid", "probabilities")


@dataclass(frozen=True)
class Spec:
    """A spec that was read. source: the part before "?". options: the rest, by name; only the names are checked."""

    source: str
    options: Mapping[str, str]

    @property
    def recorded(self) -> str:
        """The spec without the folders of its files, whose contents are hashed instead."""
        options = {name: value for name, value in self.options.items() if name != "weights"}
        for name in ("model", "names"):
            if Path(options.get(name, "")).is_file():
                options[name] = Path(options[name]).name
        file = Path(self.source).exists() or ".py:" in self.source
        source = Path(self.source).name if file else self.source
        return source + ("?" + "&".join(f"{name}={value}" for name, value in options.items()) if options else "")

    def numbers(
        self, name: str, counts: tuple[int, ...], default: tuple[float, ...] | None
    ) -> tuple[float, ...] | None:
        """An option's numbers, joined by commas; `default` when it is not given.

        Raises:
            ValueError: they are no finite numbers, or not as many as one of `counts`.
        """
        text = self.options.get(name)
        if text is None:
            return default
        try:
            values = tuple(float(part) for part in text.split(","))
        except ValueError:
            values = ()
        if len(values) not in counts or not all(abs(value) < float("inf") for value in values):
            raise ValueError(f"{self.source}: expected {OPTIONS[name]}; got {name}={text}")
        return values


def parse(text: str, options: Mapping[str, str] | None = None) -> Spec:
    """A spec from its text. options: further ones, which the text may not contradict.

    Raises:
        ValueError: an unknown option, one without a value, or one given twice.
    """
    source, mark, rest = text.partition("?")
    if mark and Path(text).exists():
        source, rest = text, ""
    names = TEXT_OPTIONS if source.startswith("text:") else tuple(OPTIONS)
    given: dict[str, str] = {}
    for part in rest.split("&") if rest else []:
        name, equals, value = part.partition("=")
        if name not in names or not equals or not value:
            raise ValueError(f"{source}: expected options {', '.join(names)} as name=value joined by &, got {part!r}")
        if name in given and name != "class":
            raise ValueError(f"{source}: {name} is given twice")
        given[name] = f"{given[name]},{value}" if name in given else value
    for name, value in (options or {}).items():
        if name not in names:
            raise ValueError(f"{source}: takes no {name}")
        if given.setdefault(name, value) != value:
            raise ValueError(f"{source}: {name}={given[name]} in it contradicts {name} {value} beside it")
    return Spec(source, given)
