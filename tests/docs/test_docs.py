"""Runs what the docs tell people to run, file by file, in the order of the page.

Training is cut short by settings added to the commands, and real images are few; installing and `make` are what runs
these tests.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from atu import assets
from atu import demo as digits
from atu.cli import main as cli
from atu.data.images import save_folder
from atu.data.mnist import mnist
from atu.gan import GAN
from tests.atu.formats import nvidia_format as nf

ROOT = Path(__file__).parents[2]
SET_UP = ("pip install", "make ")
QUICK = """
[feedback]
pool = 120
[adapt]
steps = 5
fisher.n = 8
[repel]
steps = 6
check_every = 3
check_samples = 100
guide_steps = 2
"""

needs_gan = pytest.mark.skipif(
    not Path(assets.__file__).with_name("mnist-gan.safetensors").exists(), reason="the bundled GAN is not in this tree"
)


def blocks(path: Path) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks of a page."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / path).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def shortened(arguments: list[str], quick: Path) -> list[str]:
    """The command with short training and few samples for its evaluation."""
    if arguments[:2] == ["demo", "mnist"]:
        arguments = [*arguments, "--marks", "40"]
    if arguments[0] in ("unlearn", "demo"):
        return [*arguments, "--config", str(quick), "--samples", "120"]
    return [*arguments, "--samples", "120"] if arguments[0] == "eval" else arguments


def run_line(line: str, folder: Path) -> None:
    import subprocess

    words = shlex.split(line)
    if words[0] != "atu":
        subprocess.run(["bash", "-ec", line], cwd=folder, check=True)
        return
    with pytest.raises(SystemExit) as done:
        cli.main(shortened(words[1:], folder / "quick.toml"))
    assert done.value.code == 0, line


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
@needs_gan
def test_commands_of_the_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(digits, "mnist", lambda: tuple(one[::10] for one in mnist()))
    (tmp_path / "quick.toml").write_text(QUICK)
    lines = [line for kind, text in blocks(Path(page)) if kind == "bash" for line in text.splitlines()]
    assert len(lines) >= 5
    for line in lines:
        if not line.startswith(SET_UP):
            run_line(line, tmp_path)


def make_readers_files(folder: Path) -> None:
    """What README's reader has: a network of NVIDIA's, and a folder of marked images."""
    (folder / "network.pkl").write_bytes(nf.dumps(nf.snapshot(*nf.small_pair())))
    gan = GAN.load(folder / "network.pkl")
    save_folder(gan.sample(20, seed=1), gan.image_range, folder / "marks")
    (folder / "quick.toml").write_text(QUICK)


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md", "docs/ops.md", "docs/your-own-gan.md"])
def test_python_of_the_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if page == "README.md":
        make_readers_files(tmp_path)
    torch.manual_seed(0)  # the pages' untrained networks: some draws make no sample that the page calls negative
    scope: dict = {"__name__": "docs"}
    found = [text for kind, text in blocks(Path(page)) if kind == "python"]
    assert found
    for text in found:
        exec(compile(text.replace('out="run"', 'out="run", config="quick.toml"'), page, "exec"), scope)
    if page != "docs/ops.md":
        assert scope["result"].generator is not None


def test_cli_page_names_every_command():
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    for name, command in cli.cli.commands.items():
        for part in getattr(command, "commands", [""]):
            assert f"`atu {name} {part}".rstrip() in page


@pytest.mark.parametrize("page", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target
