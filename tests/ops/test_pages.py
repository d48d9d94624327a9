"""Large results of the ops lie in memory that the system was asked to give huge pages for; no other does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from atu_ext import _native
from atu_ext.ops import pages

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
pytestmark = [
    pytest.mark.skipif(_native._C is None, reason=str(_native.error)),
    pytest.mark.skipif(
        not THP.exists() or "never" in re.findall(r"\[(\w+)\]", THP.read_text()), reason="no huge pages"
    ),
]

# Prints, for each result, whether the kernel lists its middle among the memory that huge pages are asked for.
SCRIPT = """
import torch
from atu_ext.ops import bias_act, modulated_conv2d, setup_filter, upfirdn2d

def asked(t):
    middle, inside = t.data_ptr() + t.nbytes // 2, False
    for line in open("/proc/self/smaps"):
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            low, high = (int(part, 16) for part in words[0].split("-"))
            inside = low <= middle < high
        elif inside and words[0] == "VmFlags:":
            return "hg" in words
    raise RuntimeError("no such memory")

def check(name, size):
    x = torch.randn(1, 16, size, size, requires_grad=True)
    before = asked(x)
    f = setup_filter([1, 3, 3, 1])
    results = [upfirdn2d(x, f, up=2, padding=[2, 1, 2, 1]), bias_act(x, act="lrelu")]
    results.append(modulated_conv2d(x, torch.randn(16, 16, 3, 3), torch.randn(1, 16), padding=1, act="lrelu"))
    results += torch.autograd.grad(results[1].sum(), x)
    print(name, before, *(asked(t) for t in results))

check("large", 1031)
check("small", 67)
"""


def run(**environment: str) -> list[str]:
    there = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=there, timeout=300
    )
    return done.stdout.splitlines()


def test_large_results_are_asked_for_and_small_ones_are_not():
    large, small = run()
    assert large == "large False True True True True"
    assert small == "small False False False False False"


def test_the_way_out():
    assert run(ATU_HUGE_PAGES="0") == ["large False False False False False", "small False False False False False"]


@pytest.mark.skipif(pages._madvise is None, reason="no madvise here")
@pytest.mark.parametrize(("offset", "size"), [(0, pages.LARGE), (4096, pages.LARGE), (12345, 2 * pages.LARGE + 77)])
def test_the_hint_stays_within_the_tensor(monkeypatch, offset, size):
    class Tensor:
        is_cpu, nbytes = True, size

        @staticmethod
        def data_ptr():
            return (1 << 30) + offset

    hints = []
    monkeypatch.setattr(pages, "_madvise", lambda *hint: hints.append(hint))
    pages.in_huge_pages(Tensor)
    ((begin, length, _),) = hints
    assert begin % 4096 == length % 4096 == 0
    assert Tensor.data_ptr() <= begin < Tensor.data_ptr() + 4096
    assert begin + length <= Tensor.data_ptr() + size < begin + length + 4096
    Tensor.nbytes = pages.LARGE - 1
    pages.in_huge_pages(Tensor)
    assert len(hints) == 1
