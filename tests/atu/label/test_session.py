"""Marks: kept through kills, undone and redone, one process at a time."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atu.label.journal import Journal
from atu.label.session import CODES, JUDGED, RANDOM, Session
from atu.measures.intervals import wilson


def opened(folder: Path, **changes) -> Session:
    given = dict(ckpt="small", gan="0123", seed=3, block=64, samples=97)
    return Session(folder, **{**given, **changes})


def test_marks_are_there_again(marks):
    session = opened(marks)
    session.mark([RANDOM, RANDOM + 96, 5], "unwanted", "all")
    session.mark([RANDOM + 96], "good")
    session.mark([7], "unsure")
    codes = bytes(session.now.codes)
    session.close()
    again = opened(marks)
    assert bytes(again.now.codes) == codes
    assert again.counts() == {"unwanted": 2, "good": 1, "unsure": 1}
    assert again.undo() and again.undo()
    assert again.counts() == {"unwanted": 3, "good": 0, "unsure": 0}
    again.close()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(sorted(CODES)), st.lists(st.integers(0, 12), min_size=1, max_size=5)),
        st.sampled_from(["undo", "redo"]),
    ),
    max_size=40,
)


@settings(deadline=None)  # each step waits for the disk
@given(steps=STEPS)
def test_undo_and_redo_against_a_list_of_states(steps, tmp_path_factory):
    folder = tmp_path_factory.mktemp("marks")
    session = opened(folder)
    states, at = [bytes(session.now.codes)], 0
    for step in steps:
        if step == "undo":
            assert session.undo() == (at > 0)
            at = max(at - 1, 0)
        elif step == "redo":
            assert session.redo() == (at < len(states) - 1)
            at = min(at + 1, len(states) - 1)
        else:
            session.mark(step[1], step[0])
            codes = bytearray(states[at])
            for index in step[1]:
                codes[index] = CODES[step[0]]
            if bytes(codes) != states[at]:
                states[at + 1 :] = [bytes(codes)]
                at += 1
        assert bytes(session.now.codes) == states[at]
    session.close()
    again = opened(folder)
    assert bytes(again.now.codes) == states[at]
    again.close()


def test_changes_lead_from_any_version_to_the_last(marks):
    session = opened(marks)
    versions = [(session.version, bytes(session.now.codes))]
    for act in (
        lambda: session.mark([1, 2, 3], "good"),
        lambda: session.mark([2], "unwanted"),
        session.undo,
        session.redo,
    ):
        act()
        versions.append((session.version, bytes(session.now.codes)))
    for version, codes in versions:
        codes = bytearray(codes)
        for index, code in session.now.changes[version:]:
            codes[index] = code
        assert codes == session.now.codes
    session.close()


MARKER = """
import sys
from pathlib import Path
from atu.label.session import CODES, JUDGED, RANDOM, Session
session = Session(Path(sys.argv[1]), ckpt="small", gan="0123", seed=3, block=64, samples=97)
for index in range(100_000):
    session.mark([index % 1000], ("unwanted", "good", "unsure")[index // 1000 % 3])
    print(index, flush=True)
"""


def test_kill_9_loses_no_mark(marks):
    process = subprocess.Popen([sys.executable, "-c", MARKER, str(marks)], stdout=subprocess.PIPE, text=True)
    told = [process.stdout.readline() for _ in range(137)]
    process.send_signal(signal.SIGKILL)
    told += process.stdout.readlines()
    process.wait()
    said = int([line for line in told if line.endswith("\n")][-1])
    session = opened(marks)  # the lock went with the process
    assert said >= 136
    assert session.stamp in (said + 1, said + 2)  # the last one may be on disk and not told yet
    names = ("unwanted", "good", "unsure")
    for index in range(min(said + 1, 1000)):
        assert session.now.codes[index] == CODES[names[(said - (said - index) % 1000) // 1000 % 3]]
    session.close()


@pytest.mark.parametrize("torn", [b'{"op":"mark","label":"good","at":[1]', b"\x00\x00"])
def test_a_torn_last_line_is_cut_off(marks, torn):
    session = opened(marks)
    session.mark([3], "good")
    session.close()
    with open(marks / "journal.jsonl", "ab") as file:
        file.write(torn)
    again = opened(marks)
    again.mark([4], "good")
    again.close()
    lines = [json.loads(line) for line in (marks / "journal.jsonl").read_text().splitlines()]
    assert [line.get("at") for line in lines] == [None, [3], [4]]


def test_a_broken_line_within_is_an_error(marks):
    marks.mkdir()
    (marks / "journal.jsonl").write_text('{"op":"open"}\nnonsense\n{"op":"undo"}\n')
    with pytest.raises(ValueError, match=r"out: line 2 of .* is not JSON"):
        Journal(marks / "journal.jsonl")


@pytest.mark.parametrize("torn", [b"", b"{", b'{"op":"op', b'{"op":"open","format":1,"se', b'{"op\0\0\0', b"\0\0\0"])
def test_a_journal_torn_in_its_first_line_begins_anew(marks, torn):
    marks.mkdir()
    (marks / "journal.jsonl").write_bytes(torn)
    session = opened(marks)
    session.mark([4], "good")
    session.close()
    lines = [json.loads(line) for line in (marks / "journal.jsonl").read_text().splitlines()]
    assert [line["op"] for line in lines] == ["open", "mark"]


FOREIGN = [b"a note", b'{"event":1', b'{"op":"opera', b"[1, 2]\n", b'{"event": 1}\n{"event": 2}', b'"open"\n', b"{}\n{"]


@pytest.mark.parametrize("text", FOREIGN)
def test_a_journal_of_something_else_is_left_alone(marks, text):
    marks.mkdir()
    (marks / "journal.jsonl").write_bytes(text)
    with pytest.raises(ValueError, match=r"out: .*journal\.jsonl is no journal of atu label; give another folder"):
        opened(marks)
    assert (marks / "journal.jsonl").read_bytes() == text
    (marks / "journal.jsonl").unlink()
    opened(marks).close()  # the lock was let go


WRITTEN = ["labels.json", "latents.safetensors", "unwanted/r1-0001025.png", "good/r12-0000003.png", "run-1.log"]


@pytest.mark.parametrize("name", [*WRITTEN, "run-2.lock"])
@pytest.mark.parametrize("journal", [None, b"", b'{"op":"op'])
def test_files_that_would_be_overwritten_are_left_alone_without_a_journal(marks, name, journal):
    """They are the user's own, or of marks whose journal was not handed over."""
    (marks / name).parent.mkdir(parents=True)
    (marks / name).write_text("kept")
    (marks / ".x.json.partial.json").write_text("kept")
    if journal is not None:
        (marks / "journal.jsonl").write_bytes(journal)
    before = {path: path.read_bytes() for path in marks.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=f"out: .*{name} is there without a journal of atu label, and would be"):
        opened(marks)
    assert {path: path.read_bytes() for path in marks.rglob("*") if path.is_file()} == before


def test_other_files_in_a_new_folder_are_no_hindrance(marks):
    for name in ("notes.txt", "run-a.log", "unwanted/red-cat.png", "good/r1.png", "elsewhere/labels.json"):
        (marks / name).parent.mkdir(parents=True, exist_ok=True)
        (marks / name).write_text("kept")
    opened(marks).close()
    assert (marks / "unwanted" / "red-cat.png").read_text() == "kept"


def test_a_mark_that_cannot_be_written_does_not_count(marks, monkeypatch):
    session = opened(marks)
    session.mark([1], "good")

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            session.mark([2], "good")
    assert session.counts()["good"] == 1
    session.mark([3], "unwanted")
    session.close()
    again = opened(marks)
    assert again.counts() == {"unwanted": 1, "good": 1, "unsure": 0}
    again.close()


def test_one_process_at_a_time(marks):
    session = opened(marks)
    with pytest.raises(ValueError, match=r"out: .* is in use by another run"):
        opened(marks)
    session.close()
    opened(marks).close()


def test_another_gan_is_refused(marks):
    opened(marks).close()
    with pytest.raises(ValueError, match=r"out: .* holds marks of another GAN \(small\)"):
        opened(marks, gan="4567")
    opened(marks).close()  # the lock was let go


def test_the_gan_goes_by_its_name_of_now(marks):
    """A folder from elsewhere may name a FILE.py:FUNCTION, which must not reach the command of a run."""
    opened(marks, ckpt="evil.py:build").close()
    session = opened(marks, ckpt="moved/network.pkl")
    assert session.rounds[0].ckpt == "moved/network.pkl"
    session.close()


LINKED = ["journal.jsonl", ".lock", "labels.json", "run-1.log", "run-1.lock", "unwanted", "good"]


@pytest.mark.parametrize("name", LINKED)
def test_a_folder_with_links_to_elsewhere_is_refused(marks, tmp_path, name):
    target = tmp_path / "the user's own"
    target.write_text("kept")
    marks.mkdir()
    (marks / name).symlink_to(target)
    with pytest.raises(ValueError, match=f"out: .*{name} is a symbolic link"):
        opened(marks)
    assert target.read_text() == "kept"
    (marks / name).unlink()
    opened(marks).close()


def test_seed_and_block_stay_those_of_the_marks(marks):
    opened(marks).close()
    again = opened(marks, seed=9, block=4)
    assert (again.seed, again.block) == (3, 64)
    again.close()


@pytest.mark.parametrize("at", [[-401], [RANDOM + 97], ["1"], [True], [1.0]])
def test_indices_are_checked(marks, at):
    session = opened(marks)
    with pytest.raises(ValueError, match="indices: expected integers from 0 to 1120"):
        session.mark(at, "good")
    with pytest.raises(ValueError, match="label: expected one of"):
        session.mark([1], "bad")
    assert session.version == 0
    session.close()


def test_fewer_samples_than_before_keep_all_marks(marks):
    session = opened(marks)
    session.mark([RANDOM + 96], "good")
    session.close()
    again = opened(marks, samples=10)
    assert again.counts()["good"] == 1
    again.close()


def test_the_random_sample_counts_as_far_as_it_is_marked(marks):
    session = opened(marks)
    assert session.verdict() == dict(marked=0, unwanted=0, unsure=0, share=None, low=0.0, high=1.0)
    session.mark(list(range(53)), "good")
    session.mark([3, 11, 40], "unwanted")
    session.mark([7], "unsure")
    session.mark([54], "unwanted")  # after a gap: chosen, so not counted
    low, high = wilson(3, 52)
    assert session.verdict() == dict(marked=53, unwanted=3, unsure=1, share=3 / 52, low=low, high=high)
    session.mark([RANDOM + 2], "unwanted")  # of the grid
    assert session.verdict()["unwanted"] == 3
    session.close()


def test_rounds_keep_the_marks_before(marks):
    session = opened(marks)
    session.mark([1, 2], "unwanted")
    session.begin_round("run-1/result.safetensors", "89ab")
    assert session.version == 0 and not session.undo()
    session.mark([2], "good")
    session.close()
    again = opened(marks)
    assert [found.gan for found in again.rounds] == ["0123", "89ab"]
    assert again.counts() == {"unwanted": 2, "good": 1, "unsure": 0}
    again.close()


def test_all_rounds_have_room_for_all_marks(marks):
    session = opened(marks)
    session.mark([RANDOM + 96], "good")
    session.begin_round("run-1/result.safetensors", "89ab")
    session.close()
    again = opened(marks, samples=10)
    assert {len(found.codes) for found in again.rounds} == {again.size}
    again.close()


def test_what_is_judged_blind_is_apart_from_the_marks(marks):
    session = opened(marks)
    order = session.blind_order(1)
    assert sorted(order) == list(range(2 * JUDGED))
    assert (order != session.blind_order(2)).any()
    of_result = order >= JUDGED
    session.mark([-1 - p for p in range(101)], "good")
    wrong = [p for p in range(101) if of_result[p]][:5] + [p for p in range(101) if not of_result[p]][:30]
    session.mark([-1 - p for p in wrong], "unwanted")
    session.mark([-1 - int(np.flatnonzero(of_result[:101])[-1])], "unsure")
    session.mark([-1 - 103], "unwanted")  # after a gap: chosen
    found = session.blind_verdict(1)
    assert found["judged"] == 101
    after, before = int(of_result[:101].sum()), int((~of_result[:101]).sum())
    assert (found["after"]["marked"], found["after"]["unwanted"], found["after"]["unsure"]) == (after, 5, 1)
    assert (found["before"]["marked"], found["before"]["unwanted"]) == (before, 30)
    assert found["after"]["share"] == 5 / (after - 1)
    assert session.counts() == {"unwanted": 0, "good": 0, "unsure": 0}  # nothing is learned from them
    assert session.verdict()["marked"] == 0
    session.undo()
    session.close()
    again = opened(marks)
    assert again.blind_verdict(1) == found
    again.close()


def test_a_verdict_that_was_shown_stays(marks):
    session = opened(marks)
    session.mark([RANDOM + 1], "good")
    session.mark([-1, -2, -3], "unwanted")
    session.reveal()
    with pytest.raises(ValueError, match="the verdict was shown, and stays as it is"):
        session.mark([-2], "good")
    assert not session.undo()
    session.mark([RANDOM + 2], "good")
    assert session.undo() and not session.undo()
    session.close()
    again = opened(marks)
    assert again.now.revealed and again.blind_verdict(1)["judged"] == 3
    assert again.counts()["good"] == 1
    again.begin_round("run-1/result.safetensors", "89ab")
    again.mark([-1], "good")  # another result
    assert again.blind_verdict(2)["judged"] == 1 and again.blind_verdict(1)["judged"] == 3
    again.close()
