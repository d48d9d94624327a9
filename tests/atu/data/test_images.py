"""Thumbnails, and how much of a page they take."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import atu
from atu.data.images import FORMATS, IMAGE_SUFFIXES, THUMBNAIL, image_grid, load_folder, thumbnails
from atu.label.like import read_picture
from atu.report.plots import data_url


@pytest.mark.parametrize("size", [(129, 131), (1024, 512), (300, 7)])
def test_thumbnails_keep_proportions_and_brightness(size):
    x = torch.linspace(-1, 1, size[0] * size[1], dtype=torch.float64).reshape(1, 1, *size).expand(2, 3, *size)
    small = thumbnails(x)
    assert small.shape[:2] == (2, 3) and max(small.shape[2:]) == THUMBNAIL
    assert small.shape[2] / small.shape[3] == pytest.approx(size[0] / size[1], rel=0.2)
    torch.testing.assert_close(small.double().mean(), x.mean(), atol=2e-3, rtol=0)


def test_small_images_and_other_samples_stay_as_they_are():
    for x in (torch.rand(3, 1, 128, 97), torch.rand(5, 2), torch.zeros(0, 3, 500, 500)):
        assert thumbnails(x) is x


def test_a_page_of_grids_stays_under_five_mebibytes():
    """Three models with 64 and 24 images each, of noise: what compresses the least."""
    torch.manual_seed(0)
    sizes = [len(data_url(image_grid(torch.rand(n, 3, 128, 128), (0.0, 1.0), 8))) for n in (64, 24)]
    assert 3 * sum(sizes) < 5 * 2**20
    assert data_url(image_grid(torch.rand(64, 1, 32, 32), (0.0, 1.0), 8)).startswith("data:image/png")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A folder of helper programs, first in PATH, that leave a file `ran` and fail."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("gs", "djpeg", "ffmpeg", "convert"):
        (folder / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # looked for once a process
    return tmp_path / "ran"


def both(path):
    """A picture's two ways in: a folder of negatives, and a hint on the labelling page."""
    return (lambda: load_folder(path.parent, (3, 8, 8))), (lambda: read_picture(path, (3, 8, 8), (-1.0, 1.0)))


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_postscript_under_another_name_starts_no_program(tmp_path, programs, suffix):
    path = tmp_path / "pictures" / f"a{suffix}"
    path.parent.mkdir()
    path.write_bytes(EPS)
    for read in both(path):
        with pytest.raises(ValueError, match="cannot be read as an image"):
            read()
    assert not programs.exists()


def test_only_known_rasters_are_opened(tmp_path, monkeypatch):
    """Every format that Pillow writes, under the name of one that is read."""
    Image.init()
    monkeypatch.setattr(Image, "EXTENSION", dict(Image.EXTENSION))  # one of the writers changes what .png means
    opened = set()
    for name in sorted(Image.SAVE):
        path = tmp_path / name / "a.png"
        path.parent.mkdir()
        try:
            Image.new("RGB", (8, 8)).save(path, name)
        except Exception:  # wants another mode, or a library that is not there
            continue
        try:
            load_folder(path.parent, (3, 8, 8))
            opened.add(name)
        except ValueError as error:
            assert "cannot be read as an image" in str(error)
    assert set(FORMATS) <= opened <= {*FORMATS, "DIB", "MPO"}  # what the readers of BMP and JPEG know too


def test_a_pipe_is_no_picture(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for read in both(tmp_path / "a.png"):
        with pytest.raises(ValueError, match="there is no such file"):
            read()


def test_pictures_are_opened_in_one_place():
    source = Path(atu.__file__).parent
    found = [p.name for p in source.rglob("*.py") if re.search(r"Image\.open\(", p.read_text(encoding="utf-8"))]
    assert found == ["images.py"]
