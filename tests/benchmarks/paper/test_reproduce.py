"""The published table again, computed with tiny GANs and data made here, and going on where it was stopped."""

from __future__ import annotations

import copy
import functools
import json
import shutil
import statistics
import time
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from atu import presets
from atu.evaluation.evaluate import evaluate
from atu.gan import GAN
from atu.judging.classifier import Classifier
from atu.judging.rule import class_rule
from atu.measures import extractors
from atu.measures.frechet import frechet, frechet_distance, moments
from atu.support import memory
from atu.support.context import RunContext
from atu.support.lock import claimed
from atu.support.seeding import Stream, stream_seed
from benchmarks.paper import cells as reproduction
from benchmarks.paper import reproduce
from benchmarks.paper import table as reproduced_table
from benchmarks.paper.cells import Plan, Task
from benchmarks.paper.published import PRETRAINED_FID, PUBLISHED
from benchmarks.tables import read_rows, write_rows
from examples.classifiers import train_classifier

from .tiny import QUICK, run, tiny_gan

# TorchScript is what such files come in, whatever its future.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def bright_side(x):
    """0 for images [N, C, 8, 8] that are brighter on the left, 1 on the right, 2 for those brighter above than both."""
    halves = [x[..., :4], x[..., 4:], x[..., :4, :]]
    return torch.stack([half.mean(dim=(1, 2, 3)) for half in halves], 1).argmax(1)


@pytest.fixture(scope="module")
def plan_parts():
    gan = tiny_gan()
    x = gan.sample(400, seed=1)
    labels = bright_side(x)
    module, _ = train_classifier(x, labels, (x[:50], labels[:50]), epochs=3)
    judge = Classifier(module, ["left", "right", "above"])
    return gan, [Task(name, judge, (name,), (x, labels)) for name in ("left", "right")]


def plan_of(parts, tmp_path, methods=("ewc", "retrain"), seeds=2, **options):
    (tmp_path / "quick.toml").write_text(QUICK)
    settings = dict(negatives=8, samples=80, config=reproduce.read_config(tmp_path / "quick.toml"))
    return Plan("mnist", *parts, methods=methods, seeds=seeds, **{**settings, **options})


def test_cells_are_computed_once_and_tabled(plan_parts, tmp_path, monkeypatch):
    plan, out = plan_of(plan_parts, tmp_path), tmp_path / "out"
    table = reproduce.reproduce(plan, out)
    assert (table["cells_done"], table["cells"]) == (8, 8)
    there = reproduction.read_cells(out)
    assert len(there) == 8
    cells = [there["ewc", "left", seed] for seed in range(2)]
    row = table["table"]["ewc"]["left"]
    assert row["pul"]["mean"] == pytest.approx(statistics.mean(cell["pul"] for cell in cells))
    assert row["pul"]["deviation"] == pytest.approx(statistics.stdev(cell["pul"] for cell in cells))
    assert row["ret_fid_cls"]["n"] == 2
    one = cells[0]
    assert row["good_changed"]["mean"] == pytest.approx(50 * sum(cell["good_changed.share"] for cell in cells))
    assert row["frechet_kept"]["mean"] > 0 and one["kept.frechet_chance"] > 0
    with Image.open(out / "work" / "pictures" / "ewc-left-0.png") as picture:  # gaps of a pixel between images of 8 x 8
        assert picture.width == 9 * min(20, one["negatives_before"])
    assert table["table"]["retrain"]["left"]["ret_fid_cls"] is None
    assert not list((out / "work" / "runs").glob("*"))
    with Image.open(out / "pictures.jpg") as picture:  # a block a method and target: the last is no white paper
        block = np.asarray(picture)[-4 * reproduced_table.SIDE :, -reproduced_table.TILES * reproduced_table.SIDE :]
        assert block.std() > 20
    # What is there is not computed again; what is missing is.
    write_rows(out / "cells.csv", [row for key, row in there.items() if key != ("ewc", "right", 1)])
    ran = []
    run_cell = reproduction.run_cell

    def counted(*arguments):
        ran.append((arguments[1].name, *arguments[2:4]))
        return run_cell(*arguments)

    monkeypatch.setattr(reproduce, "run_cell", counted)
    again = reproduce.reproduce(plan, out)
    assert ran == [("right", 1, "ewc")]
    assert again["table"]["ewc"]["right"]["pul"] == table["table"]["ewc"]["right"]["pul"]
    rows = {(row["method"], row["target"]): row for row in read_rows(out / "table.csv")}
    assert rows["ewc", "left"]["pul.mean"] == pytest.approx(row["pul"]["mean"], rel=1e-5)
    assert rows["ewc", "left"]["pul.n"] == 2 and len(rows) == 4
    text = (out / "table.md").read_text()
    assert "| ewc | " in text
    assert "the feature extractor differ" in text
    with Image.open(out / "figure.png") as picture:
        assert picture.width > 500
    with pytest.raises(ValueError, match=r"another negatives \(8 there, 9 now\)"):
        reproduce.reproduce(plan_of(plan_parts, tmp_path, negatives=9), out)
    with pytest.raises(ValueError, match=r"another extractor \(None there, 0f now\)"):
        reproduce.reproduce(plan_of(plan_parts, tmp_path, extractor=halves, extractor_sha256="0f"), out)
    gan, tasks = plan_parts
    judge = Classifier(copy.deepcopy(tasks[0].judge.module), tasks[0].judge.classes, name=tasks[0].judge.name)
    with torch.no_grad():
        judge.module.head.bias.add_(0.1)
    other = [replace(tasks[0], judge=judge), tasks[1]]
    with pytest.raises(ValueError, match=r"another judge of left \(\S+ \w{16} there, \S+ \w{16} now\)"):
        reproduce.reproduce(plan_of((gan, other), tmp_path), out)


