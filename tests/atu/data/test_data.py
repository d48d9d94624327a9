"""Samples from folders, tensors, arrays and datasets; and what does not fit is refused."""

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch.utils.data import Dataset, TensorDataset

from atu.data.images import load_folder, to_range, to_uint8
from atu.data.samples import as_samples

RGB, GREY, VECTOR = (3, 4, 6), (1, 4, 6), (2,)


def pixels(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def samples(value, shape=RGB, image_range=(-1.0, 1.0)):
    return as_samples(value, shape, image_range, "negatives")


def test_folder_is_read_in_the_order_of_paths(tmp_path):
    (tmp_path / "sub").mkdir()
    images = {name: pixels(i, 4, 6, 3) for i, name in enumerate(["a.png", "sub/c.PNG", "z.bmp"])}
    for name, data in images.items():
        Image.fromarray(data).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    expected = torch.from_numpy(np.stack(list(images.values()))).permute(0, 3, 1, 2)
    assert torch.equal(load_folder(tmp_path, RGB), expected)
    got = samples(str(tmp_path))
    assert len(got) == 3
    torch.testing.assert_close(got.batch(torch.tensor([2, 0])), expected[[2, 0]].float() / 127.5 - 1)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA"])
def test_grey_images_of_every_mode(tmp_path, mode):
    data = pixels(0, 4, 6) // 128 * 255 if mode == "1" else pixels(0, 4, 6)
    image = Image.fromarray(data)
    (image.quantize(256) if mode == "P" else image.convert(mode)).save(tmp_path / "x.png")
    for shape in (GREY, RGB):
        got = load_folder(tmp_path, shape)[0]
        assert torch.equal(got, torch.from_numpy(data).expand(shape)), (mode, shape)


def test_sixteen_bit_images_are_scaled_not_clipped(tmp_path):
    data = (np.arange(24, dtype=np.uint16) * 2700).reshape(4, 6)
    Image.fromarray(data).save(tmp_path / "x.png")
    for shape in (GREY, RGB):
        assert torch.equal(
            load_folder(tmp_path, shape)[0], torch.from_numpy((data >> 8).astype(np.uint8)).expand(shape)
        )


def test_alpha_is_kept_where_the_gan_has_it(tmp_path):
    data = pixels(1, 4, 6, 4)
    Image.fromarray(data).save(tmp_path / "x.png")
    assert torch.equal(load_folder(tmp_path, (4, 4, 6))[0], torch.from_numpy(data).permute(2, 0, 1))


def test_pictures_are_upright_as_viewers_show_them(tmp_path):
    data = pixels(0, 6, 4, 3)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # turned by a quarter to the right
    Image.fromarray(np.rot90(data).copy()).save(tmp_path / "x.png", exif=exif)
    found = load_folder(tmp_path, (3, 6, 4))[0]
    assert torch.equal(found, torch.from_numpy(data).permute(2, 0, 1))
    Image.fromarray(data).save(tmp_path / "x.png", exif=b"Exif\0\0broken")
    assert torch.equal(load_folder(tmp_path, (3, 6, 4))[0], found)


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA"])
def test_resized_images_are_those_of_their_colours(tmp_path, mode):
    ramp = np.linspace(0, 255, 16).astype(np.uint8)[None].repeat(8, 0)
    grey = Image.fromarray(ramp)
    image = grey.quantize(256) if mode == "P" else grey.convert(mode)
    if mode != "P":
        image.putalpha(0)
    image.save(tmp_path / "x.png")
    expected = np.asarray(grey.resize((8, 4), Image.Resampling.LANCZOS)).astype(int)
    found = load_folder(tmp_path, (3, 4, 8), resize=True)[0]
    assert np.abs(found.numpy().astype(int) - expected).max() <= 1
    assert (load_folder(tmp_path, (1, 4, 8), resize=True)[0] == found[:1]).all()


def test_floats_are_refused(tmp_path):
    Image.fromarray(np.random.default_rng(0).random((4, 6), dtype=np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(
        ValueError, match=r"negatives: .*x\.tiff cannot be read .*holds floats, whose range is not known"
    ):
        load_folder(tmp_path, GREY)


def write(folder, name, content):
    (folder / name).write_bytes(content) if isinstance(content, bytes) else Image.fromarray(content).save(folder / name)


def test_folder_errors(tmp_path):
    def expect(words, shape=RGB, folder=tmp_path):
        with pytest.raises(ValueError, match=words):
            load_folder(folder, shape, "positives")

    expect("positives: expected a folder of images, but .*none is not a folder", folder=tmp_path / "none")
    expect("positives: .* holds no image")
    write(tmp_path, "x.png", pixels(0, 5, 5, 3))
    expect(r"positives: .*x\.png is 5 x 5, and the GAN's images are 6 x 4")
    expect("positives: a folder of images was given, but the GAN's samples have shape", shape=VECTOR)
    write(tmp_path, "x.png", pixels(0, 4, 6, 3))
    expect(r"x\.png is in colour, and the GAN makes images of 1 channel", shape=GREY)
    expect("image files hold 1, 3 or 4 channels, and the GAN makes 2", shape=(2, 4, 6))
    whole = (tmp_path / "x.png").read_bytes()
    for content in (b"", b"no image", whole[: len(whole) // 2], whole[:40] + b"\0" * 40 + whole[80:]):
        write(tmp_path, "y.png", content)
        expect(r"positives: .*y\.png cannot be read as an image")


def test_range_conversions():
    x = torch.arange(256, dtype=torch.uint8)
    for image_range in ((-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)):
        y = to_range(x, image_range)
        assert y.dtype == torch.float32 and (y[0], y[-1]) == image_range
        assert torch.equal(to_uint8(y, image_range), x)
    assert to_uint8(torch.tensor([-3.0, 3.0]), (-1, 1)).tolist() == [0, 255]


def test_tensors_and_arrays_agree():
    x = torch.rand(5, 3, 4, 6) * 2 - 1
    everything = torch.arange(5)
    for value in (x, x.double(), x.numpy(), x.numpy()[::-1][::-1], list(x), [v.numpy() for v in x], tuple(x)):
        torch.testing.assert_close(samples(value).batch(everything), x)
    raw = pixels(0, 5, 3, 4, 6)
    torch.testing.assert_close(samples(raw).batch(everything), torch.from_numpy(raw).float() / 127.5 - 1)
    leaf = x.clone().requires_grad_(True)
    assert not samples(leaf).batch(everything).requires_grad
    assert samples(torch.rand(3, 2) * 100, VECTOR).batch(torch.tensor([1])).shape == (1, 2)


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_datasets():
    raw = torch.from_numpy(pixels(0, 12, 3, 4, 6))
    expected = raw.float() / 127.5 - 1
    index = torch.tensor([11, 0, 11])
    for dataset in (
        TensorDataset(raw, torch.zeros(12)),
        Items(list(raw)),
        Items([(x.numpy(), 1) for x in raw]),
        Items([[x, 2] for x in expected]),
    ):
        got = samples(dataset)
        assert len(got) == 12
        torch.testing.assert_close(got.batch(index), expected[index])


def test_dataset_errors():
    with pytest.raises(ValueError, match=r"negatives: .* empty dataset"):
        samples(Items([]))
    with pytest.raises(TypeError, match="negatives: expected items that are tensors"):
        samples(Items([Image.fromarray(pixels(0, 4, 6, 3))]))
    with pytest.raises(TypeError, match="negatives: expected items that are tensors of one shape"):
        samples(Items([torch.zeros(3, 4, 6), torch.zeros(3, 4, 5)]))
    with pytest.raises(ValueError, match=r"negatives: expected samples of shape \[3, 4, 6\], got \[3, 6, 4\]"):
        samples(Items([torch.zeros(3, 6, 4)]))


@pytest.mark.parametrize(
    "value, shape, error, words",
    [
        (torch.zeros(2, 3, 4, 5), RGB, ValueError, r"expected samples of shape \[3, 4, 6\], got \[3, 4, 5\]"),
        (torch.zeros(0, 3, 4, 6), RGB, ValueError, "at least one sample"),
        (np.zeros((0, 3, 4, 6)), RGB, ValueError, "at least one sample"),
        ([], RGB, ValueError, "at least one sample"),
        (torch.tensor(1.0), RGB, ValueError, "at least one sample"),
        (torch.full((2, 3, 4, 6), float("nan")), RGB, ValueError, "not finite"),
        (torch.full((2, 2), float("inf")), VECTOR, ValueError, "not finite"),
        (torch.rand(2, 3, 4, 6) * 255, RGB, ValueError, r"expected values in \[-1, 1\], got .* pass uint8 images"),
        (
            torch.zeros(2, 3, 4, 6, dtype=torch.int64),
            RGB,
            ValueError,
            "expected uint8 or a floating dtype, got torch.int64",
        ),
        (torch.zeros(2, 2, dtype=torch.uint8), VECTOR, ValueError, "uint8 is for images"),
        (np.array(["a", "b"]), VECTOR, TypeError, "cannot be made a tensor"),
        (["a.png"], RGB, ValueError, r"a\.png cannot be read as an image"),
        (["a.png", 3], RGB, TypeError, "cannot be made a tensor"),
        (5, RGB, TypeError, "expected a folder, tensor, ndarray or map-style Dataset, images or a DataLoader, got int"),
        ({"a": 1}, RGB, TypeError, "got dict"),
        (None, RGB, TypeError, "got NoneType"),
    ],
)
def test_what_does_not_fit_is_named(value, shape, error, words):
    with pytest.raises(error, match=rf"negatives: .*{words}"):
        samples(value, shape)
