"""EWC and repulsion distance over a whole parameter list: values, in-place gradient, and an autograd function.

    ewc      = 1/2 sum_t sum_i F (theta - theta_G)^2          (Kirkpatrick et al., arXiv 1612.00796, eq. 3)
    distance = sum_t scale_t d_t,   d_t = mean_k ||theta_t - theta_k,t||^2 = ||theta_t - theta_bar,t||^2 + c_t

over tensors t, with N anchors theta_k (Tiwary et al., arXiv 2309.14054, adapt an ensemble) folded into their mean
theta_bar and c_t = mean_k ||theta_k,t - theta_bar,t||^2, so that N anchors cost what one does. scale_t is the
reduction: "sum" 1; "tensor_mean" 1 / (T n_t), the mean over the T non-empty tensors of their mean squared error;
"relative" 1 / (distance at the start), so that the distance is 1 there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _native
from ._common import DTYPE_CODES, launch, use_native
from ._common import address as _address

REDUCTIONS = ("sum", "tensor_mean", "relative")
# Elements of a chunk, the unit of work of a thread (CPU) or block (CUDA) and of the ordered sum.
_CHUNK = 16384


@dataclass(frozen=True)
class _Addresses:
    """A table of addresses (int64 [T], on the device) and what it holds."""

    values: list[int]
    table: Tensor | None


@dataclass(frozen=True)
class _Layout:
    """What the kernels need to know of the shapes, on the device. `args` is what the binding takes."""

    arrays: tuple[Tensor, ...]  # numel [T], chunk_tensor [C], chunk_begin [C], first_chunk [T + 1]; int64
    args: tuple[int, ...]
    tensors: int
    chunks: int


@functools.lru_cache(maxsize=64)
def _layout(numels: tuple[int, ...], device: torch.device) -> _Layout:
    chunk_tensor: list[int] = []
    chunk_begin: list[int] = []
    first_chunk = [0]
    for t, numel in enumerate(numels):
        begins = range(0, numel, _CHUNK)
        chunk_tensor += [t] * len(begins)
        chunk_begin += begins
        first_chunk.append(len(chunk_begin))
    columns = (numels, chunk_tensor, chunk_begin, first_chunk)
    arrays = tuple(torch.tensor(column, dtype=torch.int64, device=device) for column in columns)
    chunks = len(chunk_begin)
    args = (*(a.data_ptr() for a in arrays), len(numels), chunks, _CHUNK)
    return _Layout(arrays, args, len(numels), chunks)


def _table(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Addresses of the tensors' first elements, int64 [T]."""
    return torch.tensor([t.data_ptr() for t in tensors], dtype=torch.int64, device=device)


def _strides(t: Tensor) -> list[tuple[int, int]]:
    """(stride, size) of every dimension longer than 1; the others' strides say nothing."""
    return [(stride, size) for stride, size in zip(t.stride(), t.shape, strict=True) if size != 1]


