"""Which implementation runs: kernel or plain-torch reference; and the call into the kernels."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from atu_ext import _native

Function = TypeVar("Function", bound=Callable[..., Any])

# The kernels' codes of the element types.
DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
OLDEST_CAPABILITY = (7, 5)  # that the CUDA kernels can be built for

_CUDA_REMEDY = "rebuild with nvcc on PATH: ATU_CUDA=on pip install --force-reinstall --no-deps . (see atu doctor)"
_warned: set[str] = set()
_IMPLS = ("auto", "native", "reference")


class _Default(threading.local):
    """What "auto" stands for. (__init__ runs once a thread, and torch.compile guards what it sets.)"""

    def __init__(self) -> None:
        self.impl = "auto"


_default = _Default()


@contextmanager
def default_impl(impl: str) -> Iterator[None]:
    """What impl="auto" means inside the block, in this thread: "reference" to compare a whole network's
    implementations, and for tracers that know torch's own operators only (ONNX).

    Raises:
        ValueError: impl is not one of auto, native, reference.
    """
    if impl not in _IMPLS:
        raise ValueError(f"impl: expected 'auto', 'native' or 'reference', got {impl!r}")
    before, _default.impl = _default.impl, impl
    try:
        yield
    finally:
        _default.impl = before


def _cuda_reason() -> str | None:
    assert _native._C is not None
    info = _native._C.build_info()
    return None if info["cuda"] else f"this build of atu_ext has no CUDA kernels: {info['cuda_reason']}; {_CUDA_REMEDY}"


# Fixed for the life of the process, and asked at every call.
_NO_CUDA = _native.error or _cuda_reason()
_obstacles: dict[torch.device, str | None] = {}


def constant_when_compiled(function: Function) -> Function:
    """torch.compiler.assume_constant_result, without the second that importing torch's compiler takes."""
    function.__dict__["_dynamo_marked_constant"] = True
    return function


@constant_when_compiled
def obstacle(device: torch.device) -> str | None:
    """Why this build's CUDA kernels cannot run on that device, which is asked once; None where they can."""
    if device not in _obstacles:
        fault = _cuda_fault(device)
        _obstacles[device] = _obstacle_text(fault, device) if fault else None
    return _obstacles[device]


def _cuda_fault(device: torch.device) -> str:
    if not torch.cuda.is_available():  # fake tensors need no device
        return ""
    with torch.cuda.device(device):
        fault: str = _native._C.cuda_obstacle()
    return fault


def _obstacle_text(fault: str, device: torch.device) -> str:
    info, (major, minor) = _native._C.build_info(), torch.cuda.get_device_capability(device)
    remedy = (
        f"rebuild with an nvcc that knows this GPU and is no newer than the driver: ATU_CUDA=on "
        f"ATU_CUDA_ARCHITECTURES={major}{minor} pip install --force-reinstall --no-deps ."
    )
    if (major, minor) < OLDEST_CAPABILITY:
        remedy = "the kernels need {}.{} or later".format(*OLDEST_CAPABILITY)
    return (
        f"this build of atu_ext (CUDA {info['cuda_version']} for {info['cuda_architectures']}) cannot run on "
        f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}: {fault}; {remedy}"
    )


def _no_cuda(x: Tensor) -> str | None:
    """Why no CUDA kernel runs where x lies, a CUDA tensor; None where they do."""
    return obstacle(x.device) if _NO_CUDA is None else _NO_CUDA


def why_not_native(x: Tensor) -> str | None:
    """Why the compiled kernels cannot take x, or None where they can."""
    if x.is_cpu:
        if _native.error is not None:
            return _native.error
        if x.dtype not in CPU_DTYPES:
            return f"expected float32, float64 or bfloat16 on the CPU, got {x.dtype}"
        return None
    if x.is_cuda:
        missing = _no_cuda(x)
        if missing is None and x.dtype not in DTYPE_CODES:
            return f"expected a floating-point tensor, got {x.dtype}"
        return missing
    return f"no kernels for device {x.device.type}"


