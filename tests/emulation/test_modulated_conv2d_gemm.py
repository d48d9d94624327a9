"""The implicit GEMM under emulation: float64 references over tails and strides, what is exact, and planted faults.

u is a sum of `terms` products of exactly known factors (after the rounding of in_scale x, part of the contract),
accumulated in float32 and rounded once to the dtype: |error| <= eps(dtype) |u| + terms 2^-23 sum |products|.
y must equal bit for bit what the separate epilogue pass makes of u: both round the same operations.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.backends import EmulatedModule, EmulationFault, load_lazily
from tests.emulation.build import BUILD, HERE, ROOT, build

CODES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 3}
EPS = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}
F32, F16, BF16 = CODES
AUTOMATIC, SMALL, LARGE = 0, 1, 2
CPU = -1
LRELU = (2, 0.2, 1.4, 2.0)


def randn(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@dataclass
class Case:
    """Sizes of one convolution. Images are [N, H, W, C], the weight is [O, k, k, C]."""

    dtype: torch.dtype
    n: int
    c: int
    h: int
    w: int
    o: int
    k: int = 3
    stride: int = 1
    pad: int = 1
    tile: int = SMALL

    @property
    def out(self) -> tuple[int, int]:
        return tuple((size + 2 * self.pad - self.k) // self.stride + 1 for size in (self.h, self.w))  # type: ignore

    def x(self) -> Tensor:
        return randn(self.n, self.h, self.w, self.c, dtype=self.dtype, seed=1)

    def weight(self) -> Tensor:
        return randn(self.o, self.k, self.k, self.c, dtype=self.dtype, seed=2)

    def styles(self) -> Tensor:
        return randn(self.n, self.c, dtype=self.dtype, seed=3)

    def operands(self, noise_n: int) -> tuple[Tensor, Tensor, Tensor]:
        d = randn(self.n, self.o, dtype=self.dtype, seed=4)
        noise = randn(noise_n, *self.out, dtype=self.dtype, seed=5)
        return d, noise, randn(self.o, dtype=self.dtype, seed=6)


def gemm(module, case: Case, x, weight, in_scale, d=None, noise=None, bias=None, finish=(0, 0.0, 1.0, -1.0), want="uy"):
    """(u, y), None for what is not in `want`."""
    size = (case.n, *case.out, case.o)
    u, y = (torch.empty(size, dtype=case.dtype) if name in want else None for name in "uy")
    tensors = (x, weight, in_scale, d, noise, bias, u, y)
    module.modulated_conv2d_gemm(
        tuple(0 if t is None else t.data_ptr() for t in tensors), CODES[case.dtype], case.tile,
        (case.n, case.c, case.h, case.w), (case.o, *case.out), (case.k, case.k, case.stride, case.pad, case.pad),
        0 if noise is None or noise.shape[0] == 1 else case.out[0] * case.out[1], finish, CPU,
    )  # fmt: skip
    return u, y


def tf32(t: Tensor) -> Tensor:
    """float32 to tf32, to nearest, ties away from zero."""
    return ((t.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def check_u(case: Case, u: Tensor, x: Tensor, weight: Tensor, in_scale: Tensor | None) -> None:
    scaled = x if in_scale is None else x * in_scale[:, None, None]  # rounded to the dtype
    if case.dtype == F32:
        scaled, weight = tf32(scaled), tf32(weight)
    scaled, weight = scaled.double().permute(0, 3, 1, 2), weight.double().permute(0, 3, 1, 2)
    exact = F.conv2d(scaled, weight, stride=case.stride, padding=case.pad).permute(0, 2, 3, 1)
    sizes = F.conv2d(scaled.abs(), weight.abs(), stride=case.stride, padding=case.pad).permute(0, 2, 3, 1)
    bound = EPS[case.dtype] * exact.abs() + case.c * case.k**2 * 2**-23 * sizes + 1e-7
    assert ((u.double() - exact).abs() <= bound).all()


def check(module, case: Case, noise_n: int = 1) -> None:
    x, weight, styles = case.x(), case.weight(), case.styles()
    d, noise, bias = case.operands(noise_n)
    u, y = gemm(module, case, x, weight, styles, d, noise, bias, LRELU)
    check_u(case, u, x, weight, styles)
    expected = torch.empty_like(y)
    pixels = case.out[0] * case.out[1]
    module.epilogue(
        tuple(t.data_ptr() for t in (u, d, noise, bias)), LRELU, expected.data_ptr(), CODES[case.dtype],
        (case.n, case.o, pixels), True, 0 if noise_n == 1 else pixels, CPU,
    )  # fmt: skip
    assert torch.equal(y, expected)


CASES = {
    "one_tile": Case(F16, 1, 32, 8, 8, 64),
    "pixel_tail": Case(F16, 2, 32, 5, 7, 8),
    "many_pixels": Case(BF16, 1, 8, 11, 13, 16),
    "channel_tail": Case(BF16, 1, 40, 4, 5, 72),
    "fewer_channels_than_a_chunk": Case(F16, 1, 5, 4, 4, 3),
    "odd_channels": Case(BF16, 1, 33, 3, 5, 65, k=1, pad=0),
    "pointwise": Case(F16, 2, 64, 4, 6, 24, k=1, pad=0),
    "stride_2": Case(F16, 1, 16, 9, 8, 16, stride=2),
    "no_padding": Case(BF16, 1, 16, 6, 5, 8, pad=0),
    "wide_padding": Case(F16, 1, 8, 3, 3, 8, pad=2),
    "five_taps": Case(BF16, 1, 8, 5, 4, 8, k=5, pad=2),
    "tf32": Case(F32, 2, 20, 5, 4, 24),
    "tf32_odd": Case(F32, 1, 7, 4, 5, 9, k=1, pad=0),
    "tf32_stride_2": Case(F32, 1, 16, 5, 5, 12, stride=2),
    "large_tile": Case(F16, 1, 8, 12, 11, 136, tile=LARGE),
    "large_tile_tf32": Case(F32, 1, 20, 3, 5, 12, k=1, pad=0, tile=LARGE),
    "large_tile_odd": Case(BF16, 1, 9, 3, 4, 11, tile=LARGE),
}


@pytest.mark.parametrize("name", CASES)
def test_against_float64(emulated, name):
    check(emulated, CASES[name], noise_n=CASES[name].n)


def test_shared_noise(emulated):
    check(emulated, Case(F16, 2, 8, 3, 4, 8, k=1, pad=0), noise_n=1)


def test_scale_and_noise_are_rounded_once(emulated):
    """As both kernels ask for it (fma): no compiler's choice may set their y apart. noise = -d u but for a rounding."""
    case = Case(F32, 1, 1, 1, 1, 1, k=1, pad=0)
    x, one, d = torch.ones(1), torch.ones(1), torch.tensor([1 + 2**-14])
    weight = torch.tensor([1 + 2**-10])  # a tf32: u is the same
    exact = d.double() * weight.double()
    noise = -exact.float()
    u, y = gemm(emulated, case, x, weight, one, d, noise, torch.zeros(1))
    assert torch.equal(u.flatten(), weight)
    assert y.item() == (exact + noise.double()).item() != 0
    pointers = tuple(t.data_ptr() for t in (u, d, noise, torch.zeros(1)))
    alone = torch.empty(1)
    emulated.epilogue(pointers, (0, 0.0, 1.0, -1.0), alone.data_ptr(), 0, (1, 1, 1), True, 0, CPU)
    assert torch.equal(alone, y.flatten())


