"""64-bit indices: tensors whose elements lie more than 2^31 elements (and 2^32 bytes) apart.

The memory between is reserved and never touched, or not there at all: the kernels may access the ends, nothing else.
"""

from __future__ import annotations

import mmap

import pytest
import torch
from torch import Tensor

from atu_ext.ops.upfirdn2d import _reference
from tests.backends import Operation

FAR = 2**31 + 64  # elements
CODES = {torch.float32: 0, torch.float16: 2}
NORESERVE = 0x4000  # of Linux; Python's mmap has no name for it before 3.13


def sparse(elements: int) -> Tensor:
    """float16, of that many elements, of which no page exists yet."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
    return torch.frombuffer(mmap.mmap(-1, 2 * elements, flags=flags), dtype=torch.float16)


def randn(*shape: int, dtype=torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def run(emulated, function: str, args: tuple, buffers: list[tuple[Tensor, bool]]) -> None:
    """Call a binding with the memory of `buffers` (tensor, whether it must be written in full) and no other."""
    named = [(f"{function}.{i}", t, fresh) for i, (t, fresh) in enumerate(buffers)]
    with Operation(emulated.library).memory(named):
        getattr(emulated.module, function)(*args, 0)


def test_upfirdn2d_strides(emulated):
    """Two samples that lie far apart, in and out."""
    x, f = randn(2, 1, 6, 9, dtype=torch.float16), randn(3, 3, seed=1)
    memory, out = sparse(FAR + 64), sparse(FAR + 64)
    sources, targets = ([t[:54], t[FAR : FAR + 54]] for t in (memory, out))
    for source, sample in zip(sources, x, strict=True):
        source.copy_(sample.flatten())
    size, stride = tuple(x.shape), (FAR, 54, 9, 1)
    pointers = (memory.data_ptr(), f.data_ptr(), out.data_ptr(), CODES[torch.float16])
    args = (*pointers, False, size, stride, size, stride, (3, 3), 1, 1, 1, 1, 1, 1, False, 1.0)
    run(emulated, "upfirdn2d", args, [*((s, False) for s in sources), (f, False), *((t, True) for t in targets)])
    expected = _reference(x.double(), f.double(), (1, 1), (1, 1), [1, 1, 1, 1], False, 1.0)
    torch.testing.assert_close(torch.stack(targets).view(2, 1, 6, 9).double(), expected, rtol=2**-10, atol=2**-10)


def test_gemm_columns(emulated):
    """A 1x1 convolution of stride 2^26 over one row of 2^26 + 1 pixels of 32 channels: two outputs."""
    dtype, c, o, step = torch.float16, 32, 8, 2**26
    memory = sparse((step + 1) * c)
    pixels = [memory[:c], memory[step * c :]]
    x, w = randn(2, c, dtype=dtype), randn(o, c, dtype=dtype, seed=1)
    for pixel, values in zip(pixels, x, strict=True):
        pixel.copy_(values)
    u = torch.empty(2, o, dtype=dtype)
    tensors = (memory.data_ptr(), w.data_ptr(), 0, 0, 0, 0, u.data_ptr(), 0)
    shapes = ((1, c, 1, step + 1), (o, 1, 2), (1, 1, step, 0, 0))
    args = (tensors, CODES[dtype], 1, *shapes, 0, (0, 0.0, 1.0, -1.0))
    run(emulated, "modulated_conv2d_gemm", args, [(pixels[0], False), (pixels[1], False), (w, False), (u, True)])
    # 32 products of size 1 in float32, and one rounding to float16
    torch.testing.assert_close(u.double(), x.double() @ w.double().t(), rtol=2**-10, atol=1e-4)


class FarPenalty:
    """One tensor of more than 2^31 elements, of which only the last chunk exists and is in the table."""

    def __init__(self, dtype: torch.dtype):
        names = ("theta", "grad", "anchor", "fisher", "repel")
        self.tail = {name: randn(40, dtype=dtype, seed=i) for i, name in enumerate(names)}
        self.exact = {name: t.double() for name, t in self.tail.items()}
        self.arrays = [torch.tensor(column) for column in ([FAR + 40], [0], [FAR], [0, 1])]
        self.tables = [torch.tensor([t.data_ptr() - FAR * dtype.itemsize]) for t in self.tail.values()]
        layout = (*(a.data_ptr() for a in self.arrays), 1, 1, 64)
        self.args = (CODES[dtype], layout, tuple(t.data_ptr() for t in self.tables), 0)
        self.buffers = [(t, False) for t in (*self.arrays, *self.tables, *self.tail.values())]


@pytest.mark.parametrize("dtype", CODES, ids=str)
def test_param_penalty_of_a_huge_tensor(emulated, dtype):
    p = FarPenalty(dtype)
    values, total, partials = (torch.empty(2, dtype=torch.float64) for _ in range(3))
    args = (*p.args, 0, partials.data_ptr(), values.data_ptr(), total.data_ptr())
    run(emulated, "param_penalty_value", args, [*p.buffers, *((t, True) for t in (values, total, partials))])
    e = p.exact
    ewc = 0.5 * (e["fisher"] * (e["theta"] - e["anchor"]).square()).sum()
    distance = (e["theta"] - e["repel"]).square().sum()
    torch.testing.assert_close(total, torch.stack([ewc, distance]), rtol=1e-12, atol=1e-12)

    weights = torch.tensor([0.5, 0.25], dtype=torch.float64)
    run(emulated, "param_penalty_grad", (*p.args, weights.data_ptr()), [*p.buffers, (weights, False)])
    gradient = e["grad"] + 0.5 * e["fisher"] * (e["theta"] - e["anchor"]) + 0.5 * (e["theta"] - e["repel"])
    tolerance = 2**-9 if dtype == torch.float16 else 1e-5  # one rounding of values of size 1
    torch.testing.assert_close(p.tail["grad"].double(), gradient, rtol=tolerance, atol=tolerance)
