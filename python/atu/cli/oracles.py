"""--oracle, --judge and --text: who says what is unwanted, on the command line."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import FILE, class_option

if TYPE_CHECKING:
    from ..gan import GAN
    from ..judging.rule import Rule

SPEC = "a classifier's file (of atu train-classifier, TorchScript, ONNX), module:function, text:WORDS, mnist or animals"


@dataclass(frozen=True)
class Asked:
    """The values of --oracle, --judge, --text and --class: specs, and further options of each."""

    oracle: str | None = None
    judge: str | None = None
    classes: tuple[str, ...] = ()
    text: tuple[tuple[str, str], ...] = ()

    def find(self, spec: str | None, gan: GAN) -> Rule | None:
        """The rule that a spec stands for, for `gan`; None for None."""
        from ..judging.finding import ORACLES, find

        if spec is None:
            return None
        if spec.startswith("text:"):
            return find(spec, gan, dict(self.text))
        named = "class=" in spec.partition("?")[2] or spec.partition(":")[0] in ORACLES
        if not self.classes or named:
            return find(spec, gan)
        try:
            return find(spec, gan, {"class": ",".join(self.classes)})
        except ValueError as error:
            if self.oracle is None or self.judge is None:
                raise
            hint = f'--class is for the oracle and the judge; where they differ, say it in the SPEC: "{spec}?class=..."'
            raise ValueError(f"{error} ({hint})") from error

    def find_both(self, gan: GAN) -> tuple[Rule | None, Rule | None]:
        """(oracle, judge), which must be different networks."""
        from ..judging.rule import check_independent

        oracle, judge = self.find(self.oracle, gan), self.find(self.judge, gan)
        check_independent(oracle, judge)
        return oracle, judge

    def recorded(self) -> list[str]:
        """The options again, for a command that another process runs."""
        words = [word for name in self.classes for word in ("--class", name)]
        for name, value in (("--oracle", self.oracle), ("--judge", self.judge)):
            words += [] if value is None else [name, value]
        for name, value in self.text:
            words += [_TEXT_OPTIONS[name], value]
        return words


_TEXT_OPTIONS = {"against": "--against", "model": "--clip-model", "weights": "--clip-weights"}


def oracle_options(function: Callable) -> Callable:
    """--oracle, --text and --class, for commands in which an oracle answers; see `Asked`."""
    return _options(function, click.option("--oracle", metavar="SPEC", help=f"Says which are unwanted: {SPEC}."))


def judge_options(function: Callable) -> Callable:
    """--judge (or --oracle, which means the same here), --text and --class, for commands that measure."""
    words = f"Measures which are unwanted: {SPEC}."
    return _options(function, click.option("--judge", "--oracle", "oracle", metavar="SPEC", help=words))


JUDGE = click.option(
    "--judge", metavar="SPEC", help="Measures the result, by a SPEC as of --oracle. Must not be the oracle."
)


def _options(function: Callable, first: Callable) -> Callable:
    """The command gets what they say as one `Asked`, under `asked`."""

    @functools.wraps(function)
    def command(
        *args: Any,
        oracle: str | None,
        classes: tuple[str, ...],
        text: str | None,
        against: str | None,
        clip_model: str | None,
        clip_weights: Path | None,
        judge: str | None = None,
        **rest: Any,
    ) -> Any:
        if text is not None and oracle is not None:
            raise click.UsageError("--text is an oracle by itself; give it or --oracle")
        words = {
            "against": against,
            "model": clip_model,
            "weights": None if clip_weights is None else str(clip_weights),
        }
        given = tuple((name, value) for name, value in words.items() if value is not None)
        oracle = oracle if text is None else f"text:{text}"
        by_text = [spec for spec in (oracle, judge) if spec is not None and spec.startswith("text:")]
        if given and not by_text:
            raise click.UsageError(f"{_TEXT_OPTIONS[given[0][0]]} needs --text")
        if classes and all(spec is None or spec.startswith("text:") for spec in (oracle, judge)):
            raise click.UsageError("--class needs --oracle SPEC that knows classes")
        return function(*args, asked=Asked(oracle, judge, classes, given), **rest)

    options = [
        first,
        class_option("A class that the oracle, and the judge, knows"),
        click.option("--text", metavar="WORDS", help='What is unwanted, in words, judged by CLIP: "eyeglasses".'),
        click.option("--against", metavar="WORDS", help='With --text: what is not unwanted: "no eyeglasses".'),
        click.option("--clip-model", metavar="NAME", help="With --text: a model of open_clip (ViT-B-32)."),
        click.option("--clip-weights", type=FILE, help="With --text: its weights; those in the cache when not given."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def check_judge(asked: Asked, negatives: Path | None, option: str = "--judge") -> None:
    """An error unless a spec, that of `option`, or --negatives says which samples are unwanted."""
    if asked.oracle is None and negatives is None:
        raise click.UsageError(
            f"{option} SPEC (a classifier with --class K, a function, --text WORDS) is needed, or --negatives FOLDER, "
            "to say which samples are unwanted"
        )


def subject_of(negatives: Path | None, given: str | None, *rules: Rule | None) -> str:
    """The name of what is unlearned: as given, else by the first of the rules, else by the folder of the negatives."""
    rule = next((one for one in rules if one is not None), None)
    if given:
        return given
    if rule is not None and rule.spec.startswith("text:"):
        return rule.spec.removeprefix("text:").partition("?")[0]
    if rule is not None and rule.subject:
        return ("class " if len(rule.subject) == 1 else "classes ") + ", ".join(rule.subject)
    if negatives is not None:
        folder = negatives.resolve()
        return f"what {folder.parent.name if folder.is_file() else folder.name} shows"
    return "what was marked" if rule is None else f"what {rule.spec} finds"


def described(rule: Rule) -> str:
    """A rule's spec and hash, for a report's notes."""
    sha256 = None if rule.source is None else rule.source.sha256
    return rule.spec + ("" if sha256 is None else f" (SHA-256 {sha256[:16]}...)")


def answered_in(run: str, judge: Rule | None) -> bool | None:
    """True if `judge` (None: a probe) answered in the run whose folder or result a CKPT names; None if unknown.

    A network is identified by its hash. A file of functions holds several, and an edited one may answer as before.
    """
    try:
        folder = Path(run).parent if Path(run).name == "result.safetensors" else Path(run)
        oracle = json.loads((folder / "run.json").read_text(encoding="utf-8"))["identity"]["oracle"]
        if judge is None or not oracle:
            return judge is None and not oracle
        assert judge.source is not None
        same, sha256 = bool(oracle["sha256"] == judge.source.sha256), judge.source.sha256
        if judge.source.sufficient:
            return same
        name, other = (spec.partition("?")[0] for spec in (judge.spec, oracle["spec"]))
        if name == other:
            return True if same else None
        moved = same and name.rpartition(":")[2] == other.rpartition(":")[2]
        return None if moved or sha256 is None else False
    except (OSError, ValueError, KeyError, TypeError):
        return None
