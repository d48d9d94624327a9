"""How a kernel becomes an op of torch: schema, CPU and CUDA implementation, fake tensors, autograd, torch.func.

All ops are in the namespace atu_ext (`torch.ops.atu_ext.NAME`). `register` returns a function that does what the op
does and skips torch's dispatcher where nobody would notice: a call through torch.library costs 12 us and its autograd
wrapper another 25 us, as much as the kernel itself where images are small; torch.autograd.Function round the kernel
costs 8 us.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .dispatch import transformed, unobserved
from .layout import is_in_memory

NAMESPACE = "atu_ext"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
_PLAIN = (Tensor, torch.nn.Parameter)

Op = Callable[..., Any]
Setup = Callable[[Any, tuple[Any, ...], Any], None]


def register(
    name: str, schema: str, kernel: Op, fake: Op, setup: Setup | None = None, backward: Op | None = None
) -> Op:
    """Define atu_ext::NAME, and give a function that calls it on the shortest way.

    Args:
        name: of the op.
        schema: "(Tensor x, ...) -> Tensor"; its tensors come first.
        kernel: computes it, on CPU and CUDA tensors alike, of which memory holds the values (see `is_in_memory`). One
            that writes to an argument sees to that itself.
        fake: gives empty tensors shaped and laid out as the kernel's.
        setup: setup(ctx, inputs, output), keeps what the gradient needs.
        backward: backward(ctx, *gradients), gives the inputs' gradients; made of differentiable ops for further orders.
    """
    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    for device in ("CPU", "CUDA"):
        _LIBRARY.impl(name, kernel, device)
    if "(a!)" in schema:  # torch brings an argument that is written to into memory only where none is None
        for key in ("Negative", "ZeroTensor"):
            _LIBRARY.impl(name, torch.library.fallthrough_kernel, key)
    qualified = f"{NAMESPACE}::{name}"
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=setup, lib=_LIBRARY)
    op: Any = getattr(getattr(torch.ops, NAMESPACE), name).default
    lists = any("List[Tensor]" in str(a.type) for a in op._schema.arguments)
    # torch.autograd.Function does not look into lists.
    called: Op = op if lists else _shortcut(op, kernel, setup, backward)
    return called


def refuse_third_order(op: str) -> Callable[..., Any]:
    """The backward of a second gradient's kernel, which has none."""

    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(f"{op}: the kernels give two orders of gradient; use impl='reference' for more")

    return backward


def keep_inputs(count: int) -> Setup:
    """A `setup` that keeps the first `count` inputs for the gradient."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:count])
        ctx.set_materialize_grads(False)

    return setup


def _leading_tensors(op: Any) -> int:
    """How many of the op's arguments, from the first on, are tensors or None."""
    kinds = [str(a.type) in ("Tensor", "Optional[Tensor]") for a in op._schema.arguments]
    return kinds.index(False) if False in kinds else len(kinds)


_unwrap_if_dead: Op = getattr(getattr(torch._C, "_functorch", None), "unwrap_if_dead", lambda t: t)


class _Context:
    """A ctx whose tensors are freed of transforms that are over: vjp's function is called after vjp."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx
        self.saved_tensors = tuple(None if t is None else _unwrap_if_dead(t) for t in ctx.saved_tensors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


def _shortcut(op: Any, kernel: Op, setup: Setup | None, backward: Op | None) -> Op:
    tensors = _leading_tensors(op)

    def call(*inputs: Any) -> Any:
        if not unobserved():
            return under_transforms.apply(*inputs) if transformed() else op(*inputs)
        wanted = False
        for t in inputs[:tensors]:
            if t is None:
                continue
            if type(t) not in _PLAIN or not is_in_memory(t):  # the dispatcher brings it there
                return op(*inputs)
            wanted = wanted or t.requires_grad
        if wanted and backward is not None and torch.is_grad_enabled():
            return function.apply(*inputs)
        return kernel(*inputs)

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = kernel(*inputs)
        if setup is not None:
            setup(ctx, inputs, output)
        return output

    def one_by_one(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        """Under vmap: for every slice on its own."""
        axes = [None if not isinstance(x, Tensor) else d for x, d in zip(inputs, in_dims, strict=True)]
        pairs = list(zip(inputs, axes, strict=True))
        results = [call(*(x if d is None else x.select(d, i) for x, d in pairs)) for i in range(info.batch_size)]
        if isinstance(results[0], tuple):
            return tuple(torch.stack(r) for r in zip(*results, strict=True)), (0,) * len(results[0])
        return torch.stack(results), 0

    def backward_of_transformed(ctx: Any, *grads: Any) -> Any:
        if backward is None:
            raise RuntimeError(f"{op}: has no gradient")
        return backward(_Context(ctx), *grads)

    function: Any = _function(op, forward=forward, backward=backward)
    # Transforms want setup_context, which costs a plain call 10 us more.
    under_transforms: Any = _function(
        op,
        forward=lambda *inputs: call(*inputs),
        setup_context=setup or keep_inputs(0),
        backward=backward_of_transformed,
        vmap=one_by_one,
    )
    return call


def _function(op: Any, **methods: Op | None) -> type[torch.autograd.Function]:
    name = str(op).partition(".")[2] or str(op)
    given = {key: staticmethod(method) for key, method in methods.items() if method is not None}
    return type(name, (torch.autograd.Function,), given)