def test_one_target_and_seeds_original_is_judged_once_for_all_methods(plan_parts, tmp_path, monkeypatch):
    handed = []

    def noted(*arguments, **options):
        found = evaluate(*arguments, **options)
        handed.append((options["original"], found.original))
        return found

    monkeypatch.setattr(reproduction, "evaluate", noted)
    reproduce.reproduce(plan_of(plan_parts, tmp_path, seeds=1), tmp_path / "out")
    assert len(handed) == 4  # two methods of each of two targets
    assert [one is None for one, _ in handed] == [True, False, True, False]
    assert handed[1][0] is handed[0][1] and handed[3][0] is handed[2][1] is not handed[0][1]


def halves(x):
    """Features [N, 4] of uint8 images [N, 1, 8, 8]: the mean of each quarter."""
    return nn.functional.adaptive_avg_pool2d(x.float(), 2).flatten(1)


@pytest.mark.parametrize("extractor", [None, halves])
def test_what_another_process_has_begun_is_left_to_it(plan_parts, tmp_path, monkeypatch, extractor):
    """Its cell is computed here where it gives it up; what is compared with its retrained GAN comes after it."""
    plan, out = plan_of(plan_parts, tmp_path, seeds=1, extractor=extractor), tmp_path / "out"
    ran = []
    run_cell = reproduction.run_cell

    def counted(*arguments):
        ran.append(f"{arguments[3]}-{arguments[1].name}")
        return run_cell(*arguments)

    def wait(seconds):
        ran.append("waited")
        other.close()

    with ExitStack() as other:
        assert other.enter_context(claimed(out / "work" / "claims" / "retrain-left-0"))
        monkeypatch.setattr(reproduce, "run_cell", counted)
        # Time of its own: a thread of another library sleeps too.
        monkeypatch.setattr(reproduce, "time", SimpleNamespace(monotonic=time.monotonic, sleep=wait))
        table = reproduce.reproduce(plan, out)
    assert ran == ["retrain-right", "ewc-right", "waited", "retrain-left", "ewc-left"]
    if extractor is not None:
        assert all(table["table"]["ewc"][name]["ret_fid"]["n"] == 1 for name in ("left", "right"))
    assert table["cells_done"] == 4
    assert all(table["table"]["ewc"][name]["ret_fid_cls"]["n"] == 1 for name in ("left", "right"))


