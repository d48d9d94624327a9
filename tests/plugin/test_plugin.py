"""Another package adds one of each: installed into a folder, and used in a process that finds it there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from atu.support.registry import Registry

HERE = Path(__file__).parent


def python(*arguments, path):
    """Run Python with further folders on its path; its standard output."""
    paths = [str(path), *sys.path]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    done = subprocess.run([sys.executable, *map(str, arguments)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(HERE / "example_plugin", folder / "source")  # building writes into the source tree
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", folder / "site", folder / "source"], check=True
    )
    return folder / "site"


def test_one_of_each_is_used(installed, tmp_path):
    found = json.loads(python(HERE / "use_plugin.py", tmp_path, path=installed))
    assert found["network"] == "Linear" and found["same_samples"]
    assert found["format"] == "npz" and found["same_samples_of_format"]
    parameters = 5 * 49 + 49
    assert found["inspected"] == ["npz", parameters, ["no discriminator: fit one with --train-discriminator STEPS"]]
    assert found["decisions"] == {"method": "prune", "pruned": 0.25}
    assert found["zeros"] == 61 and found["config"] == 0.25  # 61 of 245 weights
    data = json.loads((tmp_path / "run/report.json").read_text())
    assert data["metrics"]["feature-shift"]["value"] == pytest.approx(found["by_hand"]) and found["by_hand"] > 0
    assert "feature-shift: Mean distance between the features of one latent before and after" in (
        tmp_path / "run/report.html"
    ).read_text(encoding="utf-8")


def test_the_command_line_knows_them(installed, tmp_path):
    text = python("-m", "atu.cli.main", "config", "--method", "prune", path=installed)
    assert "# Of the weights of each tensor that become 0.\n# number from 0 to 1; default 0.5\nshare = 0.5\n" in text
    assert "prune" in python("-m", "atu.cli.main", "unlearn", "--help", path=installed)


# --- packages that do not fit


def package(folder, name, version, points, module="", body=""):
    """Write an installed package by hand: its entry points, and perhaps a module."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text("[atu.things]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))
    if module:
        (folder / f"{module}.py").write_text(body)


def table():
    return Registry("atu.things", {"number": "math:pi", "other": "math:e"})


def test_built_in_and_registered():
    things = table()
    assert things.names() == ["number", "other"] and len(things) == 2 and things["number"] == 3.141592653589793

    @things.register("mine")
    def mine():
        pass

    assert things.get("mine") is mine and things.added() == ["mine"] and "mine" in things
    assert things.name_of(mine) == "mine" and things.name_of(package) is None
    for taken in ("mine", "number"):
        with pytest.raises(ValueError, match=f"thing: '{taken}' is given by .* already"):
            things.register(taken)
    with pytest.raises(ValueError, match="thing: expected one of number, other, mine, got 'none'"):
        things.get("none")


def test_an_empty_table_says_so():
    with pytest.raises(ValueError, match="thing: expected one of none: no installed package adds one, got 'x'"):
        Registry("atu.things", {}).get("x")


def test_a_broken_package_is_named_and_harms_nothing_else(tmp_path, monkeypatch):
    package(tmp_path, "broken-one", "0.3", {"bad": "atu_broken:thing"}, "atu_broken", "import no_such_module_at_all\n")
    package(tmp_path, "fine-one", "1.0", {"good": "atu_fine:thing"}, "atu_fine", "class thing: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    things = table()
    assert things.names() == ["number", "other", "bad", "good"]
    words = r"thing: 'bad' cannot be loaded from the package broken-one 0\.3 \(ModuleNotFoundError: .*no_such_module"
    with pytest.raises(ImportError, match=words):
        things.get("bad")
    assert things.name_of(things.get("good")) == "good"


def test_a_clash_of_names_is_an_error_that_names_both(tmp_path, monkeypatch):
    package(tmp_path, "one", "1", {"same": "math:tau", "number": "math:tau"})
    package(tmp_path, "two", "2", {"same": "math:inf"})
    monkeypatch.syspath_prepend(tmp_path)
    things = table()
    with pytest.raises(ValueError, match="'same' is given by the package one 1 and by the package two 2; keep one"):
        things.get("same")
    with pytest.raises(ValueError, match="'number' is given by atu itself and by the package one 1; keep one"):
        things.get("number")
    assert things.get("other") == 2.718281828459045
