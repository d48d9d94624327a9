"""What is timed: one piece of work in several implementations, as plain data, and how such cases are built of an op."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], Any]


@dataclass(frozen=True)
class Traffic:
    """Bytes read and written at least once, however the result is computed, and flops of the method that is used."""

    reads: int
    writes: int
    flops: int = 0

    @property
    def bytes(self) -> int:
        return self.reads + self.writes


@dataclass(frozen=True)
class Case:
    """A piece of work in several implementations, all of the same inputs.

    direction: forward, backward or second (the gradient of the gradient). compile: makes the torch.compile of the
    reference, where there is one. library: the nearest that torch itself has, named by `nearest`; it need not compute
    the same. tolerance: relative, to which ours and reference must agree before they are timed. exact: the reference on
    the same inputs in float64, which results of 16 bits are compared with.
    """

    name: str
    op: str
    direction: str
    ours: Run
    reference: Run
    traffic: Traffic
    compile: Callable[[], Run] | None = None
    library: Run | None = None
    nearest: str = ""
    tolerance: float = 1e-3
    exact: Run | None = None


def nbytes(*tensors: Tensor | None) -> int:
    return sum(t.nbytes for t in tensors if t is not None)


@dataclass(frozen=True)
class Layer:
    """One differentiable call: implementations as functions of the same tensors, and what each direction moves."""

    name: str
    op: str
    inputs: Sequence[Tensor]  # those that require grad are differentiated
    ours: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    traffic: dict[str, Traffic]  # by direction: the directions wanted
    library: Callable[..., Tensor] | None = None
    nearest: str = ""
    library_inputs: int | None = None  # how many of the inputs the library's call takes


def forward_run(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Run:
    """A call without gradients."""
    plain = [t.detach() for t in inputs]

    def run() -> Tensor:
        with torch.no_grad():
            return function(*plain)

    return run


def _leaves(inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Fresh leaves of the inputs, and those of them to differentiate."""
    fresh = [t.detach().requires_grad_(t.requires_grad) for t in inputs]
    return fresh, [t for t in fresh if t.requires_grad]


def _seeded(like: Tensor, seed: int, given: torch.dtype | None) -> Tensor:
    """Noise laid out as `like`, the same for every implementation; given: the dtype to whose numbers it is rounded."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(like.shape, generator=rng, dtype=torch.float32).to(given or like.dtype).to(like)
    return torch.empty_like(like).copy_(noise)


def _forward(function: Callable[..., Tensor], inputs: Sequence[Tensor], given: torch.dtype | None = None) -> Run:
    return forward_run(function, inputs)


def _backward(function: Callable[..., Tensor], inputs: Sequence[Tensor], given: torch.dtype | None = None) -> Run:
    fresh, wanted = _leaves(inputs)
    y = function(*fresh)
    return partial(torch.autograd.grad, y, wanted, _seeded(y, 1, given), retain_graph=True)


def _second(function: Callable[..., Tensor], inputs: Sequence[Tensor], given: torch.dtype | None = None) -> Run:
    fresh, wanted = _leaves(inputs)
    y = function(*fresh)
    dy = _seeded(y, 1, given).requires_grad_()
    first = torch.autograd.grad(y, wanted, dy, create_graph=True)
    linked = [g for g in first if g.requires_grad]
    arriving = [_seeded(g, 2 + i, given) for i, g in enumerate(linked)]
    return partial(torch.autograd.grad, linked, [*wanted, dy], arriving, retain_graph=True, allow_unused=True)


_BUILD = {"forward": _forward, "backward": _backward, "second": _second}


def _exact(layer: Layer, direction: str) -> Any:
    """The reference's result of the same numbers in float64."""
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in layer.inputs]
    return _BUILD[direction](layer.reference, wide, layer.inputs[0].dtype)()


def _compiled(layer: Layer, direction: str) -> Run:
    torch.compiler.reset()
    return _BUILD[direction](torch.compile(layer.reference, dynamic=False), layer.inputs)


def cases_of(layer: Layer) -> Iterator[Case]:
    """The directions of a layer, as cases."""
    for direction, traffic in layer.traffic.items():
        build = _BUILD[direction]
        # torch.compile gives no second gradients.
        second = direction == "second"
        yield Case(
            layer.name,
            layer.op,
            direction,
            build(layer.ours, layer.inputs),
            build(layer.reference, layer.inputs),
            traffic,
            None if second else partial(_compiled, layer, direction),
            None if layer.library is None or second else build(layer.library, layer.inputs[: layer.library_inputs]),
            layer.nearest,
            exact=partial(_exact, layer, direction),
        )
