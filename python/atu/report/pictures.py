"""Pictures of a report: same-latent grids, what is left of the negatives, curves of the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.images import image_grid, open_image, thumbnails
from ..evaluation.audit import part_path
from ..evaluation.evaluate import Evaluation
from ..evaluation.judged import Judged
from ..methods.registry import METHODS
from ..presets import DEFAULT
from . import plots
from .words import LABELS, SHORT

CURVES: list[dict[str, Any]] = [
    dict(stage="adapt", title="losses", keys={"loss_d": "discriminator", "loss_g": "generator"}),
    dict(stage="adapt", title="EWC penalty", keys={"ewc": "EWC"}),
    dict(stage="repel", title="losses", keys={"loss_d": "discriminator", "loss_g": "generator"}),
    dict(
        stage="repel",
        title="mean logits",
        keys={"logit_real": "positives", "logit_fake": "generated", "logit_negative": "negatives"},
    ),
    dict(stage="repel", title="distance from the adapted weights", keys={"distance": "distance"}),
    dict(stage="repel", title="repulsion loss", keys={"repulsion": "repulsion"}),
    dict(
        stage="repel",
        title="penalty",
        keys={
            "ewc": "EWC",
            "l1": "l1",
            "correspondence": "correspondence",
            "self_correlation": "self-correlation",
            "disturbance": "disturbance",
        },
    ),
    dict(stage="repel", title="negatives, % of samples", keys={"negative_rate": "negatives"}, percent=True),
    dict(stage="repel", title="drift of the kept samples (training score)", keys={"drift": "drift"}),
]
MAIN = ("before", "after")
COLUMNS = 8


def _marks(flags: Tensor, columns: int, rows: int) -> list[dict[str, float]]:
    """Where a mark goes on a grid, in percent of its size."""
    width, height = 100 / columns, 100 / rows
    return [
        dict(left=index % columns * width, top=index // columns * height, width=width, height=height)
        for index in torch.nonzero(flags).flatten().tolist()
    ]


def _grid(judged: Judged, pick: Tensor, image_range: tuple[float, float], label: str) -> dict[str, Any]:
    flags = judged.negative[: len(judged.first)][pick]
    marks = _marks(flags, COLUMNS, -(-len(pick) // COLUMNS))
    found = _picture(judged.first[pick], image_range)
    return dict(found, label=label, count=int(flags.sum()), n=len(pick), marks=marks)


def _picture(images: Tensor, image_range: tuple[float, float]) -> dict[str, Any]:
    picture = image_grid(thumbnails(images), image_range, COLUMNS)
    return dict(src=plots.data_url(picture), small=images.shape[-1] < 64, width=picture.width, height=picture.height)


def _are_images(x: Tensor) -> bool:
    return x.ndim == 4 and x.shape[1] in (1, 3, 4)


def grids(evaluation: Evaluation, main: bool = True) -> list[dict[str, Any]]:
    """Same-latent grids: the first latents as they come, and the first whose original sample is negative.

    main: of the original and the unlearned GAN; of the other models when false.
    """
    models = {name: judged for name, judged in evaluation.models.items() if (name in MAIN) == main}
    before = evaluation.models["before"]
    if not _are_images(before.first):
        return []
    flags = before.negative[: len(before.first)]
    picks = [
        ("The first 64 latents, unselected", torch.arange(min(64, len(before.first)))),
        ("Latents whose original sample is a negative", torch.nonzero(flags).flatten()[:24]),
    ]
    rows = []
    for title, pick in picks:
        if len(pick) and models:
            columns = [
                _grid(judged, pick, evaluation.image_range, LABELS.get(name, name)) for name, judged in models.items()
            ]
            rows.append(dict(title=title, grids=columns))
    return rows


def survivors(evaluation: Evaluation) -> dict[str, Any] | None:
    """The first samples of the unlearned GAN that are still negative; None where there are none, or no images."""
    shown = evaluation.models["after"].shown
    if not len(shown) or not _are_images(shown):
        return None
    return dict(_picture(shown, evaluation.image_range), n=len(shown))


def curve_figures(history: Sequence[Mapping[str, Any]], method: str = DEFAULT) -> list[dict[str, str]]:
    """Curves of the first adapted model and of the stage after it (or a method's only one), as SVG.

    method: says how its stages are called; a stage that it does not name keeps its name in the history.
    """
    called = METHODS.get(method).stages if method in METHODS else {}
    stages = list(dict.fromkeys(str(row["stage"]) for row in history))
    adapted = next((stage for stage in stages if stage.startswith("adapt")), None)
    second = next((stage for stage in stages if not stage.startswith("adapt")), None)
    figures = []
    for spec in CURVES:
        name = second if spec["stage"] == "repel" else adapted
        if name is None:
            continue
        title = f"{called.get(name.partition('-')[0] if name == adapted else name, name)}: {spec['title']}"
        rows = [row for row in history if row["stage"] == name]
        svg = plots.curves(title, rows, spec["keys"], percent=spec.get("percent", False))
        if svg is not None:
            figures.append(dict(title=title, svg=svg))
    return figures


def relearning_curves(audit: Mapping[str, Any]) -> str | None:
    """The curves of an audit (`atu.evaluation.audit.run`) as SVG; None where there are none."""
    found: dict[str, dict[str, Any]] = {}
    for model, parts in audit["parts"].items():
        for measure, one in parts.items():
            kind, _, count = measure.partition(" ")
            if kind in ("relearn", "unrelated"):
                name = f"{count} negative{'s' * (count != '1')}" if count else f"{one['samples']} good samples"
                found.setdefault(SHORT.get(model, model), {})[name] = one["curve"]
    return plots.relearning(found, audit["parts"]["before"]["rate"][audit["judges"][0]]["share"])


def found_samples(audit: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """What the searches in an audit found, one row a space: pictures of each model, with marks where the judge calls
    them negative. Empty for samples that are no images."""
    rows = []
    for space in audit["spaces"]:
        columns = []
        for model, parts in audit["parts"].items():
            one, file = parts.get(f"search {space}"), part_path(folder, model, f"search {space}").with_suffix(".png")
            if one is None or not file.is_file():
                continue
            flags = torch.tensor(one["marks"])
            picture = open_image(file, "a picture of the audit:")
            columns.append(
                dict(
                    src=plots.data_url(picture),
                    small=picture.width < 64 * COLUMNS,
                    width=picture.width,
                    height=picture.height,
                    label=LABELS.get(model, model),
                    count=int(flags.sum()),
                    n=len(flags),
                    marks=_marks(flags, COLUMNS, -(-len(flags) // COLUMNS)),
                )
            )
        if columns:
            rows.append(dict(title=f"Search in {space}", grids=columns))
    return rows
