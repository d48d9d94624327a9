"""Marks as places: samples made again from the seeds in labels.json."""

import json

import pytest
import torch

from atu.data.images import save_folder, to_range, to_uint8
from atu.judging.places import generator_digest, marked_samples
from atu.support.seeding import mix_seed

BLOCK = 16


def labels_of(gan, marks, rounds=None, path=None, ckpt="gan.safetensors"):
    """A labels.json; marks: (label, round, block, row)."""
    samples = [
        dict(label=label, round=number, index=block * BLOCK + row, seed=mix_seed(3, block), row=row)
        for label, number, block, row in marks
    ]
    if gan.c_dim:
        for one in samples:
            one["class"] = int(gan.inputs(BLOCK, one["seed"])[1][one["row"]].argmax())
    rounds = rounds or [dict(ckpt=ckpt, generator=generator_digest(gan))]
    path.write_text(json.dumps(dict(format=1, block=BLOCK, rounds=rounds, samples=samples)))
    return path


def sample(gan, block, row):
    return gan.sample(BLOCK, seed=mix_seed(3, block), batch_size=BLOCK)[row]


MARKS = [("unwanted", 1, 5, 3), ("good", 1, 0, 7), ("unwanted", 1, 0, 2), ("unsure", 1, 1, 1), ("unwanted", 1, 5, 15)]


def test_places_are_the_samples_that_were_marked(conv_gan, tmp_path):
    path = labels_of(conv_gan, MARKS, path=tmp_path / "labels.json")
    for value in (path, str(path), tmp_path):  # a folder without pictures stands for its labels.json
        negatives, positives = marked_samples(conv_gan, value, "negatives")
        expected = torch.stack([sample(conv_gan, 5, 3), sample(conv_gan, 0, 2), sample(conv_gan, 5, 15)])
        assert torch.equal(negatives.tensor, expected)
        assert torch.equal(positives.tensor, sample(conv_gan, 0, 7)[None])
    if conv_gan.c_dim:
        drawn = conv_gan.inputs(BLOCK, mix_seed(3, 5))[1]
        assert torch.equal(negatives.labels[[0, 2]], drawn[[3, 15]])
    else:
        assert negatives.labels is None


@pytest.mark.parametrize("conv_gan", [3], indirect=True)
def test_a_label_for_all_of_them(conv_gan, tmp_path):
    labels_of(conv_gan, MARKS, path=tmp_path / "labels.json")
    negatives, _ = marked_samples(conv_gan, (tmp_path, 2), "negatives")
    assert torch.equal(negatives.tensor, marked_samples(conv_gan, tmp_path, "negatives")[0].tensor)
    assert torch.equal(negatives.labels, torch.eye(3)[[2, 2, 2]])


def test_pictures_go_before_places(image_gan, tmp_path):
    labels_of(image_gan, MARKS, path=tmp_path / "labels.json")
    x = image_gan.sample(5, seed=9)
    save_folder(x[:3], image_gan.image_range, tmp_path / "unwanted")
    save_folder(x[3:], image_gan.image_range, tmp_path / "good")
    negatives, positives = marked_samples(image_gan, tmp_path, "negatives")
    assert torch.equal(negatives.tensor, to_range(to_uint8(x[:3], (-1, 1)), (-1, 1)))
    assert positives == tmp_path / "good"


@pytest.mark.parametrize("conv_gan", [3], indirect=True)
def test_the_labels_of_a_conditional_gans_marks_are_kept(conv_gan, tmp_path):
    labels_of(conv_gan, MARKS, path=tmp_path / "labels.json")
    alone = marked_samples(conv_gan, tmp_path / "labels.json", "negatives")
    for name in ("unwanted", "good"):
        save_folder(conv_gan.sample(3, seed=9), conv_gan.image_range, tmp_path / name)
    beside = marked_samples(conv_gan, tmp_path, "negatives")
    for wanted, found in zip(alone, beside, strict=True):
        assert torch.equal(found.tensor, wanted.tensor) and torch.equal(found.labels, wanted.labels)
    labelled, _ = marked_samples(conv_gan, (tmp_path, 1), "negatives")  # with a label the pictures will do
    assert torch.equal(labelled.labels, torch.eye(3)[[1, 1, 1]])
    assert not torch.equal(labelled.tensor, alone[0].tensor)
    pictures, none = marked_samples(conv_gan, tmp_path / "unwanted", "negatives")
    assert len(pictures) == 3 and pictures.labels is None and none is None


