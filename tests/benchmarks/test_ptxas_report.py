"""The table of kernel resources: complete, without spills, and what the compiler says where there is one."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from benchmarks import ptxas_report
from benchmarks.ptxas_report import KERNELS, TABLE, Usage, difference, render


def usage(**changes) -> Usage:
    fields = dict(
        source="a.cu", kernel="f<float>", arch=80, threads=256, registers=32, static=0, dynamic=0, spill_stores=0,
        spill_loads=0, stack=0,
    )  # fmt: skip
    return Usage(**fields | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "occupancy"),
    [
        (dict(), 1.0),
        (dict(registers=33), 0.75),  # 40 a thread are given out: 51 warps, 6 blocks
        (dict(registers=64), 0.5),
        (dict(registers=255), 0.125),
        (dict(threads=1024, registers=65), 0.0),  # does not fit: 72 a thread
        (dict(threads=32, registers=16), 0.5),  # 32 blocks at most
        (dict(static=81 * 1024), 0.25),  # two blocks of 82 KiB in 164
        (dict(static=1024, dynamic=81 * 1024), 0.125),
        (dict(arch=90, static=75 * 1024), 0.375),  # three blocks of 76 KiB in 228
    ],
)
def test_occupancy(changes, occupancy):
    """Worked by hand from the limits that NVIDIA gives for compute capability 8.0 and 9.0."""
    assert usage(**changes).occupancy == occupancy


def test_the_committed_table_has_every_kernel_and_no_spill():
    rows = re.findall(r"^\| `(\w+)(?:<.*>)?` \| .+? \| .+? \| .+? \| (.+?) \| .+? \|$", TABLE.read_text(), re.M)
    assert len(rows) > 100
    assert {spills for _, spills in rows} == {"0"}
    sources = "\n".join(path.read_text() for path in sorted(KERNELS.glob("*_cuda.cu")))
    declared = re.findall(r"__global__ void __launch_bounds__\([^{]*?\)\s*(\w+)\(", sources)
    assert sources.count("__global__") == len(declared)
    assert {name for name, _ in rows} == set(declared)


def test_differences_are_found():
    old = render([usage(), usage(arch=90)], "13.0.88")
    assert difference(old, old) == ""
    changed = render([usage(registers=40), usage(arch=90)], "13.0.88")
    assert "| `f<float>` | 256 | 40 / 32 |" in difference(changed, old)
    # Another toolkit gives other registers; the kernels must still be the same.
    assert difference(render([usage(registers=40), usage(arch=90)], "12.8.93"), old) == ""
    assert "g<float>" in difference(render([usage(kernel="g<float>")], "12.8.93"), old)


def test_spills_fail_the_check(monkeypatch, capsys):
    monkeypatch.setattr(ptxas_report, "measure", lambda jobs: [usage(spill_stores=4)])
    monkeypatch.setattr(ptxas_report, "toolkit_version", lambda: "0.0.0")
    assert ptxas_report.main(["--check"]) == 1
    assert "spill: f<float> (a.cu, sm_80): 4 + 0 bytes" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None or shutil.which("c++filt") is None, reason="no nvcc or no c++filt")
def test_the_compiler_says_what_the_table_says(tmp_path):
    """One file; `make ptxas` compares them all."""
    usages = [
        u
        for arch in (80, 90)
        for u in ptxas_report.compile_one(KERNELS / "param_penalty_cuda.cu", arch, Path(tmp_path))
    ]
    usages.sort(key=lambda u: (u.source, u.kernel, u.arch))
    table, version = TABLE.read_text(), ptxas_report.toolkit_version()
    assert ptxas_report.spilling(usages) == []
    section = re.search(r"## param_penalty_cuda.cu\n.*?(?=\n## |\Z)", table, re.S).group()  # type: ignore[union-attr]
    ours = render(usages, version).partition("\n## ")[2]
    assert ptxas_report.names(section) == ptxas_report.names(ours)
    if f"CUDA {version} " in table:
        assert section.strip() == f"## {ours}".strip()
