"""GANs of the user's own classes: a function builds the networks, files give the weights.

The function is the user's own code, and runs. In the files nothing is executed: they are safetensors, or files of
torch.save read as torch_file.py does. A file may hold one network's state dict, or several under any names; which is
whose is told by names and shapes, which must fit exactly.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..gan import GAN
from ..support.modules import copied, eval_mode, plain_name
from ..support.user_code import load_object
from .native import FORMAT, load_native
from .pickle_machine import Budget
from .recognise import is_safetensors, is_torch
from .tensors import CheckpointError, fill, load_tensors, misfits, reading
from .torch_file import load_torch, tensors_at

log = logging.getLogger("atu")
State = dict[str, Tensor]
ROLES = ("generator", "discriminator", "generator_ema")
_AVERAGED = ("ema", "avg", "average", "averaged", "swa")
_DEPTH = 4


@dataclass(frozen=True)
class OwnModel:
    """reference: "file.py:function" or "package.module:function", which returns a GAN, a pair (generator,
    discriminator) or (generator, discriminator, generator_ema), a generator alone, or the arguments of GAN as a dict.
    arguments: its keyword arguments."""

    reference: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> GAN:
        """Call the function; the weights are those that it gives.

        Raises:
            ValueError, ImportError: the function cannot be found, does not take the arguments, or returns something
                else; an error of its own is told in its words.
        """
        function, _ = load_object(self.reference, "model")
        if not callable(function):
            raise ValueError(f"model: {self.reference} is a {type(function).__name__}, which cannot be called")
        try:
            inspect.signature(function).bind(**self.arguments)
        except TypeError as error:
            takes = ", ".join(inspect.signature(function).parameters) or "none"
            raise ValueError(f"model: {self.reference}: {error}; its arguments: {takes} (--arg NAME=VALUE)") from error
        except ValueError:  # compiled code shows no signature
            pass
        try:
            built = function(**self.arguments)
        except Exception as error:
            raise ValueError(f"model: {self.reference} raised {type(error).__name__}: {error}") from error
        return _as_gan(built, self.reference)


def _as_gan(built: Any, reference: str) -> GAN:
    try:
        if isinstance(built, GAN):
            return built
        if isinstance(built, nn.Module):
            return GAN(built)
        if isinstance(built, Mapping):
            return GAN(**built)
        if isinstance(built, (tuple, list)) and 1 <= len(built) <= 3:
            generator, discriminator, average = (*built, None, None)[:3]
            return GAN(generator, discriminator, generator_ema=average)
    except (TypeError, ValueError) as error:
        raise ValueError(f"model: what {reference} returns makes no GAN: {error}") from error
    raise ValueError(
        f"model: {reference}: expected a GAN, (generator, discriminator) or the arguments of GAN as a dict, got "
        f"{type(built).__name__}"
    )


def load_own(model: OwnModel, checkpoint: str | None) -> GAN:
    """The model with the weights of a checkpoint.

    Args:
        checkpoint: a file; several joined by commas, of the generator, the discriminator and the averaged generator in
            this order; or `generator=FILE,discriminator=FILE,generator_ema=FILE`. "FILE#NAME" is what the file holds
            under that name. A file that `GAN.save` wrote (a run's result) is taken whole, with its settings. None
            leaves the weights as built.

    A discriminator for which there are no weights is left out, and that is said.

    Raises:
        CheckpointError: a file cannot be read, or what it holds does not fit; what is missing, unexpected and of
            another shape is named.
        ValueError, ImportError: as of `OwnModel.build`.
    """
    gan = model.build()
    if checkpoint is None:
        return gan
    whole = _native(checkpoint)
    if whole is not None:
        return load_like(whole, gan)
    plan = _plan(gan, checkpoint)
    for role, problems in plan.problems.items():
        if role != "discriminator" or role in plan.asked:
            raise CheckpointError(f"{checkpoint}: the weights do not fit the {role}: {_some(problems)}")
        log.warning("%s: no weights for the discriminator, which is left out: %s", checkpoint, _some(problems))
        gan.discriminator = None
    return _filled(gan, plan)


def load_like(path: str | Path, gan: GAN) -> GAN:
    """A checkpoint of `GAN.save` whose networks are of the classes of `gan`'s, which is not changed: atu builds its own
    networks itself, and copies of `gan`'s are filled otherwise. On `gan`'s device, with its samplers.

    Raises:
        CheckpointError: as of loading.
    """
    path = Path(path)
    foreign = _foreign(path)
    own, given = gan.modules(), {}
    for name in ("generator", "discriminator"):
        if name not in foreign:
            continue
        if name not in own:
            raise CheckpointError(f"{path}: holds a {name} of the class {foreign[name]}, and the model has none")
        given[name] = copied(own[name])
    found = load_native(path, **given, latent_sampler=gan.latent_sampler, label_sampler=gan.label_sampler)
    return found.to(gan.device)


def _foreign(path: Path) -> dict[str, str]:
    """Classes of the networks in a file of `GAN.save` that atu does not build itself, by name."""
    try:
        with safe_open(path, "pt") as file:
            modules = json.loads((file.metadata() or {})["config"])["modules"]
        return {name: str(entry.get("class")) for name, entry in modules.items() if entry.get("network") is None}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a readable file of format {FORMAT} ({error})") from error


def _native(checkpoint: str) -> Path | None:
    """The file, where it is one that `GAN.save` wrote."""
    path = Path(checkpoint)
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        if not is_safetensors(path, stream.read(64)):
            return None
    try:
        with safe_open(path, "pt") as file:
            return path if (file.metadata() or {}).get("format") == FORMAT else None
    except (SafetensorError, OSError):
        return None


# --- which weights are whose


@dataclass
class Plan:
    """states: the weights for each role, by where they are from. problems: of roles without, what does not fit of what
    is nearest. asked: roles whose file the user named."""

    states: dict[str, tuple[str, State]] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)


def _plan(gan: GAN, checkpoint: str) -> Plan:
    """Look for the weights of every network of `gan`, and of an averaged generator."""
    plan = Plan()
    for role, text in _named(gan, checkpoint).items():
        path, _, name = (text, "", "") if Path(text).is_file() else text.partition("#")
        found = read_states(path)
        if name:
            if name not in found:
                raise CheckpointError(f"{path}: holds nothing named {name}; it holds {_names(found)}")
            found = {name: found[name]}
        if role == "":
            _choose_all(plan, gan, found, path)
        else:
            plan.asked.add(role)
            _choose(plan, gan, role, found, path)
    return plan


def _named(gan: GAN, checkpoint: str) -> dict[str, str]:
    """Files by role; "" is one file for all."""
    parts = [checkpoint] if Path(checkpoint).exists() else checkpoint.split(",")
    if not any(part.partition("=")[0] in ROLES for part in parts):
        if len(parts) == 1:
            return {"": parts[0]}
        if len(parts) > len(ROLES):
            raise ValueError(f"CKPT: expected at most {len(ROLES)} files ({', '.join(ROLES)}), got {len(parts)}")
        return dict(zip(ROLES, parts, strict=False))
    found: dict[str, str] = {}
    for part in parts:
        role, equals, text = part.partition("=")
        if role not in ROLES or not equals or not text or role in found:
            raise ValueError(f"CKPT: expected ROLE=FILE with each of {', '.join(ROLES)} once at most, got {part!r}")
        found[role] = text
    return found


def _choose_all(plan: Plan, gan: GAN, found: dict[str, State], path: str) -> None:
    """Roles from one file for all: an averaged generator is known by its name."""
    fits = {name: state for name, state in found.items() if not misfits(gan.generator, state)}
    averaged = {name: state for name, state in fits.items() if _is_averaged(name)}
    plain = {name: state for name, state in fits.items() if name not in averaged}
    _choose(plan, gan, "generator", plain or averaged or found, path)
    if averaged and plain:
        _choose(plan, gan, "generator_ema", averaged, path)
    if gan.discriminator is not None:
        others = {name: state for name, state in found.items() if not any(_within(name, fit) for fit in fits)}
        _choose(plan, gan, "discriminator", others, path)


def _choose(plan: Plan, gan: GAN, role: str, found: dict[str, State], path: str) -> None:
    module = _module(gan, role)
    if module is None:
        raise CheckpointError(f"{path}: given for the {role}, and the model builds none")
    fits = [name for name, state in found.items() if not misfits(module, state)]
    if len(fits) > 1:
        raise CheckpointError(f"{path}: {_names(fits)} fit the {role} alike; say which: {role}={path}#{fits[0]}")
    if fits:
        plan.states[role] = (f"{path}#{fits[0]}" if fits[0] else str(path), found[fits[0]])
        return
    if not found:
        plan.problems[role] = [f"{path} holds none for it"]
        return
    nearest = min(found, key=lambda name: len(misfits(module, found[name])))
    plan.problems[role] = [*[f"nearest is {nearest}"] * bool(nearest), *misfits(module, found[nearest])]


def _module(gan: GAN, role: str) -> nn.Module | None:
    return gan.generator if role == "generator_ema" else getattr(gan, role)


def _within(name: str, other: str) -> bool:
    """Whether one place in a file lies in another."""
    return name == other or other == "" or name.startswith(f"{other}.")


def _is_averaged(name: str) -> bool:
    words = name.lower().replace(".", "_").replace("-", "_").split("_")
    return any(word in _AVERAGED for word in words) or name.lower().endswith("ema")


def _filled(gan: GAN, plan: Plan) -> GAN:
    if "generator_ema" in plan.states and gan.generator_ema is None:
        gan.generator_ema = copied(gan.generator)
    elif gan.generator_ema is not None and "generator_ema" not in plan.states:
        log.info("no weights of an averaged generator: the generator itself is sampled")
        gan.generator_ema = None
    for role, (where, state) in plan.states.items():
        module = getattr(gan, role)
        fill(module, state, f"{where}: {role}")
        log.info("%s: the weights of %s", role, where)
    for module in gan.modules().values():
        module.eval()
    return gan


def read_states(path: str | Path) -> dict[str, State]:
    """Every group of tensors in a file, by where it lies ("", "netG", "state_dict.generator"): mappings of tensors,
    and of those, what has a first name in common.

    Raises:
        CheckpointError: missing, damaged, or neither safetensors nor of torch.save.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    with path.open("rb") as stream:
        start = stream.read(64)
    if is_safetensors(path, start):
        return _groups(load_tensors(path)[0])
    with reading(path):
        if not is_torch(path, start):
            raise CheckpointError("expected weights: safetensors, or a file of torch.save")
        return _groups(load_torch(path))


def _groups(value: Any, name: str = "", depth: int = 0, budget: Budget | None = None) -> dict[str, State]:
    if not isinstance(value, Mapping) or depth > _DEPTH:
        return {}
    budget = Budget(what="entries in groups of weights") if budget is None else budget
    budget.spend(10 + len(value))  # a mapping may be named again and again
    tensors = {plain_name(key): tensor for key, tensor in tensors_at(value).items()}
    found = {name: tensors} if tensors else {}
    parts: dict[str, State] = {}
    for key, tensor in tensors.items():
        first, dot, rest = key.partition(".")
        if dot:
            parts.setdefault(first, {})[plain_name(rest).removeprefix("module.")] = tensor
    if len(parts) > 1:
        found.update({f"{name}.{first}".lstrip("."): state for first, state in parts.items()})
    for key, item in value.items():
        if isinstance(item, Mapping):
            found.update(_groups(item, f"{name}.{key}".lstrip("."), depth + 1, budget))
    return found


def _names(names: Sequence[str] | Mapping[str, State]) -> str:
    shown = [name or "the file itself" for name in names]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "") or "nothing"


