"""A file is there whole, or as it was."""

import errno
import json
import os
import resource
import stat

import pytest
import torch
from safetensors.torch import save_file

from atu.data.images import save_folder, save_grid
from atu.support.files import check_writable, open_to_write, remove_partial, write_atomic, write_json, write_text


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


def test_the_file_before_is_kept(tmp_path):
    path, before = tmp_path / "state", tmp_path / "state.previous"
    for text in ("one", "two", "three"):
        write_atomic(path, lambda temporary, text=text: temporary.write_text(text), before)
    assert (path.read_text(), before.read_text()) == ("three", "two")
    with pytest.raises(OSError, match="full"):
        write_atomic(path, full, before)
    assert (path.read_text(), before.read_text()) == ("three", "two")


def full(temporary):
    raise OSError(28, "disk full")


def test_both_file_and_folder_reach_the_disk(tmp_path, monkeypatch):
    """The content before the new name, the name before the write returns."""
    synced, order = os.fsync, []

    def fsync(handle):
        order.append((stat.S_ISDIR(os.fstat(handle).st_mode), (tmp_path / "x").exists()))
        synced(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "x", "text")
    assert order == [(False, False), (True, True)]


def test_what_a_killed_process_left_is_removed(tmp_path):
    left = []

    def write(temporary):
        left.append(temporary.name)
        (tmp_path / "kept").write_text("x")
        os.link(temporary, tmp_path / "copy")

    write_atomic(tmp_path / "state.json", write)
    os.rename(tmp_path / "copy", tmp_path / left[0])
    remove_partial(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["kept", "state.json"]


def test_a_folder_that_cannot_be_written_is_found_at_once(tmp_path):
    assert check_writable(tmp_path / "a" / "b", "out") == tmp_path / "a" / "b"
    assert os.listdir(tmp_path / "a" / "b") == []
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"^out: .*file.* cannot be written \((File exists|Not a directory)\)$"):
            check_writable(folder, "out")


@pytest.mark.parametrize("umask", [0o077, 0o027, 0o022, 0o002])
def test_files_have_the_rights_that_the_umask_leaves(tmp_path, umask):
    weights, image = {"a": torch.zeros(3)}, torch.zeros(1, 3, 8, 8)
    before = os.umask(umask)
    try:
        for name in ("old", "new"):
            write_text(tmp_path / "text", name)
        write_atomic(tmp_path / "weights", lambda path: save_file(weights, path))  # puts a file of its own there
        write_atomic(tmp_path / "torch", lambda path: torch.save(weights, path))
        save_grid(image, (0, 1), tmp_path / "grid")
        save_folder(image, (0, 1), tmp_path)
        open_to_write(tmp_path / "log", "a").close()
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 6 and set(modes.values()) == {0o666 & ~umask}


def limited(write):
    """Call it where no file may grow beyond 100,000 bytes: as on a full disk, but with another number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("save", [save_file, torch.save, lambda tensors, path: path.write_bytes(bytes(400_000))])
def test_a_full_disk_is_an_oserror_whoever_writes(tmp_path, save):
    weights = {"a": torch.zeros(100_000)}
    with pytest.raises(OSError, match="File too large") as error:
        limited(lambda: write_atomic(tmp_path / "x", lambda path: save(weights, path)))
    assert error.value.errno == errno.EFBIG and not os.listdir(tmp_path)


def test_nothing_is_written_through_a_link(tmp_path):
    victim, run = tmp_path / "victim", tmp_path / "run"
    write_text(victim / "file", "kept")
    run.mkdir()
    (run / "metrics.jsonl").symlink_to(victim / "file")
    (run / "tb").symlink_to(victim)
    for mode in ("w", "a", "wb"):
        with pytest.raises(OSError, match="symbolic links"):
            open_to_write(run / "metrics.jsonl", mode)
        for path in (run / "metrics.jsonl", run / "tb" / "new", run / "tb" / "a" / "b", run / ".." / "new"):
            with pytest.raises(ValueError, match="link"):
                open_to_write(path, mode, within=run)
    with pytest.raises(ValueError, match="subpath"):
        open_to_write(victim / "new", within=run)
    write_text(run / "metrics.jsonl", "mine")  # put in the place of the link
    assert os.listdir(victim) == ["file"] and (victim / "file").read_text() == "kept"
    with open_to_write(run / "log", "a", within=run) as file:
        file.write("ü")
    assert (run / "log").read_text(encoding="utf-8") == "ü"
