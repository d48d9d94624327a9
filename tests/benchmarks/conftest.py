"""The small GANs of the tests of the training API."""

from tests.atu.conftest import calm, image_gan  # noqa: F401
