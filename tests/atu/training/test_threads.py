"""How many threads a training takes: who says so, what is measured, what is kept."""

from __future__ import annotations

import json

import pytest
import torch

from atu import unlearn
from atu.config import Adversarial
from atu.data.samples import TensorSamples
from atu.training import threads, trial
from examples.pretrain import mnist_dcgan
from examples.scratch import train


@pytest.fixture(autouse=True)
def four(tmp_path, monkeypatch):
    """A machine that is said to have four cores and nothing else to do; nothing in the environment says otherwise.

    Holds the numbers that were set.
    """
    counts = [4]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: counts[-1])
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    monkeypatch.setattr(threads, "_is_quiet", lambda: True)
    return counts


@pytest.fixture
def seconds(monkeypatch):
    """What each number of threads is said to take."""
    told = {1: 4.0, 2: 2.0, 4: 1.0}
    monkeypatch.setattr(trial, "LITTLE", 0.0)
    monkeypatch.setattr(trial, "TURNS", 2)
    monkeypatch.setattr(trial, "clocked", lambda run, device: told[torch.get_num_threads()])
    return told


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({1: 4.0, 2: 2.0, 4: 1.0}, 4),
        ({1: 4.0, 2: 2.5, 4: 2.2}, 2),
        ({1: 1.0, 2: 0.9, 4: 0.1}, 1),
        ({1: 1.0, 2: 5.0, 4: 9.0}, 1),
        ({1: 1.0, 2: 0.7, 3: 0.63}, 2),
        ({1: 1.0, 2: 0.7, 3: 0.6}, 3),
    ],
)
def test_as_many_as_pay(told, expected):
    assert threads._best(told) == expected


def test_tiny_networks_take_one_without_measuring(vector_gan, tmp_path):
    assert threads.choose(vector_gan, 32) == 1
    assert not (tmp_path / "cache").exists()


def test_who_says_so_goes_first(monkeypatch, vector_gan):
    assert threads.choose(vector_gan, 32, recorded=3) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert threads.choose(vector_gan, 32, recorded=3) == 4
    assert threads.choose(vector_gan, 32, wanted=2, recorded=3) == 2
    monkeypatch.delenv("OMP_NUM_THREADS")
    torch.set_num_threads(1)  # by the user
    assert threads.choose(mnist_dcgan(), 32) == 1


def test_measured_once_on_an_idle_machine(seconds, monkeypatch, tmp_path):
    gan = mnist_dcgan()
    assert threads.choose(gan, 8) == 4
    (row,) = json.loads((tmp_path / "cache" / "atu" / "threads.json").read_text()).values()
    assert row["seconds"] == {"1": 4.0, "2": 2.0, "4": 1.0} and row["threads"] == 4
    seconds.update({2: 9.0})
    assert threads.choose(gan, 8) == 4, "it was kept"
    assert threads.choose(gan, 4) == 1, "another batch"


def test_beside_other_programs_nothing_is_kept(seconds, monkeypatch, tmp_path):
    monkeypatch.setattr(threads, "_is_quiet", lambda: False)
    seconds.update({2: 5.0})
    assert threads.choose(mnist_dcgan(), 8) == 1
    assert not (tmp_path / "cache").exists()


def test_a_run_keeps_to_its_number_and_gives_torch_its_own_back(tmp_path, vector_gan, four):
    x = vector_gan.sample(40)
    config = {
        "feedback": {"pool": 64},
        "adapt": {"steps": 1, "adversarial": {"batch_size": 4}},
        "repel": {"steps": 1, "check_samples": 50, "guide_steps": 1, "adversarial": {"batch_size": 4}},
    }
    result = unlearn(vector_gan, x[x[:, 0] > x[:, 0].median()], config=config, out=tmp_path / "run")
    assert result.decisions["threads"] == result.config.threads == 1
    assert 1 in four[1:] and torch.get_num_threads() == 4
    assert json.loads((tmp_path / "run" / "run.json").read_text())["identity"]["config"]["threads"] == 1
    (tmp_path / "run" / "result.safetensors").unlink()
    again = unlearn(vector_gan, x[x[:, 0] > x[:, 0].median()], config={**config, "threads": 2}, out=tmp_path / "run")
    assert again.decisions["threads"] == 2, "a run may go on with others"


def test_training_from_scratch_too(tmp_path, vector_gan, four):
    train(vector_gan, TensorSamples(torch.randn(9, 2)), [(2, Adversarial(batch_size=4))], tmp_path, save_every=1)
    assert 1 in four[1:] and torch.get_num_threads() == 4
    assert json.loads((tmp_path / "run.json").read_text())["identity"]["config"]["threads"] == 1
    assert vector_gan.generator_ema is not None
