"""The modulated layer on the implicit GEMM through the Python op: values, gradients of both orders, choice of engine.

The kernel runs under emulation (or on a device, where there is one). References are the plain-torch formulas in
float64. Tolerance: twice the error of the same formulas in torch at that dtype, plus a rounding of the largest value;
for float32 torch's error in float16, whose 10 bits of fraction are those of tf32.
"""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from torch import Tensor

from atu_ext.ops import conv_engine, modulated_conv2d, modulated_gemm, setup_filter
from atu_ext.ops.conv_engine import Layer, choose, read_table

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
EPS = {torch.float32: 2**-11, torch.float16: 2**-11, torch.bfloat16: 2**-8}
YARDSTICK = {torch.float32: torch.float16, torch.float16: torch.float16, torch.bfloat16: torch.bfloat16}


@pytest.fixture
def gpu(cuda_kernels):
    """Where the CUDA kernels run: under emulation, and on a device."""
    return cuda_kernels


def inputs(gpu, dtype, n=2, c_in=9, c_out=5, h=5, w=4, k=3, out=None) -> list[Tensor]:
    """x, weight, styles, noise, bias, next_styles."""
    gen = torch.Generator().manual_seed(7)
    make = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=gen).to(gpu.device, dtype)  # noqa: E731
    x = make(n, c_in, h, w).contiguous(memory_format=torch.channels_last)
    return [x, make(c_out, c_in, k, k), make(n, c_in), make(1, 1, *(out or (h, w))), make(c_out), make(n, c_out)]


