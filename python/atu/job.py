"""From what a user asks for to a run that can start: `check_inputs`, then the run folder, then `build_feedback`.

Everything that a user gives is checked and read once, in `check_inputs`, before the run folder exists.

The negatives play three roles, and these are all:
1. In stage 1 the discriminator takes them for real samples, so that the adapted generators make them.
2. They are one class of the guide, the positives the other (`methods.adapt_then_unlearn.guide`).
3. The probe that stands in for an oracle is fitted on them.
With an oracle, the negatives that it finds among the generated samples join them in the first two. Without one, the
guide leaves out those positives that it takes for negatives though the probe passed them.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import presets
from .config import Config
from .data.marks import KEPT, joined, keep_marks
from .data.samples import Samples, TensorSamples, as_samples
from .gan import GAN
from .judging.checks import label_remarks
from .judging.earlier import Earlier, earlier_run, read_run
from .judging.feedback import Feedback, build_feedback
from .judging.finding import find
from .judging.places import marked_samples
from .judging.positives import check_distinct
from .judging.rule import Rule
from .methods.registry import METHODS, Plan, Task
from .support import world
from .support.context import RunContext, current
from .support.digest import digest
from .support.modules import eval_mode, state_of, trainable
from .support.seeding import fork_rng
from .training import compute
from .training.losses import r1_penalty
from .training.run_folder import RunFolder, gan_digest, recorded, samples_digest

States = list[dict[str, Tensor]]
# Of a graph, what leaves probabilities such.
_SHAPING = tuple(
    f"{name}Backward"
    for name in ("View", "UnsafeView", "Squeeze", "Select", "Slice", "ToCopy", "Clone", "Clamp", "Mean")
)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks for, unchecked; the fields are the arguments of `atu.unlearn`.

    adapted: state dicts of adapted generators, for stage 2 on its own.
    """

    gan: Any
    negatives: Any
    positives: Any = None
    is_negative: Rule | Callable[[Tensor], Tensor] | str | None = None
    config: Config | Mapping[str, Any] | str | Path | None = None
    out: str | Path | None = None
    seed: int = 0
    device: str | torch.device | None = None
    method: str | None = None
    compat: str | None = None
    precision: str | None = None
    resize: bool = False
    adapted: Sequence[Mapping[str, Tensor]] | None = None
    from_run: str | Path | None = None


@dataclass(frozen=True)
class Inputs:
    """A request that was checked: everything read, nothing written, the GANs on the device where it will run.

    gan: the pair that training starts from, the original's or that of the earlier run. original: the one given, which
    outcomes are measured against. negatives, positives: those of earlier rounds among them. given: (negatives,
    positives) of this round alone.
    """

    gan: GAN
    original: GAN
    negatives: Samples
    positives: Samples | None
    oracle: Rule | None
    config: Config
    context: RunContext
    out: str | Path | None
    seed: int
    adapted: States | None
    given: tuple[Samples, Samples | None]
    earlier: Earlier | None = None


@dataclass(frozen=True)
class Job:
    """A run that can start. began: `time.monotonic()` at the call."""

    inputs: Inputs
    run: RunFolder
    feedback: Feedback
    began: float

    @property
    def task(self) -> Task:
        """What a method is given."""
        return Task(self.inputs.gan, self.feedback, self.inputs.config, self.run, self.inputs.seed)


