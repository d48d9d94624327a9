"""A file is there whole, or as it was."""

import json
import os
import stat

import pytest

from atu.support.files import write_atomic, write_json, write_text


def test_write_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "c.txt"
    assert write_text(path, "one") == path and path.read_text() == "one"
    write_text(path, "two\nü")
    assert path.read_text(encoding="utf-8") == "two\nü"
    assert stat.S_IMODE(path.stat().st_mode) & 0o400
    assert os.listdir(path.parent) == ["c.txt"]


def test_json(tmp_path):
    data = {"a": [1, 2.5, None], "b": {"c": "é"}}
    assert json.loads(write_json(tmp_path / "x.json", data).read_text(encoding="utf-8")) == data


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("x"), KeyboardInterrupt()])
def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path, error):
    path = write_text(tmp_path / "state", "old")

    def write(temporary):
        temporary.write_text("half of the n")
        raise error

    with pytest.raises(type(error)):
        write_atomic(path, write)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["state"], "a temporary file was left behind"


def test_the_new_file_appears_only_when_complete(tmp_path):
    path = tmp_path / "state"

    def write(temporary):
        assert temporary.parent == path.parent, "a rename is atomic only within one file system"
        temporary.write_text("new")
        assert not path.exists()

    write_atomic(path, write)
    assert path.read_text() == "new"
