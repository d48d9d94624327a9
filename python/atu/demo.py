"""The demonstrations: what a user writes to unlearn something, on the GANs that come with the package.

A bundled classifier plays the user: it marks the negatives and, as the oracle, answers during the run. Another network,
which never answers, judges the outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .api import unlearn
from .assets import asset
from .data.mnist import mnist
from .gan import GAN
from .judging.finding import find
from .judging.marking import mark_negatives
from .judging.rule import Rule
from .judging.strokes import FEATURES, feature_rules
from .support.seeding import Stream, stream_seed


def demo(
    domain: str,
    names: Sequence[str],
    out: str | Path,
    marks: int = 200,
    oracle: bool = True,
    samples: int = 10_000,
    seed: int = 0,
    command: str = "atu_ext.unlearn(...)",
    device: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Unlearn digits, species or features from a bundled GAN; writes the run folder and its report.

    Args:
        domain: "mnist" or "animals".
        names: digits, or one measured feature of the stroke; species and features of animals, PART=VALUE, or several of
            these joined by "+", which must all hold.
        marks: negatives to mark of each name. oracle: whether what marks them answers during the run too.
        samples: fixed latents of the evaluation. command: what the report says to run again.
        seed, device, options: of `unlearn`.

    Returns:
        The content of OUT/report.json.
    """
    gan = GAN.load(asset(f"{domain}-gan.safetensors")).to(device or "cpu")
    if domain == "mnist" and names[0] in FEATURES:
        if len(names) > 1:
            raise ValueError(f"feature: expected one feature alone, got {', '.join(names)}")
        answers: Rule = feature_rules(gan)[names[0]]
        judge, parts = answers, [answers]
    else:
        parts = [find(domain, gan, {"class": name}) for name in names]
        answers = find(domain, gan, {"class": ",".join(names)})
        judge = find(f"{domain}-judge", gan, {"class": ",".join(names)})
    marked = [mark_negatives(gan, part, marks, stream_seed(seed, Stream.MARKS))[0] for part in parts]
    negatives = torch.stack(list({x.numpy().tobytes(): x for x in torch.cat(marked)}.values()))  # each once
    result = unlearn(gan, negatives, None, answers if oracle else None, out=out, seed=seed, device=device, **options)
    real = mnist() if domain == "mnist" else None
    return result.report(judge=judge, real=real, n=samples, subject=", ".join(names), command=command)