def check_gan(gan: Any) -> GAN:
    if not isinstance(gan, GAN):
        raise TypeError(
            f"gan: expected an atu_ext.GAN, got {type(gan).__name__}; wrap the pair: GAN(generator=..., ...)"
        )
    if gan.discriminator is None:
        raise ValueError(
            "gan: it has no discriminator, and both stages train against one; load a checkpoint that holds it, or fit "
            "one on generated samples first: atu_ext.fit_discriminator(gan, steps), or atu unlearn with "
            "--train-discriminator STEPS"
        )
    for name, module in gan.modules().items():
        if any(isinstance(each, torch.jit.ScriptModule) for each in module.modules()):
            raise ValueError(
                f"gan: the {name} is a TorchScript module, which cannot be trained anew; give its nn.Module"
            )
        odd = [(key, p.dtype) for key, p in module.named_parameters() if not p.is_floating_point()]
        if odd:
            raise ValueError(f"gan: expected weights of floats, got {name}.{odd[0][0]} of {odd[0][1]}")
        small = [p.dtype for p in module.parameters() if p.dtype in (torch.float16, torch.bfloat16)]
        if small:
            raise ValueError(
                f"gan: the {name}'s weights are of {str(small[0]).removeprefix('torch.')}, in which Adam's small steps "
                f"are lost; train in float32: gan.{name}.float()"
            )
        for key, value in module.state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise ValueError(f"gan: {name}.{key} holds values that are not finite")
    for name, first, second in zip(("latent", "label"), gan.inputs(2), gan.inputs(2), strict=True):
        if first is not None and (second is None or not torch.equal(first, second)):
            raise ValueError(
                f"gan: expected a {name}_sampler that draws by the torch.Generator that it is given, and so the same "
                "for the same seed"
            )
    shape, x = gan.sample_shape, gan.sample(2)
    if x.shape != (2, *shape) or not torch.isfinite(x).all():
        raise ValueError(f"gan: its generator gave {list(x.shape)} for 2 latents, or values that are not finite")
    _check_average(gan)
    _check_logits(gan, x)
    return gan


def _check_average(gan: GAN) -> None:
    """Raise ValueError where the EMA generator is another network than the generator, whose average it is to be."""
    if gan.generator_ema is None:
        return
    own, average = (
        {name: tuple(value.shape) for name, value in state_of(module).items()}
        for module in (gan.generator, gan.generator_ema)
    )
    differs = sorted(name for name in {*own, *average} if own.get(name) != average.get(name))
    if differs:
        raise ValueError(
            f"gan: expected a generator_ema of the generator's own parameters and buffers, but {differs[0]} is missing "
            "in one of them, or of another shape"
        )


def _check_logits(gan: GAN, x: Tensor) -> None:
    """Raise ValueError where the discriminator fails for samples x, or gives probabilities that pass for logits."""
    c = gan.labels(len(x), torch.Generator().manual_seed(0))
    assert gan.discriminator is not None
    with eval_mode(gan.discriminator):
        with torch.enable_grad():
            squashed = _is_sigmoids(gan.logits(x.clone().requires_grad_(), c))
        with torch.no_grad():  # last, as old hooks of spectral norm keep the graph of the last pass
            _check_any_number(gan, x)
            gan.logits(x, c)
    if gan.discriminator_output == "auto" and squashed:
        raise ValueError(
            "gan: its discriminator ends in torch.sigmoid, and its probabilities would be taken for logits; say so: "
            'GAN(..., discriminator_output="probability")'
        )


def _check_any_number(gan: GAN, x: Tensor) -> None:
    """Raise ValueError where the discriminator takes samples x and not one of them, or five."""
    for n in (1, min(5, gan.fitting(5))):
        c = gan.labels(n, torch.Generator().manual_seed(0))
        try:
            gan.logits(x[:1].expand(n, *x.shape[1:]), c)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"gan: its discriminator takes {len(x)} samples at once, but not {n}, and a run passes any number "
                f"({error}); where that is the group of a minibatch deviation, let it be a divisor of the batch "
                "(math.gcd), as it is in networks of GAN.load"
            ) from error