def test_a_cell_beside_that_of_the_retrained_gan(plan_parts, tmp_path):
    """The distance of their samples, by the judge's features of both; and a star where fewer negatives are left."""
    plan, out = plan_of(plan_parts, tmp_path, methods=("extrapolate", "retrain"), seeds=1), tmp_path / "out"
    reproduce.reproduce(plan, out)
    task = plan.tasks[0]
    retrained = GAN.load(out / "work" / "retrained" / "retrain-left-0.safetensors")
    z = stream_seed(0, Stream.EVALUATION)
    features = task.judge.features(retrained.sample(80, z))
    row = reproduction.read_cells(out)["extrapolate", "left", 0]
    saved = reproduction.read_moments(out, task, 0, "extrapolate")
    assert row["ret_fid_cls"] == pytest.approx(frechet_distance(moments(features), saved), rel=1e-3)
    beside = functools.partial(reproduction.beside_retrained, plan, out, task)
    for made, left, fewer in ((40, 0, True), (40, 39, False), (3, 40, False), (None, 0, None), (40, None, None)):
        cells = reproduction.read_cells(out)
        cells["retrain", "left", 0]["negatives_after"] = made
        write_rows(out / "cells.csv", list(cells.values()))
        assert beside(0, "extrapolate", left).get("over_removal") is fewer
    for fewer in (True, False):
        cells["extrapolate", "left", 0].update(negatives_after=0, over_removal=fewer)
        write_rows(out / "cells.csv", list(cells.values()))
        row = reproduced_table.write_table(plan, out)["table"]["extrapolate"]["left"]
        assert row["over_removal"] == int(fewer)
        assert (" 0 * |" in (out / "table.md").read_text()) == fewer
    assert beside(0, "retrain", 3) == {}
    assert "ret_fid_cls" not in beside(1, "extrapolate", 3)  # it has no moments
    # Another seed is compared with the one retrained GAN there is.
    shutil.copy(*(reproduction.work_path(out, "moments", task, seed, "extrapolate", ".safetensors") for seed in (0, 1)))
    assert beside(1, "extrapolate", 3)["ret_fid_cls"] == beside(0, "extrapolate", 3)["ret_fid_cls"]


def test_as_many_cells_at_once_as_threads_memory_and_work_allow(plan_parts, tmp_path, monkeypatch):
    plan = plan_of(plan_parts, tmp_path)  # of 8 cells
    free = [None]
    monkeypatch.setattr(memory, "free", lambda device: free[0])
    assert [reproduce.jobs_for(plan, tmp_path, threads) for threads in (1, 5, 64)] == [1, 5, 8]
    free[0] = 3 * reproduce.CELL_BYTES + 1
    assert reproduce.jobs_for(plan, tmp_path, 5) == 3
    free[0] = 1
    assert reproduce.jobs_for(plan, tmp_path, 5) == 1
    text = reproduce.told({"ewc": dict(cells=6, seconds=50.0, steps=3)}, jobs=3)
    assert text.endswith("6 cells to do, 3 side by side, about 100 s in all on this machine")


def test_a_figure_has_a_panel_for_each_target():
    """A method that was not run on a target has no point there, and its others are not averaged with them."""
    point = {"ratio": {"mean": 0.5}, "pul": {"mean": 90.0}}
    other = {"ratio": {"mean": 2.0}, "pul": {"mean": 40.0}}
    targets = ["one", "two", "three", "four"]
    table = {"atu": dict.fromkeys(targets, point), "el2": {"two": other, "three": {"ratio": None, "pul": None}}}
    figure = reproduced_table.figure_of(table)
    shown = {axes.get_title(): [tuple(line.get_xydata()[0]) for line in axes.lines[:-1]] for axes in figure.axes[:4]}
    assert shown == {"one": [(0.5, 90)], "two": [(0.5, 90), (2, 40)], "three": [(0.5, 90)], "four": [(0.5, 90)]}
    assert [axes.axison for axes in figure.axes] == [True] * 4 + [False] * 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["atu", "el2"]
    assert not reproduced_table.figure_of({}).axes[0].lines  # before the first cell


@pytest.mark.parametrize("samples", [90, 190])
def test_a_picture_has_what_was_negative_above_what_was_good(plan_parts, tmp_path, samples):
    """A row before and a row after, in turn; a second pair of rows where there are enough of both for it."""
    gan, (task, _) = plan_parts
    other = gan.copy()
    with torch.no_grad():
        for p in other.generator.parameters():
            p.mul_(0.5)
    evaluation = evaluate(gan, other, task.judge, task.classes, n=samples, seed=3, keep=samples)
    x, y = (one.sample(samples, seed=3) for one in (gan, other))
    flags = class_rule(task.judge, ["left"], gan.image_range)(x)
    fewer = min(int(flags.sum()), int((~flags).sum()))
    pairs = 1 if samples == 90 else 2
    assert 20 * pairs <= fewer
    firsts = [20 * pair for pair in range(pairs)]
    expected = [a[pick][first : first + 20] for pick in (flags, ~flags) for first in firsts for a in (x, y)]
    path = tmp_path / "pictures" / "some.png"
    reproduction.save_picture(path, evaluation)
    with Image.open(path) as picture:
        found = np.asarray(picture).reshape(4 * pairs, 9, 20, 9)[:, :8, :, :8].transpose(0, 2, 1, 3)
    wanted = torch.stack(expected).squeeze(2).numpy()
    low, high = gan.image_range
    np.testing.assert_allclose(found / 255, (wanted - low) / (high - low), atol=0.51 / 255)


