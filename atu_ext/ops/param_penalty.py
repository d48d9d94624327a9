"""EWC and repulsion distance over a whole parameter list: values, in-place gradient, and an autograd function.

    ewc      = 1/2 sum_t sum_i F (theta - theta_G)^2          (Kirkpatrick et al., arXiv 1612.00796, eq. 3)
    distance = sum_t scale_t d_t,   d_t = mean_k ||theta_t - theta_k,t||^2 = ||theta_t - theta_bar,t||^2 + c_t

over tensors t, with N anchors theta_k (Tiwary et al., arXiv 2309.14054, adapt an ensemble) folded into their mean
theta_bar and c_t = mean_k ||theta_k,t - theta_bar,t||^2, so that N anchors cost what one does. scale_t is the
reduction: "sum" 1; "tensor_mean" 1 / (T n_t), the mean over the T non-empty tensors of their mean squared error;
"relative" 1 / (distance at the start), so that the distance is 1 there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _native
from . import penalty_passes
from .dispatch import DTYPE_CODES, address, launch, transformed, use_native
from .layout import is_in_memory, same_layout
from .param_lists import AddressTable, address_table, check_in_memory, check_list, check_params, chunk_layout

REDUCTIONS = ("sum", "tensor_mean", "relative")


def param_penalty(
    params: Sequence[Tensor],
    anchor: Sequence[Tensor] | None = None,
    fisher: Sequence[Tensor] | None = None,
    repel_from: Sequence[Tensor] | None = None,
    scale: Sequence[float] | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """(1/2 sum F (theta - anchor)^2, sum_t scale_t ||theta_t - repel_t||^2), differentiable any number of times
    in `params`.

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
        [t.detach() for t in check_list(name, ts, params)] if ts is not None else []
        for name, ts in (("anchor", anchor), ("fisher", fisher), ("repel_from", repel_from))
    ]
    factors = [1.0] * len(params) if scale is None else [float(s) for s in scale]
    if len(factors) != len(params):
        raise ValueError(f"scale: expected {len(params)} factors, one for each parameter, got {len(factors)}")
    if not params:
        return torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    if any(p.dtype != params[0].dtype or p.device != params[0].device for p in params):
        check_params(params)
    also = "torch.func does not look into lists of tensors" if transformed() else None
    if use_native("param_penalty", impl, params[0], also):
        ewc, distance = penalty_passes.param_penalty(params, *lists, factors)
        return ewc, distance
    return _reference(params, lists[0], lists[1], lists[2], factors)


def _reference(
    params: Sequence[Tensor],
    anchor: Sequence[Tensor],
    fisher: Sequence[Tensor],
    repel: Sequence[Tensor],
    scale: Sequence[float],
) -> tuple[Tensor, Tensor]:
    zero = torch.zeros((), dtype=torch.float64, device=params[0].device)
    ewc = [0.5 * (f.double() * (p.double() - a.double()).square()).sum() for p, a, f in zip(params, anchor, fisher)]  # noqa: B905
    distance = [s * (p.double() - r.double()).square().sum() for p, r, s in zip(params, repel, scale)]  # noqa: B905
    return sum(ewc, zero), sum(distance, zero)


# ---- the class ------------------------------------------------------------------------------------------------------