def _rehearse(gan: GAN, plan: Plan, n: int = 3) -> None:
    """Raise ValueError where a step of training fails on a copy of the networks, in training mode. Of big samples it
    would take the time and the memory of one."""
    if gan.is_big:
        return
    n = min([n, *(stage.batch_size for stage in plan.stages if stage.batch_statistics)])
    with fork_rng(gan.device, 0), torch.enable_grad():
        twin = gan.copy()
        assert twin.discriminator is not None
        weights, _ = (trainable(module.train()) for module in (twin.generator, twin.discriminator))
        z, c = twin.inputs(n)
        try:
            x = twin.fake(z, c)
            slopes = torch.autograd.grad(twin.logits(x, c).sum(), weights, allow_unused=True)
            leaf = x.detach().requires_grad_(True)
            twin.logits(leaf, c).sum().backward()
            if any(stage.second_order for stage in plan.stages):  # by itself, as in training
                r1_penalty(twin.logits(leaf, c), leaf).backward()
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"gan: a step of training fails on these networks ({error})") from error
    if all(slope is None for slope in slopes):
        raise ValueError("gan: no gradient of the discriminator reaches the generator's weights; is one under no_grad?")


def _is_sigmoids(y: Tensor) -> bool:
    """Whether y is what a sigmoid gave, or means of it."""
    node: Any = y.grad_fn
    while node is not None and node.name().startswith(_SHAPING):
        node = node.next_functions[0][0] if node.next_functions else None
    return node is not None and node.name().startswith("SigmoidBackward")


def _device(device: str | torch.device | None, gan: GAN) -> torch.device:
    try:
        wanted = gan.device if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device: expected cpu, cuda or cuda:<index>, got {device!r}") from error
    if wanted.type not in ("cpu", "cuda"):
        raise ValueError(
            f"device: expected cpu or cuda, which the kernels and the run's random state are made for, got "
            f"{str(wanted)!r}"
        )
    if device is None or wanted.type == "cpu":
        return wanted
    if not torch.cuda.is_available():
        raise ValueError(f"device: expected one that is there, got {str(wanted)!r}, but torch sees no CUDA device")
    count = torch.cuda.device_count()
    if wanted.index is not None and wanted.index >= count:
        raise ValueError(
            f"device: expected one that is there, got {str(wanted)!r}, but torch sees {count} CUDA devices"
        )
    return torch.device("cuda", torch.cuda.current_device() if wanted.index is None else wanted.index)


def _config(config: Config | Mapping[str, Any] | str | Path | None, method: str | None, compat: str | None) -> Config:
    if method is not None:
        presets.check_method(method)
    presets.check_compat(compat)
    if isinstance(config, Config):
        if compat is not None:
            raise ValueError(
                "compat: a Config holds every setting already; make it with Config.of(method, compat, {...}), or give "
                "a dict or TOML file of what differs"
            )
        if method is not None and method != config.method:
            raise ValueError(f"method: expected {config.method!r}, which the config is for, got {method!r}")
        config.check_preset()
        cfg = copy.deepcopy(config)
    elif config is None or isinstance(config, Mapping):
        cfg = Config.of(method, compat, config)
    elif isinstance(config, (str, Path)):
        cfg = Config.load(config, method, compat)
    else:
        raise TypeError(f"config: expected a Config, dict or path of a TOML file, got {type(config).__name__}")
    return cfg


def check_adapted(gan: GAN, adapted: Sequence[Mapping[str, Tensor]]) -> States:
    """The state dicts as a list; ValueError where they are not `gan.generator`'s."""
    if isinstance(adapted, (Mapping, str, Path)) or len(adapted) == 0 or not isinstance(adapted[0], Mapping):
        raise ValueError("adapted: expected a list of at least one generator state dict")
    own = gan.generator.state_dict()
    for state in adapted:
        wrong = [k for k, v in own.items() if k not in state or state[k].shape != v.shape]
        if wrong:
            raise ValueError(
                f"adapted: expected state dicts of gan.generator, but {wrong[0]} is missing or of another shape"
            )
    return [{k: state[k].to(v.dtype) for k, v in own.items()} for state in adapted]


