"""The report: numbers in words, one self-contained page, pictures that mark the negatives."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from atu.data import images
from atu.evaluation.evaluate import Evaluation
from atu.evaluation.judges import Judged
from atu.measures.shares import histogram
from atu.report import plots, report

VOID = {"meta", "img", "br", "link", "use", "path", "rect"}


class Balance(HTMLParser):
    """Raises on tags that do not close; collects the tags and attributes seen."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def judged(negative, seed):
    n = len(negative)
    x = torch.rand(min(n, 80), 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    labels = torch.where(negative, 1, torch.arange(n) % 2 * 2)
    return Judged(negative, torch.randn(n, 3), labels, torch.ones(n), x)


@pytest.fixture
def evaluation():
    flags = torch.arange(200) % 5 == 0
    models = {
        "before": judged(flags, 0),
        "adapted": judged(torch.arange(200) < 150, 1),
        "after": judged(flags & False, 2),
    }
    numbers = dict(
        pul=100.0,
        pul_ci95=[91.5, 100.0],
        negatives_before=40,
        negatives_after=0,
        negatives={"before": 40, "adapted": 150, "after": 0},
        fid_cls_before=2.0,
        fid_cls_adapted=8.0,
        fid_cls_after=3.0,
        frechet_kept=0.5,
        tv_kept=0.031,
        n=200,
        seed=0,
        features="classifier",
    )
    for name, model in models.items():
        numbers[f"class_histogram_{name}"] = histogram(model.labels, ["a", "b", "c"])
    return Evaluation(numbers, models, (-1.0, 1.0), ["a", "b", "c"], [1])


@pytest.fixture
def context():
    history = [dict(stage="adapt-0", step=s, seconds=s, loss_d=1.0, loss_g=0.5, ewc=0.1 * s) for s in (1, 2, 3)]
    history += [dict(stage="repel", step=s, seconds=s, loss_d=1.0, loss_g=0.5, distance=1.0 + s) for s in (1, 2)]
    history += [dict(stage="repel", step=3, seconds=3, loss_d=1.0, negative_rate=0.1, drift=0.2)]
    return report.Context(
        subject="the <digit> 8",
        seconds={"repel": 61.0, "evaluate": 9.0},
        command="atu demo mnist --class 8 --out DIR",
        config={"repel": {"steps": 600, "gamma": None}, "list": [1, 2.5]},
        seed=0,
        history=history,
        decisions={"kept_step": 300, "why": "best score", "score": float("nan")},
        notes=["A note."],
    )


def test_json_has_what_is_promised(tmp_path, evaluation, context):
    report.write(tmp_path, evaluation, context)
    data = json.loads((tmp_path / "report.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    promised = "pul pul_ci95 negatives_before negatives_after fid_cls_before fid_cls_after class_histogram_before "
    promised += "class_histogram_after tv_kept seconds config machine versions seed n decisions"
    assert set(promised.split()) <= data.keys()
    assert data["seconds"] == 61.0  # the evaluation is not part of the cost
    assert data["decisions"]["score"] is None
    assert data["versions"]["torch"] == torch.__version__ or torch.__version__.startswith(data["versions"]["torch"])


def test_page_is_whole_and_needs_nothing_else(tmp_path, evaluation, context):
    report.write(tmp_path, evaluation, context)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    tags = {tag for tag, _ in parser.seen}
    assert not tags & {"script", "link", "iframe", "object"}
    assert all(attrs["src"].startswith("data:image/png;base64,") for tag, attrs in parser.seen if tag == "img")
    assert not re.search(r"url\((?!#)|@import", page)
    assert "the &lt;digit&gt; 8" in page
    assert "<digit>" not in page
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r"#00000[0-9a-d]\b", page), "a stand-in colour is left"


def test_ids_of_the_figures_do_not_clash(evaluation, context):
    page = report.render(report.report_data(evaluation, context), evaluation, context)
    for used in set(re.findall(r"url\(#([^)]+)\)", page)) | set(re.findall(r'xlink:href="#([^"]+)"', page)):
        assert page.count(f'id="{used}"') >= 1
    clips = re.findall(r'<clipPath id="([^"]+)"', page)
    assert len(clips) == len(set(clips))


def test_marks_are_the_negatives_of_each_grid(evaluation):
    rows = report.grids(evaluation)
    assert [row["title"].startswith(start) for row, start in zip(rows, ("The first", "Latents"), strict=True)]
    before, adapted, after = rows[0]["grids"]
    assert (before["count"], adapted["count"], after["count"]) == (13, 64, 0)  # of the first 64
    assert [len(grid["marks"]) for grid in rows[0]["grids"]] == [13, 64, 0]
    assert before["marks"][1] == dict(left=62.5, top=0.0, width=12.5, height=12.5)  # sample 5 of a grid of 8 x 8
    assert all(grid["n"] == 16 for grid in rows[1]["grids"])  # negatives among the first 80
    assert rows[1]["grids"][0]["count"] == 16


def test_vectors_have_no_grid(evaluation):
    for model in evaluation.models.values():
        model.first = torch.zeros(80, 2)
    assert report.grids(evaluation) == []


def test_curves_only_where_there_is_data(context):
    titles = [figure["title"] for figure in report.curve_figures(context.history)]
    assert "Stage 1: EWC penalty" in titles
    assert "Stage 2: negatives, % of samples" in titles
    assert "Stage 2: mean logits" not in titles
    assert report.curve_figures([]) == []


def test_headline_and_summary_in_words(evaluation, context):
    data = report.report_data(evaluation, context)
    cards = {card["name"]: card for card in report.headline(data)}
    assert cards["Negatives gone"]["value"] == "100.0 %"
    assert "40 → 0 of 200" in cards["Negatives gone"]["note"]
    assert cards["Distance to real data"]["value"] == "× 1.50"
    assert cards["Kept classes"]["value"] == "3.1 %"
    assert cards["Time"]["value"] == "61 s"
    assert "in 40 of 200 samples" in report.summary(data)
    assert "further from" in report.summary(data)


def test_headline_without_negatives_real_data_or_classes(evaluation, context):
    evaluation.numbers.update(pul=None, pul_ci95=None, fid_cls_before=None, tv_kept=None, frechet_kept=None)
    cards = report.headline(report.report_data(evaluation, context))
    assert [card["name"] for card in cards] == ["Negatives", "Time"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (True, "yes"), (12345, "12,345"), (0.1234, "0.123"), (12.345, "12.3"), (1234.5, "1,234")]
    + [(1e-5, "1.00e-05"), (0.0, "0.000"), ("x", "x")],
)
def test_number(value, text):
    assert report.number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.26, "0.3 s"), (59.6, "60 s"), (185, "3 min 5 s")])
