"""`atu doctor` says what is off, why, and how to turn it on."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from atu.cli import doctor
from atu.support import environment
from atu_ext import _native
from atu_ext.ops import dispatch


def run(*arguments):
    """Exit code of the command."""
    return doctor.doctor.main(list(arguments), standalone_mode=False) or 0


def test_everything_off_has_a_reason_and_a_remedy():
    for part in doctor.diagnose().parts:
        assert part.on or (part.why and part.remedy), part


def test_json_and_table_tell_the_same(capsys):
    code = run("--json")
    told = json.loads(capsys.readouterr().out)
    assert code == (0 if _native._C is not None else 1)
    run()
    table = capsys.readouterr().out
    for part in told["parts"]:
        assert part["name"] in table


@pytest.mark.skipif(_native._C is None, reason=str(_native.error))
def test_one_openmp_runtime_is_loaded():
    """In a process of its own: packages that other tests load (scikit-learn's) bring their own runtime."""
    code = "import atu, atu_ext.ops; from atu.cli import doctor; print(len(doctor.openmp_runtimes()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 1


def test_without_the_compiled_module(monkeypatch):
    monkeypatch.setattr(_native, "_C", None)
    monkeypatch.setattr(_native, "error", "no such file")
    parts = {part.name: part for part in doctor.diagnose().parts}
    assert not parts["CPU kernels"].on
    assert "no such file" in parts["CPU kernels"].why


@pytest.mark.skipif(_native._C is None, reason=str(_native.error))
def test_cuda_kernels_that_cannot_run_on_a_gpu_count_as_off(monkeypatch):
    info = dict(cuda=True, cuda_version="12.8", cuda_architectures="90")
    monkeypatch.setattr(_native._C, "build_info", lambda: info)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    told = {0: None, 1: "this build cannot run on Tesla V100: no kernel image; the kernels need 7.5 or later"}
    monkeypatch.setattr(dispatch, "obstacle", lambda device: told[device.index])
    part = doctor._cuda_build()
    assert not part.on and part.why == "this build cannot run on Tesla V100: no kernel image"
    assert part.remedy == "the kernels need 7.5 or later"
    told[1] = None
    assert doctor._cuda_build().on


def test_table_keeps_what_stands_in_brackets(monkeypatch, capsys):
    """Rich reads [onnx] as markup, and would print pip install 'atu-ext'."""
    monkeypatch.setattr(doctor, "EXTRAS", {"onnx": ("no_such_module",)})
    monkeypatch.setenv("COLUMNS", "200")
    run()
    assert "pip install 'atu-ext[onnx]'" in capsys.readouterr().out


def several(monkeypatch, gpus=0, nccl=False, cores=8, gloo=True):
    monkeypatch.setattr(torch.distributed, "is_gloo_available", lambda: gloo)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: nccl)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 5))
    monkeypatch.setattr(environment, "usable_cores", lambda: cores)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/bin/{name}")
    return doctor._several_processes()


def test_what_several_processes_would_run_on_is_told(monkeypatch):
    start = "torchrun --nproc-per-node {} -m atu unlearn CKPT --negatives FOLDER --out DIR{}"
    cases = [
        (dict(), "gloo on the CPU (8 cores), no NCCL in this torch", start.format(2, " --threads 4")),
        (dict(cores=2), "gloo on the CPU (2 cores), no NCCL in this torch", start.format(2, "")),
        (
            dict(nccl=True, gpus=1, cores=1),
            "gloo on the CPU (1 core), NCCL 2.27.5 on CUDA (1 device)",
            start.format(2, ""),
        ),
        (
            dict(nccl=True, gpus=4),
            "gloo on the CPU (8 cores), NCCL 2.27.5 on CUDA (4 devices)",
            start.format(4, " --device cuda"),
        ),
    ]
    for case, there, command in cases:
        with monkeypatch.context() as patch:
            assert several(patch, **case).detail == f"{there}\n{command}"


def test_without_gloo_several_processes_are_off(monkeypatch):
    part = several(monkeypatch, gloo=False)
    assert not part.on and "a build without gloo" in part.why
