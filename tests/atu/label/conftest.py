"""A session of a small GAN's samples."""

from pathlib import Path

import pytest

from atu.label.studio import Studio, open_studio


@pytest.fixture
def marks(tmp_path) -> Path:
    return tmp_path / "marks"


@pytest.fixture
def studio(image_gan, marks):
    """Not at work: `_step` does the next thing."""
    found: Studio = open_studio(image_gan, "small", marks, samples=300, seed=5, options=[], config=None)
    yield found
    found.close()