def test_retraining_comes_first_and_sees_no_negatives(plan_parts, tmp_path):
    plan = plan_of(plan_parts, tmp_path, seeds=1)
    assert [method for _, _, method in plan.cells()] == ["retrain", "ewc"] * 2
    found = reproduction.run_cell(plan, plan.tasks[0], 0, "retrain", tmp_path)
    images, labels = plan.tasks[0].real
    # Negatives by label are left out here, and those by the judge in the method.
    by_judge = class_rule(plan.tasks[0].judge, ["left"], plan.gan.image_range)(images[labels != 0])
    assert found["decisions.trained_on"] == int((~by_judge).sum())
    assert (tmp_path / "work" / "retrained" / "retrain-left-0.safetensors").is_file()


def test_an_oracle_beside_the_judge_marks_and_answers_alone(plan_parts, tmp_path, monkeypatch):
    """The oracle knows the classes by other names; marks and answers are its, the counts the judge's."""
    gan, (task, _) = plan_parts
    swapped = Classifier(
        task.judge.module, ["right", "left", "above"], name="oracle"
    )  # calls left what the judge calls right
    both = Task("left", task.judge, ("left",), task.real, swapped)
    seen = []
    unlearn = reproduction.unlearn
    monkeypatch.setattr(
        reproduction, "unlearn", lambda gan, marked, **more: seen.append((marked, more)) or unlearn(gan, marked, **more)
    )
    plan = plan_of((gan, [both]), tmp_path, methods=("ewc",), seeds=1)
    found = reproduction.run_cell(plan, both, 0, "ewc", tmp_path)
    ((marked, more),) = seen
    assert (task.judge.predict(marked) == 1).all()
    x = gan.sample(80, seed=stream_seed(0, Stream.EVALUATION))
    assert torch.equal(more["is_negative"](x), task.judge.predict(x) == 1)
    assert found["negatives_before"] == int((task.judge.predict(x) == 0).sum())


def test_without_an_oracle_nothing_but_marks_is_given(plan_parts, tmp_path, monkeypatch):
    gan, (task, _) = plan_parts
    both = Task("left", task.judge, ("left",), task.real, Classifier(task.judge.module, task.judge.classes, name="o"))
    seen = []
    unlearn = reproduction.unlearn
    monkeypatch.setattr(
        reproduction, "unlearn", lambda gan, marked, **more: seen.append(more) or unlearn(gan, marked, **more)
    )
    plan = plan_of((gan, [both]), tmp_path, methods=("ewc",), seeds=1, oracle=False)
    table = reproduce.reproduce(plan, tmp_path / "out")
    assert [one["is_negative"] for one in seen] == [None]
    row = table["table"]["ewc"]["left"]
    assert row["pul_oracle"] is None and row["pul"]["n"] == 1
    (cell,) = reproduction.read_cells(tmp_path / "out").values()
    assert cell["given"] == "marks"
    cell.update({"good_changed.sure.share": 0.25, "landing.sure": 0.3, "landing.sure_chance": 0.75})
    row = reproduced_table.summarise([cell])
    assert (row["sure_changed"]["mean"], row["sure_landing"]["mean"]) == pytest.approx((25, 0.4))
    text = (tmp_path / "out" / "table.md").read_text()
    assert "No oracle: nothing but the marked negatives was given to the runs." in text
    with pytest.raises(ValueError, match=r"another oracle \(False there, True now\)"):
        reproduce.reproduce(plan_of((gan, [both]), tmp_path, methods=("ewc",), seeds=1), tmp_path / "out")
    # A plan of before this could be said had an oracle.
    plan_file = tmp_path / "out" / "plan.json"
    plan_file.write_text(json.dumps({k: v for k, v in json.loads(plan_file.read_text()).items() if k != "oracle"}))
    with pytest.raises(ValueError, match=r"another oracle \(True there, False now\)"):
        reproduce.reproduce(plan, tmp_path / "out")


def test_forecast_is_of_what_is_left(plan_parts, tmp_path):
    plan = plan_of(plan_parts, tmp_path)
    done = (("left", 0, 30.0), ("right", 1, 50.0))
    rows = [dict(method="ewc", target=name, seed=seed, seconds_in_all=seconds) for name, seed, seconds in done]
    write_rows(tmp_path / "out" / "cells.csv", rows)
    found = reproduce.forecast(plan, tmp_path / "out")
    assert found["ewc"] == {"cells": 2, "seconds": 40.0, "steps": 2}
    assert (found["retrain"]["cells"], found["retrain"]["steps"]) == (4, 2) and found["retrain"]["seconds"] > 0
    text = reproduce.told(found)
    assert "ewc: 2 cells of up to 2 steps, about 40 s each" in text
    assert text.splitlines()[-1].startswith("6 cells to do, about ")
    # Adapt-then-Unlearn's steps are those of both stages.
    alone = plan_of(plan_parts, tmp_path, methods=("atu",))
    assert reproduce.forecast(alone, tmp_path / "none")["atu"]["steps"] == 2 + 2
    assert not (tmp_path / "none").exists()


