"""What else a user may give: image files, PIL images, a DataLoader, and images to be resized."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from atu.data.images import load_folder
from atu.data.samples import DatasetSamples, JoinedSamples, TensorSamples, as_samples, as_tensors, read

SHAPE = (3, 4, 6)


def pixels(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def everything(value, shape=SHAPE, **kwargs):
    samples = as_samples(value, shape, (-1.0, 1.0), "negatives", **kwargs)
    return samples.batch(torch.arange(len(samples)))


@pytest.fixture
def three(tmp_path):
    """Three images, as arrays [H, W, C] and as files."""
    arrays = [pixels(seed, 4, 6, 3) for seed in range(3)]
    paths = [tmp_path / f"{seed}.png" for seed in range(3)]
    for array, path in zip(arrays, paths, strict=True):
        Image.fromarray(array).save(path)
    return arrays, paths


def test_paths_images_and_a_single_file(three):
    arrays, paths = three
    expected = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1
    for value in (paths, tuple(paths), [str(path) for path in paths], [Image.fromarray(array) for array in arrays]):
        torch.testing.assert_close(everything(value), expected)
    torch.testing.assert_close(everything(paths[1]), expected[1:2])
    torch.testing.assert_close(everything(Image.fromarray(arrays[2])), expected[2:])
    labelled = as_samples((paths, 1), SHAPE, (-1.0, 1.0), "negatives", 3)
    assert labelled.labels.argmax(1).tolist() == [1, 1, 1]


@pytest.mark.parametrize("one", [np.int64(1), np.uint8(1), np.array(1), torch.tensor(1), torch.tensor(1).byte()])
def test_one_label_for_all_of_any_kind_of_integer(one):
    x = torch.zeros(3, *SHAPE)
    for label, expected in ((one, [1, 1, 1]), ([one, 0, one], [1, 0, 1])):
        labelled = as_samples((x, label), SHAPE, (-1.0, 1.0), "negatives", 3)
        assert labelled.labels.argmax(1).tolist() == expected and labelled.labels.shape == (3, 3)


@pytest.mark.parametrize("other", [True, np.bool_(1), torch.tensor(True), torch.tensor(1.0), np.array(1.0), 1.0, "1"])
def test_no_other_single_value_is_a_label(other):
    with pytest.raises((TypeError, ValueError), match=r"negatives: .*cannot be made a tensor"):
        as_samples((torch.zeros(3, *SHAPE), other), SHAPE, (-1.0, 1.0), "negatives", 3)


class Flipping(Dataset):
    """Each item is turned round at random, as augmentations do it."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index].flip(-1) if torch.rand(()) < 0.5 else self.x[index]


def test_a_dataset_that_draws_is_read_the_same_each_time_and_leaves_the_random_state_alone():
    dataset = Flipping(torch.rand(40, *SHAPE))
    state = torch.get_rng_state()
    samples = as_samples((dataset, 2), SHAPE, (-1.0, 1.0), "negatives", 3)
    held = as_tensors(samples)
    assert torch.equal(torch.get_rng_state(), state)
    index = torch.arange(40)
    torch.rand(3)
    assert torch.equal(read(samples, index), held.tensor) and torch.equal(held.labels, samples.labels)
    assert not torch.equal(samples.batch(index), held.tensor)  # in training


def test_joined_samples_are_read_in_the_order_asked_for():
    x, labels = torch.arange(14.0).reshape(7, 2), torch.eye(7)
    for first in (TensorSamples(x[:4], labels[:4]), DatasetSamples(TensorDataset(x[:4]), lambda y: y)):
        both = JoinedSamples(first, TensorSamples(x[4:], labels[4:]))
        for index in ([0, 1, 2, 3, 4, 5, 6], [6, 0, 4, 3, 3, 5], [2, 0], [5, 4, 5]):
            assert torch.equal(both.batch(torch.tensor(index)), x[index])
        assert len(both) == 7
        assert both.labels is None if first.labels is None else torch.equal(both.labels, labels)


@pytest.mark.parametrize("as_pairs", [False, True])
def test_a_loader_is_read_once_and_whole(as_pairs):
    x = torch.rand(7, *SHAPE) * 2 - 1
    data = TensorDataset(x, torch.arange(7)) if as_pairs else list(x)
    torch.testing.assert_close(everything(DataLoader(data, batch_size=3)), x)
    shuffled = everything(DataLoader(data, batch_size=3, shuffle=True))
    assert sorted(shuffled.sum([1, 2, 3]).tolist()) == pytest.approx(sorted(x.sum([1, 2, 3]).tolist()), rel=1e-5)
    with pytest.raises(ValueError, match="negatives: expected at least one sample, got an empty DataLoader"):
        everything(DataLoader(data, batch_size=9, drop_last=True))


def test_a_shuffling_loader_leaves_the_random_state_alone():
    loader = DataLoader(list(torch.rand(7, *SHAPE)), batch_size=3, shuffle=True)
    state = torch.get_rng_state()
    first = everything(loader)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(everything(loader), first)


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(SHAPE)


class Words(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return "word"


@pytest.mark.parametrize("data, words", [(Endless(), "of known length"), (Words(), "batches that are tensors")])
def test_loaders_that_give_no_samples(data, words):
    with pytest.raises(TypeError, match=f"negatives: expected .*{words}"):
        everything(DataLoader(data))


def test_images_of_mixed_size_are_resized_where_asked(tmp_path):
    for name, size in (("a", (12, 8)), ("b", (6, 4)), ("c", (3, 2))):
        Image.new("RGB", size, (200, 10, 90)).save(tmp_path / f"{name}.png")
    with pytest.raises(ValueError, match=r"negatives: .*a\.png is 12 x 8, and .* 6 x 4; resize=True .* scales it"):
        everything(tmp_path)
    expected = torch.tensor([200, 10, 90], dtype=torch.uint8)[:, None, None].expand(3, *SHAPE)
    assert torch.equal(load_folder(tmp_path, SHAPE, resize=True), expected)
    for value in (tmp_path, sorted(tmp_path.iterdir()), [Image.open(path) for path in sorted(tmp_path.iterdir())]):
        torch.testing.assert_close(everything(value, resize=True), expected.float() / 127.5 - 1)


def test_other_proportions_and_colours_are_refused_with_the_name(tmp_path):
    Image.new("RGB", (12, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b\.png is 8 x 8, .* 6 x 4: other proportions, crop it first"):
        everything(tmp_path, resize=True)
    Image.new("RGB", (6, 4), (9, 0, 0)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is in colour, and the GAN makes images of 1 channel"):
        everything([tmp_path / "a.png"], (1, 4, 6))
    with pytest.raises(ValueError, match=r"negatives: image 0 is 8 x 8, and the GAN's images are 6 x 4"):
        everything([Image.new("RGB", (8, 8))])
    for missing in ([tmp_path / "none.png"], tmp_path / "none.png"):
        with pytest.raises(ValueError, match=r"negatives: .*none\.png"):
            everything(missing)
    with pytest.raises(ValueError, match=r"negatives: images were given, but the GAN's samples have shape \[2\]"):
        everything([tmp_path / "a.png"], (2,))
