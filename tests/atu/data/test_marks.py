"""What a run keeps of its marks, and how the marks of rounds are joined."""

import pytest
import torch
from torch.utils.data import TensorDataset

from atu.data.images import to_range
from atu.data.marks import joined, keep_marks, kept_marks, marks_folder
from atu.data.samples import DatasetSamples, TensorSamples

RANGE = (-1.0, 1.0)


def images(n, seed=0):
    """As read from files: n images [n, 1, 5, 7] of 8 bits a value."""
    rng = torch.Generator().manual_seed(seed)
    return to_range(torch.randint(0, 256, (n, 1, 5, 7), dtype=torch.uint8, generator=rng), RANGE)


@pytest.mark.parametrize("image_range", [(-1.0, 1.0), (0.0, 1.0), (-0.3, 2.7)])
def test_what_is_kept_is_what_was_given(tmp_path, image_range):
    grey = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    x, y = to_range(grey, image_range), torch.randn(3, 1, 16, 16)
    labels = torch.eye(3)
    path = keep_marks(tmp_path, TensorSamples(x), TensorSamples(y, labels), image_range)
    negatives, positives = kept_marks(tmp_path, image_range, "from_run")
    assert torch.equal(negatives.tensor, x) and negatives.labels is None
    assert torch.equal(positives.tensor, y) and torch.equal(positives.labels, labels)
    assert path.stat().st_size < 4 * 1024 + 600  # 8 bits a value of what came from a file


def test_samples_that_are_no_images(tmp_path):
    x = torch.randn(7, 2)
    keep_marks(tmp_path, TensorSamples(x), None, RANGE)
    negatives, positives = kept_marks(tmp_path, RANGE, "from_run")
    assert torch.equal(negatives.tensor, x) and positives is None


def test_a_dataset_is_not_kept(tmp_path):
    samples = DatasetSamples(TensorDataset(images(3)), lambda x: x)
    assert keep_marks(tmp_path, samples, None, RANGE) is None
    with pytest.raises(ValueError, match=r"from_run: .* does not hold the negatives .* of a Dataset"):
        kept_marks(tmp_path, RANGE, "from_run")


def test_marks_of_rounds_are_joined_once_each():
    first, now, good = images(5), images(4, 1), images(3, 2)
    now[1], good[0] = first[3], first[1]  # marked again; marked otherwise since
    found = joined(TensorSamples(now), TensorSamples(first), TensorSamples(good), RANGE)
    assert torch.equal(found.tensor, torch.cat([now, first[[0, 2, 4]]]))
    assert joined(TensorSamples(now), None, None, RANGE).tensor is now
    assert torch.equal(joined(None, TensorSamples(good), TensorSamples(first), RANGE).tensor, good[1:])
    assert joined(None, None, TensorSamples(now), RANGE) is None
    dataset = DatasetSamples(TensorDataset(now), lambda x: x)
    assert torch.equal(joined(dataset, TensorSamples(first), None, RANGE).tensor, torch.cat([now, first[[0, 1, 2, 4]]]))


def test_a_sample_made_again_is_the_one_that_was_read_from_a_file():
    read = images(3)
    made = read + 0.4 / 255  # before it was rounded to 8 bits
    found = joined(TensorSamples(made), TensorSamples(read), None, RANGE)
    assert found.tensor is made


def test_labels_for_all_or_for_none():
    labelled = TensorSamples(images(2), torch.eye(2))
    with pytest.raises(ValueError, match=r"negatives: .* all or for none of them, and those given now have none"):
        joined(TensorSamples(images(2, 1)), labelled, None, RANGE)
    with pytest.raises(ValueError, match=r"positives: .* and those of the earlier run have none"):
        joined(labelled, TensorSamples(images(2, 1)), None, RANGE, "positives")
    both = joined(labelled, TensorSamples(images(2, 1), 1 - torch.eye(2)), None, RANGE)
    assert torch.equal(both.labels, torch.cat([torch.eye(2), 1 - torch.eye(2)]))
    dataset = DatasetSamples(TensorDataset(images(2, 1)), lambda x: x)
    dataset.labels = 1 - torch.eye(2)
    assert torch.equal(joined(dataset, labelled, None, RANGE).labels, torch.cat([1 - torch.eye(2), torch.eye(2)]))


def test_marks_folder(tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    assert marks_folder(plain) == (plain, None)
    marks = tmp_path / "marks"
    for name in ("unwanted", "good"):
        (marks / name).mkdir(parents=True)
    labels = marks / "labels.json"
    labels.write_text("{}")
    assert marks_folder(marks) == marks_folder(labels) == (labels, None)
    (marks / "unwanted" / "r1-0.png").write_bytes(b"")
    assert marks_folder(marks) == (marks / "unwanted", None)
    (marks / "good" / "r1-1.png").write_bytes(b"")
    assert marks_folder(marks) == (marks / "unwanted", marks / "good")
    assert marks_folder(labels) == (labels, None)