@pytest.mark.parametrize("dtype", CODES, ids=str)
def test_modulating_while_loading_equals_modulating_before(emulated, dtype):
    case = Case(dtype, 2, 24, 4, 5, 16)
    x, weight, styles = case.x(), case.weight(), case.styles()
    inside, _ = gemm(emulated, case, x, weight, styles, want="u")
    before, _ = gemm(emulated, case, x * styles[:, None, None], weight, None, want="u")
    assert torch.equal(inside, before)


@pytest.mark.parametrize("dtype", [F16, F32], ids=str)
def test_the_tile_does_not_matter(emulated, dtype):
    case = Case(dtype, 1, 24, 5, 4, 16)
    x, weight, styles = case.x(), case.weight(), case.styles()
    small, _ = gemm(emulated, case, x, weight, styles, want="u")
    case.tile = LARGE
    assert torch.equal(small, gemm(emulated, case, x, weight, styles, want="u")[0])


def test_y_does_not_depend_on_storing_u(emulated):
    case = Case(BF16, 1, 16, 3, 5, 8)
    args = (case.x(), case.weight(), case.styles(), *case.operands(1), LRELU)
    assert torch.equal(gemm(emulated, case, *args)[1], gemm(emulated, case, *args, want="y")[1])


def test_misaligned_storage(emulated):
    case = Case(F16, 1, 16, 3, 4, 8)
    x = torch.cat([torch.zeros(1, dtype=F16), case.x().flatten()])[1:].view(1, 3, 4, 16)
    assert x.data_ptr() % 16 == 2
    weight, styles = case.weight(), case.styles()
    u, _ = gemm(emulated, case, x, weight, styles, want="u")
    assert torch.equal(u, gemm(emulated, case, case.x(), weight, styles, want="u")[0])


