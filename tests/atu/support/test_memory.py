"""What work takes in memory, and batches that fit."""

from __future__ import annotations

import math
import mmap
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atu.cli import options
from atu.gan import BIG, GAN
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.support import environment, memory
from atu.support.context import RunContext

CPU = torch.device("cpu")


@pytest.mark.skipif(not memory._forget_peak(), reason="the peak can be measured on Linux only")
@pytest.mark.parametrize("megabytes", [64, 192])
def test_the_peak_is_what_was_held_at_once(megabytes):
    def work():
        for _ in range(2):  # one after the other: the peak is that of one. Pages of their own: malloc may keep some
            with mmap.mmap(-1, megabytes * 2**20) as pages:
                for start in range(0, len(pages), mmap.PAGESIZE):
                    pages[start] = 1

    found, seconds = memory.measure(work, CPU)
    assert found == pytest.approx(megabytes * 2**20, rel=0.1)
    assert seconds > 0


@given(st.integers(1, 500), st.integers(1, 2**36), st.integers(0, 2**36))
def test_fitting_is_the_largest_half_that_fits(wanted, each, there):
    patch = pytest.MonkeyPatch()
    patch.setattr(memory, "free", lambda device: there)
    found = memory.fitting(wanted, each, CPU)
    patch.undo()
    budget = min(memory.MOST, there / 2)
    fits = [wanted // 2**k for k in range(10) if wanted // 2**k * each <= budget and wanted // 2**k]
    assert found == max(fits, default=1)


def test_unknown_cost_leaves_the_batch_alone():
    assert memory.fitting(100, None, CPU) == 100
    assert memory.free(CPU) is None or memory.free(CPU) > 0


@pytest.mark.parametrize(("used", "files", "left"), [(3, 0, 5), (8, 6, 6), (8, 0, 0), (9, 0, 0)])
def test_files_that_were_read_do_not_count_in_a_container(monkeypatch, tmp_path, used, files, left):
    gib = 2**30
    (tmp_path / "memory.max").write_text(f"{8 * gib}\n")
    (tmp_path / "memory.current").write_text(f"{used * gib}\n")
    (tmp_path / "memory.stat").write_text(f"anon {gib}\ninactive_file {files * gib}\nactive_file 7\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_number", lambda path, name: 64 * gib)
    assert memory.free(CPU) == max(left * gib, 1)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free(CPU) == 64 * gib


class Flat(torch.nn.Module):
    """A generator of samples of one colour each."""

    def __init__(self, *shape):
        super().__init__()
        self.z_dim, self.shape, self.seen = 2, shape, []

    def forward(self, z):
        self.seen.append(len(z))
        return z[:, :1].reshape(-1, *[1] * len(self.shape)).expand(-1, *self.shape).contiguous()


def test_small_samples_keep_their_batches(monkeypatch):
    monkeypatch.setattr(memory, "measure", lambda *args: pytest.fail("measured"))
    gan = GAN(Flat(3, 8, 8))
    gan.sample(230)
    assert gan.generator.seen[-3:] == [100, 100, 30]
    assert gan.fitting(250) == 250
    with RunContext(batch=64):
        gan.sample(130)
    assert gan.generator.seen[-3:] == [64, 64, 2]


def test_big_samples_are_made_as_memory_allows(monkeypatch):
    shape = (3, 256, 257)
    assert math.prod(shape) > BIG
    gan = GAN(Flat(*shape), MLPDiscriminator(shape, (2,)))
    monkeypatch.setattr(memory, "measure", lambda *args: (2**28, 1.0))
    monkeypatch.setattr(memory, "free", lambda device: 7 * 2**28)
    assert gan.fitting(100) == 3  # 100, 50, 25, 12, 6, 3: of the 7/8 GiB
    small = gan.sample(7)
    assert gan.generator.seen[-3:] == [3, 3, 1]
    assert torch.equal(small, gan.sample(7, batch_size=7))  # a generator without noise


def test_the_command_keeps_the_memory_of_small_samples_only(monkeypatch, tmp_path):
    given_back = []
    monkeypatch.setattr(environment, "give_back_freed_memory", lambda: given_back.append(1))
    for size, expected in ((8, 0), (443, 1)):  # 3 x 443 x 443 is more than 3 x 256 x 256
        shape = [3, size, size]
        GAN(MLPGenerator(2, shape, (1,)), MLPDiscriminator(shape, (1,))).save(tmp_path / f"{size}.safetensors")
        options.load_gan(tmp_path / f"{size}.safetensors")
        assert len(given_back) == expected


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_what_is_freed_is_given_back_where_that_is_asked_for():
    """In a process of its own: 400 MiB of small blocks are freed below one that stays."""
    code = """
import ctypes, torch
from atu.support import environment
from atu.support.memory import _status
environment.keep_freed_memory()
if {back}:
    environment.give_back_freed_memory()
blocks = [torch.ones(2**18) for _ in range(400)]
del blocks
torch.ones(2**18)
print(_status("VmRSS") / 2**20)
"""
    left = []
    for back in (False, True):
        done = subprocess.run(
            [sys.executable, "-c", code.format(back=back)], capture_output=True, text=True, check=True
        )
        left.append(float(done.stdout))
    assert left[1] < left[0] - 300
