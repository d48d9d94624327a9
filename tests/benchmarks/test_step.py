"""A step and a whole unlearning are timed; what was gained stays so: by counts of bytes and copies, not by times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from atu import assets
from atu.support.context import RunContext
from atu_ext import _native
from benchmarks import job, step
from examples.pretrain import mnist_stylegan2

pytestmark = pytest.mark.skipif(_native._C is None, reason=str(_native.error))


def run(module, *words: str) -> None:
    """`python -m benchmarks.step WORDS`, or `.job`."""
    module.main.main(list(words), standalone_mode=False)


def test_step_runs(tmp_path):
    path = tmp_path / "step.json"
    run(step, "--quick", "--seconds", "0.001", "--save", str(path))
    found = json.loads(path.read_text())
    assert [row["name"] for row in found["rows"]] == [f"{s}: {p}" for s in step.STAGES for p in step.PARTS]
    assert found["memory"]["stage_2"].keys() == {"1", "2", "5"}
    for row in found["rows"]:
        assert row["times"].keys() == {"ours", "reference", "bfloat16"}


@pytest.mark.skipif(
    not Path(assets.__file__).with_name("mnist-gan.safetensors").exists(), reason="the bundled GAN is not in this tree"
)
def test_job_runs(tmp_path):
    path = tmp_path / "job.json"
    run(job, "--quick", "--save", str(path))
    rows = json.loads(path.read_text())["rows"]
    assert [row["impl"] for row in rows] == ["ours", "ours, bfloat16"]
    for row in rows:
        assert row["to_pul"].keys() == {"95", "99"}
        assert row["seconds"] >= sum(row["stages"].values()) * 0.99


def test_time_to_a_level_is_that_of_the_first_check_there():
    history = [
        dict(seconds=1.0),
        *(dict(seconds=s, negative_rate=r) for s, r in ((2.0, 0.05), (3.0, 0.004), (4.0, 0.01))),
    ]
    assert job.time_to(history, before=0.1, level=50, offset=10) == 12.0
    assert job.time_to(history, before=0.1, level=95, offset=10) == 13.0
    assert job.time_to(history, before=0.1, level=99, offset=10) is None


def test_a_step_of_another_gan_is_timed_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "step.json"
    monkeypatch.setattr(step, "gan_of", lambda name: (step.tiny_gan(), f"tiny {name}"))
    run(step, "--quick", "--seconds", "0.001", "--gan", "animals", "--save", str(path))
    found = json.loads(path.read_text())
    assert [row["name"] for row in found["rows"]] == [f"{s}: {p}" for s, parts in step.BRIEF.items() for p in parts]
    assert all({"ours", "reference", "bfloat16"} <= row["times"].keys() for row in found["rows"])
    assert found["gan"] == "tiny animals"


def test_a_gan_to_time_has_a_name():
    assert step.gan_of("32")[0].sample_shape == (3, 32, 32)
    gan, what = step.gan_of("animals")
    assert gan.sample_shape == (3, 64, 64) and "animals" in what
    with pytest.raises(ValueError, match="gan: expected mnist, animals or a resolution"):
        run(step, "--quick", "--seconds", "0.001", "--gan", "257")


class _Copies(TorchDispatchMode):
    """Lists copies of batches of `batch` images with more than 8 x 8 pixels."""

    def __init__(self, batch: int):
        super().__init__()
        self.batch, self.found = batch, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        copies = func.overloadpacket in (torch.ops.aten.copy_, torch.ops.aten.clone)
        if copies and out.ndim == 4 and out.shape[0] == self.batch and out.shape[1] > 1 and out.shape[2] > 8:
            self.found.append((str(func), tuple(out.shape)))
        return out


def test_a_training_step_changes_no_layout():
    """Every image of the MNIST GAN stays channels-last from op to op; the largest has 24 channels of 32 x 32."""
    torch.manual_seed(0)
    parts = step.Parts(step.make_trainer(mnist_stylegan2(), "stage 2", step.settings("stage 2", 4)))
    parts.step()
    torch.autograd.set_multithreading_enabled(False)
    try:
        with _Copies(4) as copies:
            parts.step()
    finally:
        torch.autograd.set_multithreading_enabled(True)
    assert copies.found == []


@pytest.mark.parametrize("stage", step.STAGES)
def test_parts_of_a_float16_step_are_called_again_and_again(stage):
    """With scaled losses, as on a GPU: the scaler takes one step of an optimiser between its updates."""
    with RunContext("float16"):
        parts = step.Parts(step.make_trainer(step.tiny_gan(), stage, step.settings(stage, 4)))
        assert parts.trainer.scaler.is_enabled()
        for _ in range(2):
            for name in step.PARTS:
                getattr(parts, name)()


def test_stage_2_memory_is_that_of_fine_tuning_whatever_the_number_of_anchors():
    """At most 1.1 times a plain step and two copies of the generator."""
    memory = step._memory(mnist_stylegan2(), 4, "cpu")
    peaks = {models: found["peak"] + found["kept"] for models, found in memory["stage_2"].items()}
    assert max(peaks.values()) <= 1.1 * memory["plain"] + 2 * memory["generator"]
    assert peaks["5"] <= 1.02 * peaks["1"]
