"""What atu_ext says where its compiled module is missing: the remedy depends on why."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from atu_ext import _native

PACKAGE = Path(_native.__file__).parent
MODULE = f"_C{EXTENSION_SUFFIXES[0]}"


def folder(path: Path, *files: str) -> Path:
    path.mkdir(parents=True)
    for name in files:
        (path / name).touch()
    return path


def test_a_source_tree_that_hides_the_installed_package(tmp_path):
    """Python started in a checkout after `pip install .`: the op's own warning tells what to do."""
    tree = tmp_path / "checkout" / "atu_ext"
    shutil.copytree(PACKAGE, tree, ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    installed = folder(tmp_path / "site" / "atu_ext", MODULE)
    # Where this project is installed as editable, that finder knows atu_ext._C too.
    code = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'Editable' not in str(f)]; "
    code += "import torch, atu_ext.ops as ops; ops.bias_act(torch.ones(2, 3), act='relu')"
    environment = os.environ | {"PYTHONPATH": str(installed.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tree.parent, env=environment, capture_output=True, text=True, check=True
    )
    assert f"bias_act runs its slower plain-torch reference: Python found the source tree {tree} first" in done.stderr
    assert f"the installed one is {installed}" in done.stderr
    assert f"start Python in another folder than {tree.parent}, or run there: pip install -e ." in done.stderr
    assert "reinstall" not in done.stderr


@pytest.mark.parametrize("own", [(), (MODULE,)], ids=["nowhere", "broken"])
def test_else_the_remedy_is_to_reinstall(tmp_path, monkeypatch, own):
    """No compiled module anywhere; or one that is there and does not load, whatever else is installed."""
    package = folder(tmp_path / "here" / "atu_ext", *own)
    other = folder(tmp_path / "there" / "atu_ext", *own)
    monkeypatch.setattr(sys, "path", [str(package.parent), str(other.parent)])
    reason, remedy = _native._why_missing(package, ImportError("undefined symbol"))
    assert "could not be imported (undefined symbol)" in reason
    assert remedy == "reinstall with: pip install ."


def test_the_folder_python_was_started_in_is_no_other_one(tmp_path, monkeypatch):
    package = folder(tmp_path / "here" / "atu_ext")
    monkeypatch.chdir(package.parent)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "missing"), "/nowhere.zip"])
    assert _native._installed_elsewhere(package) is None
    installed = folder(tmp_path / "site" / "atu_ext", MODULE)
    monkeypatch.setattr(sys, "path", [*sys.path, str(installed.parent)])
    assert _native._installed_elsewhere(package) == installed
