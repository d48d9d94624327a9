"""The simulated user of the labelling page."""

import json

import numpy as np
import pytest
import torch

from atu.label.session import RANDOM
from atu.label.studio import open_studio
from atu.support.seeding import mix_seed
from benchmarks import marks, numbers
from benchmarks.tables import read_rows


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "marks"


def brightness(x):
    return x.flatten(1).mean(1)


@pytest.fixture
def limit(image_gan):
    """Of the brightest tenth."""
    return float(brightness(image_gan.sample(2000, seed=9)).quantile(0.9))


def studio_of(gan, folder):
    return open_studio(gan, "small", folder, 600, 5, [], None)


def sample(gan, index):
    return gan.sample(64, seed=mix_seed(5, index // 64), batch_size=64)[index % 64]


@pytest.mark.parametrize("suggestions", [False, True])
def test_the_user_marks_what_the_rule_says_but_for_slips(image_gan, folder, limit, suggestions):
    studio = studio_of(image_gan, folder)
    user = marks.User(studio, lambda x: brightness(x) > limit, suggestions, seed=1)
    while user.count["looked"] < 360:
        assert user.page()
    codes = bytes(studio.session.now.codes)
    at = [i for i in range(len(codes)) if codes[i] != ord(".")]
    truth = np.array([bool(brightness(sample(image_gan, i)[None]) > limit) for i in at])
    said = np.array([codes[i] == ord("n") for i in at])
    assert len(at) == user.count["looked"] >= 360 and min(at) >= RANDOM
    assert said.sum() == user.count["marked"] and (said & truth).sum() == user.count["found"]
    # One key for each of the fewer kind, and one for the rest of each page.
    assert user.count["pages"] < user.count["clicks"] <= said.sum() + user.count["pages"]
    assert 0 < (said != truth).mean() < 0.06  # slips, at 2 %
    if not suggestions:
        assert at == list(range(RANDOM, RANDOM + 360))
        pages = said.reshape(-1, marks.PAGE).sum(1)
        assert user.count["clicks"] == int(np.minimum(pages, marks.PAGE - pages).sum()) + len(pages)
    studio.close()


def test_suggestions_find_more(image_gan, folder, limit):
    found = {}
    for suggestions in (True, False):
        studio = studio_of(image_gan, folder.with_name(f"marks-{suggestions}"))
        user = marks.User(studio, lambda x: brightness(x) > limit, suggestions, seed=1)
        while user.count["looked"] < 120:
            assert user.page()
        found[suggestions] = user.count["found"]
        studio.close()
    assert found[True] > 2 * found[False]


def test_a_stopped_user_goes_on(image_gan, folder, limit, tmp_path):
    def count(stops):
        counts = None
        for number in range(stops):
            studio = studio_of(image_gan, tmp_path / f"marks-{stops}")
            file = tmp_path / f"user-{stops}.json"
            user = marks.User(studio, lambda x: brightness(x) > limit, False, 1, file)
            while user.count["pages"] < 6 * (number + 1) / stops and user.page():
                pass
            studio.close()
            counts = json.loads(file.read_text())
        return counts

    assert count(1) == count(3)


def test_a_pool_ends(image_gan, folder, limit):
    studio = studio_of(image_gan, folder)
    user = marks.User(studio, lambda x: brightness(x) > limit, False, seed=1)
    while user.page():
        pass
    assert user.count["looked"] == 600 and not user.page()
    studio.close()


def test_the_count_is_that_of_the_page_on_which_it_was_found():
    rows = [dict(found=f, looked=24 * (i + 1), clicks=f + i) for i, f in enumerate((0, 9, 10, 29, 120))]
    told = marks.told(dict(feature="3 %", order="random", pages=rows))
    assert told["found"] == {
        "10": dict(looked=72, clicks=12),
        "30": dict(looked=120, clicks=124),
        "100": dict(looked=120, clicks=124),
    }
    assert marks.told(dict(pages=rows[:2]))["found"]["10"] == dict(looked=None, clicks=None)


def test_the_tables(tmp_path):
    words = dict(feature="3 %", subject="the digit 3, leaning to the left")
    cells = [
        dict(**words, order=order, seed=seed, found={str(n): dict(looked=k * n, clicks=n) for n in marks.FOUND})
        for order, k, seed in (("suggestions", 2, 0), ("suggestions", 4, 1), ("random", 50, 0))
    ]
    cells[2]["found"]["10"]["clicks"] = None
    gone = dict(pul=97.31, pul_ci95=[95.0, 98.04], negatives_before=1004, negatives_after=27)
    run = dict(
        feature="10 %", subject="the digit 3", order="random", rounds=2, clicks=201, looked=3500, judge=gone, user=gone
    )
    run.update(report={**gone, "pul": 60.0}, good_changed=0.0514, counts=dict(unwanted=180, good=3000, unsure=0))
    marks._write(tmp_path, dict(finding=cells, unlearning=[run]))
    text = numbers.marks_finding(tmp_path)
    assert "| 3 % | the digit 3, leaning to the left | 100 | 300 | 5,000 | 100 | 100 |" in text
    assert "| 10 | 30 | 500 | 10 | – |" in text
    text = numbers.marks_unlearning(tmp_path)
    assert "| 10 % | the digit 3 | random | 2 | 201 | 3,500 | 180 | 97.3 | 97.3 | 60.0 | 5.1 |" in text
    (row,) = read_rows(tmp_path / "marks-unlearning.csv")
    assert (row["judge.pul_ci95.low"], row["judge.negatives_after"], row["counts.good"]) == (95, 27, 3000)


@pytest.mark.parametrize("quick", [True, False])
def test_quick_cells_are_not_taken_for_others(tmp_path, monkeypatch, quick):
    monkeypatch.setattr(marks, "_finding", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # killed in the first cell
        marks.run_marks(tmp_path, quick, 1, 0, [], print)
    with pytest.raises(ValueError, match=f"out: .* made {'with' if quick else 'without'} --quick; give another"):
        marks.run_marks(tmp_path, not quick, 1, 0, [], print)


@pytest.mark.slow
def test_all_of_it_and_again(tmp_path):
    """From the bundled GAN, in two rounds of the page's suggestions, with tiny settings; then nothing is computed
    again."""
    torch.set_num_threads(1)
    said = []
    given = (tmp_path, True, 1, 2, ["10 %"], said.append, None, ["suggestions"])
    first = marks.run_marks(*given)
    assert len(first["finding"]) == 6 and [one["rounds"] for one in first["unlearning"]] == [1, 2]
    last = first["unlearning"][1]
    assert 0 <= last["good_changed"] < 1
    assert last["order"] == "suggestions" and 20 < last["judge"]["negatives_before"] < 100  # of 500
    run = json.loads((tmp_path / "unlearning/10-suggestions/marks-run-2/run.json").read_text())
    assert run["identity"]["round"] == 2
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json") if path.parent != tmp_path}
    again = marks.run_marks(*given)
    assert again["unlearning"] == first["unlearning"]
    kept = [path for path in times if path.name.startswith(("round-", "judged-", "user-"))]
    assert len(kept) == 6 and all(path.stat().st_mtime_ns == times[path] for path in kept)