def _checked_plan(gan: GAN, config: Config, request: Request) -> Plan:
    """The stages that the request asks for; ValueError where method, settings and GAN do not fit."""
    if request.compat is not None and not gan.is_stylegan:
        raise ValueError(
            f"compat: the reference's settings are those of a StyleGAN2, and {type(gan.generator).__name__} has no "
            "mapping and synthesis networks"
        )
    if request.adapted is not None and config.method not in presets.REPULSION:
        raise ValueError(f"method: expected one of {', '.join(presets.REPULSION)} for stage 2, got {config.method!r}")
    plan = METHODS[config.method].plan(gan, config)
    plan = plan if request.adapted is None else plan.after("adapt")
    plan.check()
    return plan


def _folder_of(value: Any) -> Path | None:
    """The folder that a user gave for samples, alone or with labels."""
    if isinstance(value, tuple) and len(value) == 2:
        value = value[0]
    return Path(value).resolve() if isinstance(value, (str, Path)) else None


def _check_folders(request: Request) -> None:
    """Refuse a run folder whose pictures a later run would read as samples, or samples among its pictures."""
    if request.out is None:
        return
    out = Path(request.out).resolve()
    for name in ("negatives", "positives"):
        folder = _folder_of(getattr(request, name))
        if folder is None:
            continue
        if out == folder or folder in out.parents:
            raise ValueError(
                f"out: expected a folder outside of {name} ({folder}), got {out}: the run's own pictures would be "
                f"read as {name}"
            )
        pictures = out / "samples"
        if folder == pictures or pictures in folder.parents:
            raise ValueError(f"{name}: expected a folder other than {pictures}, where the run writes its own pictures")


def _given(gan: GAN, request: Request) -> tuple[Samples, Samples | None]:
    """The negatives and positives of the request."""
    negatives, beside = marked_samples(gan, request.negatives, "negatives", request.resize)
    value = request.positives
    if value is None:
        if beside is None or isinstance(beside, TensorSamples):
            return negatives, beside
        value = beside
    return negatives, as_samples(
        value, gan.sample_shape, gan.image_range, "positives", gan.c_dim, resize=request.resize
    )


def _earlier(request: Request, gan: GAN) -> Earlier | None:
    """The run that the request goes on from."""
    if request.from_run is None:
        return None
    if request.out is not None and Path(request.out).resolve() == Path(request.from_run).resolve():
        raise ValueError(f"out: expected another folder than that of the run that this goes on from, got {request.out}")
    return earlier_run(request.from_run, gan, gan_digest(gan))


def check_without_discriminator(request: Request) -> None:
    """What of `check_inputs` needs no discriminator, before one is fitted: settings, samples, and an earlier run."""
    _config(request.config, request.method, request.compat)
    _given(request.gan, request)
    if request.from_run is not None:
        read_run(request.from_run)