def test_nan_and_infinity_stay_where_they_belong(emulated):
    case = Case(F16, 1, 8, 4, 4, 8)
    x, weight = case.x(), case.weight()
    x[0, 0, 0, 0] = float("nan")
    _, y = gemm(emulated, case, x, weight, None, finish=(1, 0.0, 1.0, 2.0), want="y")
    near = torch.zeros(4, 4, dtype=torch.bool)
    near[:2, :2] = True
    assert y[0, near].isnan().all()
    assert y[0, ~near].isfinite().all()


def test_no_channels_and_no_pixels(emulated):
    empty = Case(F16, 1, 0, 3, 3, 8)
    u, _ = gemm(emulated, empty, empty.x(), empty.weight(), None, want="u")
    assert (u == 0).all()
    assert gemm(emulated, Case(F16, 0, 8, 3, 3, 8), torch.empty(0), torch.empty(0), None, want="u")[0].numel() == 0


def test_double_and_the_cpu_are_refused(emulated):
    with pytest.raises(ValueError, match="expected f32, f16 or bf16, got f64"):
        emulated.modulated_conv2d_gemm(
            (0,) * 8, 1, SMALL, (1, 1, 1, 1), (1, 1, 1), (1, 1, 1, 0, 0), 0, (0, 0.0, 1.0, -1.0), CPU
        )
    with pytest.raises(ValueError, match="no CPU kernel"):
        emulated.module.modulated_conv2d_gemm(
            (0,) * 8, 2, SMALL, (1, 1, 1, 1), (1, 1, 1), (1, 1, 1, 0, 0), 0, (0, 0.0, 1.0, -1.0), CPU
        )


# ---- planted faults -------------------------------------------------------------------------------------------------