def _some(problems: list[str]) -> str:
    return "; ".join(problems[:9]) + (f" (and {len(problems) - 9} more)" if len(problems) > 9 else "")


# --- what is missing


@torch.no_grad()
def inspect_own(model: OwnModel, checkpoint: str | None) -> dict[str, Any]:
    """Describe a model of the user's own, and how a checkpoint's weights fit it: plain data, as of
    `formats.inspect.inspect_checkpoint`, with "gan" (what was found out about its latents, labels, samples and
    discriminator) and "weights" ({network: {"from", "problems"}}).

    Raises:
        CheckpointError, ValueError, ImportError: as of `load_own`, but for weights that do not fit, which are told.
    """
    gan = model.build()
    found: dict[str, Any] = {"path": checkpoint or model.reference, "format": f"model {model.reference}"}
    found |= {"bytes": 0, "networks": {}, "options": dict(model.arguments), "notes": [], "weights": {}}
    if checkpoint is not None:
        whole = _native(checkpoint)
        if whole is not None:
            gan = load_like(whole, gan)
            found["weights"] = {name: {"from": str(whole), "problems": []} for name in gan.modules()}
        else:
            plan = _plan(gan, checkpoint)
            for role, (where, _) in plan.states.items():
                found["weights"][role] = {"from": where, "problems": []}
            for role, problems in plan.problems.items():
                found["weights"][role] = {"from": None, "problems": problems}
                found["notes"].append(f"{role}: its weights are as built, and so is what is told of its values")
            gan = _filled(gan, plan)
        files = [part.rpartition("=")[2].partition("#")[0] for part in checkpoint.split(",")]
        found["bytes"] = sum(Path(file).stat().st_size for file in files if Path(file).is_file())
    for name, module in gan.modules().items():
        found["networks"][name] = _described(name, module, gan)
    found["gan"] = _measured(gan, found["notes"])
    return found