def test_a_later_round_is_made_by_its_own_gan(image_gan, tmp_path):
    later = image_gan.copy()
    with torch.no_grad():
        for p in later.generator.parameters():
            p.mul_(1.1)
    ckpt = later.save(tmp_path / "result.safetensors")
    rounds = [
        dict(ckpt="gan", generator=generator_digest(image_gan)),
        dict(ckpt=str(ckpt), generator=generator_digest(later)),
    ]
    path = labels_of(image_gan, [("unwanted", 2, 1, 4), ("unwanted", 1, 1, 4)], rounds, tmp_path / "labels.json")
    negatives, positives = marked_samples(image_gan, path, "negatives")
    assert torch.equal(negatives.tensor, torch.stack([sample(later, 1, 4), sample(image_gan, 1, 4)]))
    assert positives is None
    image_gan.save(ckpt)
    with pytest.raises(ValueError, match=r"negatives: .*result.safetensors, .* in round 2, has changed since"):
        marked_samples(image_gan, path, "negatives")
    ckpt.unlink()
    with pytest.raises(ValueError, match=r"negatives: samples of round 2 .* which is not there"):
        marked_samples(image_gan, path, "negatives")


def test_another_gan_is_refused(image_gan, tmp_path):
    path = labels_of(image_gan, MARKS, path=tmp_path / "labels.json")
    other = image_gan.copy()
    with torch.no_grad():
        next(other.generator.parameters()).view(-1)[0] += 1
    with pytest.raises(ValueError, match=r"negatives: the samples in .* are of another GAN \(gan.safetensors, gen"):
        marked_samples(other, path, "negatives")
    other = image_gan.copy()  # a discriminator that was fitted since makes no other samples
    with torch.no_grad():
        next(other.discriminator.parameters()).view(-1)[0] += 1
    assert len(marked_samples(other, path, "negatives")[0]) == 3


@pytest.mark.parametrize("conv_gan", [3], indirect=True)
def test_other_labels_are_refused(conv_gan, tmp_path):
    path = labels_of(conv_gan, MARKS, path=tmp_path / "labels.json")
    drawn = [
        int(conv_gan.inputs(BLOCK, mix_seed(3, block))[1][row].argmax()) for block, row in ((5, 3), (0, 2), (5, 15))
    ]
    conv_gan.label_sampler = lambda n, rng: torch.full((n,), (drawn[0] + 1) % 3)
    with pytest.raises(ValueError, match=r"negatives: .* drawn with other labels"):
        marked_samples(conv_gan, path, "negatives")


@pytest.mark.parametrize(
    "text", ["{}", "[1]", "nonsense", '{"block": 4, "rounds": [], "samples": [{"label": "unwanted", "round": 1}]}']
)
def test_other_files_are_refused(image_gan, tmp_path, text):
    path = tmp_path / "labels.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"negatives: .* is no labels.json of atu label"):
        marked_samples(image_gan, path, "negatives")


@pytest.mark.parametrize(
    "mark", [("unwanted", 2, 0, 0), ("unwanted", 0, 0, 0), ("unwanted", 1, 0, 16), ("unwanted", 1, 0, -1)]
)
def test_rounds_and_rows_that_there_are_none_of(image_gan, tmp_path, mark):
    path = labels_of(image_gan, [mark], path=tmp_path / "labels.json")
    with pytest.raises(ValueError, match="names a round or a row that there is none of"):
        marked_samples(image_gan, path, "negatives")


def test_nothing_unwanted(image_gan, tmp_path):
    path = labels_of(image_gan, [("good", 1, 0, 0)], path=tmp_path / "labels.json")
    with pytest.raises(ValueError, match=r"negatives: nothing in .* is marked unwanted"):
        marked_samples(image_gan, path, "negatives")