def layer(tensors, k, engine="gemm", impl="native", **options) -> Tensor:
    x, weight, styles, noise, bias, *rest = tensors
    options = dict(padding=k // 2, act="lrelu", clamp=3.0) | options
    following = rest[0] if rest else None
    return modulated_conv2d(
        x, weight, styles, noise, bias=bias, next_styles=following, engine=engine, impl=impl, **options
    )


def close(actual: Tensor, exact: Tensor, torchs: Tensor, dtype: torch.dtype) -> None:
    """At most twice torch's own error at that dtype, plus a rounding of the largest value."""
    limit = 2 * (torchs.double() - exact).abs().max() + 2 * EPS[dtype] * exact.abs().max()
    error = (actual.double() - exact).abs().max()
    assert error <= limit, f"error {error:.3g} past {limit:.3g}"


def reference(tensors, k, dtype, **options) -> tuple[Tensor, Tensor]:
    """Exact, and in torch at the dtype's yardstick."""
    wide, narrow = ([t.to(kind) for t in tensors] for kind in (torch.float64, YARDSTICK[dtype]))
    return tuple(layer(ts, k, "auto", "reference", **options) for ts in (wide, narrow))


def runs(dtype):
    """The exact one, the yardstick, and ours."""
    return (torch.float64, "auto", "reference"), (YARDSTICK[dtype], "auto", "reference"), (dtype, "gemm", "native")


FIR = setup_filter([1, 3, 3, 1])
VARIANTS = {
    "3x3": dict(),
    "1x1": dict(k=1),
    "convolution": dict(flip_weight=False),
    "no demodulation": dict(demodulate=False),
    "asymmetric padding": dict(padding=[1, 0, 2, 1], out=(6, 3)),
    "strided": dict(down=2, resample_filter=FIR, out=(2, 2)),
    "1x1 strided": dict(k=1, down=2, resample_filter=FIR, out=(2, 2)),
    "modulated already": dict(modulated=True),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_values(gpu, name, dtype):
    options = dict(VARIANTS[name])
    k, out = options.pop("k", 3), options.pop("out", None)
    if "resample_filter" in options:
        options["resample_filter"] = FIR.to(gpu.device)
    tensors = inputs(gpu, dtype, k=k, out=out)
    y = layer(tensors, k, **options)
    assert y.is_contiguous(memory_format=torch.channels_last)
    close(y, *reference(tensors, k, dtype, **options), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [3, 1])
def test_first_gradients(gpu, k, dtype):
    """Of every input; the input's and the styles' come from the GEMM itself."""
    tensors = inputs(gpu, dtype, k=k)
    results = []
    for kind, engine, impl in runs(dtype):
        leaves = [t.detach().to(kind).requires_grad_() for t in tensors]
        y = layer(leaves, k, engine, impl)
        dy = torch.linspace(-1, 1, y.numel(), dtype=torch.float64, device=gpu.device).view_as(y).to(kind)
        results.append(torch.autograd.grad(y, leaves, dy))
    for exact, torchs, ours in zip(*results, strict=True):
        close(ours, exact, torchs, dtype)
    if gpu.calls is not None:
        assert gpu.calls.count("modulated_conv2d_gemm") == 2  # forward, and the input's gradient


def test_strided_gradients(gpu):
    dtype, options = torch.float16, dict(down=2, resample_filter=FIR.to(gpu.device))
    tensors = inputs(gpu, dtype, out=(2, 2))
    results = []
    for kind, engine, impl in runs(dtype):
        leaves = [t.detach().to(kind).requires_grad_() for t in tensors]
        results.append(torch.autograd.grad(layer(leaves, 3, engine, impl, **options).sum(), leaves))
    for exact, torchs, ours in zip(*results, strict=True):
        close(ours, exact, torchs, dtype)


def test_only_the_wanted_gradients_are_computed(gpu):
    tensors = inputs(gpu, torch.float16)
    for i in range(len(tensors)):
        leaves = [u.detach().clone().requires_grad_(i == j) for j, u in enumerate(tensors)]
        layer(leaves, 3).sum().backward()
        everything = [u.detach().clone().requires_grad_() for u in tensors]
        layer(everything, 3).sum().backward()
        assert torch.equal(leaves[i].grad, everything[i].grad), i
        assert all(leaf.grad is None for j, leaf in enumerate(leaves) if j != i)


def test_second_gradients(gpu):
    """The gradient of ||J^T y||^2, as path length regularisation takes it."""
    dtype = torch.float32
    tensors = inputs(gpu, dtype)
    results = []
    for kind, engine, impl in runs(dtype):
        leaves = [t.detach().to(kind).requires_grad_() for t in tensors]
        y = layer(leaves, 3, engine, impl, act="swish", clamp=None)
        dy = torch.linspace(-1, 1, y.numel(), dtype=torch.float64, device=gpu.device).view_as(y).to(kind)
        first = torch.autograd.grad((y * dy).sum(), leaves[:3], create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for exact, torchs, ours in zip(*results, strict=True):
        close(ours, exact, torchs, dtype)


@pytest.mark.parametrize("engine", ["gemm", "auto"])
def test_traced_by_torch_compile(gpu, engine, tmp_path, monkeypatch):
    """In one graph, also where a table makes the choice."""
    table(tmp_path / "table.json", dict(dtype="float32", library_us=2.0, gemm_us=1.0))
    monkeypatch.setenv("ATU_CONV_ENGINES", str(tmp_path / "table.json"))
    conv_engine._table.cache_clear()
    conv_engine._measured.cache_clear()
    leaves = [t.requires_grad_() for t in inputs(gpu, torch.float32)]

    def run(*tensors: Tensor) -> Tensor:
        return layer(tensors, 3, engine)

    torch.compiler.reset()
    y, want = torch.compile(run, backend="aot_eager", fullgraph=True)(*leaves), run(*leaves)
    assert torch.equal(y, want)
    grads, wanted = (torch.autograd.grad(t.square().sum(), leaves) for t in (y, want))
    torch.testing.assert_close(grads, wanted)
    if gpu.calls is not None:
        assert "modulated_conv2d_gemm" in gpu.calls


def test_large_styles_do_not_overflow_half(gpu):
    tensors = inputs(gpu, torch.float16)
    tensors[2] = tensors[2] * 500  # s^2 is past float16's range
    wide, single = ([t.to(kind) for t in tensors] for kind in (torch.float64, torch.float32))
    exact, torchs = (layer(ts, 3, "auto", "reference") for ts in (wide, single))
    for t in tensors[1:3]:  # the coefficients are made in another way where gradients are wanted
        close(layer(tensors, 3), exact, torchs.half(), torch.float16)
        t.requires_grad_()


def test_fake_kernels_agree(gpu):
    x, w, styles, noise, bias, _ = inputs(gpu, torch.float16)
    ops, checks = torch.ops.atu_ext, ("test_schema", "test_faketensor")
    settings = (1, 1, 1, 2, 0.2, 1.4, 3.0)
    torch.library.opcheck(
        ops.modulated_gemm, (x, w, styles, None, noise, bias, *settings, True, "gemm"), test_utils=checks
    )
    torch.library.opcheck(ops.modulated_gemm_input_grad, (x[:, :5], w, styles, 1, 1, True), test_utils=checks)
    torch.library.opcheck(ops.pixel_dot, (x, x), test_utils=checks)
    torch.library.opcheck(ops.demodulate, (w, styles), test_utils=checks)


# ---- the choice of engine -------------------------------------------------------------------------------------------

ROW = dict(
    dtype="float16",
    layout="channels_last",
    direction="forward",
    kernel=3,
    stride=1,
    channels_in=9,
    channels_out=5,
    height=5,
    width=4,
    batch=2,
)


def table(path, *rows) -> None:
    path.write_text(json.dumps({"devices": {"emulated": {"rows": [ROW | row for row in rows]}}}))


def test_the_engine_comes_from_the_table(tmp_path, monkeypatch):
    path = tmp_path / "table.json"
    table(
        path,
        dict(batch=2, library_us=3.0, gemm_us=2.0),
        dict(batch=64, library_us=3.0, gemm_us=4.0),
        dict(direction="input_gradient", library_us=1.0, gemm_us=2.0),
    )
    monkeypatch.setenv("ATU_CONV_ENGINES", str(path))
    monkeypatch.delenv("ATU_CONV_ENGINE", raising=False)
    layer = Layer(**ROW)
    assert choose(layer, "emulated").engine == "gemm"
    assert choose(layer._replace(batch=7), "emulated").engine == "gemm"  # nearest to 2
    assert choose(layer._replace(batch=60), "emulated").engine == "library"
    assert choose(layer._replace(direction="input_gradient"), "emulated").engine == "library"
    for other in (dict(channels_in=8), dict(dtype="bfloat16"), dict(layout="contiguous"), dict(height=6)):
        choice = choose(layer._replace(**other), "emulated")
        assert choice.engine == "library" and "no measurement" in choice.reason
    assert "no measurements of another" in choose(layer, "another").reason


def test_the_engine_can_be_overruled(monkeypatch):
    layer = Layer(**ROW)
    monkeypatch.setenv("ATU_CONV_ENGINE", "gemm")
    assert choose(layer, "emulated").engine == "gemm"
    assert choose(layer, "emulated", engine="library").engine == "library"
    conv_engine._warned.clear()
    with pytest.warns(RuntimeWarning, match="ATU_CONV_ENGINE=gemm: the library runs instead: too odd"):
        assert choose(layer, "emulated", "too odd").engine == "library"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose(layer, "emulated", "too odd")  # told once
    with pytest.raises(RuntimeError, match="engine: 'gemm' is impossible: too odd"):
        choose(layer, "emulated", "too odd", "gemm")
    monkeypatch.setenv("ATU_CONV_ENGINE", "fast")
    with pytest.raises(ValueError, match="ATU_CONV_ENGINE: expected one of auto, library, gemm, got 'fast'"):
        choose(layer, "emulated")
    with pytest.raises(ValueError, match="engine: expected one of"):
        choose(layer, "emulated", engine="fast")


def test_the_op_follows_the_table(gpu, tmp_path, monkeypatch):
    if gpu.calls is None:
        pytest.skip("the emulated module counts calls")
    tensors = [t.requires_grad_() for t in inputs(gpu, torch.float16)]
    path = tmp_path / "table.json"
    monkeypatch.setenv("ATU_CONV_ENGINES", str(path))
    monkeypatch.delenv("ATU_CONV_ENGINE", raising=False)
    for forward, back in ((1.0, 1.0), (1.0, 9.0), (9.0, 9.0)):
        table(
            path,
            dict(library_us=5.0, gemm_us=forward),
            dict(direction="input_gradient", library_us=5.0, gemm_us=back),
        )
        conv_engine._table.cache_clear()
        conv_engine._measured.cache_clear()
        gpu.calls.clear()
        layer(tensors, 3, "auto").sum().backward()
        assert gpu.calls.count("modulated_conv2d_gemm") == (forward < 5) + (back < 5)


def test_the_packaged_table_is_one():
    read_table(conv_engine.TABLE)


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"devices": {"a": {"rows": [{}]}}}', '{"devices": {"a": 3}}'])
def test_a_broken_table_is_named(tmp_path, text):
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"table\.json: expected a table of convolution engines"):
        read_table(path)


def test_obstacles_are_named(gpu, monkeypatch):
    x, weight, *_ = inputs(gpu, torch.float16)
    assert modulated_gemm.obstacle(x, weight, 1) is None
    assert "transposed convolution" in modulated_gemm.obstacle(x, weight, 2)
    assert "float64" in modulated_gemm.obstacle(x.double(), weight.double(), 1)
    assert "empty" in modulated_gemm.obstacle(x[:0], weight, 1)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert "allow_tf32 = False" in modulated_gemm.obstacle(x.float(), weight.float(), 1)
    monkeypatch.setattr(modulated_gemm, "_capability", lambda device: (7, 5))
    assert "compute capability (7, 5)" in modulated_gemm.obstacle(x, weight, 1)


def test_errors_of_the_op(gpu):
    x, weight, styles, noise, *_ = inputs(gpu, torch.float16)
    with pytest.raises(RuntimeError, match="engine: 'gemm' is impossible: up=2"):
        modulated_conv2d(x, weight, styles, up=2, padding=1, engine="gemm")
    with pytest.raises(RuntimeError, match="plain-torch reference"):
        modulated_conv2d(x, weight, styles, padding=1, engine="gemm", impl="reference")
    with pytest.raises(ValueError, match=r"noise: expected .* 5, 4\]"):
        modulated_conv2d(x, weight, styles, noise[..., :3], padding=1, engine="gemm")
    with pytest.raises(ValueError, match=r"next_styles: expected \[N, C_out\] = \(2, 5\)"):
        modulated_conv2d(x, weight, styles, padding=1, next_styles=styles)
