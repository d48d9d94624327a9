"""CUDA tensors on a build without CUDA kernels, or with ones for other GPUs: one warning that names cause and remedy,
then the reference.

There need be no device: the tensors are the CPU's and say that they are CUDA's.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import warnings
from contextlib import nullcontext

import pytest
import torch

from atu_ext.ops import bias_act, default_impl, dispatch, modulated_conv2d, param_penalty, upfirdn2d


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


def pretend_a_gpu(monkeypatch, capability, obstacle):
    """A GPU of which the CUDA runtime says that; how often it was asked is counted."""
    info = {"cuda": True, "cuda_version": "12.8", "cuda_architectures": "80-real 90"}
    asked = []
    monkeypatch.setattr(dispatch._native._C, "build_info", lambda: info)
    monkeypatch.setattr(dispatch._native._C, "cuda_obstacle", lambda: asked.append(1) or obstacle, raising=False)
    monkeypatch.setattr(dispatch, "_NO_CUDA", dispatch._cuda_reason())
    monkeypatch.setattr(dispatch, "_obstacles", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    return asked


# Why no kernel runs, and what the warning says of it.
CAUSES = {
    "no kernels": ("nvcc was not found", "ATU_CUDA=on pip install"),
    "too old a GPU": ("Tesla V100, compute capability 7.0: no kernel image", "the kernels need 7.5 or later"),
    "another GPU": ("(CUDA 12.8 for 80-real 90) cannot run on", "ATU_CUDA_ARCHITECTURES=86 pip install"),
}


@pytest.fixture(params=CAUSES)
def without_cuda(request, monkeypatch):
    monkeypatch.setattr(dispatch, "_warned", set())
    if request.param == "no kernels":
        info = {"cuda": False, "cuda_reason": "nvcc was not found"}
        monkeypatch.setattr(dispatch._native._C, "build_info", lambda: info)
        monkeypatch.setattr(dispatch, "_NO_CUDA", dispatch._cuda_reason())
    else:
        capability = (7, 0) if request.param == "too old a GPU" else (8, 6)
        pretend_a_gpu(monkeypatch, capability, "no kernel image is available for execution on the device")
    return CAUSES[request.param]


@pytest.mark.parametrize("name", OPS)
def test_one_warning_then_the_reference(without_cuda, name):
    with pytest.warns(RuntimeWarning, match=f"{name} runs its slower plain-torch reference: this build") as caught:
        y = OPS[name]("auto")
    torch.testing.assert_close(y, OPS[name]("reference"))
    (message,) = [str(w.message) for w in caught]
    cause, remedy = without_cuda
    assert cause in message and remedy in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for other in OPS.values():
            other("auto")
            other("reference")


@pytest.mark.parametrize("name", OPS)
def test_native_raises(without_cuda, name):
    cause, _ = without_cuda
    with pytest.raises(RuntimeError, match=f"{name}: impl='native' is impossible: this build .*{re.escape(cause)}"):
        OPS[name]("native")


def test_a_gpu_is_asked_once(monkeypatch):
    asked = pretend_a_gpu(monkeypatch, (9, 0), "")
    assert dispatch.why_not_native(cuda(2)) is None
    assert "expected a floating-point tensor" in dispatch.why_not_native(cuda(2, dtype=torch.int32))
    assert len(asked) == 1


def test_compiled_code_takes_the_answer_for_a_constant(monkeypatch):
    monkeypatch.setattr(dispatch, "_NO_CUDA", None)
    monkeypatch.setattr(dispatch, "_obstacles", {})
    # It calls into the compiled module, which cannot be traced.
    monkeypatch.setattr(dispatch, "_cuda_fault", lambda device: dispatch._native._C.cpu_isa()[:0])
    compiled = torch.compile(lambda x: x + (dispatch._no_cuda(x) is None), backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1)) == 1


def test_double_precision_of_the_modulated_layer_has_no_cuda_kernel(monkeypatch):
    pretend_a_gpu(monkeypatch, (9, 0), "")
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


def test_default_impl_of_threads_that_overlap():
    """The second begins before the first ends, and ends after it."""
    began, ended, seen = threading.Event(), threading.Event(), []

    def other():
        seen.append(dispatch.wants_reference("auto"))
        with default_impl("reference"):
            began.set()
            ended.wait(10)
            seen.append(dispatch.wants_reference("auto"))

    thread = threading.Thread(target=other)
    with default_impl("reference"):
        thread.start()
        began.wait(10)
    ended.set()
    thread.join(10)
    assert seen == [False, True] and not dispatch.wants_reference("auto")


def test_compiled_code_follows_default_impl():
    compiled = torch.compile(lambda x: x + dispatch.wants_reference("auto"), backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1)) == 0
    with default_impl("reference"):
        assert compiled(torch.zeros(1)) == 1
    assert compiled(torch.zeros(1)) == 0
