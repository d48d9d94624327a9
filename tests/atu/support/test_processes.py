"""Further processes that take part in the work, and end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atu.support.processes import beside

SCRIPT = """
import sys, time
from pathlib import Path
from atu.support.processes import beside

def note(path):
    import os
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    with beside(1, note, sys.argv[1]):
        time.sleep(600)
"""


def is_alive(pid: int) -> bool:
    """Whether it runs: one that has ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_for(condition, seconds=60.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.05)


def test_they_do_the_work_and_are_waited_for(tmp_path):
    with beside(2, Path.mkdir, tmp_path / "made"):  # the second one finds it there, fails, and says nothing
        pass
    assert (tmp_path / "made").is_dir()


def test_none_is_none(tmp_path):
    with beside(0, Path.mkdir, tmp_path / "made"):
        pass
    assert not (tmp_path / "made").exists()


def test_a_failure_is_quiet(tmp_path, capfd):
    with beside(1, Path.rmdir, tmp_path / "missing"):
        pass
    assert capfd.readouterr().err == ""


def test_they_end_where_the_block_fails():
    began = time.monotonic()
    with pytest.raises(KeyError), beside(2, time.sleep, 600):
        raise KeyError("own")
    assert time.monotonic() - began < 300


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_they_end_where_the_first_process_is_killed(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    pid = tmp_path / "pid"
    first = subprocess.Popen([sys.executable, tmp_path / "script.py", pid])
    try:
        wait_for(lambda: pid.exists() and pid.read_text())
        other = int(pid.read_text())
        assert is_alive(other) and os.getpgid(other) != os.getpgid(first.pid)
        first.send_signal(signal.SIGKILL)
        first.wait()
        wait_for(lambda: not is_alive(other))
    finally:
        first.kill()