def test_duration(seconds, text):
    assert report.duration(seconds) == text


def test_image_grid_places_every_pixel():
    x = torch.arange(6 * 4).reshape(6, 1, 2, 2).float() / 23 * 2 - 1
    picture = np.asarray(plots.image_grid(x, (-1.0, 1.0), columns=4, gap=1))
    assert picture.shape == (6, 12)
    assert picture[3:5, 3:5].tolist() == np.rint(np.arange(20, 24) / 23 * 255).reshape(2, 2).tolist()  # the sixth
    colour = plots.image_grid(torch.ones(2, 3, 2, 2), (-1.0, 1.0), columns=2)
    assert colour.mode == "RGB"
    with pytest.raises(ValueError, match="got 2"):
        plots.image_grid(torch.zeros(1, 2, 2, 2), (-1.0, 1.0), 1)


def test_data_url_holds_the_picture():
    picture = plots.image_grid(torch.rand(4, 1, 5, 5), (0.0, 1.0), 2)
    raw = base64.b64decode(plots.data_url(picture).partition(",")[2])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(raw))), np.asarray(picture))


def test_images_round_trip_through_files(tmp_path):
    from atu.data.samples import as_samples

    x = (torch.randint(0, 256, (5, 3, 4, 4)).float() / 255) * 2 - 1
    images.save_folder(x, (-1.0, 1.0), tmp_path / "x")
    back = as_samples(tmp_path / "x", (3, 4, 4), (-1.0, 1.0), "images").tensor
    assert torch.allclose(back, x, atol=1e-6)
    with pytest.raises(ValueError, match="these samples are no images"):
        images.save_folder(torch.zeros(3, 2), (-1.0, 1.0), tmp_path / "y")
