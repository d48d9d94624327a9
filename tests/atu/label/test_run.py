"""Runs of the page as processes: begun, stopped, found again after the page's own process was killed."""

import json
import signal
import subprocess
import sys
import time

import pytest

from atu.gan import GAN
from atu.label.run import Runs
from atu.label.session import Session
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from examples.pretrain import mnist_stylegan2

# A run: tells that it has begun, then works until it is stopped.
WORK = """
import pathlib, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir(exist_ok=True)
print("at work", flush=True)
print("going on", flush=True)
(out / "metrics.jsonl").write_text('{"stage": "adapt-0", "step": 7}\\n')
time.sleep(120)
"""
# A server that begins a run and is killed.
SERVER = """
import pathlib, sys, time
from atu.label.run import Runs
from atu.label.session import Session
session = Session(pathlib.Path(sys.argv[1]), "small", "0123", 3, 64, 97)
runs = Runs(session, None, [])
runs.program = [sys.executable, "-c", sys.argv[2]]
runs.start(1)
print("begun", flush=True)
time.sleep(120)
"""


def opened(marks):
    session = Session(marks, "small", "0123", 3, 64, 97)
    runs = Runs(session, GAN(MLPGenerator(4, [2], (8,)), MLPDiscriminator([2], (8,))), [])
    runs.program = [sys.executable, "-c", WORK]
    return session, runs


def wait(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


@pytest.fixture
def orphaned(marks):
    """The session of a page whose process was killed while a run was going on."""
    # As a script starts it in the background: Ctrl-C is ignored, by what it starts too.
    server = subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", SERVER, str(marks), WORK],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout.readline() == "begun\n"
    wait(lambda: (marks.with_name("marks-run-1") / "metrics.jsonl").exists())
    server.send_signal(signal.SIGKILL)
    server.wait()
    session, runs = opened(marks)
    yield runs
    runs.close()
    session.close()


def test_a_run_whose_page_was_killed_is_found_again(orphaned):
    assert orphaned.busy
    status = orphaned.status(1)
    assert (status["state"], status["stage"], status["step"]) == ("running", "adapt-0", 7)
    assert 0 <= status["seconds"] < 60 and 0 < status["done"] < 1
    with pytest.raises(ValueError, match="a run is going on already"):
        orphaned.start(1)
    assert not status["stopping"]
    orphaned.stop()
    assert orphaned.stopping
    wait(lambda: not orphaned.busy)
    assert orphaned.status(1)["state"] == "stopped"
    orphaned.start(1)  # it goes on
    assert orphaned.busy and orphaned.orphan is None and not orphaned.status(1)["stopping"]
    wait(lambda: orphaned.status(1).get("line") == "going on")


def test_the_share_that_is_done_is_of_the_steps_that_this_kind_of_gan_takes(marks, tmp_path):
    """7 of 100 + 2,500 and those of guide and ways; of a StyleGAN 100 + 400 and those of the guide."""
    session, runs = opened(marks)
    runs.folder(1).mkdir()
    (runs.folder(1) / "metrics.jsonl").write_text('{"stage": "adapt-0", "step": 7}\n')
    assert runs.status(1)["done"] == pytest.approx(7 / (100 + 2500 + 2 * 200))
    assert Runs(session, mnist_stylegan2(), []).status(1)["done"] == pytest.approx(7 / (100 + 400 + 200))
    given = tmp_path / "c.toml"
    given.write_text("[adapt]\nmodels = 2\nsteps = 10\n[repel]\nsteps = 0\nguide_steps = 5\n")
    assert Runs(session, runs.gan, [], given).status(1)["done"] == pytest.approx(7 / (20 + 0 + 10))
    session.close()


def test_closing_the_page_ends_a_run_that_was_found_again(orphaned):
    orphaned.close()
    assert not orphaned.busy and orphaned.status(1)["state"] == "stopped"


def test_a_run_that_failed_is_told_after_a_restart(marks):
    session, runs = opened(marks)
    runs.program = [sys.executable, "-c", "import sys; print('Error: no such file'); sys.exit(2)"]
    runs.start(1)
    wait(lambda: not runs.busy)
    for found in (runs, Runs(session, runs.gan, [])):
        status = found.status(1)
        assert (status["state"], status["line"]) == ("failed", "Error: no such file")
    session.close()


def test_a_stopped_run_is_set_aside_and_a_finished_one_is_not(marks):
    session, runs = opened(marks)
    folder = marks.with_name("marks-run-1")
    for k in (1, 2):
        runs.set_aside(1)  # where there is nothing yet, that is no error
        folder.mkdir()
        (folder / "run.json").write_text(str(k))
        assert runs.status(1)["state"] == "stopped"
        runs.set_aside(1)
        assert (marks.with_name(f"marks-run-1-stopped-{k}") / "run.json").read_text() == str(k)
        assert runs.status(1)["state"] == "none"
    runs.start(1)
    with pytest.raises(ValueError, match="only a run that was stopped, or failed"):
        runs.set_aside(1)
    runs.close()
    folder.mkdir(exist_ok=True)  # it may have been stopped before it made one
    for name in ("report.html", "result.safetensors"):
        (folder / name).write_bytes(b"")
    with pytest.raises(ValueError, match="only a run that was stopped, or failed"):
        runs.set_aside(1)
    session.close()


def test_a_finished_run_tells_who_counted_and_where_the_gan_is(marks):
    session, runs = opened(marks)
    folder = marks.with_name("marks-run-1")
    folder.mkdir()
    for name in ("report.html", "result.safetensors"):
        (folder / name).write_bytes(b"")
    counted = dict(negatives_before=97, negatives_after=5, n=1009, verdict="Most of it is gone.")
    for more, who in (({}, "probe"), (dict(judge="net.onnx?class=3"), "net.onnx?class=3")):
        (folder / "report.json").write_text(json.dumps({**counted, **more}))
        status = runs.status(1)
        assert status["summary"] == dict(before=97, after=5, n=1009, judge=who, verdict="Most of it is gone.")
        assert status["state"] == "finished" and status["result"] == str(folder / "result.safetensors")
    session.close()


def test_the_second_rounds_command_goes_on_from_the_first(marks):
    session, runs = opened(marks)
    assert "--from" not in runs.command(1)
    session.begin_round("marks-run-1/result.safetensors", "89ab")
    words = runs.command(2)
    assert words[:2] == ["unlearn", "small"]
    assert words[words.index("--from") + 1] == str(marks.with_name("marks-run-1"))
    session.close()
