"""A generator/discriminator pair with what is needed to sample and train it."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .support import memory
from .support.context import current
from .support.image_range import checked_range, inferred_range
from .support.modules import (
    copied,
    eval_mode,
    is_stylegan,
    parameter_dtype,
    plain,
    required_arguments,
    takes_two,
    uncompiled,
    unless_16_bit,
    unwrapped,
)
from .support.remarks import InputWarning
from .support.seeding import fork_rng, mix_seed

BIG = 3 * 256 * 256  # values in a sample from which on memory decides how many are made at once
FEW = 4  # samples that are made at once without a look at memory
# Samples from which on gradients of gradients are right in 16 bits on the CPU. Those of a convolution are convolutions
# whose kernels are as large as the map and whose channels are the samples, and of an even number of channels below 16
# oneDNN (as of torch 2.13) gives noise on processors with AMX.
ENOUGH_TWICE = 16
LatentSampler = Callable[[int, torch.Generator], Tensor]


class GAN:
    """Any pair of nn.Modules, of any sample shape.

    Args:
        generator: z [N, latent_dim] (and labels, where it takes them) to samples [N, ...]. Its forward must need
            nothing else; its weights may be float32 or float64 (16 bit for sampling only).
        discriminator: samples (and labels) to logits [N] or [N, 1]; None where there is none.
        latent_dim: size of a standard normal latent, or sizes: (64, 1, 1) for latents [N, 64, 1, 1]. Read off the
            generator (`z_dim` or `latent_dim`) when not given.
        generator_ema: weight-averaged generator, used for sampling when there is one; or torch's AveragedModel of it.
        latent_sampler: (n, torch.Generator) -> z, instead of a standard normal.
        label_sampler: (n, torch.Generator) -> labels [n, c_dim], or int64 [n], for a conditional GAN; uniform one-hot
            by default.
        image_range: (low, high) of the samples. Inferred from some of them when not given: (-1, 1), or, with a warning,
            (0, 1) or (0, 255) for images that are never negative.
        discriminator_output: "logit", "probability", or "auto" (probability if the last module run is nn.Sigmoid).
        c_dim: number of labels. Read off the generator (`c_dim`) or the label_sampler when not given; 0 is
            unconditional.
        label_format: how the modules take labels: "one-hot" float [N, c_dim], "index" int64 [N], or "auto" (index for a
            module with an nn.Embedding of c_dim rows).

    Modules may be wrapped in DataParallel: what it wraps is kept. So is what `torch.compile` wrapped, so that a
    checkpoint knows nothing of it; passes run compiled where neither hooks nor gradients of gradients are needed.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module | None = None,
        latent_dim: int | Sequence[int] | None = None,
        *,
        generator_ema: nn.Module | None = None,
        latent_sampler: LatentSampler | None = None,
        label_sampler: LatentSampler | None = None,
        image_range: tuple[float, float] | None = None,
        discriminator_output: str = "auto",
        c_dim: int | None = None,
        label_format: str = "auto",
    ):
        for name, module in (
            ("generator", generator),
            ("discriminator", discriminator),
            ("generator_ema", generator_ema),
        ):
            optional = name != "generator"
            if not isinstance(module, nn.Module) and not (optional and module is None):
                raise TypeError(f"{name}: expected a torch.nn.Module, got {type(module).__name__}")
        for name, sampler in (("latent_sampler", latent_sampler), ("label_sampler", label_sampler)):
            if sampler is not None and not callable(sampler):
                raise TypeError(f"{name}: expected a callable (n, torch.Generator) -> tensor, got {sampler!r}")
        if discriminator_output not in ("auto", "logit", "probability"):
            raise ValueError(f"discriminator_output: expected auto, logit or probability, got {discriminator_output!r}")
        if label_format not in ("auto", "one-hot", "index"):
            raise ValueError(f"label_format: expected auto, one-hot or index, got {label_format!r}")
        generator = unwrapped(generator)
        discriminator = None if discriminator is None else unwrapped(discriminator)
        generator_ema = None if generator_ema is None else unwrapped(generator_ema)
        given = (generator, discriminator, generator_ema)
        self.generator: nn.Module = plain(generator)
        self.discriminator = None if discriminator is None else plain(discriminator)
        self.generator_ema = None if generator_ema is None else plain(generator_ema)
        self._compiled = [module for module in given if module is not None and plain(module) is not module]
        if latent_dim is None:
            latent_dim = getattr(generator, "z_dim", getattr(generator, "latent_dim", None))
        if latent_dim is None and latent_sampler is None:
            raise ValueError(
                "latent_dim: expected the latents' length or shape, as the generator has no z_dim or latent_dim "
                "attribute; GAN(generator, discriminator, latent_dim=64) says it"
            )
        self.latent_dim = None if latent_dim is None else _checked_sizes(latent_dim)
        self.latent_sampler, self.label_sampler = latent_sampler, label_sampler
        self._image_range = None if image_range is None else checked_range(image_range)
        self.range_remark: str | None = None  # what the user was told of an inferred range
        self.discriminator_output = discriminator_output
        self.label_format = label_format
        self.c_dim = self._number_of_labels(c_dim)
        self._check_arguments()
        self.origin: dict[str, str] | None = None  # format and path of a foreign file that it was loaded from
        self._sample_shape: tuple[int, ...] | None = None
        self._cost: tuple[int | None, float] | None = None

    def _number_of_labels(self, given: int | None) -> int:
        if given is not None and (not isinstance(given, Integral) or isinstance(given, bool) or given < 0):
            raise ValueError(f"c_dim: expected a number of labels, 0 or more, got {given!r}")
        known = int(getattr(self.generator, "c_dim", 0) or 0) if given is None else int(given)
        if known or self.label_sampler is None:
            return known
        with fork_rng(self.device):
            drawn = self.label_sampler(1, torch.Generator().manual_seed(0))
        if not isinstance(drawn, Tensor) or drawn.ndim != 2:
            got = list(drawn.shape) if isinstance(drawn, Tensor) else type(drawn).__name__
            raise ValueError(
                f"label_sampler: expected labels [n, c_dim], got {got}; for int64 [n] say how many labels there are: "
                "GAN(..., c_dim=10)"
            )
        return drawn.shape[1]

    def _check_arguments(self) -> None:
        """Raise ValueError where a forward needs more than it will get, or a generator takes no labels."""
        labelled = self.c_dim > 0
        if labelled and not takes_two(self.generator):
            raise ValueError(
                f"generator: expected a forward that takes latents and labels, as there are {self.c_dim} labels (c_dim "
                f"or label_sampler), but {type(self.generator).__name__}'s takes latents alone"
            )
        for name, module in self.modules().items():
            more = required_arguments(module)[1 + labelled :]
            if not more:
                continue
            first = "samples" if name == "discriminator" else "latents"
            what = f"{first} and labels" if labelled else f"{first} alone, as the GAN has no labels"
            raise ValueError(
                f"{name}: {type(module).__name__}'s forward needs {', '.join(more)} too, and gets {what}. If that are "
                "labels, say how many: GAN(..., c_dim=10). If it is another setting, wrap the module in one that sets "
                f"it: def forward(self, x): return self.inner(x, {more[0]}=...)"
            )

    # --- loading, saving, copying

    @classmethod
    def load(cls, path: str | Path, **kwargs: Any) -> GAN:
        """Load a checkpoint of a known format, recognised by its content. Nothing in the file is executed.

        Keyword arguments go to `atu.formats.load.load`: `generator` and `discriminator` modules to fill, for
        checkpoints of networks that atu does not build itself.
        """
        from .formats.load import load

        return load(path, **kwargs)

    def save(self, path: str | Path) -> Path:
        """Write a checkpoint atomically; returns its path.

        The ending chooses: .pkl an NVIDIA pickle (the file it was loaded from, with new tensors), .pt a
        rosinality-style checkpoint, .onnx the generator, .safetensors weights and JSON config. See
        `atu.formats.export`.

        Raises:
            ValueError: the ending is another one, or the file that the GAN came from would be overwritten.
        """
        from .formats.export import export

        return export(self, path)

    def __repr__(self) -> str:
        """Short: classes and sizes, and no weights."""
        parts = []
        for name, module in self.modules().items():
            size = sum(p.numel() for p in module.parameters())
            parts.append(f"{name}={type(module).__name__} of {size:,} parameters")
        parts.append("latents by latent_sampler" if self.latent_sampler else f"latent_dim={self.latent_dim}")
        if self.c_dim:
            parts.append(f"c_dim={self.c_dim}")
        if self._sample_shape is not None:
            parts.append(f"samples {list(self._sample_shape)}")
        if self._image_range is not None:
            parts.append("in [{:g}, {:g}]".format(*self._image_range))
        return f"GAN({', '.join(parts)}, on {self.device})"

    def copy(self) -> GAN:
        """Deep copy; training it leaves this one as it is."""
        twin = copy.copy(self)
        twin._compiled = []
        for name, module in self.modules().items():
            memo: dict[int, Any] = {}
            setattr(twin, name, copied(module, memo))
            for each in self._compiled:
                if plain(each) is module:
                    backend = getattr(each, "dynamo_ctx", None)  # the same for both
                    twin._compiled.append(copy.deepcopy(each, {**memo, id(backend): backend}))
        return twin

    def to(self, device: torch.device | str) -> GAN:
        """Move the modules in place; returns self."""
        for module in self.modules().values():
            module.to(device)
        self._cost = None
        return self

    def modules(self) -> dict[str, nn.Module]:
        """The modules that are there, by name."""
        found = dict(generator=self.generator, discriminator=self.discriminator, generator_ema=self.generator_ema)
        return {name: module for name, module in found.items() if module is not None}

    def _compiled_of(self, module: nn.Module) -> nn.Module:
        """What torch.compile made of a module, where it was given so; else the module."""
        return next((each for each in self._compiled if plain(each) is module), module)

    @property
    def device(self) -> torch.device:
        tensor = next(chain(self.generator.parameters(), self.generator.buffers()), None)
        return torch.device("cpu") if tensor is None else tensor.device

    @property
    def sampling_generator(self) -> nn.Module:
        """The EMA generator where there is one, else the generator."""
        return self.generator if self.generator_ema is None else self.generator_ema

    @property
    def is_stylegan(self) -> bool:
        """Whether the generator splits into mapping and synthesis networks."""
        return is_stylegan(self.generator)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, without the batch axis.

        Raises:
            ValueError: latent_dim is of another shape than the generator takes. RuntimeError: the generator fails for
                the latents.
        """
        if self._sample_shape is None:
            try:
                x = self.sample(1, batch_size=1)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, AssertionError) as error:
                if str(error).startswith("generator: "):  # told by `batches`
                    raise
                self._check_latents(error)
                of = f"latents of latent_dim={self.latent_dim}" if self.latent_sampler is None else "latent_sampler's"
                raise RuntimeError(f"gan: its generator fails for {of} ({error})") from error
            self._sample_shape = tuple(x.shape[1:])
        return self._sample_shape

    def _check_latents(self, error: Exception) -> None:
        """Raise ValueError where the generator that failed takes latents as flat, or as not flat, as these are not."""
        size, twin = self.latent_dim, copy.copy(self)
        if self.latent_sampler is not None or size is None:
            return
        twin.latent_dim = (size, 1, 1) if isinstance(size, int) else math.prod(size)
        try:
            twin.sample(1)
        except Exception:
            return
        raise ValueError(
            f"latent_dim: expected {twin.latent_dim}, which the generator takes, got {size} ({error})"
        ) from error

    def cost(self) -> tuple[int | None, float]:
        """(bytes at the peak, seconds) of making one sample and, with a discriminator, judging it; measured once.

        The bytes are None where they cannot be measured.
        """
        if self._cost is None:
            c = self.labels(1, torch.Generator().manual_seed(0))

            @torch.no_grad()
            def work() -> None:
                x = self.sample(1, batch_size=1)
                if self.discriminator is not None:
                    with eval_mode(self.discriminator):
                        self.logits(x, c)

            work()  # what is set up on first use does not count
            self._cost = memory.measure(work, self.device)
        return self._cost

    @property
    def is_big(self) -> bool:
        """Whether samples are big: from 256 x 256 in colour on."""
        return math.prod(self.sample_shape) >= BIG

    def fitting(self, wanted: int = 100) -> int:
        """How many samples to make and judge at once: the `RunContext`'s batch if set, else `wanted`. Big samples have
        their cost measured; batches are then halved until they fit, see `atu.support.memory.fitting`."""
        batch = current().batch
        if batch is not None:
            return batch
        if not self.is_big:
            return wanted
        return memory.fitting(wanted, self.cost()[0], self.device)

    @property
    def image_range(self) -> tuple[float, float]:
        """(low, high) of the samples, inferred from 16 of them where it was not given."""
        if self._image_range is None:
            with fork_rng(self.device):
                x = torch.cat([part.cpu() for part in self.batches(16, batch_size=4)])
            self._image_range, self.range_remark = inferred_range(x)
            if self.range_remark is not None:
                warnings.warn(self.range_remark, InputWarning, stacklevel=2)
        return self._image_range

    # --- sampling

    def latents(self, n: int, rng: torch.Generator) -> Tensor:
        """Latents [n, latent_dim] on the GAN's device, drawn on the CPU so that every device gets the same."""
        if self.latent_sampler is not None:
            return self.latent_sampler(n, rng).to(self.device)
        assert self.latent_dim is not None
        sizes = self.latent_dim if isinstance(self.latent_dim, tuple) else (self.latent_dim,)
        return torch.randn(n, *sizes, generator=rng).to(self.device)

    def labels(self, n: int, rng: torch.Generator) -> Tensor | None:
        """Labels [n, c_dim] of a conditional GAN; None for an unconditional one."""
        if self.label_sampler is None:
            if self.c_dim == 0:
                return None
            index = torch.randint(self.c_dim, (n,), generator=rng)
        else:
            index = self.label_sampler(n, rng)
            if index.ndim != 1 or index.is_floating_point():
                return index.to(self.device)
        return nn.functional.one_hot(index, self.c_dim).float().to(self.device)

    def arguments(self, module: nn.Module, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, ...]:
        """What `module` is called with: x (latents or samples) in its dtype, and labels c as it takes them, if any."""
        dtype = parameter_dtype(module) or x.dtype
        x = x.to(dtype)
        if c is None or not takes_two(module):
            return (x,)
        return (x, c.argmax(1) if self._takes_index(module) else c.to(dtype))

    def _takes_index(self, module: nn.Module) -> bool:
        if self.label_format != "auto":
            return self.label_format == "index"
        return any(isinstance(m, nn.Embedding) and m.num_embeddings == self.c_dim for m in module.modules())

    def inputs(self, n: int, seed: int = 0) -> tuple[Tensor, Tensor | None]:
        """The latents [n, latent_dim] and labels [n, c_dim] (or None) that `sample(n, seed)` uses."""
        rng = torch.Generator().manual_seed(seed)
        return self.latents(n, rng), self.labels(n, rng)

    @torch.no_grad()
    def batches(
        self, n: int, seed: int = 0, batch_size: int | None = None, generator: nn.Module | None = None, **kwargs: Any
    ) -> Iterator[Tensor]:
        """Yield n samples in batches; see `sample`."""
        if n < 0:
            raise ValueError(f"n: expected a non-negative int, got {n}")
        if batch_size is None:
            batch_size = self.fitting() if n > FEW else 100
        if batch_size < 1:
            raise ValueError(f"batch_size: expected a positive int, got {batch_size}")
        module = self.sampling_generator if generator is None else generator
        options = inspect.signature(module.forward).parameters
        unknown = sorted(kwargs.keys() - options.keys())
        if unknown and not any(option.kind is option.VAR_KEYWORD for option in options.values()):
            raise ValueError(f"{unknown[0]}: {type(module).__name__} has no such option")
        z, c = self.inputs(n, seed)
        for start in range(0, n, batch_size):
            part = slice(start, start + batch_size)
            args = self.arguments(module, z[part], None if c is None else c[part])
            # Nothing of this may be in force at the yield, where the caller's code runs.
            with eval_mode(module), fork_rng(self.device, mix_seed(seed, start)):
                x = self._compiled_of(module)(*args, **kwargs)
            if not isinstance(x, Tensor) or x.ndim == 0 or len(x) != len(args[0]):
                got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
                raise ValueError(f"generator: expected a tensor of {len(args[0])} samples, got {got}")
            yield unless_16_bit(x)

    def sample(
        self, n: int, seed: int = 0, batch_size: int | None = None, generator: nn.Module | None = None, **kwargs: Any
    ) -> Tensor:
        """Draw n samples with fixed latents and noise.

        Args:
            n: how many. seed: of latents, labels and noise; the same seed and batch_size give every generator the
                same ones, and the caller's random state is left alone. batch_size: how many at once; 100, or of big
                samples as many as fit in memory (`fitting`), when not given.
            generator: module to use instead of the EMA generator (or the generator, where there is no EMA).
            kwargs: passed to the generator, where it has them: truncation_psi=1, truncation_cutoff=None,
                noise_mode="random" | "const" | "none".

        Returns:
            [n, ...] on the GAN's device, in `image_range`.
        """
        parts = list(self.batches(n, seed, batch_size, generator, **kwargs))
        return torch.cat(parts) if parts else torch.empty(0, *self.sample_shape, device=self.device)

    # --- training passes

    def autocast(self, twice: int | None = None) -> AbstractContextManager[Any]:
        """What the training's passes run in: torch.autocast of the `RunContext`'s precision, nothing for float32.

        Weights, gradients of weights and what `fake` and `logits` give are float32 all the same.

        Args:
            twice: of a pass whose gradients are differentiated again, how many samples it has. Few run in float32 on
                the CPU (see `ENOUGH_TWICE`).
        """
        few = twice is not None and twice < ENOUGH_TWICE and self.device.type == "cpu"
        precision = current().precision
        if precision is None or precision == "float32" or few:
            return nullcontext()
        return torch.autocast(self.device.type, getattr(torch, precision))

    def autocast_unscaled(self, twice: int | None = None) -> AbstractContextManager[Any]:
        """As `autocast`, for what is learned without a scaled loss: not in float16, which would need one."""
        return nullcontext() if current().precision == "float16" else self.autocast(twice)

    def fake(
        self, z: Tensor, c: Tensor | None, mixing_probability: float = 0.0, generator: nn.Module | None = None
    ) -> Tensor:
        """Generator pass of training (of `generator`, where given). Style mixing (StyleGAN only) takes a second latent
        from a random layer on."""
        module: Any = self.generator if generator is None else generator
        if self.is_stylegan and mixing_probability > 0:
            # StyleGAN3 keeps running magnitudes in its synthesis network, which its generator has updated in training.
            options = {"update_emas": True} if module.training and _takes(module.synthesis, "update_emas") else {}
            x: Tensor = module.synthesis(self.mixed_ws(z, c, mixing_probability, module), **options)
        else:
            run = self._compiled_of(module) if generator is None else module  # who gives one may listen within
            x = run(*self.arguments(module, z, c))
        return unless_16_bit(x)

    def mixed_ws(
        self, z: Tensor, c: Tensor | None, mixing_probability: float, generator: nn.Module | None = None
    ) -> Tensor:
        """ws [N, num_ws, w_dim] with style mixing (Karras et al., arXiv 1812.04948, section 3.1)."""
        module: Any = self.generator if generator is None else generator
        mapping: Any = module.mapping
        z = self.arguments(mapping, z)[0]
        ws: Tensor = mapping(z, c)
        num_ws = ws.shape[1]
        draw, cut = torch.rand([]).item(), int(torch.randint(1, max(num_ws, 2), ()))
        if draw < mixing_probability and num_ws > 1:
            # The mean of w follows the first latents alone.
            options = {"update_w_avg": False} if _takes(mapping, "update_w_avg") else {}
            other = mapping(torch.randn_like(z), c, **options)
            ws = torch.cat([ws[:, :cut], other[:, cut:]], dim=1)
        return ws

    def logits(self, x: Tensor, c: Tensor | None = None, discriminator: nn.Module | None = None) -> Tensor:
        """Discriminator logits [N] of x, whatever the discriminator's own output is.

        Raises:
            ValueError: when there is no discriminator, or its output is not one number a sample.
        """
        module = self.discriminator if discriminator is None else discriminator
        if module is None:
            raise ValueError("discriminator: this GAN has none, and unlearning needs one")
        seen: list[tuple[Tensor, Tensor]] = []
        hooks = []
        if self.discriminator_output == "auto":
            hooks = [m.register_forward_hook(lambda _, args, y: seen.append((args[0], y))) for m in _sigmoids(module)]
        slopes = x.requires_grad and x.is_leaf  # of the logits are asked for, and may be differentiated again
        try:
            # Fused attention has no gradients of gradients either.
            plainly = sdpa_kernel(SDPBackend.MATH) if slopes else nullcontext()
            with uncompiled() if hooks or slopes else nullcontext(), plainly:
                y = self._compiled_of(module)(*self.arguments(module, x, c))
        finally:
            for hook in hooks:
                hook.remove()
        if not isinstance(y, Tensor):
            raise ValueError(f"discriminator: expected a tensor of logits, got {type(y).__name__}")
        if self.discriminator_output == "probability":
            p = unless_16_bit(y).clamp(1e-6, 1 - 1e-6)
            y = p.log() - (-p).log1p()
        elif seen and seen[-1][1].numel() == y.numel() and seen[-1][1].data_ptr() == y.data_ptr():
            y = seen[-1][0]  # the logit itself: exact where the sigmoid has saturated
        if y.numel() != x.shape[0]:
            several = "; of two classes, wrap it to give y[:, real] - y[:, fake]" if y.numel() == 2 * len(x) else ""
            raise ValueError(
                f"discriminator: expected one logit a sample, [{len(x)}] or [{len(x)}, 1], got {list(y.shape)}{several}"
            )
        return unless_16_bit(y).reshape(-1)


