"""Figures as SVG that takes its colours from the page round it, so that one file suits light and dark."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..data.images import image_grid, thumbnails
from ..support.files import write_atomic
from .words import number

if TYPE_CHECKING:
    from ..evaluation.parameter_path import ParameterPath


LARGEST_PNG = 400_000  # bytes of a picture inside a page
# Stand-in colours, replaced by the page's CSS variables once matplotlib has drawn.
INK, MUTED = "#000001", "#000002"


SERIES = ["#00000a", "#00000b", "#00000c", "#00000d"]


CSS = {INK: "currentColor", MUTED: "var(--muted)", **{hex_: f"var(--series-{i + 1})" for i, hex_ in enumerate(SERIES)}}


STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "grid.color": MUTED,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}


Rows = Sequence[Mapping[str, Any]]


@contextmanager
def _figure(salt: str, size=(4.6, 2.5)) -> Iterator[tuple[Figure, Any]]:
    # The salt keeps the ids of several figures in one page apart.
    style: Any = {**STYLE, "svg.hashsalt": salt}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        yield figure, axes


def _svg(figure: Figure, title: str) -> str:
    """The figure as an SVG that says what it shows to those who do not see it."""
    out = io.StringIO()
    FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for stand_in, css in CSS.items():
        text = text.replace(stand_in, css)
    text = text.replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans'")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    name = html.escape(title)
    return text.replace("<svg", f'<svg role="img" aria-label="{name}"', 1).replace(">", f"><title>{name}</title>", 1)


def curves(title: str, rows: Rows, keys: Mapping[str, str], log: bool = False, percent: bool = False) -> str | None:
    """Lines over the steps; keys: metric -> label. None where no row holds any of them."""
    series = {}
    for key, label in keys.items():
        points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), (int, float))]
        if points:
            series[label] = np.array(points, dtype=float).T
    if not series:
        return None
    with _figure(title) as (figure, axes):
        for (label, (steps, values)), colour in zip(series.items(), SERIES, strict=False):
            marker = "o" if len(steps) < 40 else None
            axes.plot(
                steps, 100 * values if percent else values, color=colour, lw=1.6, label=label, marker=marker, ms=3
            )
        if log and all((values > 0).all() for _, values in series.values()):
            axes.set_yscale("log")
        elif percent:
            axes.set_ylim(bottom=0)
        axes.set_xlabel("step")
        if len(series) > 1:
            axes.legend(fontsize=10, ncols=len(series), loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2)
        return _svg(figure, f"{title}: curves over the steps")


def relearning(curves_of: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], original: float) -> str | None:
    """Share of negatives over the images seen: a colour a model, a dash a curve; a thin line is the original's rate.

    curves_of: model -> what it was trained on -> [images, share] points. None where there are no curves.
    """
    kinds = list(dict.fromkeys(kind for found in curves_of.values() for kind in found))
    if not kinds:
        return None
    with _figure("relearning", size=(5.6, 3.6)) as (figure, axes):
        for (model, found), colour in zip(curves_of.items(), SERIES[1:], strict=False):
            for kind, points in found.items():
                x, y = zip(*points, strict=True)
                dash = ["-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1))][kinds.index(kind) % 5]
                axes.plot(x, [100 * value for value in y], color=colour, ls=dash, lw=1.6, label=f"{model}: {kind}")
        axes.axhline(100 * original, color=SERIES[0], lw=1)
        axes.annotate("original", (0, 100 * original), (2, 3), textcoords="offset points", fontsize=10, color=SERIES[0])
        axes.set(xlabel="images seen", ylabel="% of samples negative")
        axes.set_ylim(0, max(axes.get_ylim()[1], 112 * original))  # room for the word above its line
        axes.legend(fontsize=8, ncols=len(curves_of), loc="lower left", bbox_to_anchor=(-0.1, 1.0), borderaxespad=0.2)
        return _svg(figure, f"Share of negatives over the images seen: {', '.join(curves_of)}")


def class_bars(histograms: Mapping[str, Mapping[str, Mapping[str, Any]]], negative: Sequence[str]) -> str:
    """Share of each class with its 95 % interval; histograms: label -> class -> {share, ci95}."""
    classes = list(next(iter(histograms.values())))
    with _figure("classes", size=(5.0 if len(classes) <= 12 else 8.5, 2.7)) as (figure, axes):
        width = 0.8 / len(histograms)
        for index, ((label, rows), colour) in enumerate(zip(histograms.items(), SERIES, strict=False)):
            share = np.array([100 * rows[name]["share"] for name in classes])
            low, high = (np.array([100 * rows[name]["ci95"][side] for name in classes]) for side in (0, 1))
            x = np.arange(len(classes)) + (index - (len(histograms) - 1) / 2) * width
            error = np.clip([share - low, high - share], 0, None)
            axes.bar(x, share, width * 0.92, color=colour, label=label)
            axes.errorbar(x, share, error, fmt="none", ecolor=INK, elinewidth=0.8, capsize=1.5, alpha=0.7)
        crowded = max(map(len, classes)) * len(classes) > 45  # labels side by side would run into each other
        turned: dict[str, Any] = dict(rotation=35, ha="right") if crowded else {}
        axes.set_xticks(range(len(classes)), classes, parse_math=False, **turned)  # "$" in a name is a dollar
        for tick, name in zip(axes.get_xticklabels(), classes, strict=True):
            if name in negative:
                tick.set(color=SERIES[1], fontweight="bold")
        axes.set_ylabel("% of samples")
        axes.grid(axis="x", visible=False)
        axes.legend(fontsize=10, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2)
        return _svg(figure, f"Share of each class, % of samples: {', '.join(histograms)}")


def scatter(title: str, points: Tensor, marked: Tensor, limit: float) -> str:
    """Samples [n, 2], those that are marked (bool [n]) in the colour of what is unlearned."""
    with _figure(title, size=(3.2, 3.2)) as (figure, axes):
        for chosen, colour in ((~marked, SERIES[0]), (marked, SERIES[1])):
            x, y = points[chosen].T.tolist() if bool(chosen.any()) else ([], [])
            axes.plot(x, y, "o", color=colour, ms=1.8, alpha=0.55, mew=0)
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        return _svg(figure, f"{title}: samples in the plane, {int(marked.sum())} of {len(marked)} negative")


def _draw_path(axes: Any, path: ParameterPath) -> None:
    """Columns of images, one a point of the path, with s, negatives and distance below each."""
    count, shown = path.images.shape[:2]
    columns = path.images.transpose(0, 1).reshape(count * shown, *path.images.shape[2:])
    picture = image_grid(thumbnails(columns.nan_to_num()), path.image_range, count)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, extent=(-0.5, count - 0.5, 0, 1), aspect="auto")
    labels = [f"{row['s']:g}\n{100 * row['negative']['share']:.1f} %\n{number(row['frechet'])}" for row in path.points]
    axes.set_xticks(range(count), labels)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.annotate(
        "s\nnegative\nFréchet", (0, 0), (-8, -4), "axes fraction", textcoords="offset points", ha="right", va="top"
    )


def path_figure(path: ParameterPath) -> str:
    """A parameter path of images as SVG."""
    with _figure("path", size=(7.2, 0.62 * path.images.shape[1] + 0.7)) as (figure, axes):
        _draw_path(axes, path)
        return _svg(figure, "Samples of the same latents along the line through parameter space")


def save_path(file: str | Path, path: ParameterPath) -> Path:
    """The same as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = Figure(figsize=(9, 0.8 * path.images.shape[1] + 0.8), layout="constrained", dpi=110)
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    _draw_path(axes, path)
    return write_atomic(file, lambda temporary: FigureCanvasAgg(figure).print_png(temporary))


