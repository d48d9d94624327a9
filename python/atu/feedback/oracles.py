"""An oracle answers during a run: samples [N, ...] -> bools [N], whether they are negative.

`find` makes one of a spec: a classifier's file, a function of the user's, words, or the name of an oracle that another
package adds (entry point group `atu.oracles`, or `@ORACLES.register("name")`): a function of one text, the arguments,
that returns an `is_negative`. Samples come on the GAN's device and in its range.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..assets import CLASSIFIERS, asset
from ..formats.tensors import load_tensors
from ..gan import GAN
from ..support.digest import sha256_of
from ..support.registry import Registry
from ..support.user_code import is_reference, load_object
from . import network_files
from .answers import Answers, NetworkAnswers, view_of
from .network_files import Network
from .spec import Spec, parse

IsNegative = Callable[[Tensor], Tensor]
ORACLES: Registry[Callable[[str], IsNegative]] = Registry("atu.oracles", {})
# Above this room, where it measures; named here as methods are in presets.py.
_PARTS = "atu-parts-classifier"
_CLASSIFIERS: Registry[Any] = Registry(
    "atu.classifiers",
    {"atu-classifier": "atu.evaluation.classifier:Classifier", _PARTS: "atu.evaluation.parts:PartsClassifier"},
)


def find(spec: str, gan: GAN | None = None, options: Mapping[str, str] | None = None) -> Answers:
    """The oracle, or judge, that a spec stands for; docs/cli.md has the syntax.

    Args:
        spec: "FILE?class=3", "module:function", "file.py:function", "text:WORDS", "mnist" and the like for a bundled
            classifier (`assets.CLASSIFIERS`), or "NAME:ARGUMENTS" of an oracle that another package adds.
        gan: whose samples it will see; four of them are shown to it now. Only a package's oracle can do without.
        options: further ones of the spec.

    Raises:
        ValueError: it cannot be found or read, an option does not fit, or what it answers is not usable; the message
            names the spec.
        ImportError: the package or module that gives it cannot be imported.
    """
    name, _, arguments = spec.partition(":")
    if name in ORACLES:
        return Answers(spec, None, Oracle(ORACLES.get(name)(arguments)))
    if gan is None:
        raise ValueError(f"oracle: {spec!r} is made for a GAN; give it too")
    parsed = parse(spec, options)
    if parsed.source.startswith("text:"):
        from .text import text_answers

        return text_answers(parsed, gan)
    path = Path(parsed.source)
    if parsed.source in CLASSIFIERS and not path.exists():
        path = asset(CLASSIFIERS[parsed.source])
    if path.is_file() or not is_reference(parsed.source):
        return _of_file(path, parsed, gan)
    return _of_function(parsed, gan)


def _of_file(path: Path, spec: Spec, gan: GAN) -> Answers:
    kind = network_files.kind_of(path)
    if kind == "safetensors":
        return _of_classifier(path, spec, gan)
    network = getattr(network_files, kind)(path, gan.device)
    view = view_of(spec, network, gan, (-1.0, 1.0))
    return _answers(NetworkAnswers(network, view, spec, gan), spec, sha256_of(path), own=True)


def _of_classifier(path: Path, spec: Spec, gan: GAN) -> Answers:
    """A classifier of this package: its size, range and class names are its own."""
    others = sorted(set(spec.options) - {"class", "threshold"})
    if others:
        raise ValueError(f"{spec.source}: {others[0]} is known of a classifier of atu; it takes class and threshold")
    if len(gan.sample_shape) != 3:
        raise ValueError(f"{spec.source}: judges images, and this GAN's samples are {list(gan.sample_shape)}")
    classifier, named = _loaded(path, spec)
    classifier = classifier.to(gan.device)
    network = Network(classifier.logits, classifier.sample_shape)
    view = view_of(spec, network, gan, classifier.image_range)
    own: dict[str, Any] = dict(names=classifier.classes, features=classifier.features, errors=classifier.confusion)
    answers = NetworkAnswers(network, view, named, gan, output="softmax", **own)
    found = _answers(answers, spec, sha256_of(path), own=True)
    if classifier.sample_shape == gan.sample_shape:  # it can be asked without a view between, and has gradients
        return dataclasses.replace(found, classifier=classifier)
    return found


def _loaded(path: Path, spec: Spec) -> tuple[Any, Spec]:
    """A classifier of this package, and the spec with the classes by the names that it has for them.

    One of parts becomes one of the names' classes: what "antlers" stands for are several kinds of ears.
    """
    if load_tensors(path, "none of them: only the metadata")[1].get("format") != _PARTS:
        return _CLASSIFIERS.get("atu-classifier").load(path), spec
    parts = _CLASSIFIERS.get(_PARTS).load(path)
    wanted = [name for name in spec.options.get("class", "").split(",") if name]
    if not wanted:
        raise ValueError(
            f"{spec.source}: class: say which are unwanted, one of {', '.join(parts.rules)}, or PART=VALUE: "
            f"{spec.source}?class={next(iter(parts.rules))}"
        )
    view = parts.view(wanted)
    chosen = ",".join(view.classes[index] for index in view.class_indices(wanted))
    return view, dataclasses.replace(spec, options={**spec.options, "class": chosen})


def _of_function(spec: Spec, gan: GAN) -> Answers:
    """A function of the user's, or a module: samples in the GAN's range -> bools [N], or numbers as a network's."""
    function, sha256 = load_object(spec.source, "oracle")
    if not callable(function):
        raise ValueError(f"oracle: {spec.source} is a {type(function).__name__}, which cannot be called")
    x = gan.sample(4)
    with torch.no_grad():
        answer = function(x)
    if _is_bool(answer):
        if spec.options:
            raise ValueError(f"{spec.source}: answers yes or no itself, and takes no {', '.join(spec.options)}")
        rule = Oracle(function)
        rule(x)
        return Answers(spec.recorded, sha256, rule)
    network = Network(lambda seen: torch.as_tensor(function(seen.to(gan.device))).detach().cpu())
    view = view_of(spec, network, gan, gan.image_range)
    return _answers(NetworkAnswers(network, view, spec, gan), spec, sha256, own=False)


