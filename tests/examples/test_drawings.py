"""Drawn animals: the package's own drawings, labels that are true, splits that are apart, and the cache."""

from __future__ import annotations

import sys

import pytest
import torch
from animal_avatar import Avatar, palette, shapes
from safetensors import SafetensorError

from examples import drawings as animals

SHAPES = dict(
    patch=shapes.PATTERNS,
    ears=shapes.EARS,
    hair=shapes.HAIRS,
    muzzle=shapes.MUZZLES,
    eyes=shapes.EYES,
    brows=shapes.BROWS,
)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "atu"


def picks(n):
    """n random faces, as labels [n, parts], without drawing them."""
    return torch.tensor([animals.compose(f"test/{index}")[0] for index in range(n)])


@pytest.mark.parametrize("seed", ["train/0", "judge/17", "a fox"])
def test_a_face_is_what_the_package_draws_of_the_hashed_seed(seed):
    import hashlib

    avatar = Avatar(hashlib.sha256(seed.encode()).hexdigest(), 64, blackout=False, is_round=False)
    own = animals.compose(seed)[1]
    assert own.split() == avatar.create_avatar().split()


def test_labels_say_which_shapes_are_in_the_drawing():
    for index in range(40):
        found, svg = animals.compose(f"truth/{index}")
        labels = dict(zip(animals.PARTS, found, strict=True))
        color = palette.AVATAR_COLORS[labels["color"]]
        assert f'fill="{palette.BACKGROUND_COLORS[labels["background"]]}"' in svg
        for part, drawn in SHAPES.items():
            optional = part in ("patch", "hair")
            there = [shape(color) in svg for shape in drawn]
            assert there == [labels[part] - optional == i for i in range(len(drawn))], part
    sizes = {part: len(drawn) + (part in ("patch", "hair")) for part, drawn in SHAPES.items()}
    sizes |= dict(background=len(palette.BACKGROUND_COLORS), color=len(palette.AVATAR_COLORS))
    assert {part: len(values) for part, values in animals.PARTS.items()} == sizes


def test_names_are_of_what_the_shapes_look_like():
    def ears(name):
        return shapes.EARS[animals.PARTS["ears"].index(name)]("#000000")

    assert "#fef6f4" in shapes.HAIRS[animals.PARTS["hair"].index("wool") - 1]("#000000")  # white, whatever the face is
    assert "#937155" in ears("moose-antlers")  # brown, whatever the face is
    assert "#fff" in ears("goat-horns")
    for name in animals.FEATURES["tongue"]["muzzle"]:
        assert "#f3252f" in shapes.MUZZLES[animals.PARTS["muzzle"].index(name)]("#000000")  # red
    for name in animals.FEATURES["white-muzzle"]["muzzle"]:
        assert '"#fff"' in shapes.MUZZLES[animals.PARTS["muzzle"].index(name)]("#000000")


def test_parts_have_the_shares_of_the_drawing_rule():
    n = 6000
    labels = picks(n)
    for part, values in animals.PARTS.items():
        share = labels[:, list(animals.PARTS).index(part)].bincount(minlength=len(values)) / n
        own = torch.full((len(values),), 1 / len(values))
        if part in ("patch", "hair"):  # each shape is there in half of the draws
            own = torch.tensor([0.5, *[0.5 / (len(values) - 1)] * (len(values) - 1)])
        assert ((share - own).abs() < 4.5 * (own * (1 - own) / n).sqrt()).all(), part


def test_rules_hold_where_every_part_fits():
    labels = picks(400)
    parts = list(animals.PARTS)
    for name, rule in {**animals.FEATURES, **animals.SPECIES}.items():
        one_by_one = [
            all(animals.PARTS[part][row[parts.index(part)]] in values for part, values in rule.items())
            for row in labels.tolist()
        ]
        assert animals.holds(labels, rule).tolist() == one_by_one, name


def test_no_face_is_in_two_splits(cache):
    faces = {split: {tuple(row) for row in animals.drawings(split, 300, 8).labels.tolist()} for split in animals.SPLITS}
    assert all(len(faces[split]) > 280 for split in faces)
    assert not faces["train"] & faces["judge"] and not faces["train"] & faces["held-out"]
    assert not faces["judge"] & faces["held-out"]


def test_drawn_once_and_again_where_the_cache_is_torn(cache, monkeypatch):
    first = animals.drawings("train", 13, 16)
    assert first.images.shape == (13, 3, 16, 16) and first.images.dtype == torch.uint8
    assert first.labels.shape == (13, len(animals.PARTS)) and len(first) == 13
    assert torch.equal(first.part("ears"), first.labels[:, 3])
    (kept,) = cache.iterdir()

    drawn = []
    draw = animals._draw
    monkeypatch.setattr(animals, "_draw", lambda *args: drawn.append(args) or draw(*args))
    again = animals.drawings("train", 13, 16)
    assert torch.equal(again.images, first.images) and torch.equal(again.labels, first.labels)
    assert not drawn
    kept.write_bytes(kept.read_bytes()[:-5])
    again = animals.drawings("train", 13, 16)
    assert torch.equal(again.images, first.images) and len(drawn) == 1
    assert torch.equal(animals.drawings("train", 5, 16).images, first.images[:5])  # the first are the same
    assert not list(cache.glob(".*"))


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(animals.drawings("train", 2, 8)) == 2


def test_a_full_disk_or_no_home_is_no_error(cache, monkeypatch, caplog):
    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(animals, "save_file", full)
    assert len(animals.drawings("train", 2, 8)) == 2 and not list(cache.iterdir())
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(animals.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home directory")))
    assert len(animals.drawings("train", 2, 8)) == 2
    assert "No space left on device" in caplog.text and "no home directory" in caplog.text


def test_what_is_missing_is_named(cache, monkeypatch):
    with pytest.raises(ValueError, match="split: expected one of train, judge, held-out, got 'test'"):
        animals.drawings("test", 1)
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ImportError, match="atu-ext\\[demo\\]"):
        animals.drawings("train", 1)