def data_url(image: Image.Image) -> str:
    """A picture inside a URL: a PNG, or a WebP where that is too large for a page with several of them."""
    out, kind = io.BytesIO(), "png"
    image.save(out, "PNG", optimize=True)
    if out.tell() > LARGEST_PNG:
        out, kind = io.BytesIO(), "webp"
        image.save(out, "WEBP", quality=80)
    return f"data:image/{kind};base64," + base64.b64encode(out.getvalue()).decode()


def save_scatters(path: str | Path, panels: Sequence[tuple[str, Tensor, Tensor]], limit: float = 3.2) -> Path:
    """A PNG with one scatter plot of samples [n, 2] a panel: (title, samples, marked bool [>= n])."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = Figure(figsize=(3.2 * len(panels), 3.4), layout="constrained")
    for axes, (title, points, marked) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        flags = marked[: len(points)]
        for chosen, colour in ((~flags, "#2a6fdb"), (flags, "#d9480f")):
            axes.plot(points[chosen, 0].numpy(), points[chosen, 1].numpy(), "o", color=colour, ms=1.8, alpha=0.5, mew=0)
        axes.set(title=title, xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        axes.grid(alpha=0.2)
    return write_atomic(path, lambda temporary: FigureCanvasAgg(figure).print_png(temporary))
