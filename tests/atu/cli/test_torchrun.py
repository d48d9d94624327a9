"""`torchrun -m atu unlearn`: the launcher itself, and what is said to whom."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from atu.cli import main as cli
from atu.data.images import save_folder
from atu.gan import GAN
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.support import torchrun, world

CONFIG = """
log_every = 1
save_every = 2
[feedback]
pool = 300
[adapt]
steps = 2
fisher.n = 2
adversarial = { augment = "", batch_size = 4 }
[repel]
steps = 6
check_every = 3
check_samples = 60
guide_steps = 2
adversarial = { augment = "", batch_size = 4 }
"""
# What answers kills its process at the check of step 6: the row of step 5 is written by then.
ORACLE = """
import os, pathlib, signal

def left(x):
    rows = pathlib.Path(os.environ.get("WATCHED", "none"))
    if os.environ["RANK"] == "1" and rows.exists() and '"stage": "repel", "step": 5' in rows.read_text():
        os.kill(os.getpid(), signal.SIGKILL)
    return x[..., :4].mean((1, 2, 3)) > x[..., 4:].mean((1, 2, 3))
"""


def launched(folder, *arguments, **environment):
    """Two processes of `atu`, by torchrun: exit code, stdout, stderr."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "atu"]
    done = subprocess.run(
        [*words, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_a_killed_process_stops_all_and_the_same_command_goes_on_to_the_report(tmp_path):
    gan = GAN(MLPGenerator(4, [1, 8, 8], (16,), "tanh"), MLPDiscriminator([1, 8, 8], (16,)))
    gan.save(tmp_path / "gan.safetensors")
    x = gan.sample(60)
    left = x[..., :4].mean((1, 2, 3)) > x[..., 4:].mean((1, 2, 3))
    save_folder(x[left], gan.image_range, tmp_path / "left", 0)
    (tmp_path / "quick.toml").write_text(CONFIG)
    (tmp_path / "oracle.py").write_text(ORACLE)
    words = ["unlearn", "gan.safetensors", "--negatives", "left", "--oracle", "oracle.py:left"]
    words += ["--config", "quick.toml", "--samples", 60, "--out", "run"]
    code, _, err = launched(tmp_path, *words, WATCHED="run/metrics.jsonl")
    assert code != 0 and f"exitcode: -{signal.SIGKILL.value}" in err, err[-3000:]
    assert "Error: another process of this run has stopped" in err, err[-3000:]
    assert not (tmp_path / "run" / "result.safetensors").exists()
    code, out, err = launched(tmp_path, *words)
    assert code == 0, err[-3000:]
    assert "repel: resumed at step 4 of 6" in err and out.count("report.json") == 1
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["stage"] == "repel"] == [1, 2, 3, 4, 5, 6]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["command"].startswith("torchrun --nproc-per-node 2 -m atu unlearn gan.safetensors")


@pytest.fixture
def one_of_two(monkeypatch):
    """The environment of the second of two processes."""
    for name, value in dict(TORCHELASTIC_RUN_ID="x", WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", RANK="1").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", "1")
    return monkeypatch


def test_the_command_that_goes_on_is_the_one_that_was_given(one_of_two, capsys):
    assert cli._stopped(["unlearn", "a b"]).endswith("\n  torchrun --nproc-per-node 2 -m atu unlearn 'a b'")
    with pytest.raises(RuntimeError) as unexpected:
        raise RuntimeError("x")
    assert "(torchrun --nproc-per-node 2 -m atu --debug unlearn shows" in cli.message(unexpected.value, ["unlearn"])
    one_of_two.setenv("WORLD_SIZE", "6")
    assert " ".join(torchrun.command("unlearn")) == "torchrun --nnodes 3 --nproc-per-node 2 -m atu unlearn"
    one_of_two.delenv("TORCHELASTIC_RUN_ID")
    assert torchrun.command("unlearn") == ["atu", "unlearn"]


def test_only_the_first_says_that_it_was_stopped(one_of_two, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    one_of_two.setattr(cli.cli, "main", interrupted)
    for rank, told in (("1", False), ("0", True)):
        one_of_two.setenv("RANK", rank)
        with pytest.raises(SystemExit) as stopped:
            cli.main(["unlearn"])
        assert stopped.value.code == 130
        assert ("Stopped; the same command" in capsys.readouterr().err) == told


def test_more_processes_than_cuda_devices_are_an_error(one_of_two):
    one_of_two.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="device: expected a CUDA device for each process, got 1 for 2 or more"):
        world.join("cuda")


def test_a_command_for_one_process_says_so(one_of_two, tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        cli.main(["demo", "mnist", "--out", str(tmp_path)])
    assert refused.value.code == 2
    assert "demo mnist runs in one process: start it without torchrun" in capsys.readouterr().err


def test_leaving_alone_changes_nothing():
    assert world.leave() and world.size() == 1
