"""Files that come with the package. Each was made by a command of the project; its log lies beside it."""

from __future__ import annotations

from pathlib import Path

DOMAINS = ("mnist", "animals")
# By the name that a spec gives: what answers for the user, and what only measures.
CLASSIFIERS = {
    "mnist": "mnist-classifier.safetensors",
    "animals": "animals-classifier.safetensors",
    "mnist-judge": "mnist-judge.safetensors",
    "animals-judge": "animals-judge.safetensors",
}
MADE_BY = {
    "animals-gan.safetensors": "python -m examples.pretrain animals --out DIR",
    "animals-classifier.safetensors": "python -m examples.classifiers animals --out DIR",
    "animals-judge.safetensors": "python -m examples.classifiers animals --role judge --out DIR",
}


def asset(name: str) -> Path:
    """Path of a bundled file.

    Raises:
        FileNotFoundError: this installation has no such file; where a command makes it, saying which.
    """
    path = Path(__file__).parent / name
    if not path.is_file():
        made = f", or make it with `{MADE_BY[name]}`" if name in MADE_BY else ""
        raise FileNotFoundError(f"{path}: the bundled file is missing; reinstall atu-ext{made}")
    return path