# ---- who is looking: tracers, modes, transforms ---------------------------------------------------------------------
# torch's functions that tell are internal. Where one of the first two is missing, every call is dispatched
# (registration.py); without the third transforms get the reference. All are asked at every call, so they are quick.

_modes: Callable[[], int] | None = getattr(torch._C, "_len_torch_dispatch_stack", None)
_transforming: Callable[[], bool] | None = getattr(torch._C, "_are_functorch_transforms_active", None)
_transforms: Callable[[], list[Any]] | None = getattr(
    getattr(torch._C, "_functorch", None), "get_interpreter_stack", None
)
_tracing: Callable[[], bool] = getattr(torch._C, "_is_tracing", torch.jit.is_tracing)


def unobserved() -> bool:
    """Whether nothing traces, compiles, transforms or watches the calls of this thread."""
    if _modes is None or _transforming is None or torch.compiler.is_compiling():
        return False
    return _modes() == 0 and not _transforming() and not _tracing()


def transformed() -> bool:
    """Whether a transform of torch.func (grad, vmap, jvp, ...) is at work."""
    return _transforming is not None and _transforming()


def _transform_objection() -> str | None:
    """Why the kernels, which know gradients and nothing else, cannot serve the transforms at work; None if they can."""
    if getattr(forward_ad, "_current_level", -1) >= 0:
        return "forward-mode derivatives (torch.func.jvp, jacfwd, hessian) need torch's own operators"
    if _transforming is None or not _transforming():
        return None
    if torch.compiler.is_compiling():
        return "torch.compile cannot trace them inside torch.func's transforms"
    if _transforms is None or any(t.key().name != "Grad" for t in _transforms()):
        return "torch.vmap needs torch's own operators"
    return None


def wants_gradients(*tensors: Tensor | None) -> bool:
    """Whether a result of these may be differentiated. A transform does not tell, so it may."""
    return (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)) or transformed()


# ---- autocast -------------------------------------------------------------------------------------------------------


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that torch.autocast wants the op of x to run in, as it does of convolutions; None where it is off, and
    for float64, which it leaves alone."""
    device = "cpu" if x.is_cpu else "cuda"
    if not torch.is_autocast_enabled(device) or not (x.is_cpu or x.is_cuda):
        return None
    return torch.get_autocast_dtype(device) if _autocasts(x) else None


def _autocasts(t: Tensor) -> bool:
    return t.is_floating_point() and t.dtype != torch.float64


def autocast_to(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    """The floating-point ones in that dtype, float64 and what is no tensor as they are."""
    return [t.to(dtype) if isinstance(t, Tensor) and _autocasts(t) else t for t in tensors]


# ---- the choice -----------------------------------------------------------------------------------------------------


def wants_reference(impl: str) -> bool:
    """Whether impl, or what "auto" stands for now, is the reference whatever the tensors are."""
    if impl == "auto":
        return _default.impl == "reference" or _transform_objection() is not None
    return impl == "reference"


def use_native(op: str, impl: str, x: Tensor, also: str | None = None) -> bool:
    """Whether `op` runs its kernel on x, unless `also` is an objection of its own.

    "auto" is what `default_impl` says; else it warns once where the build lacks the kernels that x needs. The
    reference runs without a word for types and devices that no build covers, under torch.vmap and in forward-mode
    derivatives.

    Raises:
        ValueError: impl is not one of auto, native, reference.
        RuntimeError: impl is "native" and the kernel cannot run.
    """
    if impl == "auto":
        impl = _default.impl
    if impl == "reference":
        return False
    if impl not in _IMPLS:
        raise ValueError(f"impl: expected 'auto', 'native' or 'reference', got {impl!r}")
    reason = why_not_native(x) or also or _transform_objection()
    if reason is None:
        return True
    if impl == "native":
        raise RuntimeError(f"{op}: impl='native' is impossible: {reason}")
    missing = _no_cuda(x) if x.is_cuda else _native.error
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