def _same_layout(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape have their elements in the same order."""
    return a.stride() == b.stride() or a.numel() < 2 or _strides(a) == _strides(b)


def _is_dense(t: Tensor) -> bool:
    """Whether the elements fill one run of memory, each once, in some order of the dimensions."""
    if t.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(_strides(t)):
        if stride != expected:
            return False
        expected *= size
    return True


def _like(t: Tensor, param: Tensor) -> Tensor:
    """t itself where it is laid out as `param` is, else a copy that is."""
    return t if _same_layout(t, param) else torch.empty_like(param).copy_(t)


def _check_list(name: str, tensors: Sequence[Tensor], params: Sequence[Tensor]) -> list[Tensor]:
    tensors = list(tensors)
    if len(tensors) != len(params):
        raise ValueError(f"{name}: expected {len(params)} tensors, one for each parameter, got {len(tensors)}")
    for i, (t, p) in enumerate(zip(tensors, params, strict=True)):
        if t.shape != p.shape:
            raise ValueError(f"{name}[{i}]: expected shape {tuple(p.shape)}, got {tuple(t.shape)}")
        if t.dtype != p.dtype or t.device != p.device:
            raise ValueError(f"{name}[{i}]: expected {p.dtype} on {p.device}, got {t.dtype} on {t.device}")
    return tensors


def _check_params(params: Sequence[Tensor]) -> list[Tensor]:
    params = list(params)
    for i, p in enumerate(params):
        if not isinstance(p, Tensor):
            raise TypeError(f"params[{i}]: expected a tensor, got {type(p).__name__}")
        if not p.is_floating_point():
            raise TypeError(f"params[{i}]: expected a floating-point tensor, got {p.dtype}")
        if p.dtype != params[0].dtype or p.device != params[0].device:
            raise ValueError(
                f"params: expected one dtype and device, got {params[0].dtype} on {params[0].device} (params[0]) and "
                f"{p.dtype} on {p.device} (params[{i}])"
            )
        if p.layout != torch.strided or not _is_dense(p):
            raise ValueError(
                f"params[{i}]: expected a dense tensor (contiguous or with permuted dimensions), got shape "
                f"{tuple(p.shape)} with strides {p.stride() if p.layout == torch.strided else p.layout}"
            )
    return params


def _run_value(
    params: Sequence[Tensor],
    tables: tuple[int, int, int, int, int],
    scale: Tensor | None,
    constant: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The value kernel: ([2, T] ewc and distance of each tensor, [2] totals), float64."""
    device, dtype = params[0].device, params[0].dtype
    layout = _layout(tuple(p.numel() for p in params), device)
    values = torch.empty(2, layout.tensors, dtype=torch.float64, device=device)
    total = torch.empty(2, dtype=torch.float64, device=device)
    partials = torch.empty(layout.chunks, 2, dtype=torch.float64, device=device)
    launch(
        _native._C.param_penalty_value, params[0], DTYPE_CODES[dtype], layout.args, tables, _address(scale),
        _address(constant), partials.data_ptr(), values.data_ptr(), total.data_ptr(),
    )  # fmt: skip
    return values, total


# ---- the autograd function ------------------------------------------------------------------------------------------

_LISTS = "Tensor[] params, Tensor[] anchor, Tensor[] fisher, Tensor[] repel, float[] scale"
torch.library.define("atu_ext::param_penalty", f"({_LISTS}) -> (Tensor, Tensor)")
torch.library.define("atu_ext::param_penalty_grad", f"(Tensor grad_ewc, Tensor grad_distance, {_LISTS}) -> Tensor[]")


def _functional_tables(params, anchor, fisher, repel, grads=()):
    """Addresses for a call of a kernel, and what must outlive it."""
    device = params[0].device
    lists = [[_like(t, p) for t, p in zip(ts, params, strict=True)] if ts else [] for ts in (anchor, fisher, repel)]
    tables = [_table(ts, device) if ts else None for ts in (params, grads, *lists)]
    return tuple(_address(t) for t in tables), (lists, tables)


def _scale_tensor(scale: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(scale, dtype=torch.float64, device=device)


def _param_penalty_kernel(params, anchor, fisher, repel, scale):
    params = [p if _is_dense(p) else p.contiguous() for p in params]
    tables, keep = _functional_tables(params, anchor, fisher, repel)
    _, total = _run_value(params, tables, _scale_tensor(scale, params[0].device), None)
    del keep
    ewc, distance = total.unbind()
    return ewc.clone(), distance.clone()


def _param_penalty_grad_kernel(grad_ewc, grad_distance, params, anchor, fisher, repel, scale):
    params = [p if _is_dense(p) else p.contiguous() for p in params]
    device = params[0].device
    grads = [torch.zeros_like(p) for p in params]
    tables, keep = _functional_tables(params, anchor, fisher, repel, grads)
    weights = torch.stack([grad_ewc, grad_distance]).to(device, torch.float64)
    scales = _scale_tensor(scale, device)
    layout = _layout(tuple(p.numel() for p in params), device)
    launch(
        _native._C.param_penalty_grad, params[0], DTYPE_CODES[params[0].dtype], layout.args, tables, _address(scales),
        weights.data_ptr(),
    )  # fmt: skip
    del keep
    return grads


for _device in ("cpu", "cuda"):
    torch.library.impl("atu_ext::param_penalty", _device, _param_penalty_kernel)
    torch.library.impl("atu_ext::param_penalty_grad", _device, _param_penalty_grad_kernel)


@torch.library.register_fake("atu_ext::param_penalty")
def _(params, anchor, fisher, repel, scale):
    return tuple(torch.empty((), dtype=torch.float64, device=params[0].device) for _ in range(2))


@torch.library.register_fake("atu_ext::param_penalty_grad")
def _(grad_ewc, grad_distance, params, anchor, fisher, repel, scale):
    return [torch.empty_like(p if _is_dense(p) else p.contiguous()) for p in params]


def _setup_context(ctx, inputs, output):
    params, anchor, fisher, repel, scale = inputs
    ctx.save_for_backward(*params, *anchor, *fisher, *repel)
    ctx.counts = [len(params), len(anchor), len(fisher), len(repel)]
    ctx.scale = scale


def _backward(ctx, grad_ewc, grad_distance):
    saved = iter(ctx.saved_tensors)
    params, anchor, fisher, repel = ([next(saved) for _ in range(count)] for count in ctx.counts)
    grads = torch.ops.atu_ext.param_penalty_grad(grad_ewc, grad_distance, params, anchor, fisher, repel, ctx.scale)
    return grads, [None] * len(anchor), [None] * len(fisher), [None] * len(repel), None


torch.library.register_autograd("atu_ext::param_penalty", _backward, setup_context=_setup_context)


def param_penalty(
    params: Sequence[Tensor],
    anchor: Sequence[Tensor] | None = None,
    fisher: Sequence[Tensor] | None = None,
    repel_from: Sequence[Tensor] | None = None,
    scale: Sequence[float] | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """(1/2 sum F (theta - anchor)^2, sum_t scale_t ||theta_t - repel_t||^2), differentiable once in `params`.

    Args:
        params: tensors of one floating dtype and device, any shapes, empty ones included.
        anchor, fisher: like params, both or neither; neither makes the first value 0. No gradient flows to them.
        repel_from: like params; None makes the second value 0. No gradient flows to it.
        scale: a factor for each tensor's squared distance; None is 1.

    Returns:
        Two float64 scalars on the parameters' device.

    Raises:
        ValueError, TypeError: lists of unequal length, shape, dtype or device; scale of the wrong length.
    """
    params = list(params)
    if (anchor is None) != (fisher is None):
        raise ValueError("anchor, fisher: expected both or neither")
    lists = [
        [t.detach() for t in _check_list(name, ts, params)] if ts is not None else []
        for name, ts in (("anchor", anchor), ("fisher", fisher), ("repel_from", repel_from))
    ]
    factors = [1.0] * len(params) if scale is None else [float(s) for s in scale]
    if len(factors) != len(params):
        raise ValueError(f"scale: expected {len(params)} factors, one for each parameter, got {len(factors)}")
    if not params:
        return torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    if any(p.dtype != params[0].dtype or p.device != params[0].device for p in params):
        _check_params(params)
    if use_native("param_penalty", impl, params[0]):
        return torch.ops.atu_ext.param_penalty(params, *lists, factors)
    return _param_penalty_reference(params, lists[0], lists[1], lists[2], factors)


def _param_penalty_reference(params, anchor, fisher, repel, scale):
    zero = torch.zeros((), dtype=torch.float64, device=params[0].device)
    ewc = [0.5 * (f.double() * (p.double() - a.double()).square()).sum() for p, a, f in zip(params, anchor, fisher)]  # noqa: B905
    distance = [s * (p.double() - r.double()).square().sum() for p, r, s in zip(params, repel, scale)]  # noqa: B905
    return sum(ewc, zero), sum(distance, zero)


# ---- the class ------------------------------------------------------------------------------------------------------


def _fold(models: Sequence[Sequence[Tensor]], params: Sequence[Tensor]) -> tuple[list[Tensor], list[float]]:
    """Mean of N anchors, laid out as the parameters, and c_t, both accumulated in float64.

    c_t is taken about the mean as rounded to the parameters' dtype, so the identity of the module's docstring is exact
    at theta = theta_bar and off by at most 2 |theta - theta_bar| times that rounding elsewhere.
    """
    means, constants = [], []
    for i, p in enumerate(params):
        anchors = [m[i].detach() for m in models]
        mean = torch.zeros_like(p, dtype=torch.float64)
        for a in anchors:
            mean += a
        mean = torch.empty_like(p).copy_(mean / len(models))
        means.append(mean)
        spread = [float((a.double() - mean.double()).square().sum()) for a in anchors] if len(models) > 1 else [0.0]
        constants.append(math.fsum(spread) / len(models))
    return means, constants


class ParamPenalty:
    """Values and in-place gradients of the two penalties over `params`, each array read once.

    The anchors are held here as copies, outside any module and so outside its state dict. The parameters may change in
    place or get new storage between calls; they must keep shape, dtype, device and strides.

    Args:
        params: tensors of one floating dtype on one device; contiguous or with permuted dimensions (channels-last).
        anchor: theta_G, like params; None takes a copy of params now.
        fisher: F, like params; None switches the EWC term off.
        repel_from: theta_bar, like params, or a list of N such lists; None switches the distance off.
        reduction: "sum", "tensor_mean" or "relative" (distance over its value at `anchor`); see the module's docstring.
            It concerns the distance alone; ewc is always the sum.
        impl: "auto", "native" or "reference" (a loop of torch operations).

    Attributes:
        start_distance: the summed squared distance of `anchor` to `repel_from`, 0.0 without `repel_from`.

    Raises:
        ValueError, TypeError: what does not fit is named, with what was expected and what came.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        anchor: Sequence[Tensor] | None = None,
        fisher: Sequence[Tensor] | None = None,
        repel_from: Sequence | None = None,
        reduction: str = "sum",
        impl: str = "auto",
    ):
        self.params = _check_params(params)
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction: expected one of {', '.join(REDUCTIONS)}, got {reduction!r}")
        self.reduction = reduction
        self._device = self.params[0].device if self.params else torch.device("cpu")
        self._native = use_native("param_penalty", impl, self.params[0] if self.params else torch.empty(0))
        count = len(self.params)
        starts = [p.detach() for p in self.params] if anchor is None else _check_list("anchor", anchor, self.params)
        self.fisher = None if fisher is None else self._copies("fisher", fisher)
        self.anchor = None if fisher is None else self._copies("anchor", starts)
        self.theta_bar: list[Tensor] | None = None
        self._constant = [0.0] * count
        if repel_from is not None:
            models = [repel_from] if count == 0 or isinstance(repel_from[0], Tensor) else list(repel_from)
            names = ["repel_from"] if models[0] is repel_from else [f"repel_from[{k}]" for k in range(len(models))]
            models = [_check_list(name, model, self.params) for name, model in zip(names, models, strict=True)]
            self.theta_bar, self._constant = _fold(models, self.params)
        self.start_distance = 0.0
        if self.theta_bar is not None:
            squares = param_penalty([t.detach() for t in starts], repel_from=self.theta_bar, impl=impl)[1]
            self.start_distance = float(squares) + math.fsum(self._constant)
        self._scale = self._scales()
        self._tables = [None if ts is None else _table(ts, self._device) for ts in self._anchors()]
        self._constant_tensor, self._scale_tensor = (
            torch.tensor(v, dtype=torch.float64, device=self._device) for v in (self._constant, self._scale)
        )
        self._theta_table = self._grad_table = _Addresses([], None)
        self._adam_tables: list[_Addresses] = []
        # Shapes and strides without storage.
        self._likes = [torch.empty_strided(p.shape, p.stride(), dtype=p.dtype, device="meta") for p in self.params]

    def _copies(self, name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        tensors = _check_list(name, tensors, self.params)
        pairs = zip(tensors, self.params, strict=True)
        return [torch.empty_like(p, requires_grad=False).copy_(t.detach()) for t, p in pairs]

    def _anchors(self) -> tuple[list[Tensor] | None, list[Tensor] | None, list[Tensor] | None]:
        return self.anchor, self.fisher, self.theta_bar

    def _scales(self) -> list[float]:
        numels = [p.numel() for p in self.params]
        if self.reduction == "tensor_mean":
            filled = sum(n > 0 for n in numels)
            return [1 / (n * filled) if n else 0.0 for n in numels]
        if self.reduction == "relative" and self.theta_bar is not None:
            if not self.start_distance > 0 or not math.isfinite(self.start_distance):
                raise ValueError(
                    "repel_from: expected to differ from the anchor (reduction 'relative' divides by their distance), "
                    f"got a squared distance of {self.start_distance}"
                )
            return [1 / self.start_distance] * len(numels)
        return [1.0] * len(numels)

    def _refreshed(self, cached: _Addresses, tensors: Sequence[Tensor]) -> _Addresses:
        """The address table of `tensors`, rebuilt only where an address changed."""
        addresses = [t.data_ptr() for t in tensors]
        if cached.table is not None and cached.values == addresses:
            return cached
        for i, (t, like) in enumerate(zip(tensors, self._likes, strict=True)):
            if t.shape != like.shape or t.dtype != like.dtype or t.device != self._device or not _same_layout(t, like):
                raise ValueError(
                    f"params[{i}]: expected {tuple(like.shape)} {like.dtype} on {self._device} with strides "
                    f"{like.stride()} as when the penalty was made, got {tuple(t.shape)} {t.dtype} on {t.device} with "
                    f"strides {t.stride()}; make a new ParamPenalty"
                )
        return _Addresses(addresses, torch.tensor(addresses, dtype=torch.int64, device=self._device))

    def _table_args(self, grads: Sequence[Tensor] | None, ewc: bool, distance: bool) -> tuple[int, int, int, int, int]:
        self._theta_table = self._refreshed(self._theta_table, self.params)
        if grads is not None:
            self._grad_table = self._refreshed(self._grad_table, grads)
        anchor, fisher, repel = (_address(t) for t in self._tables)
        return (
            _address(self._theta_table.table),
            0 if grads is None else _address(self._grad_table.table),
            anchor if ewc else 0,
            fisher if ewc else 0,
            repel if distance else 0,
        )

    def _measure(self) -> tuple[Tensor, Tensor]:
        """[2, T] values and [2] totals."""
        if not self.params:
            return torch.zeros(2, 0, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        if self._native:
            tables = self._table_args(None, True, True)
            return _run_value(self.params, tables, self._scale_tensor, self._constant_tensor)
        values = torch.zeros(2, len(self.params), dtype=torch.float64, device=self._device)
        for t, p in enumerate(self.params):
            theta = p.detach().double()
            if self.fisher is not None and self.anchor is not None:
                values[0, t] = 0.5 * (self.fisher[t].double() * (theta - self.anchor[t].double()).square()).sum()
            if self.theta_bar is not None:
                values[1, t] = (theta - self.theta_bar[t].double()).square().sum() + self._constant[t]
        return values, torch.stack([values[0].sum(), (values[1] * self._scale_tensor).sum()])

    def values(self) -> tuple[Tensor, Tensor]:
        """ewc [T] and squared distance [T] (mean over the anchors, not reduced) of each tensor, float64."""
        ewc, distance = self._measure()[0].unbind()
        return ewc, distance

    def value(self) -> tuple[float, float]:
        """(ewc, reduced distance); a term that is off is 0."""
        ewc, distance = self._measure()[1].tolist()
        return ewc, distance

    def distance_grad_norm(self) -> float:
        """Euclidean norm of d distance / d params: 2 sqrt(sum_t scale_t^2 ||theta_t - theta_bar_t||^2)."""
        squares = self._measure()[0][1] - self._constant_tensor
        return 2 * float((self._scale_tensor.square() * squares.clamp_min(0)).sum().sqrt())

    @torch.no_grad()
    def add_grad_(self, ewc_weight: float | Tensor = 0.0, distance_weight: float | Tensor = 0.0) -> None:
        """param.grad += ewc_weight d ewc / d param + distance_weight d distance / d param; a missing grad is made.

        The weights may be tensors of one element on the parameters' device: nothing waits for the device then. A weight
        of 0.0 given as a number leaves that term's arrays unread.
        """
        ewc = self.fisher is not None and (isinstance(ewc_weight, Tensor) or ewc_weight != 0)
        distance = self.theta_bar is not None and (isinstance(distance_weight, Tensor) or distance_weight != 0)
        if not (ewc or distance):
            return
        for p in self.params:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        grads: list[Tensor] = [p.grad for p in self.params if p.grad is not None]
        weights = self._weights(ewc_weight, distance_weight)
        if not self._native or not self.params:
            self._add_grad_reference(grads, weights, ewc, distance)
            return
        # A gradient laid out in another way than its parameter gets its share through a zeroed twin of the parameter.
        odd = [i for i, (g, like) in enumerate(zip(grads, self._likes, strict=True)) if not _same_layout(g, like)]
        targets = list(grads)
        for i in odd:
            targets[i] = torch.zeros_like(self.params[i])
        tables = self._table_args(targets, ewc, distance)
        launch(
            _native._C.param_penalty_grad, self.params[0], *self._kernel_args(tables), weights.data_ptr(),
        )  # fmt: skip
        for i in odd:
            grads[i] += targets[i]

    def _kernel_args(self, tables: tuple[int, ...]) -> tuple:
        layout = _layout(tuple(p.numel() for p in self.params), self._device)
        return DTYPE_CODES[self.params[0].dtype], layout.args, tables, self._scale_tensor.data_ptr()

    def _weights(self, ewc_weight: float | Tensor, distance_weight: float | Tensor) -> Tensor:
        """Both weights on the device. Filled there, not copied: a copy could not be captured in a CUDA graph."""
        weights = torch.empty(2, dtype=torch.float64, device=self._device)
        for slot, weight in zip(weights.unbind(), (ewc_weight, distance_weight), strict=True):
            if isinstance(weight, Tensor):
                slot.copy_(weight.reshape(()))
            else:
                slot.fill_(weight)
        return weights

    @torch.no_grad()
    def adam_step_(
        self,
        optimizer: torch.optim.Adam,
        ewc_weight: float | Tensor = 0.0,
        distance_weight: float | Tensor = 0.0,
    ) -> bool:
        """`add_grad_` and `optimizer.step()` in one pass, which reads and writes each array once.

        The gradients themselves are left as they were. Where the pass cannot serve, the two calls are made: for the
        optimizer's first step, which sets up its state; for impl="reference"; and on CUDA for a state with its step
        counts on the CPU (torch keeps them on the device with fused=True or capturable=True). Hooks of the optimizer
        run only then.

        Args:
            optimizer: over exactly these parameters, in this order, in one group; without weight_decay, amsgrad and
                maximize.
            ewc_weight, distance_weight: as in `add_grad_`.

        Returns:
            Whether the pass served.

        Raises:
            ValueError: the optimizer is another one than described.
        """
        group = self._adam_group(optimizer)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        state = self._adam_state(optimizer)
        if state is None or not all(_same_layout(g, like) for g, like in zip(grads, self._likes, strict=True)):
            self.add_grad_(ewc_weight, distance_weight)
            optimizer.step()
            return False
        ewc = self.fisher is not None and (isinstance(ewc_weight, Tensor) or ewc_weight != 0)
        distance = self.theta_bar is not None and (isinstance(distance_weight, Tensor) or distance_weight != 0)
        weights = self._weights(ewc_weight, distance_weight)
        coefficients = torch.empty(2, len(self.params), dtype=torch.float64, device=self._device)
        tables = self._table_args(grads, ewc, distance)
        launch(
            _native._C.param_penalty_adam, self.params[0], *self._kernel_args(tables), weights.data_ptr(), state,
            coefficients.data_ptr(), float(group["lr"]), *map(float, group["betas"]), float(group["eps"]),
        )  # fmt: skip
        return True

    def _adam_group(self, optimizer: torch.optim.Adam) -> dict:
        if type(optimizer) is not torch.optim.Adam:
            raise ValueError(f"optimizer: expected a torch.optim.Adam, got {type(optimizer).__name__}")
        if len(optimizer.param_groups) != 1:
            raise ValueError(f"optimizer: expected one parameter group, got {len(optimizer.param_groups)}")
        group = optimizer.param_groups[0]
        if [id(p) for p in group["params"]] != [id(p) for p in self.params]:
            raise ValueError("optimizer: expected the parameters of this penalty, in their order, got others")
        for option in ("weight_decay", "amsgrad", "maximize", "differentiable"):
            if group.get(option):
                raise ValueError(f"optimizer: expected {option} off, got {option}={group[option]}")
        return group

    def _adam_state(self, optimizer: torch.optim.Adam) -> tuple[int, int, int] | None:
        """Addresses of the tables of exp_avg, exp_avg_sq and step; None where the kernel cannot use the state."""
        if not self._native or not self.params:
            return None
        states = [optimizer.state.get(p, {}) for p in self.params]
        if any("exp_avg" not in s for s in states):
            return None
        moments = [[s[name] for s in states] for name in ("exp_avg", "exp_avg_sq")]
        steps = [s["step"] for s in states]
        if any(s.device != self._device or s.dtype != torch.float32 for s in steps):
            return None
        for ts in moments:
            for t, like in zip(ts, self._likes, strict=True):
                if t.dtype != like.dtype or t.device != self._device or not _same_layout(t, like):
                    return None
        lists = (*moments, steps)
        addresses = [[t.data_ptr() for t in ts] for ts in lists]
        if addresses != [cached.values for cached in self._adam_tables]:
            self._adam_tables = [
                _Addresses(a, _table(ts, self._device)) for a, ts in zip(addresses, lists, strict=True)
            ]
        first, second, third = (_address(cached.table) for cached in self._adam_tables)
        return first, second, third

    def _add_grad_reference(self, grads: list[Tensor], weights: Tensor, ewc: bool, distance: bool) -> None:
        for t, (p, grad) in enumerate(zip(self.params, grads, strict=True)):
            w_ewc, w_distance = (w.to(p.dtype) for w in (weights[0], 2 * weights[1] * self._scale[t]))
            if ewc and self.fisher is not None and self.anchor is not None:
                grad += w_ewc * self.fisher[t] * (p - self.anchor[t])
            if distance and self.theta_bar is not None:
                grad += w_distance * (p - self.theta_bar[t])
