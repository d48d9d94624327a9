"""The emulation itself: sound kernels give the right result, planted faults are reported with kernel, block and thread.

Results are compared with closed forms; the tensor-core products with float64 products of the rounded inputs, within
what float32 accumulation allows.
"""

from __future__ import annotations

import ctypes

import pytest
import torch

from tests.backends import EmulationFault, Operation
from tests.emulation.build import HERE, build


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    lib = ctypes.CDLL(str(build("selftest", [HERE / "selftest.cu"])))
    lib.selftest.restype = ctypes.c_char_p
    lib.selftest.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return lib


def run(library: ctypes.CDLL, case: str, x: torch.Tensor, y: torch.Tensor, fresh: bool = True) -> torch.Tensor:
    with Operation(library).memory([("x", x, False), ("y", y, fresh)]):
        error = library.selftest(case.encode(), x.data_ptr(), y.data_ptr(), x.numel())
        if error is not None:
            raise EmulationFault(error.decode())
    return y


def values(n: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(0))


def test_simple_kernels(library):
    for n in (1, 61, 64, 200):
        x = values(n)
        assert torch.equal(run(library, "scale", x, torch.empty(n)), 2 * x)
        expected = torch.cat([part.flip(0) for part in x.split(64)])
        assert torch.equal(run(library, "reverse", x, torch.empty(n)), expected)
    x = values(64)
    assert torch.equal(run(library, "vectors", x, torch.empty(64)), x)
    assert torch.equal(run(library, "stored_vectors", x, torch.empty(64)), x)


def test_warp_operations(library):
    x = values(29)
    y = run(library, "warp", x, torch.empty(2))
    assert y[0].item() == pytest.approx(x.double().sum().item(), abs=1e-5)
    assert y[1].item() == (x > 0).sum().item()


def test_async_copy_fills_with_zeros(library):
    x = values(64)
    assert torch.equal(run(library, "async_copy", x, torch.empty(64)), x)
    x = values(40)  # threads 10..15 copy nothing and write zeros
    assert torch.equal(run(library, "async_copy", x, torch.empty(40)), x)


def round_tf32(x: torch.Tensor) -> torch.Tensor:
    """To 10 bits of mantissa, ties away from zero."""
    mantissa, exponent = torch.frexp(x.double())
    scaled = mantissa * 2**11
    return torch.ldexp(torch.sign(scaled) * torch.floor(scaled.abs() + 0.5) / 2**11, exponent)


@pytest.mark.parametrize(
    ("case", "rounded"),
    [
        ("mma_f16", lambda x: x.half().double()),
        ("mma_bf16", lambda x: x.bfloat16().double()),
        ("mma_tf32", round_tf32),
    ],
)
def test_tensor_core_product(library, case, rounded):
    x = values(256)
    y = run(library, case, x, torch.empty(128)).view(16, 8)
    a = rounded(x).view(16, 16)
    # 16 products a sum, each of float32: 16 roundings of terms below 16 max|a|^2.
    torch.testing.assert_close(y.double(), a @ a[:, :8], rtol=0, atol=16 * 2**-24 * a.abs().max().item() ** 2 * 16)


def test_wrong_fragment_row_changes_the_product(library):
    """A permuted row is a valid program: only the comparison of values can find it."""
    x = values(256)
    y = run(library, "faulty_fragment_row", x, torch.empty(128)).view(16, 8)
    a = x.half().double().view(16, 16)
    assert (y.double() - a @ a[:, :8]).abs().max() > 0.1


FAULTS = {
    "faulty_tail": (61, 61, r"scale_without_tail_guard: block \(0,0,0\), thread \(61,0,0\): out-of-bounds 4-byte read"),
    "faulty_off_by_one": (61, 61, r"unwritten output: y at byte 240 of 244, after kernel scale_off_by_one"),
    "faulty_misaligned": (64, 64, r"thread \(1,0,0\): misaligned 16-byte access"),
    "faulty_misaligned_store": (64, 64, r"thread \(1,0,0\): misaligned 16-byte access"),
    "faulty_no_barrier": (64, 64, r"reverse_tile<false>: block \(0,0,0\), thread .*: (read of uninitialised|race)"),
    "faulty_lost_barrier": (64, 64, r"thread .*: race: (read|write) .* by thread .* in shared array tile"),
    "faulty_shared_row": (64, 64, r"thread \(63,0,0\): array index 8 out of bounds"),
    "faulty_dynamic_shared": (64, 64, r"thread \(63,0,0\): out-of-bounds 4-byte access to shared memory, 256 bytes"),
    "faulty_shared_uninitialised": (64, 64, r"thread \(63,0,0\): read of uninitialised memory, in shared array tile"),
    "faulty_barrier_in_branch": (64, 64, r"barrier at selftest.cu:\d+ while thread \(0,0,0\) waits at the barrier"),
    "faulty_barrier_after_return": (61, 61, r"deadlock: .*waits at the barrier.*3 threads have ended"),
    "faulty_blocks_race": (61, 61, r"block \(1,0,0\), thread \(0,0,0\): race: write over .* by another block"),
    "faulty_shuffle_outside": (32, 32, r"shuffle at selftest.cu:\d+ from a lane outside its mask"),
    "faulty_warp_lane": (32, 32, r"deadlock: .*warp operation.*1 threads have ended"),
    "faulty_async_copy": (64, 64, r"access to a cp.async target before cp_async_wait"),
    "faulty_block_size": (64, 64, r"invalid block \(1056,1,1\)"),
    "faulty_shared_size": (64, 64, r"50176 bytes of dynamic shared memory asked for, 49152 allowed"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_planted_fault_is_reported(library, case):
    n_x, n_y, message = FAULTS[case]
    with pytest.raises(EmulationFault, match=message):
        run(library, case, values(n_x), torch.empty(n_y))


def test_results_that_depend_on_the_thread_order_are_reported(library):
    x = torch.tensor([1.0, 2.0**-24] + [2.0**-24] * 30)  # 1 + tiny is 1, but tiny + tiny + ... + 1 is more
    with pytest.raises(EmulationFault, match="results differ between thread orders, in buffer y"):
        run(library, "faulty_float_atomics", x, torch.zeros(1), fresh=False)


def test_a_fault_leaves_the_emulation_usable(library):
    with pytest.raises(EmulationFault):
        run(library, "faulty_barrier_in_branch", values(64), torch.empty(64))
    x = values(64)
    assert torch.equal(run(library, "reverse", x, torch.empty(64)), x.flip(0))
