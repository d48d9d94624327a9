"""Mutated valid files: a CheckpointError or a GAN, never another exception, and nothing imported.

ATU_FUZZ_EXAMPLES raises the count (default 40 a format).
"""

import contextlib
import functools
import io
import os
import resource
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy.random  # Hypothesis imports it while it runs
import nvidia_format as nf
import pytest
import test_rosinality
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atu.formats.inspect import inspect_checkpoint
from atu.formats.tensors import CheckpointError
from atu.gan import GAN

EXAMPLES = int(os.environ.get("ATU_FUZZ_EXAMPLES", "40"))
KINDS = ("nvidia", "zip", "legacy", "safetensors")


@functools.cache
def valid(kind):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "valid.safetensors"
        generator, discriminator, average = nf.small_pair()
        if kind == "nvidia":
            return nf.dumps(nf.snapshot(generator, discriminator, average))
        if kind == "safetensors":
            GAN(generator, discriminator, generator_ema=average).save(path)
            return path.read_bytes()
        buffer = io.BytesIO()
        content = {key: test_rosinality.state(key[0]) for key in ("g", "d", "g_ema")}
        content["beside"] = {"rng": numpy.random.RandomState(0).get_state(), "best": numpy.float64(1.5)}
        content["beside"] |= {"milestones": Counter([30, 80]), "loss": defaultdict(list, {"g": [0.5]})}
        torch.save(content, buffer, _use_new_zipfile_serialization=kind == "zip")
        return buffer.getvalue()


mutation = st.one_of(
    st.tuples(st.just("set"), st.floats(0, 1), st.binary(min_size=1, max_size=9)),
    st.tuples(st.just("drop"), st.floats(0, 1), st.integers(1, 64)),
    st.tuples(st.just("repeat"), st.floats(0, 1), st.integers(1, 64)),
    st.tuples(st.just("cut"), st.floats(0, 1), st.none()),
    st.tuples(st.just("swap"), st.floats(0, 1), st.integers(1, 64)),
)


def apply(data, mutations, head):
    """Mutate; half of the places lie in the first bytes, where a file's structure is dense."""
    changed = bytearray(data)
    for kind, place, value in mutations:
        at = int(place * min(len(changed), 20_000 if head else len(changed)))
        if kind == "set":
            changed[at : at + len(value)] = value
        elif kind == "drop":
            del changed[at : at + value]
        elif kind == "repeat":
            changed[at:at] = changed[at : at + value]
        elif kind == "swap":
            changed[at : at + value] = changed[at : at + value][::-1]
        else:
            del changed[max(at, 1) :]
    return bytes(changed)


def peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files(kind, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "file"
    path.write_bytes(valid(kind))
    GAN.load(path)  # imports whatever loading imports
    inspect_checkpoint(path)
    modules, before = set(sys.modules), peak_kib()

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(mutations=st.lists(mutation, min_size=1, max_size=4), head=st.booleans())
    def fuzz(mutations, head):
        path.write_bytes(apply(valid(kind), mutations, head))
        start = time.process_time()
        for read in (inspect_checkpoint, GAN.load):
            with contextlib.suppress(CheckpointError):
                read(path)
        assert time.process_time() - start < 10  # a hang, not a measurement: an example takes milliseconds

    fuzz()
    imported = {
        name for name in set(sys.modules) - modules if not name.startswith(("hypothesis", "torch.", "_hypothesis"))
    }
    assert not imported
    assert peak_kib() < before + 2**20  # what a file says its size is must not be what is allocated
