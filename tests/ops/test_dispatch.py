"""CUDA tensors on a build without CUDA kernels: one warning that names cause and remedy, then the reference.

There need be no device: the tensors are the CPU's and say that they are CUDA's.
"""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch

from atu_ext.ops import bias_act, dispatch, modulated_conv2d, param_penalty, upfirdn2d


class OnCuda(torch.Tensor):
    is_cuda, is_cpu = True, False


def cuda(*shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype).as_subclass(OnCuda)


OPS = {
    "upfirdn2d": lambda impl: upfirdn2d(cuda(1, 2, 4, 4), cuda(4, 4), impl=impl),
    "bias_act": lambda impl: bias_act(cuda(2, 3), cuda(3), act="lrelu", impl=impl),
    "modulated_conv2d": lambda impl: modulated_conv2d(cuda(1, 2, 4, 4), cuda(3, 2, 3, 3), cuda(1, 2), impl=impl),
    "param_penalty": lambda impl: param_penalty([cuda(3)], repel_from=[cuda(3)], impl=impl)[1],
}


@pytest.fixture
def without_cuda(monkeypatch):
    monkeypatch.setattr(dispatch._native._C, "build_info", lambda: {"cuda": False, "cuda_reason": "nvcc was not found"})
    monkeypatch.setattr(dispatch, "_NO_CUDA", dispatch._cuda_reason())
    monkeypatch.setattr(dispatch, "_warned", set())


@pytest.mark.parametrize("name", OPS)
def test_one_warning_then_the_reference(without_cuda, name):
    with pytest.warns(RuntimeWarning, match=f"{name} runs its slower plain-torch reference: this build") as caught:
        y = OPS[name]("auto")
    torch.testing.assert_close(y, OPS[name]("reference"))
    (message,) = [str(w.message) for w in caught]
    assert "nvcc was not found" in message and "ATU_CUDA=on pip install" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for other in OPS.values():
            other("auto")
            other("reference")


@pytest.mark.parametrize("name", OPS)
def test_native_raises(without_cuda, name):
    with pytest.raises(RuntimeError, match=f"{name}: impl='native' is impossible: this build .*nvcc was not found"):
        OPS[name]("native")


def test_double_precision_of_the_modulated_layer_has_no_cuda_kernel(monkeypatch):
    monkeypatch.setattr(dispatch, "_NO_CUDA", None)
    tensors = ((1, 2, 4, 4), (3, 2, 3, 3), (1, 2))
    x, weight, styles = (cuda(*shape, dtype=torch.float64) for shape in tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert modulated_conv2d(x, weight, styles, padding=1).shape == (1, 3, 4, 4)
    with pytest.raises(RuntimeError, match="expected float32, float16 or bfloat16 on CUDA"):
        modulated_conv2d(x, weight, styles, impl="native")


def test_the_import_does_not_bring_the_compiler_along():
    """torch._dynamo takes a second to import, the ops 50 ms."""
    code = "import torch, sys, atu_ext.ops; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