def _described(name: str, module: nn.Module, gan: GAN) -> dict[str, Any]:
    parts: dict[str, int] = {}
    for key, p in module.named_parameters():
        part = key.partition(".")[0]
        parts[part] = parts.get(part, 0) + p.numel()
    shape = gan.sample_shape if len(gan.sample_shape) == 3 else (None, None)
    is_generator = name != "discriminator"
    return {
        "kind": type(module).__name__,
        "resolution": shape[1],
        "channels": shape[0],
        "latent": gan.latent_dim if is_generator else None,
        "labels": gan.c_dim or None,
        "parameters": sum(parts.values()),
        "parts": parts,
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in module.state_dict().values()}),
        "options": {},
    }


def _measured(gan: GAN, notes: list[str]) -> dict[str, Any]:
    """What a few samples say; what is not as expected joins the notes."""
    x = gan.sample(16)
    told: dict[str, Any] = {
        "latent_dim": gan.latent_dim,
        "c_dim": gan.c_dim,
        "sample_shape": list(gan.sample_shape),
        "values": [round(float(x.min()), 4), round(float(x.max()), 4)],
        "image_range": list(gan.image_range),
    }
    if gan.range_remark is not None:
        notes.append(gan.range_remark)
    if not torch.isfinite(x).all():
        notes.append("generator: gives values that are not finite")
    if gan.discriminator is None:
        notes.append("no discriminator: give its weights, or fit one with --train-discriminator STEPS")
        return told
    with eval_mode(gan.discriminator):
        c = gan.inputs(16)[1]
        output = gan.discriminator(*gan.arguments(gan.discriminator, x, c))
        logits = gan.logits(x, c)
    squashed = not torch.equal(output.reshape(-1), logits)
    told["discriminator_output"] = "probability" if squashed else "logit"
    told["logits"] = [round(float(logits.min()), 4), round(float(logits.max()), 4)]
    if not torch.isfinite(logits).all():
        notes.append("discriminator: gives values that are not finite")
    return told