def test_a_forecast_makes_no_more_at_once_than_was_said(plan_parts, tmp_path, monkeypatch):
    plan, sizes = plan_of(plan_parts, tmp_path), []
    batches = type(plan.gan).batches

    def watched(self, *arguments, **options):
        for x in batches(self, *arguments, **options):
            sizes.append(len(x))
            yield x

    monkeypatch.setattr(type(plan.gan), "batches", watched)
    with RunContext(batch=9):
        reproduce.forecast(plan, tmp_path / "out")
    assert sizes and max(sizes) <= 9


def test_an_extractors_reference_is_drawn_from_all_real_images(plan_parts, tmp_path):
    """They come sorted by class, and it takes no more than so many."""
    gan, _ = plan_parts
    plan = plan_of(plan_parts, tmp_path, extractor=halves, samples=40)
    real = torch.cat([torch.full((60, 1, 8, 8), -0.9), torch.full((60, 1, 8, 8), 0.9)])
    seen = []
    plan.extractor = lambda x: seen.append(x) or halves(x)
    reproduction._extracted(plan, real, torch.arange(120), gan, tmp_path / "none", "ewc", 0)
    bright = [int((x.float().flatten(1).mean(1) > 200).sum()) for x in seen if len(x.unique()) == 2]
    assert len(bright) == 1 and 8 < bright[0] < 32


def test_a_dry_run_computes_nothing(tmp_path, capsys):
    run("mnist", "--class", 3, "--method", "ewc", "--seeds", 2, "--dry-run", "--out", tmp_path / "out")
    assert "2 cells to do, about " in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


class Brightness(nn.Module):
    """Mean of each quarter of uint8 images [N, 3, H, W]: [N, 12]."""

    def forward(self, x):
        return nn.functional.adaptive_avg_pool2d(x.float(), 2).flatten(1)


class WithOption(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Brightness()

    def forward(self, x, return_features: bool = False):
        return self.inner(x) if return_features else x.float().mean((1, 2, 3))[:, None]


@pytest.mark.parametrize("module", [Brightness(), WithOption()])
def test_features_of_a_torchscript_file(plan_parts, tmp_path, module):
    torch.jit.script(module).save(tmp_path / "extractor.pt")
    extract = extractors.torchscript(tmp_path / "extractor.pt")
    x = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    expected = x.float().reshape(5, 2, 4, 2, 4).mean((2, 4)).reshape(5, 4).repeat(1, 3)
    assert torch.allclose(extract(x), expected)
    plan = plan_of(plan_parts, tmp_path, extractor=extract)
    kept = plan.tasks[1].real[1] != 1
    real, labels = (one[kept][:80] for one in plan.tasks[1].real)
    found = reproduction.run_cell(plan, replace(plan.tasks[1], real=(real, labels)), 0, "ewc", tmp_path)
    levels = ((real + 1) / 2 * 255).round().to(torch.uint8)
    own = ((plan.gan.sample(80, stream_seed(0, Stream.EVALUATION)) + 1) / 2 * 255).round().to(torch.uint8)
    assert found["fid_before"] == pytest.approx(frechet(extract(levels), extract(own)), rel=1e-4)
    assert found["fid_after"] > 0


def test_errors_name_the_argument(tmp_path):
    with pytest.raises(ValueError, match="method: expected one of"):
        reproduce.check_methods(["el3"])
    assert reproduce.check_methods([]) == list(presets.METHODS)
    (tmp_path / "x.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"extractor: .* is no readable TorchScript"):
        extractors.torchscript(tmp_path / "x.pt")
    assert reproduced_table.spread([None, None]) is None
    assert reproduced_table.spread([2.0]) == {"mean": 2.0, "deviation": None, "n": 1}


def test_published_rows():
    assert PUBLISHED["mnist"]["el2"]["1"] == (99.32, 9.65, 6.29)
    assert set(PUBLISHED) == set(PRETRAINED_FID)
    for rows in PUBLISHED.values():
        assert set(rows) <= set(presets.METHODS)
        assert all(0 < row[0] <= 100 and row[1] > 0 for targets in rows.values() for row in targets.values())