def _models(repel_from: Sequence[Any]) -> dict[str, Sequence[Tensor]]:
    """Name -> model of `repel_from`, which is one model or N of them."""
    if len(repel_from) == 0 or isinstance(repel_from[0], Tensor):
        return {"repel_from": repel_from}
    return {f"repel_from[{k}]": model for k, model in enumerate(repel_from)}


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
        repel_from: Sequence[Tensor] | Sequence[Sequence[Tensor]] | None = None,
        reduction: str = "sum",
        impl: str = "auto",
    ):
        self.params = check_params(params)
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction: expected one of {', '.join(REDUCTIONS)}, got {reduction!r}")
        self.reduction = reduction
        self._device = self.params[0].device if self.params else torch.device("cpu")
        self._native = use_native("param_penalty", impl, self.params[0] if self.params else torch.empty(0))
        count = len(self.params)
        starts = [p.detach() for p in self.params] if anchor is None else check_list("anchor", anchor, self.params)
        self.fisher = None if fisher is None else self._copies("fisher", fisher)
        self.anchor = None if fisher is None else self._copies("anchor", starts)
        self.theta_bar: list[Tensor] | None = None
        self._constant = [0.0] * count
        if repel_from is not None:
            models = [check_list(name, model, self.params) for name, model in _models(repel_from).items()]
            self.theta_bar, self._constant = _fold(models, self.params)
        self.start_distance = 0.0
        if self.theta_bar is not None:
            squares = param_penalty([t.detach() for t in starts], repel_from=self.theta_bar, impl=impl)[1]
            self.start_distance = float(squares) + math.fsum(self._constant)
        self._scale = self._scales()
        self._constant_tensor, self._scale_tensor = (
            torch.tensor(v, dtype=torch.float64, device=self._device) for v in (self._constant, self._scale)
        )
        self._tables = dict.fromkeys(("params", "grad", "anchor", "fisher", "theta_bar"), AddressTable([], None))
        self._adam_tables: list[AddressTable] = []
        # Shapes and strides without storage.
        self._likes = [torch.empty_strided(p.shape, p.stride(), dtype=p.dtype, device="meta") for p in self.params]

    def _copies(self, name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        tensors = check_list(name, tensors, self.params)
        pairs = zip(tensors, self.params, strict=True)
        return [torch.empty_like(p, requires_grad=False).copy_(t.detach()) for t, p in pairs]

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

    def _table(self, name: str, tensors: Sequence[Tensor] | None) -> int:
        """Where the table of the tensors' addresses lies, rebuilt only where one changed: by new storage, or in a copy
        of this penalty. 0 without tensors."""
        if tensors is None:
            return 0
        addresses = list(map(Tensor.data_ptr, tensors))  # at every call, and quicker than t.data_ptr()
        cached = self._tables[name]
        if cached.table is not None and cached.values == addresses:
            return address(cached.table)
        for i, (t, like) in enumerate(zip(tensors, self._likes, strict=True)):
            check_in_memory(f"{name}[{i}]", t)
            if t.shape != like.shape or t.dtype != like.dtype or t.device != self._device or not same_layout(t, like):
                raise ValueError(
                    f"{name}[{i}]: expected {tuple(like.shape)} {like.dtype} on {self._device} with strides "
                    f"{like.stride()} as when the penalty was made, got {tuple(t.shape)} {t.dtype} on {t.device} with "
                    f"strides {t.stride()}; make a new ParamPenalty"
                )
        self._tables[name] = AddressTable(addresses, address_table(tensors, self._device))
        return address(self._tables[name].table)

    def _table_args(self, grads: Sequence[Tensor] | None, ewc: bool, distance: bool) -> tuple[int, int, int, int, int]:
        return (
            self._table("params", self.params),
            self._table("grad", grads),
            self._table("anchor", self.anchor if ewc else None),
            self._table("fisher", self.fisher if ewc else None),
            self._table("theta_bar", self.theta_bar if distance else None),
        )

    def _measure(self) -> tuple[Tensor, Tensor]:
        """[2, T] values and [2] totals."""
        if not self.params:
            return torch.zeros(2, 0, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        if self._native:
            tables = self._table_args(None, True, True)
            return penalty_passes.run_value(self.params, tables, self._scale_tensor, self._constant_tensor)
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

        A parameter that neither has a grad nor requires one is left out: an optimizer would move it.
        The weights may be tensors of one element on the parameters' device: nothing waits for the device then. A weight
        of 0.0 given as a number leaves that term's arrays unread.
        """
        ewc = self.fisher is not None and (isinstance(ewc_weight, Tensor) or ewc_weight != 0)
        distance = self.theta_bar is not None and (isinstance(distance_weight, Tensor) or distance_weight != 0)
        if not (ewc or distance):
            return
        found = [p.grad for p in self.params]
        for i, (p, g) in enumerate(zip(self.params, found, strict=True)):
            if g is None and p.requires_grad:
                found[i] = p.grad = torch.zeros_like(p)
            elif g is not None and not is_in_memory(g):
                found[i] = p.grad = g.clone()
        # One left out counts as empty to the kernel, and stands in for the gradient that it has not.
        left_out = [g is None for g in found]
        grads = [p if g is None else g for p, g in zip(self.params, found, strict=True)]
        weights = self._weights(ewc_weight, distance_weight)
        if not self._native or not self.params:
            self._add_grad_reference(weights, ewc, distance)
            return
        # A gradient laid out in another way than its parameter gets its share through a zeroed twin of the parameter.
        odd = [i for i, (g, like) in enumerate(zip(grads, self._likes, strict=True)) if not same_layout(g, like)]
        targets = list(grads)
        for i in odd:
            targets[i] = torch.zeros_like(self.params[i])
        tables = self._table_args(targets, ewc, distance)
        launch(
            _native._C.param_penalty_grad, self.params[0], *self._kernel_args(tables, left_out), weights.data_ptr(),
        )  # fmt: skip
        for i in odd:
            grads[i] += targets[i]

    def _kernel_args(self, tables: tuple[int, ...], left_out: Sequence[bool] = ()) -> tuple[Any, ...]:
        layout = chunk_layout(self.params, left_out)
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
        optimizer's first step, which sets up its state; for impl="reference"; where a parameter neither has a grad nor
        requires one, which both calls leave alone; and on CUDA for a state with its step counts on the CPU (torch keeps
        them on the device with fused=True or capturable=True). Hooks of the optimizer run only then.

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
        grads = [g if is_in_memory(g) else g.clone() for g in grads]
        state = self._adam_state(optimizer)
        if state is None or not all(same_layout(g, like) for g, like in zip(grads, self._likes, strict=True)):
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

    def _adam_group(self, optimizer: torch.optim.Adam) -> dict[str, Any]:
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
        if not self._native or not self.params or any(p.grad is None and not p.requires_grad for p in self.params):
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
                if t.dtype != like.dtype or t.device != self._device or not same_layout(t, like):
                    return None
        lists = (*moments, steps)
        addresses = [[t.data_ptr() for t in ts] for ts in lists]
        if addresses != [cached.values for cached in self._adam_tables]:
            self._adam_tables = [
                AddressTable(a, address_table(ts, self._device)) for a, ts in zip(addresses, lists, strict=True)
            ]
        first, second, third = (address(cached.table) for cached in self._adam_tables)
        return first, second, third

    def _add_grad_reference(self, weights: Tensor, ewc: bool, distance: bool) -> None:
        for t, p in enumerate(self.params):
            if p.grad is None:
                continue
            w_ewc, w_distance = (w.to(p.dtype) for w in (weights[0], 2 * weights[1] * self._scale[t]))
            if ewc and self.fisher is not None and self.anchor is not None:
                p.grad += w_ewc * self.fisher[t] * (p - self.anchor[t])
            if distance and self.theta_bar is not None:
                p.grad += w_distance * (p - self.theta_bar[t])
