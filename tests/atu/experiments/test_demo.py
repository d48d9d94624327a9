"""What the demonstrations share."""

import torch
from PIL import Image

from atu.experiments.demo import Demo, mark


def test_a_negative_of_two_parts_is_marked_once(image_gan, tmp_path):
    """In the order of the parts; each part's folder has all of its own."""
    x = image_gan.sample(500, seed=1).flatten(1)
    limit = float(x.mean(1).median())

    def bright(x):
        return x.flatten(1).mean(1) > limit

    def dark_corner(x):
        return x[:, 0, 0, 0] < 0

    settings = Demo(out=tmp_path, negatives=40, samples=10)
    marked = mark(image_gan, {"bright": bright, "dark-corner": dark_corner}, settings)
    both = bright(marked.samples) & dark_corner(marked.samples)
    assert len(torch.unique(marked.samples.flatten(1), dim=0)) == len(marked.samples) < 80
    assert bright(marked.samples[:40]).all() and dark_corner(marked.samples[40:]).all() and both.any()
    for part in ("bright", "dark-corner"):
        files = list((tmp_path / "negatives" / part).glob("*.png"))
        assert len(files) == 40 and Image.open(files[0]).size == (8, 8)
