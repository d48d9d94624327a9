"""The passes with sums over pixels, where the pixels are cut into blocks: any block, batch, layout, dtype, address.

Against the formulas in float64. The emulation reports misaligned accesses: a block whose length is no multiple of a
vector leaves the blocks after the first misaligned, and so does a tensor that begins in the middle of a vector.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from atu_ext.ops import modulated_conv2d
from atu_ext.ops.modulated_passes import _pixel_block
from tests.emulation.test_modulated_conv2d_passes import CODES, CPU, addresses, close, finish, layer, randn


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("side", [12, 13, 14, 17, 20, 28, 36])
def test_block_is_whole_vectors(monkeypatch, side, n):
    """CUDA's: at most 256 pixels, a multiple of 8, the most elements that a 16-byte access takes."""
    monkeypatch.setitem(_pixel_block.__globals__, "on_cuda", lambda t: True)
    t = torch.empty(n, 3, side, side)
    for channels_last in (False, True):
        block = _pixel_block(t, channels_last)
        assert 64 <= block <= 256
        assert block % 8 == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("n", "side"), [(2, 28), (1, 36), (3, 20), (7, 14), (8, 12), (2, 13)])
def test_backward_of_a_planar_layer(cuda_kernels, n, side, dtype):
    """x [2, 3, 28, 28] and its like, contiguous: the gradients of all inputs."""
    shapes = [(n, 3, side, side), (4, 3, 3, 3), (n, 3), (1, 1, side, side), (4,), (n, 4, side, side)]
    values = [randn(*shape, dtype=dtype, seed=i).to(cuda_kernels.device) for i, shape in enumerate(shapes)]

    def gradients(dtype: torch.dtype, impl: str) -> list[Tensor]:
        *inputs, dy = (t.to(dtype) for t in values)
        x, w, s, noise, bias = (t.clone().requires_grad_() for t in inputs)
        y = modulated_conv2d(x, w, s, noise, padding=1, bias=bias, act="swish", impl=impl)
        return [g.double() for g in torch.autograd.grad(y, (x, w, s, noise, bias), dy)]

    exact = gradients(torch.float64, "reference")
    for a, b, e in zip(gradients(dtype, "native"), gradients(dtype, "reference"), exact, strict=True):
        # As near as torch's own operations come at the dtype, both against float64.
        error, torchs, size = (t.square().mean().sqrt() for t in (a - e, b - e, e))
        assert error <= 4 * torchs + 2**-20 * size


def room(shape: tuple[int, int, int], dtype: torch.dtype, channels_last: bool, offset: int) -> Tensor:
    """[N, C, P], uninitialised, `offset` elements after an address aligned to 16 bytes."""
    n, c, p = shape
    memory = torch.empty(offset + n * c * p, dtype=dtype)
    assert memory.data_ptr() % 16 == 0
    return memory[offset:].view(n, p, c).transpose(1, 2) if channels_last else memory[offset:].view(n, c, p)


def example_of(pixels: int, block: int, **other) -> Callable:
    """One that the search must not miss."""
    usual = {"n": 2, "c": 3, "dtype": torch.float32, "channels_last": False, "offsets": (0, 0, 0, 0), "second": False}
    return example(pixels=pixels, block=block, **{**usual, **other})


@example_of(784, 98)
@example_of(784, 98, dtype=torch.float16, second=True)
@example_of(144, 18, channels_last=True, c=8)
@example_of(64, 24, offsets=(0, 1, 0, 0))
@example_of(64, 24, offsets=(4, 4, 4, 4), dtype=torch.bfloat16)
@given(
    n=st.integers(1, 3),
    c=st.sampled_from([1, 3, 8, 9, 16, 35]),
    pixels=st.one_of(st.integers(1, 40).map(lambda k: 8 * k), st.integers(1, 300)),
    block=st.integers(1, 256),
    dtype=st.sampled_from(list(CODES)),
    channels_last=st.booleans(),
    offsets=st.one_of(st.just((0, 0, 0, 0)), st.tuples(*[st.integers(0, 7)] * 4)),
    second=st.booleans(),
)
@settings(max_examples=100, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_block_layout_and_address(emulated, n, c, pixels, block, dtype, channels_last, offsets, second):
    block = max(block, -(-pixels // 12))  # an emulated block takes a millisecond
    shape, blocks = (n, c, pixels), -(-pixels // block)
    u, dy, gu = (
        room(shape, dtype, channels_last, offset).copy_(randn(*shape, dtype=dtype, seed=seed))
        for seed, offset in enumerate(offsets[:3])
    )
    du, du2 = (room(shape, dtype, channels_last, offsets[3]) for _ in range(2))
    d, bias, noise = (randn(*size, dtype=dtype, seed=5 + i) for i, size in enumerate([(n, c), (c,), (n, 1, pixels)]))
    dd, db, dnoise = (torch.empty(size, dtype=dtype) for size in [(n, c), (n, c), (n, 1, pixels)])
    partials = torch.empty(2, n, blocks, c, dtype=torch.float64)
    inputs = addresses(u, d, noise, bias), finish("swish", 1.3, -1.0), dy.data_ptr()
    where = CODES[dtype], shape, channels_last, pixels, block, partials.data_ptr(), CPU
    leaves = [t.double().requires_grad_() for t in (u, d, noise, bias.expand(n, c))]
    exact_dy = dy.double().requires_grad_()
    first = torch.autograd.grad(layer(*leaves, "swish", 1.3, -1.0), leaves, exact_dy, create_graph=True)
    if second:
        emulated.epilogue_grad2(*inputs, addresses(gu, None, None, None), addresses(du, du2, dd, db, dnoise), *where)
        expected = torch.autograd.grad(first[0], [exact_dy, *leaves], gu.double())
        actual = [du, du2, dd, dnoise, db]
    else:
        emulated.epilogue_grad(*inputs, addresses(du, dd, db, dnoise), *where)
        expected, actual = first, [du, dd, dnoise, db]
    # Terms of every sum are products of at most three normal numbers and bounded derivatives.
    for a, e in zip(actual, expected, strict=True):
        close(a, e.detach(), torch.full_like(e, 40.0 * n * c * pixels / e.numel()))

    dx, ds = room(shape, dtype, channels_last, offsets[3]), torch.empty(n, c, dtype=dtype)
    emulated.modulate_grad(*addresses(dy, u, d, dx, ds), *where[:3], *where[4:])
    assert torch.equal(dx, dy * d[:, :, None])
    products = dy.double() * u.double()
    close(ds, products.sum(2), products.abs().sum(2))
