"""A session of a small GAN's samples, and the page's server without a socket."""

from pathlib import Path

import pytest

starlette = pytest.importorskip("starlette", reason="the page's packages are not installed (atu-ext[label])")
pytest.importorskip("uvicorn", reason="the page's packages are not installed (atu-ext[label])")

from atu.label.studio import Studio, open_studio  # noqa: E402


@pytest.fixture
def marks(tmp_path) -> Path:
    return tmp_path / "marks"


@pytest.fixture
def studio(image_gan, marks):
    """Not at work: `_step` does the next thing."""
    found: Studio = open_studio(image_gan, "small", marks, samples=300, seed=5, options=[], config=None)
    yield found
    found.close()
