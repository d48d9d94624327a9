"""Memory layout of tensors, and the padding of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Pair = tuple[int, int]  # x, y
Padding = tuple[int, int, int, int]  # x0, x1, y0, y1

# ---- images: contiguous or channels-last ----------------------------------------------------------------------------


def is_channels_last(t: Tensor) -> bool:
    """Whether t [N, C, H, W] is channels-last and not contiguous too (as it is with one channel or one pixel)."""
    try:
        return not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last)
    except RuntimeError:  # torch.vmap does not tell
        return False


def memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def in_format(t: Tensor, channels_last: bool) -> Tensor:
    """t, copied where it is not in that format."""
    return t.contiguous(memory_format=memory_format(channels_last))


def in_either_format(t: Tensor) -> Tensor:
    """t where it is contiguous or channels-last, else a contiguous copy."""
    return t if t.is_contiguous() or t.is_contiguous(memory_format=torch.channels_last) else t.contiguous()


def empty_in_format_of(t: Tensor) -> Tensor:
    """An empty tensor of t's shape, laid out as `in_either_format(t)` is."""
    return torch.empty_like(t, memory_format=memory_format(is_channels_last(t)))


# ---- tensors of any shape -------------------------------------------------------------------------------------------


def _strides(t: Tensor) -> list[tuple[int, int]]:
    """(stride, size) of every dimension longer than 1; the others' strides say nothing."""
    return [(stride, size) for stride, size in zip(t.stride(), t.shape, strict=True) if size != 1]


def same_layout(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape have their elements in the same order."""
    return a.stride() == b.stride() or a.numel() < 2 or _strides(a) == _strides(b)


def is_dense(t: Tensor) -> bool:
    """Whether the elements fill one run of memory, each once, in some order of the dimensions."""
    if t.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(_strides(t)):
        if stride != expected:
            return False
        expected *= size
    return True


def is_in_memory(t: Tensor) -> bool:
    """Whether t's memory holds its values: not with a negative bit, nor where zeros are known without memory."""
    return not (t.is_neg() or t._is_zerotensor())


def laid_out_as(t: Tensor, model: Tensor) -> Tensor:
    """t itself where it has the strides of `model`, which is dense; else a copy that has."""
    return t if t.stride() == model.stride() else torch.empty_like(model).copy_(t)


def fixed(size: int) -> int:
    """An int also where torch.jit.trace, to which sizes are tensors, is at work: a constant of the trace then."""
    return int(size) if isinstance(size, Tensor) and torch.jit.is_tracing() else size


# ---- padding --------------------------------------------------------------------------------------------------------


def factor_pair(value: int | Sequence[int], name: str) -> Pair:
    """A resampling factor as (x, y).

    Raises:
        ValueError: it is not a positive int or two of them; `name` is the argument's.
    """
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or any(not isinstance(v, int) or v < 1 for v in pair):
        raise ValueError(f"{name}: expected a positive int or [x, y] of them, got {value!r}")
    return pair


def four_sides(padding: int | Sequence[int]) -> Padding:
    """Padding as (x0, x1, y0, y1).

    Raises:
        ValueError: it is not an int, [x, y] or [x0, x1, y0, y1].
    """
    if isinstance(padding, (int, torch.SymInt)):
        return (padding, padding, padding, padding)
    pad = tuple(fixed(v) for v in padding)  # they may be made of sizes
    if len(pad) == 2:
        pad = (pad[0], pad[0], pad[1], pad[1])
    if len(pad) != 4 or any(not isinstance(v, (int, torch.SymInt)) for v in pad):
        raise ValueError(f"padding: expected int, [x, y] or [x0, x1, y0, y1], got {padding!r}")
    return pad


def filter_size(f: Tensor | None) -> tuple[int, int]:
    """(height, width) of a filter. A 1-d one is separable and as high as wide, None is the identity."""
    return (1, 1) if f is None else (f.shape[0], f.shape[-1])


def around_filter(padding: Padding, f: Tensor | None, up: Pair = (1, 1), down: Pair = (1, 1)) -> Padding:
    """`padding`, with the filter's own border added: what keeps the size but for the factor, of which one is 1.

    Of an axis' taps - 1 extra samples (or, between `up` zero-inserted ones, taps - up) the first half goes before.
    """
    fh, fw = filter_size(f)
    sides = []
    for taps, u, d, p0, p1 in ((fw, up[0], down[0], *padding[:2]), (fh, up[1], down[1], *padding[2:])):
        if u > 1:
            sides += [p0 + (taps + u - 1) // 2, p1 + (taps - u) // 2]
        else:
            sides += [p0 + (taps - d + 1) // 2, p1 + (taps - d) // 2]
    x0, x1, y0, y1 = sides
    return x0, x1, y0, y1
