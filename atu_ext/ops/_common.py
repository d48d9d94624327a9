"""What the ops share: the torch.library namespace, the choice of implementation, the call into the kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from atu_ext import _native

LIB = torch.library.Library("atu", "FRAGMENT")

# The kernels' codes of the element types.
DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
CPU_DTYPES = (torch.float32, torch.float64)

_CUDA_REMEDY = "rebuild with nvcc on PATH: ATU_CUDA=on pip install --force-reinstall --no-deps . (see atu doctor)"
_warned: set[str] = set()
_IMPLS = ("auto", "native", "reference")
_default_impl = "auto"


@contextmanager
def default_impl(impl: str) -> Iterator[None]:
    """What impl="auto" means inside the block, process-wide: "reference" to compare a whole network's implementations,
    and for tracers that know torch's own operators only (ONNX).

    Raises:
        ValueError: impl is not one of auto, native, reference.
    """
    global _default_impl
    if impl not in _IMPLS:
        raise ValueError(f"impl: expected 'auto', 'native' or 'reference', got {impl!r}")
    before, _default_impl = _default_impl, impl
    try:
        yield
    finally:
        _default_impl = before


def _cuda_reason() -> str | None:
    assert _native._C is not None
    info = _native._C.build_info()
    return None if info["cuda"] else f"this build of atu_ext has no CUDA kernels: {info['cuda_reason']}; {_CUDA_REMEDY}"


# Fixed for the life of the process, and asked at every call.
_NO_CUDA = _native.error or _cuda_reason()


def why_not_native(x: Tensor) -> str | None:
    """Why the compiled kernels cannot take x, or None where they can."""
    if x.is_cpu:
        if _native.error is not None:
            return _native.error
        if x.dtype not in CPU_DTYPES:
            return f"expected float32 or float64 on the CPU, got {x.dtype}"
        return None
    if x.is_cuda:
        if _NO_CUDA is not None:
            return _NO_CUDA
        return None if x.dtype in DTYPE_CODES else f"expected a floating-point tensor, got {x.dtype}"
    return f"no kernels for device {x.device.type}"


def wants_reference(impl: str) -> bool:
    """Whether impl, or what "auto" stands for now, is the reference."""
    return impl == "reference" or (impl == "auto" and _default_impl == "reference")


def use_native(op: str, impl: str, x: Tensor, also: str | None = None) -> bool:
    """Whether `op` runs its kernel on x (and whatever `also` objects to).

    "auto" is what `default_impl` says; else it warns once where a kernel is missing from the build, and for types and
    devices that no build covers it takes the reference without a word.

    Raises:
        ValueError: impl is not one of auto, native, reference.
        RuntimeError: impl is "native" and the kernel cannot run.
    """
    if impl == "auto":
        impl = _default_impl
    if impl == "reference":
        return False
    if impl not in _IMPLS:
        raise ValueError(f"impl: expected 'auto', 'native' or 'reference', got {impl!r}")
    reason = why_not_native(x) or also
    if reason is None:
        return True
    if impl == "native":
        raise RuntimeError(f"{op}: impl='native' is impossible: {reason}")
    missing = _NO_CUDA if x.is_cuda else _native.error
    if missing is not None and reason == missing and reason not in _warned:
        _warned.add(reason)
        warnings.warn(f"{op} runs its slower plain-torch reference: {reason}", RuntimeWarning, stacklevel=3)
    return False


def on_cuda(x: Tensor) -> bool:
    """Whether the CUDA kernels run on x. (The tests run them elsewhere, and say so here.)"""
    return x.is_cuda


def launch(function: Callable[..., None], x: Tensor, *args: Any) -> None:
    """function(*args, stream) on x's device: the current stream of a CUDA device, -1 for the CPU."""
    if x.is_cpu:
        function(*args, -1)
        return
    with torch.cuda.device(x.device):
        function(*args, torch.cuda.current_stream(x.device).cuda_stream)


def address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def register(name: str, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define atu::name with the same kernel for CPU and CUDA tensors."""
    LIB.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIB.impl(name, kernel, "CPU")
    LIB.impl(name, kernel, "CUDA")
    torch.library.register_fake(f"atu::{name}", fake, lib=LIB)


# ---- calls that skip the dispatcher ---------------------------------------------------------------------------------
# A call through torch.library costs 12 us and its autograd wrapper another 25 us, as much as the kernel itself where
# images are small; torch.autograd.Function round the kernel costs 8 us. Both of torch's functions asked here whether
# somebody is looking (a tracer, a mode, a transform) are internal: where they are missing, every call is dispatched.

_modes = getattr(torch._C, "_len_torch_dispatch_stack", None)
_transforms = getattr(getattr(torch._C, "_functorch", None), "peek_interpreter_stack", None)
_PLAIN = (Tensor, torch.nn.Parameter, type(None))


def _unobserved() -> bool:
    """Whether nothing traces, compiles, transforms or watches the calls of this thread."""
    if _modes is None or _transforms is None or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return _modes() == 0 and _transforms() is None


def direct(
    op: Callable[..., Any],
    kernel: Callable[..., Any],
    tensors: int,
    setup: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """A function that does what `op` does, and calls its kernel without the dispatcher where nobody would notice.

    tensors: so many of the arguments, the first, are tensors or None. setup, backward: as given to
    torch.library.register_autograd.
    """
    if backward is not None:

        def forward(ctx, *inputs):
            output = kernel(*inputs)
            if setup is not None:
                setup(ctx, inputs, output)
            return output

        methods = dict(forward=staticmethod(forward), backward=staticmethod(backward))
        function: Any = type(str(op).partition(".")[2] or str(op), (torch.autograd.Function,), methods)

    def call(*inputs):
        if not _unobserved():
            return op(*inputs)
        wanted = False
        for t in inputs[:tensors]:
            if type(t) not in _PLAIN:
                return op(*inputs)
            wanted = wanted or (t is not None and t.requires_grad)
        if wanted and backward is not None and torch.is_grad_enabled():
            return function.apply(*inputs)
        return kernel(*inputs)

    return call
