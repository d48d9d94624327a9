"""Nothing but text reaches a terminal, whoever wrote it and whoever prints it."""

import io
import os
import pty
import re
import subprocess
import sys
import unicodedata

import click
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console as RichConsole
from rich.table import Table
from safetensors.torch import save_file

from atu.support import progress
from atu.support.console import Console
from atu.support.terminal import guarded, one_line, printable

# A window's title, a link, a bell, a line that is overwritten, 8-bit controls, directions, what cannot be encoded.
HOSTILE = "a\x1b]0;title\x07b\x1b]8;;x:y\x1b\\c\r\x08d\x9b31m\x7f\u202eevil\u2066\u200b\u2028\ufeff\U000e0041\udcff"
MARKUP = "[link=x:y]click[/link] [/bold] [red]:skull:"
COMMANDS = re.compile(r"\x1b(?!\[[0-9;]*m)|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]")  # all but colours and line ends


def is_text(text):
    text = text.replace("\r\n", "\n")  # what a terminal makes of a line's end
    return not COMMANDS.search(text) and not any(
        one in text for one in "\u202e\u2066\u200b\u2028\ufeff\U000e0041\udcff"
    )


@given(st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp", "Lu", "Mn", "So"])))
def test_no_control_stays(text):
    shown = printable(text)
    assert {c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} <= set("\n\t\u200c\u200d")
    assert shown == text or len(shown) > len(text)
    assert "\n" not in one_line(text)


def test_text_in_any_script_stays():
    text = "Größe 猫 مرحبا नमस्ते می‌خواهم 👩‍👧 a\u00a0b\n\tend"
    assert printable(text) == text


def table():
    grid = Table(HOSTILE, title=HOSTILE)
    grid.add_row(HOSTILE, "x")
    grid.add_row(MARKUP, "x")
    return grid


@pytest.mark.parametrize("what", [HOSTILE, MARKUP, table()])
def test_a_console_prints_text(what):
    file = io.StringIO()
    Console(file=file, force_terminal=True, width=200).print(what, style="bold")
    assert is_text(file.getvalue()) and "\x1b[1m" in file.getvalue()
    assert MARKUP in file.getvalue() or HOSTILE[0] in file.getvalue()


@pytest.mark.parametrize("in_a_bar", [False, True])
def test_every_way_to_the_streams_is_guarded(monkeypatch, in_a_bar):
    raw = io.StringIO()
    monkeypatch.setattr(sys, "stdout", raw)
    monkeypatch.setattr(sys, "stderr", raw)
    monkeypatch.setattr(progress, "console", Console(stderr=True, force_terminal=in_a_bar, width=500))
    progress.set_quiet(False)
    with guarded(), progress.bar(HOSTILE, 3) as bar:
        progress.say(HOSTILE)
        print(HOSTILE)
        click.echo(HOSTILE)
        click.ClickException(HOSTILE).show()
        sys.stderr.writelines([HOSTILE, "\n"])
        RichConsole(markup=False).print("fine")
        bar.update()
    progress.set_quiet(True)
    assert sys.stdout is raw
    moves = r"\x1b\[(\?25[lh]|\d*[AK]|2K)|\r(?=\x1b|\n|$)"  # the bar's own
    text = re.sub(moves, "", raw.getvalue()).replace("\r\n", "\n").replace("\r", "")
    assert is_text(text) and text.count("evil") >= 5 and "fine" in text


def on_a_terminal(*command):
    """What a command writes to a terminal of its own."""
    leader, follower = pty.openpty()
    with subprocess.Popen([sys.executable, *command], stdin=follower, stdout=follower, stderr=follower) as process:
        os.close(follower)
        told = b""
        while True:
            try:
                block = os.read(leader, 2**16)
            except OSError:  # Linux's way to say that the other end is closed
                break
            if not block:
                break
            told += block
    os.close(leader)
    return process.returncode, told.decode("utf-8", "surrogateescape")


def text(s):
    data = s.encode("utf-8", "surrogatepass")
    return b"X" + len(data).to_bytes(4, "little") + data


def hostile_files(folder):
    """Files whose names, globals, classes, keys and settings are hostile."""
    reference = b"\x80\x04" + text(HOSTILE) + text(HOSTILE) + b"\x93."
    (folder / "global.pkl").write_bytes(reference)
    meta = b"}" + text("type") + text("class") + b"s" + text("class_name") + text(HOSTILE + "\nError: x") + b"s"
    meta += text("state") + b"}s"
    module = text("torch_utils.persistence") + text("_reconstruct_persistent_obj") + b"\x93" + meta + b"\x85R"
    (folder / "class.pkl").write_bytes(b"\x80\x04}" + text("G") + module + b"s" + text(HOSTILE) + text(MARKUP) + b"s.")
    torch.save({HOSTILE: {HOSTILE: torch.zeros(1)}, MARKUP: 1}, folder / "keys.pt")
    config = '{"latent_dim": 2, "image_range": [0, 1], "modules": {"generator": {"network": %s}}}'
    for name, network in (("link", f'"{MARKUP}"'), ("escape", r'"\u001b]0;title\u0007"')):
        save_file(
            {"generator.w": torch.zeros(1)},
            folder / f"{name}.safetensors",
            {"format": "atu-gan", "config": config % network},
        )
    (folder / f"{HOSTILE}.pt").write_bytes(b"nothing")
    key = "".join(f"\\U{ord(one):08x}" for one in HOSTILE[:-1])
    (folder / "settings.toml").write_text(f'"{key}" = 1')
    return sorted(path for path in folder.iterdir() if path.suffix != ".toml")


@pytest.mark.slow
def test_no_command_of_a_file_reaches_a_real_terminal(tmp_path):
    commands = [["inspect", path] for path in hostile_files(tmp_path)]
    commands += [["inspect", tmp_path / HOSTILE], [f"--{HOSTILE}"], [HOSTILE]]
    commands += [["sample", "mnist", "--oracle", HOSTILE, "--out", tmp_path / "out"]]
    commands += [
        ["unlearn", "mnist", "--negatives", tmp_path, "--out", tmp_path / "o", "--config", tmp_path / "settings.toml"]
    ]
    commands += [["--debug", "inspect", tmp_path / "global.pkl"]]
    for command in commands:
        code, told = on_a_terminal("-m", "atu", *map(str, command))
        assert code in (0, 1, 2) and told and is_text(told), (command, told)
        assert "Traceback" not in told or "--debug" in command
