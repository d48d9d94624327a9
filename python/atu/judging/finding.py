"""Finding a rule: of a spec, or of whatever says which samples are unwanted.

Another package adds rules to what a spec may name (entry point group `atu.oracles`, or `@ORACLES.register("name")`):
a function of one text, the arguments, that returns a function, samples -> bool [N]. Samples come on the GAN's device
and in its range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..assets import CLASSIFIERS, asset
from ..data.marks import labels_file
from ..formats.tensors import load_tensors
from ..gan import GAN
from ..support.digest import sha256_of
from ..support.modules import eval_mode
from ..support.registry import Registry
from ..support.user_code import is_reference, load_object
from . import foreign, parts
from .classifier import Classifier, check_outputs
from .foreign import Foreign, Outputs
from .meaning import chosen_of, names_of, output_of, sums_to_one, threshold_of
from .probe import probe_of
from .rule import Rule, Source, class_rule, index_rule
from .spec import Spec, parse
from .text import text_rule
from .view import Viewed, view_of

ORACLES: Registry[Callable[[str], Callable[[Tensor], Tensor]]] = Registry("atu.oracles", {})


def rule_of(value: Any, gan: GAN, classes: Iterable[int | str] = (), seed: int = 0) -> Rule:
    """The rule that `value` is, for samples of `gan`.

    Args:
        value: a `Rule`, which stays as it is; a `Classifier`; an nn.Module, samples in `gan.image_range` -> logits [N,
            classes], whose classes are named "0", "1", ...; a spec (`find`), a classifier's file among them; a
            function, samples -> bool [N]; or negatives, from which a probe is fitted: a folder of images, a tensor, an
            array or a dataset.
        classes: the unwanted ones, by name or index, where the value is a classifier.
        seed: of the samples that a probe is fitted on.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    unwanted = tuple(classes)
    if isinstance(value, nn.Module):
        value = _module_classifier(value, gan)
    if isinstance(value, Classifier):
        return class_rule(value, unwanted, gan.image_range)
    if isinstance(value, (str, Path)) and not Path(value).is_dir() and labels_file(value) is None:
        return find(str(value), gan, {"class": ",".join(map(str, unwanted))} if unwanted else {})
    if unwanted:
        raise ValueError(f"classes: {', '.join(map(str, unwanted))} need a classifier that knows classes")
    if isinstance(value, Rule):
        return value
    if value is None:
        raise ValueError("judge: expected a rule, a classifier, a function or negatives, got None")
    if callable(value):
        return Rule(value, name=getattr(value, "name", None) or "rule")
    return probe_of(gan, value, seed=seed)


def _module_classifier(module: nn.Module, gan: GAN) -> Classifier:
    x = gan.sample(2)
    tensor = next((t for t in [*module.parameters(), *module.buffers()]), x)
    with torch.no_grad(), eval_mode(module):
        logits = module(x.to(tensor.device, torch.float32))
    check_outputs(logits, len(x))
    names = [str(index) for index in range(logits.shape[1])]
    return Classifier(module, names, gan.image_range, type(module).__name__)


def find(spec: str, gan: GAN | None = None, options: Mapping[str, str] | None = None) -> Rule:
    """The rule that a spec stands for; docs/oracles.md has the syntax.

    Args:
        spec: "FILE?class=3", "module:function", "file.py:function", "text:WORDS", "mnist" and the like for a bundled
            classifier (`assets.CLASSIFIERS`), or "NAME:ARGUMENTS" of what another package adds.
        gan: whose samples it will see; four of them are shown to it now. Only what a package adds can do without.
        options: further ones of the spec.

    Raises:
        ValueError: it cannot be found or read, an option does not fit, or its answers cannot be used; the message names
            the spec.
        ImportError: the package or module that gives it cannot be imported.
    """
    name, _, arguments = spec.partition(":")
    if name in ORACLES:
        return Rule(ORACLES.get(name)(arguments), name=spec, source=Source(spec))
    if gan is None:
        raise ValueError(f"oracle: {spec!r} is made for a GAN; give it too")
    parsed = parse(spec, options)
    if parsed.source.startswith("text:"):
        return text_rule(parsed, gan)
    path = Path(parsed.source)
    if parsed.source in CLASSIFIERS and not path.exists():
        path = asset(CLASSIFIERS[parsed.source])
    if path.is_file() or not is_reference(parsed.source):
        return _of_file(path, parsed, gan)
    return _of_function(parsed, gan)