def check_inputs(request: Request) -> Inputs:
    """Check and read all that a run is made with; writes nothing.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    seed = request.seed
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed: expected a non-negative int, got {seed!r}")
    _check_folders(request)
    config = _config(request.config, request.method, request.compat)
    if request.precision is not None:
        config = config.having(precision=request.precision)
    where = _device(request.device, request.gan) if isinstance(request.gan, GAN) else None
    gan = check_gan(request.gan)
    if where is not None and where != gan.device:
        gan = gan.copy().to(where)
    adapted = None if request.adapted is None else check_adapted(gan, request.adapted)
    _rehearse(gan, _checked_plan(gan, config, request))
    given = _given(gan, request)
    earlier = _earlier(request, gan)
    negatives, positives = _with_earlier(given, earlier, gan)
    oracle = _oracle(request.is_negative, gan)
    if oracle is not None:
        oracle(gan.sample(4))
    if positives is not None:
        check_distinct(negatives, positives)
    label_remarks(gan, negatives)
    out = request.out if world.is_first() else None
    start = gan if earlier is None else earlier.gan
    context = _context(start, config, out)
    config = config.having(precision=context.precision, threads=context.threads)
    return Inputs(start, gan, negatives, positives, oracle, config, context, out, seed, adapted, given, earlier)


def _oracle(given: Rule | Callable[[Tensor], Tensor] | str | None, gan: GAN) -> Rule | None:
    if given is None or isinstance(given, Rule):
        return given
    return find(given, gan) if isinstance(given, str) else Rule(given)


def _with_earlier(
    given: tuple[Samples, Samples | None], earlier: Earlier | None, gan: GAN
) -> tuple[Samples, Samples | None]:
    """The marks of this round joined by those of the rounds before; what was marked otherwise since is left out."""
    if earlier is None:
        return given
    negatives = joined(given[0], earlier.negatives, given[1], gan.image_range)
    assert negatives is not None
    return negatives, joined(given[1], earlier.positives, given[0], gan.image_range, "positives")


def _context(gan: GAN, config: Config, out: str | Path | None) -> RunContext:
    """With the threads and the precision that are best on this machine, or were when the run began, where the config
    leaves them open; and with how many big samples fit in memory at once, on which their noise depends."""
    batch, before = config.repel.adversarial.batch_size, recorded(out)
    threads = world.from_first(lambda: compute.threads_for(gan, batch, config.threads, before))
    with RunContext(threads=threads):
        precision = world.from_first(lambda: compute.precision_for(gan, batch, config.precision, before))
    at_once = current().batch
    if gan.is_big and at_once is None:
        at_once = world.from_first(lambda: before.get("at_once") or gan.fitting())
    return RunContext(precision, threads, at_once)


def _identity(inputs: Inputs) -> dict[str, Any]:
    """What a run folder's run must agree with to be resumed, beside the config."""
    gan, (negatives, positives) = inputs.original, inputs.given
    identity = {"seed": inputs.seed, "gan": gan_digest(gan), "negatives": samples_digest(negatives)}
    identity["positives"] = None if positives is None else samples_digest(positives)
    identity["oracle"] = False if inputs.oracle is None else inputs.oracle.identity
    drawn = gan.labels(64, torch.Generator().manual_seed(0))
    if drawn is not None:
        identity["labels"] = digest({"drawn": drawn})
    if gan.is_big:
        identity["at_once"] = inputs.context.batch
    if inputs.adapted is not None:
        identity["adapted"] = [digest(state) for state in inputs.adapted]
    if inputs.earlier is not None:
        identity["round"] = inputs.earlier.round + 1
        identity["from"] = {"gan": gan_digest(inputs.gan), "negatives": samples_digest(inputs.earlier.negatives)}
    return identity


def _open_run_folder(inputs: Inputs) -> RunFolder:
    modules = inputs.gan.modules().values()
    weights = sum(t.numel() * t.element_size() for m in modules for t in m.state_dict().values())
    # Two states and a third that is being written, four to five times the weights each; and the result.
    needed = weights * (15 + inputs.config.adapt.models)
    return RunFolder(inputs.out, inputs.config, _identity(inputs), needed_bytes=needed)


@contextmanager
def started(request: Request) -> Iterator[Job]:
    """The job of a request, ready to run, with gradients on; its run folder is closed at the end."""
    began = time.monotonic()
    with torch.inference_mode(False), torch.enable_grad():
        inputs = check_inputs(request)
        with inputs.context:
            run = _open_run_folder(inputs)
            try:
                if run.out is not None and not (run.out / KEPT).exists():
                    keep_marks(run.out, inputs.negatives, inputs.positives, inputs.gan.image_range)
                yield Job(inputs, run, _feedback(inputs, run), began)
            finally:
                run.close()


def _feedback(inputs: Inputs, run: RunFolder) -> Feedback:
    given = inputs.gan, inputs.negatives, inputs.positives, inputs.oracle, inputs.config.feedback, inputs.seed
    try:
        return build_feedback(*given)
    except Exception:
        run.withdraw()
        raise