def _is_bool(answer: Any) -> bool:
    if isinstance(answer, Tensor):
        return answer.dtype == torch.bool
    return bool(np.asarray(answer).dtype == np.bool_)


def _answers(found: NetworkAnswers, spec: Spec, sha256: str, own: bool) -> Answers:
    """As an oracle and, where it tells classes apart, as a classifier."""
    classifier = found if found.exclusive else None
    names = tuple(found.names[index] for index in found.chosen) if len(found.names) > 1 else ()
    chosen = names if found.exclusive and found.threshold is None else ()
    return Answers(spec.recorded, sha256, found.decide, own, found.score, classifier, chosen, names)


def check_independent(oracle: Answers | None, judge: Answers | None) -> None:
    """Raise ValueError where the judge is the oracle: what answered during a run cannot measure its outcome."""
    if oracle is None or judge is None:
        return
    same = oracle.sha256 is not None and oracle.sha256 == judge.sha256 and oracle.own and judge.own
    if same or (oracle.spec.partition("?")[0] == judge.spec.partition("?")[0] and oracle.sha256 == judge.sha256):
        raise ValueError(
            f"judge: {judge.spec} is the network that answers during the run ({oracle.spec}); give another one, or "
            "leave the judge out: the report then says that the oracle measures too"
        )


class Oracle:
    """Checks what the user's `is_negative` returns: bools [N] for samples [N, ...]."""

    def __init__(self, is_negative: IsNegative):
        if not callable(is_negative):
            raise TypeError(f"is_negative: expected a callable, got {type(is_negative).__name__}")
        self.is_negative = is_negative

    @property
    def identity(self) -> Any:
        """What a run folder knows it by: an `Answers`' spec and hash; of a callable, only that there is one."""
        return getattr(self.is_negative, "identity", True)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        answer = self.is_negative(x)
        if isinstance(answer, (np.ndarray, list, tuple)):
            answer = torch.as_tensor(answer)
        if not isinstance(answer, Tensor) or tuple(answer.shape) != (len(x),) or answer.dtype != torch.bool:
            got = f"{list(answer.shape)} {answer.dtype}" if isinstance(answer, Tensor) else type(answer).__name__
            raise ValueError(f"is_negative: expected a bool tensor [{len(x)}] for {len(x)} samples, got {got}")
        return answer.cpu()