def _of_file(path: Path, spec: Spec, gan: GAN) -> Rule:
    kind = foreign.kind_of(path)
    if kind == "safetensors":
        return _of_own_file(path, spec, gan)
    network = (foreign.torchscript if kind == "torchscript" else foreign.onnx)(path, gan.device)
    return _of_foreign(network, spec, gan, (-1.0, 1.0), Source(spec.recorded, sha256_of(path), True))


def _of_own_file(path: Path, spec: Spec, gan: GAN) -> Rule:
    """A classifier of this package: its size, range and class names are in its file."""
    others = sorted(set(spec.options) - {"class", "threshold"})
    if others:
        raise ValueError(f"{spec.source}: {others[0]} is known of a classifier of atu; it takes class and threshold")
    if len(gan.sample_shape) != 3:
        raise ValueError(f"{spec.source}: judges images, and this GAN's samples are {list(gan.sample_shape)}")
    threshold = threshold_of(spec)
    if load_tensors(path, "none of them: only the metadata")[1].get("format") == parts.FORMAT:
        classifier, chosen = _of_parts(path, spec)
    else:
        classifier = Classifier.load(path)
        chosen = chosen_of(spec, classifier.classes, exclusive=True)
    classifier = classifier.to(gan.device)
    shape = classifier.sample_shape
    assert shape is not None
    if shape != gan.sample_shape:
        view = view_of(spec, shape, None, gan, classifier.image_range)
        classifier = Classifier(
            Viewed(classifier.module, view),
            classifier.classes,
            gan.image_range,
            classifier.name,
            classifier.confusion,
            sha256=classifier.sha256,
        )
    rule = index_rule(classifier, chosen, gan.image_range, threshold, Source(spec.recorded, classifier.sha256, True))
    if not torch.isfinite(rule.rank(gan.sample(4))).all():
        raise ValueError(f"{spec.source}: gives values that are not finite")
    return rule


def _of_parts(path: Path, spec: Spec) -> tuple[Classifier, list[int]]:
    """A classifier of parts as one of the names' classes, and which of these the names stand for: "antlers" are several
    kinds of ears."""
    several = parts.PartsClassifier.load(path)
    names = [name for name in spec.options.get("class", "").split(",") if name]
    if not names:
        raise ValueError(
            f"{spec.source}: class: say which are unwanted, one of {', '.join(several.conditions)}, or PART=VALUE: "
            f"{spec.source}?class={next(iter(several.conditions))}"
        )
    view = several.view(names)
    return view, view.class_indices(names)


def _of_function(spec: Spec, gan: GAN) -> Rule:
    """A function of the user's, or a module: samples in the GAN's range -> bools [N], or numbers as a network's."""
    function, sha256 = load_object(spec.source, "oracle")
    if not callable(function):
        raise ValueError(f"oracle: {spec.source} is a {type(function).__name__}, which cannot be called")
    source, x = Source(spec.recorded, sha256), gan.sample(4)
    with torch.no_grad():
        answer = function(x)
    if _is_bool(answer):
        if spec.options:
            raise ValueError(f"{spec.source}: answers yes or no itself, and takes no {', '.join(spec.options)}")
        rule = Rule(function, name=spec.recorded, source=source)
        rule(x)
        return rule
    network = Foreign(lambda seen: torch.as_tensor(function(seen.to(gan.device))).detach().cpu())
    return _of_foreign(network, spec, gan, gan.image_range, source)


def _is_bool(answer: Any) -> bool:
    if isinstance(answer, Tensor):
        return answer.dtype == torch.bool
    return bool(np.asarray(answer).dtype == np.bool_)


def _of_foreign(network: Foreign, spec: Spec, gan: GAN, usual: tuple[float, float], source: Source) -> Rule:
    """A network whose outputs alone are known; what they mean, the spec or the outputs for four samples say."""
    module = Outputs(network.run, view_of(spec, network.shape, network.values, gan, usual), spec.source)
    x = gan.sample(4)
    with torch.no_grad():
        y = module(x)
    output, names = output_of(spec, y), names_of(spec, y.shape[1])
    exclusive = y.shape[1] > 1 and (output == "softmax" or sums_to_one(y, output))
    classifier = Classifier(
        module,
        names,
        gan.image_range,
        Path(spec.source).name,
        sha256=source.sha256,
        output=output,
        exclusive=exclusive,
    )
    threshold, chosen = threshold_of(spec), chosen_of(spec, names, exclusive)
    classifier.probabilities(x)
    return index_rule(classifier, chosen, gan.image_range, threshold, source)
