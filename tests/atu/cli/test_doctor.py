"""`atu doctor` says what is off, why, and how to turn it on."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from atu.cli import doctor
from atu_ext import _native


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


def test_table_keeps_what_stands_in_brackets(monkeypatch, capsys):
    """Rich reads [onnx] as markup, and would print pip install 'atu-ext'."""
    monkeypatch.setattr(doctor, "EXTRAS", {"onnx": ("no_such_module",)})
    monkeypatch.setenv("COLUMNS", "200")
    run()
    assert "pip install 'atu-ext[onnx]'" in capsys.readouterr().out