def _checked_sizes(latent_dim: Any) -> int | tuple[int, ...]:
    """latent_dim as an int or a tuple of ints."""
    several = isinstance(latent_dim, (list, tuple, torch.Size))
    sizes = tuple(latent_dim) if several else (latent_dim,)
    if not sizes or any(not isinstance(k, Integral) or isinstance(k, bool) or k < 1 for k in sizes):
        raise ValueError(f"latent_dim: expected a positive int, got {latent_dim!r} (or several: (64, 1, 1))")
    return tuple(int(k) for k in sizes) if several else int(latent_dim)


def label_choice(c_dim: int, weights: Mapping[int, float]) -> LatentSampler:
    """A label_sampler that draws one-hot labels of the given indices, in proportion to their weights.

    Raises:
        ValueError: naming the label that does not exist, or a weight that is not positive.
    """
    if c_dim < 1:
        raise ValueError("label: this GAN is not conditional, it takes no labels")
    for index, weight in weights.items():
        if not 0 <= index < c_dim:
            raise ValueError(f"label: expected 0 to {c_dim - 1}, got {index}")
        if not (0 < weight < float("inf")):
            raise ValueError(f"label: expected a positive weight for {index}, got {weight}")
    shares = torch.zeros(c_dim)
    shares[list(weights)] = torch.tensor([float(w) for w in weights.values()])

    def draw(n: int, rng: torch.Generator) -> Tensor:
        index = torch.multinomial(shares, n, replacement=True, generator=rng) if n else torch.zeros(0).long()
        return nn.functional.one_hot(index, c_dim).float()

    return draw


def _takes(module: nn.Module, option: str) -> bool:
    return option in inspect.signature(module.forward).parameters


def _sigmoids(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.Sigmoid)]
