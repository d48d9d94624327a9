"""Progress on a terminal of 80 columns, without a terminal, and when quiet."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from atu.support import progress

METRICS = {f"part_{i}": float(i) for i in range(9)} | {"loss_g": -0.00123, "loss_d": 1.5e-5, "r1": 0.25}


@pytest.fixture(autouse=True)
def loud():
    progress.set_quiet(False)
    yield
    progress.set_quiet(True)


def terminal(monkeypatch, width):
    """Progress drawn on a terminal `width` columns wide; gives what was written."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, color_system=None, legacy_windows=False)
    monkeypatch.setattr(progress, "console", console)
    return file


@pytest.mark.parametrize("width", [80, 97, 200])
def test_all_columns_fit_on_one_line(monkeypatch, width):
    written = terminal(monkeypatch, width)
    with progress.bar("adapt-0", 12_345, 6000) as bar:
        bar.update(METRICS)
    lines = re.sub(r"\x1b\[[?\d]*\w", "", written.getvalue()).replace("\r", "\n").split("\n")
    (line,) = {text.strip() for text in lines if "6001" in text}
    assert line.startswith("adapt-0 ━") and "6001/12345" in line and ":" in line.split("6001/12345")[1]
    assert line.endswith("D 1.5e-05  G -0.00123") and len(line) <= 80


def test_numbers_stay_until_newer_ones_come(monkeypatch):
    written = terminal(monkeypatch, 80)
    with progress.bar("repel", 3) as bar:
        bar.update({"loss_d": 1.0, "negative_rate": 0.125, "score": 0.5})
        bar.update({"loss_d": 2.0})
    assert "negative 0.125  score 0.5" in written.getvalue().split("\n")[-2]


def test_a_bar_within_a_bar(monkeypatch):
    written = terminal(monkeypatch, 80)
    with progress.bar("reproduce", 2) as outer:
        assert list(progress.track("pool", [[1, 2], [3]], 3)) == [[1, 2], [3]]
        outer.update()
    text = written.getvalue()
    assert "pool" in text and "1/2" in text and "pool" not in text.split("\r")[-1]


def test_without_a_terminal_lines_are_few(monkeypatch, capsys):
    monkeypatch.setattr(progress, "console", Console(stderr=True, force_terminal=False))
    for _ in progress.track("guide", range(500), 500):
        pass
    assert capsys.readouterr().err == "guide: 500/500\n"
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    with progress.bar("adapt-0", 3) as bar:
        bar.update(METRICS)
    assert capsys.readouterr().err == "adapt-0: 1/3  D 1.5e-05  G -0.00123\n"


def test_quiet_means_nothing(monkeypatch, capsys):
    progress.set_quiet(True)
    list(progress.track("guide", range(5), 5))
    progress.say("resumed")
    assert capsys.readouterr() == ("", "")
