"""Pictures of the user's own: read at any size and colour, and the samples that are like them."""

import numpy as np
import pytest
import torch
from PIL import Image

from atu.data.images import image_grid, to_uint8
from atu.gan import GAN
from atu.label.like import nearest, read_picture
from atu.label.session import RANDOM
from atu.label.studio import open_studio
from atu.networks.mlp import MLPGenerator

from .test_studio import sample, work


def picture(path, size, mode="RGB", colour=(255, 0, 0)):
    Image.new(mode, size, colour).save(path)
    return path


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (1024, 31), (4000, 3)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_size_in_any_number_of_channels(tmp_path, size, channels):
    found = read_picture(picture(tmp_path / "a.png", size), (channels, 11, 17), (-1.0, 1.0))
    assert found.shape == (channels, 11, 17) and found.dtype == torch.float32
    expected = {1: [2 * 76 / 255 - 1], 3: [1, -1, -1], 4: [1, -1, -1, 1]}[channels]  # red is a grey of 76
    assert torch.allclose(found.mean((1, 2)), torch.tensor(expected, dtype=torch.float32), atol=0.01)


@pytest.mark.parametrize(
    ("mode", "colour", "grey"),
    [("L", 51, 0.2), ("1", 1, 1.0), ("LA", (0, 0), 1.0), ("RGBA", (0, 0, 0, 255), 0.0), ("CMYK", (0, 0, 0, 255), 0.0),
     ("I;16", 51 * 257, 0.2)],
)  # fmt: skip
def test_any_kind_of_colour(tmp_path, mode, colour, grey):
    path = picture(tmp_path / ("a.tif" if mode in ("CMYK", "I;16") else "a.png"), (20, 20), mode, colour)
    assert read_picture(path, (1, 5, 5), (0.0, 1.0)).mean() == pytest.approx(grey, abs=0.005)


def test_a_palette_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (9, 9), 0)
    image.putpalette([10, 10, 10, 255, 255, 255])
    image.save(tmp_path / "a.png", transparency=0)
    assert read_picture(tmp_path / "a.png", (3, 5, 5), (0.0, 1.0)).min() > 0.99


def test_the_middle_is_taken_and_the_camera_s_rotation_heeded(tmp_path):
    pixels = np.zeros((10, 40, 3), np.uint8)
    pixels[:, 15:25] = 255
    pixels[0] = (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    found = read_picture(tmp_path / "a.png", (3, 10, 10), (0.0, 1.0))
    assert found[:, :9].min() > 0.9 and found[0, 9].max() < 0.5


def test_what_is_no_picture(tmp_path):
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(ValueError, match=r"like: .*a.png cannot be read as an image"):
        read_picture(tmp_path / "a.png", (1, 8, 8), (-1.0, 1.0))


def test_nearest_is_by_the_angle_and_among_the_free():
    x = np.random.default_rng(0).normal(size=(101, 13)).astype(np.float32)
    pictures = np.stack([30 * x[7], 0.1 * x[93]])
    free = np.ones(101, bool)
    assert sorted(nearest(x, pictures, free, 2)) == [7, 93]
    free[7] = False
    cosine = (x @ pictures.T) / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(pictures, axis=1)
    expected = [i for i in np.argsort(-cosine.max(1)) if free[i]][:5]
    assert nearest(x, pictures, free, 5) == expected
    assert nearest(x, pictures, np.zeros(101, bool), 5) == []


def test_samples_like_a_picture_are_offered_before_any_mark(image_gan, marks, tmp_path):
    wanted = RANDOM + 130
    x = sample(image_gan, 5, wanted)
    path = tmp_path / "photo.png"
    image_grid(x[None], image_gan.image_range, 1, gap=0).save(path)
    assert torch.equal(to_uint8(read_picture(path, (1, 8, 8), (-1.0, 1.0)), (-1, 1)), to_uint8(x, (-1, 1)))
    studio = open_studio(image_gan, "small", marks, 300, 5, [], None, [path])
    work(studio)
    state = studio.state(-1, 0)
    assert state["pictures"] == 1 and state["views"]["like"][0] == wanted and len(state["views"]["like"]) == 24
    studio.session.mark([wanted], "unwanted")
    work(studio)
    assert wanted not in studio.views["like"] and studio.views["like"]
    studio.close()


def test_a_gan_without_a_discriminator_has_no_features(marks, tmp_path):
    gan = GAN(MLPGenerator(4, [1, 8, 8], hidden=(16,), output="tanh"))
    path = picture(tmp_path / "a.png", (8, 8))
    with pytest.raises(ValueError, match="like: pictures are compared by the discriminator's features"):
        open_studio(gan, "small", marks, 100, 0, [], None, [path])
    open_studio(gan, "small", marks, 100, 0, [], None).close()  # the folder was let go