# name: (text of the kernel, which occurs once; what stands there while the fault is on; how it must show up)
RACE, WRONG = "race", "wrong"
FAULTS = {
    "wrong fragment row": (
        "matrix % 2 * 8 + row, matrix / 2)",
        "(PLANTED ? matrix / 2 : matrix % 2) * 8 + row, matrix / 2)",
        WRONG,
    ),
    "wrong fragment column of the scale": ("scale[r / 2]", "scale[PLANTED ? r % 2 : r / 2]", WRONG),
    "chunks exchanged on writing only": (
        "stage + (lane.x ^ next_chunks)",
        "stage + (PLANTED ? lane.x | next_chunks : lane.x ^ next_chunks)",
        WRONG,
    ),
    "no tail guard at the stores": (
        "if (pixel >= k.pixels || channel >= k.out_c) continue;",
        "if (!PLANTED && (pixel >= k.pixels || channel >= k.out_c)) continue;",
        "out-of-bounds",
    ),
    "no tail guard at the loads": (
        "cp_async<16>(target, source, count > 0)",
        "cp_async<16>(target, source, PLANTED || count > 0)",
        WRONG,
    ),
    "tap off by one": (
        "if (++kx_ < k_.kernel_w) return;",
        "if (++kx_ < k_.kernel_w - (PLANTED ? 1 : 0)) return;",
        WRONG,
    ),
    "no barrier in the pipeline": (
        "__syncthreads();                    // for all",
        "if (!PLANTED) __syncthreads();  // for all",
        # Reported at its first sign: what another thread copies is not there yet, or is overwritten.
        "race|uninitialised|cp_async_wait",
    ),
    "off-by-one in the cp.async wait": (
        "cp_async_wait<Tile::stages - 2>();",
        "if (PLANTED) cp_async_wait<Tile::stages - 1>(); else cp_async_wait<Tile::stages - 2>();",
        "cp_async_wait",
    ),
    "no empty groups at the end": (
        "cp_async_commit();  // also without a load",
        "if (!PLANTED || s + Tile::stages - 1 < slabs) cp_async_commit();  // also without a load",
        "cp_async_wait",
    ),
    "no barrier before the output tile": (
        "__syncthreads();  // the last slab has been read",
        "if (!PLANTED) __syncthreads();  // the last slab has been read",
        RACE,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def faulty() -> EmulatedModule:
    """The kernel with every fault built in, each behind a switch."""
    source = (ROOT / "csrc" / "kernels" / "modulated_conv2d_gemm_cuda.cu").read_text()
    for number, (old, new, _) in enumerate(FAULTS.values(), start=1):
        assert source.count(old) == 1, f"the kernel changed; plant this fault anew: {old}"
        source = source.replace(old, new.replace("PLANTED", f"(planted_fault == {number})"))
    folder = BUILD / "gemm_faults" / "source"
    folder.mkdir(parents=True, exist_ok=True)
    kernel, text = folder / "modulated_conv2d_gemm_cuda.cu", "extern int planted_fault;\n" + source
    if not kernel.exists() or kernel.read_text() != text:
        kernel.write_text(text)
    sources = [HERE / "gemm_faults_module.cpp", ROOT / "csrc" / "bindings" / "modulated_conv2d_cuda.cpp", kernel]
    path = build("gemm_faults", sources)
    return EmulatedModule(load_lazily(path, "gemm_faults"), ctypes.CDLL(str(path)))


def run_faulty(module: EmulatedModule, number: int) -> None:
    case = Case(F16, 1, 40, 5, 5, 24)  # tails along pixels, channels in and out; more slabs than stages
    x, weight, styles = case.x(), case.weight(), case.styles()
    module.module.plant(number)
    try:
        with module.watch():
            u, _ = gemm(module, case, x, weight, styles, want="u")
    finally:
        module.module.plant(0)
    check_u(case, u, x, weight, styles)


def test_without_a_fault(faulty):
    run_faulty(faulty, 0)


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_caught(faulty, name):
    number, symptom = list(FAULTS).index(name) + 1, FAULTS[name][2]
    if symptom == WRONG:
        # Rejected by the comparison with float64, or before it by the emulation.
        with pytest.raises(AssertionError):
            run_faulty(faulty, number)
        return
    with pytest.raises(EmulationFault, match=symptom) as caught:
        run_faulty(faulty, number)
    assert "block (" in str(caught.value) and "thread (" in str(caught.value)
