"""The report: one self-contained page, pictures that mark the negatives."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from dataclasses import fields, replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

from atu import api
from atu.config import Config
from atu.data import images
from atu.data.samples import TensorSamples
from atu.evaluation.figures import Distances
from atu.measures.manifold import MEASURES
from atu.report import pictures, plots, report, tables
from atu.support.digest import sha256

from .conftest import judged

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


def test_json_has_what_is_promised(tmp_path, evaluation, context):
    report.write(tmp_path, evaluation, context)
    data = json.loads((tmp_path / "report.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    names = [field.name for field in fields(report.Report)]
    assert list(data) == names and data["version"] == 1
    assert report.schema()["required"] == names
    TypeAdapter(report.Report).validate_json((tmp_path / "report.json").read_text())
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
    assert "The &lt;digit&gt; 8: none left in 200 samples</h1>" in page
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
    rows = pictures.grids(evaluation)
    assert [row["title"].startswith(start) for row, start in zip(rows, ("The first", "Latents"), strict=True)]
    before, after = rows[0]["grids"]
    assert (before["count"], after["count"]) == (13, 0)  # of the first 64
    assert [len(grid["marks"]) for grid in rows[0]["grids"]] == [13, 0]
    assert before["marks"][1] == dict(left=62.5, top=0.0, width=12.5, height=12.5)  # sample 5 of a grid of 8 x 8
    assert all(grid["n"] == 16 for grid in rows[1]["grids"])  # negatives among the first 80
    assert rows[1]["grids"][0]["count"] == 16
    (others,) = pictures.grids(evaluation, main=False)[0]["grids"]  # the adapted one stands in the details
    assert (others["label"], others["count"]) == ("adapted (stage 1)", 64)


def test_what_is_left_is_shown(evaluation, context, change):
    page = report.render(report.report_data(evaluation, context), evaluation, context)
    assert "The judge calls none of the unlearned GAN’s 200 samples negative." in page
    assert pictures.survivors(evaluation) is None
    evaluation.models["after"] = judged(torch.arange(200) < 30, 3)
    change(pul=25.0, pul_ci95=(10.0, 40.0), negatives_after=30)
    assert pictures.survivors(evaluation)["n"] == 24
    page = report.render(report.report_data(evaluation, context), evaluation, context)
    assert "the first 24 of 30" in page


def test_vectors_have_no_grid(evaluation):
    for model in evaluation.models.values():
        model.first = torch.zeros(80, 2)
    assert pictures.grids(evaluation) == []


def test_curves_only_where_there_is_data(context):
    titles = [figure["title"] for figure in pictures.curve_figures(context.history)]
    assert "Stage 1: EWC penalty" in titles
    assert "Stage 2: negatives, % of samples" in titles
    assert "Stage 2: mean logits" not in titles
    assert pictures.curve_figures([]) == []


def test_pictures_and_charts_can_be_read_without_eyes_and_without_a_mouse(evaluation, context):
    parser = Balance()
    parser.feed(report.render(report.report_data(evaluation, context), evaluation, context))
    charts = [attrs for tag, attrs in parser.seen if tag == "svg"]
    assert len(charts) > 3
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in charts)
    assert sum(tag == "title" for tag, _ in parser.seen) == 1 + len(charts)
    assert all(attrs["alt"] for tag, attrs in parser.seen if tag == "img")
    areas = [attrs for _, attrs in parser.seen if "scroll" in attrs.get("class", "").split()]
    assert areas
    assert all(attrs["tabindex"] == "0" and attrs["role"] == "region" and attrs["aria-label"] for attrs in areas)


def test_large_images_become_thumbnails_and_the_page_stays_small(evaluation, context):
    for name, model in evaluation.models.items():
        model.first = torch.rand(80, 3, 256, 192, generator=torch.Generator().manual_seed(len(name))) * 2 - 1
        model.shown = model.first[:24]
    page = report.render(report.report_data(evaluation, context), evaluation, context)
    assert len(page.encode()) < 5 * 2**20
    sizes = [Image.open(io.BytesIO(base64.b64decode(raw))).size for raw in re.findall(r"base64,([^\"]+)", page)]
    assert max(width for width, _ in sizes) <= 8 * (96 + 1)
    assert max(height for _, height in sizes) <= 8 * (128 + 1)


def test_hashes_of_what_went_in_and_came_out(tmp_path, evaluation, context):
    (tmp_path / "result.safetensors").write_bytes(b"weights")
    (tmp_path / "marked").mkdir()
    (tmp_path / "marked" / "0.png").write_bytes(b"picture")
    evaluation.sha256 = {"before": "b" * 64, "after": "a" * 64}
    context.negatives = tmp_path / "marked"
    found = report.write(tmp_path, evaluation, context)["sha256"]
    assert (found["before"], found["after"]) == ("b" * 64, "a" * 64)
    assert found["result"] == hashlib.sha256(b"weights").hexdigest()
    line = f"{hashlib.sha256(b'picture').hexdigest()}  0.png\n"
    assert found["negatives"] == hashlib.sha256(line.encode()).hexdigest()


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


# --- judges


def test_kernel_distances_have_the_digits_that_tell_them_apart():
    """Near 0 four decimals; in the features of a network whose distances are large no more than three digits."""
    kept = dict.fromkeys(("frechet", *MEASURES))
    found = tables.kept_table(dict(kept=dict(kept, kid=0.01, kid_chance=-0.0001)))
    assert found[-1] == ["kernel distance (KID)", "-0.0001", "0.0100"]
    found = tables.kept_table(dict(kept=dict(kept, kid=74.5683, kid_chance=-19.2034)))
    assert found[-1][1:] == ["-19.2", "74.6"]


def test_distances_of_each_network_stand_in_rows_of_their_own(evaluation, context, change):
    kept = Distances(frechet=2.0, frechet_chance=0.5, kid=0.001, kid_chance=0.0, real_fid={}, real_kid={})
    real = replace(kept, real_fid={"before": 12.0, "after": 9.0}, real_kid={"before": 0.2, "after": 0.1})
    change(distances={"dinov2": kept, "inception": real})
    data = report.report_data(evaluation, context)
    own, real = tables.distances_tables(data, ["before", "after"])
    assert [row[0].split(" features")[0] for row in own[1:]] == [
        "Fréchet distance in dinov2",
        "KID in dinov2",
        "Fréchet distance in inception",
        "KID in inception",
    ]
    assert own[2][1:] == ["0.0000", "0.0010"]
    assert real[0] == ["", "original", "unlearned"]
    assert real[1] == ["FID in inception features, to real samples without it", "12.0", "9.00"]
    page = report.render(data, evaluation, context)
    assert "FID in inception features" in page and "FID in dinov2" not in page
    change(distances={})
    assert tables.distances_tables(report.report_data(evaluation, context), ["before"]) == []


def test_the_terminal_keeps_brackets_and_colons_of_names(evaluation, context, capsys, monkeypatch, change):
    """Rich reads [red] as markup, [/x] as an error and :cat: as a picture."""
    monkeypatch.setenv("COLUMNS", "200")
    names = ["a", "[red]:cat:", "c[/x]"]
    evaluation.classes[:] = names
    named = {
        name: replace(model, classes=dict(zip(names, model.classes.values(), strict=True)))
        for name, model in evaluation.figures.models.items()
    }
    change(models=named, landing=dict(transitions={names[1]: {"a": 30, names[2]: 10}}))
    context.subject = "class [red]:cat: c[/x]"
    report.print_table(report.report_data(evaluation, context))
    told = capsys.readouterr().out
    assert "Unlearning class [red]:cat: c[/x]" in told and told.count("[red]:cat:") > 1
    assert "[bold]" not in told and "[dim]" not in told


def test_a_dollar_in_a_name_is_a_dollar():
    rows = {name: dict(share=0.5, ci95=[0.4, 0.6]) for name in ("$x^2$", "$\\nothing{$")}
    assert "$x^2$" in plots.class_bars({"original": rows}, ["$x^2$"])


def test_a_results_report_says_a_warning_once_and_knows_its_negatives(vector_gan, tmp_path):
    given = dict(adapted=[], history=[], seconds=1.0, config=Config(), out=tmp_path, seed=0)
    given.update(rule=lambda x: x[:, 0] > 0)
    x, told = vector_gan.sample(5), dict(answered_by="oracle", warnings=["Only a dozen were marked."])
    result = api.Result(vector_gan, decisions=told, original=vector_gan, negatives=TensorSamples(x), **given)
    data = result.report(n=40)
    page = (tmp_path / "report.html").read_text()
    assert page.count("Only a dozen were marked.") == 1 and data["warnings"][0] == "Only a dozen were marked."
    assert "The oracle that answered during the run also judges" in page
    assert data["sha256"]["negatives"] == sha256({"samples": x})
