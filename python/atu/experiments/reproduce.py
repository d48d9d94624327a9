"""The published table again: every method on every target with several seeds, cell by cell, beside the paper's rows.

OUT/cells/METHOD-TARGET-SEED.json   one finished cell; what is there is not computed again
OUT/runs/...                        the run folder of a cell, from which a stopped one goes on
OUT/pictures/METHOD-TARGET-SEED.png samples before and after, 40 latents that were negative above 40 good ones
OUT/table.md, table.json, figure.png
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from .. import presets
from ..config import Config, tomllib
from ..data.images import map_range
from ..data.samples import TensorSamples
from ..methods.adapt_then_unlearn.repel import planned_steps
from ..report.words import duration
from ..support import progress
from ..support.files import write_json
from ..support.seeding import fork_rng
from ..training.run_folder import gan_digest
from ..training.trainer import AdversarialTrainer
from .cells import Plan, cell_path, run_cell
from .reproduced_table import write_table


def check_methods(methods: Sequence[str]) -> list[str]:
    """The methods, or all of them when none is given.

    Raises:
        ValueError: there is none of a name.
    """
    return [presets.check_method(method) for method in methods] or list(presets.METHODS)


def read_config(path: Path | None) -> dict[str, Any]:
    """The settings in a TOML file as nested dicts, checked; each method's own defaults lie beneath them."""
    if path is None:
        return {}
    Config.load(path)
    return tomllib.loads(path.read_text(encoding="utf-8"))


def reproduce(plan: Plan, out: str | Path) -> dict[str, Any]:
    """Compute every cell that is not there yet, then write the table and the figure; returns table.json's content.

    The table is written anew after each cell, so that a stopped reproduction shows what it has.
    """
    out = Path(out)
    _check_identity(plan, out)
    cells = list(plan.cells())
    done = [cell for cell in cells if cell_path(out, *cell).is_file()]
    with progress.bar("reproduce", len(cells), len(done)) as bar:
        for task, seed, method in cells:
            path = cell_path(out, task, seed, method)
            if path.is_file():
                continue
            start = time.monotonic()
            found = run_cell(plan, task, seed, method, out)
            seconds = time.monotonic() - start
            write_json(path, {**found, "seconds_in_all": round(seconds, 1)})
            progress.log.info("%s, %s, seed %d: %s", method, task.name, seed, duration(seconds))
            bar.update()
            write_table(plan, out)
    return write_table(plan, out)


def _check_identity(plan: Plan, out: Path) -> None:
    """Raise ValueError where OUT holds cells of another plan; seeds, methods and targets may be added to."""
    own = dict(dataset=plan.dataset, gan=gan_digest(plan.gan), negatives=plan.negatives, samples=plan.samples)
    own.update(config=json.loads(json.dumps(dict(plan.config))), judge=plan.judges, oracle=plan.oracle)
    path = out / "plan.json"
    if not path.is_file():
        write_json(path, own)
        return
    there = {"oracle": True, **json.loads(path.read_text(encoding="utf-8"))}
    differs = [f"{k} ({there.get(k)} there, {value} now)" for k, value in own.items() if there.get(k) != value]
    if differs:
        raise ValueError(f"out: {out} holds a reproduction with another {'; '.join(differs)}; give another folder")


# --- how long it will take


def forecast(plan: Plan, out: str | Path) -> dict[str, dict[str, float]]:
    """method -> cells (to do), seconds (of one cell, about), steps (of training, at most, of one cell).

    Seconds are the mean of the method's cells that are there; else its steps by the time of one, measured here on a
    copy of the GAN, and its evaluation by the time of one batch.
    """
    out, measured = Path(out), None
    found: dict[str, dict[str, float]] = {}
    for method in dict.fromkeys(plan.methods):
        cells = [cell_path(out, task, seed, method) for task in plan.tasks for seed in range(plan.seeds)]
        done = [json.loads(path.read_text(encoding="utf-8")) for path in cells if path.is_file()]
        steps = _steps(plan, method)
        if done:
            seconds = mean(cell.get("seconds_in_all", cell["seconds"]) for cell in done)
        else:
            measured = measured or _measured(plan)
            seconds = steps * measured[0] + 3 * plan.samples * measured[1]
        found[method] = dict(cells=len(cells) - len(done), seconds=seconds, steps=steps)
    return found


def _steps(plan: Plan, method: str) -> int:
    """Steps of training of one cell, at most."""
    config = Config.of(method, data=dict(plan.config))
    own = config.methods.get(method)  # none, of a method without settings of its own
    if own is not None and hasattr(own, "steps"):
        return int(own.steps)
    return sum(planned_steps(plan.gan, config))


def _measured(plan: Plan, steps: int = 2, samples: int = 250) -> tuple[float, float]:
    """Seconds of one training step and of one sample made and judged."""
    gan, task = plan.gan.copy(), plan.tasks[0]
    settings = Config().repel.adversarial
    with fork_rng(gan.device, 0):
        x = gan.sample(settings.batch_size)
        trainer = AdversarialTrainer(gan, TensorSamples(x.cpu()), settings)
        trainer.step()  # the first takes longer: R1, and memory that is new
        start = time.monotonic()
        for _ in range(steps):
            trainer.step()
        step = (time.monotonic() - start) / steps
    start = time.monotonic()
    for x in gan.batches(samples, batch_size=samples):
        task.judge.logits_and_features(map_range(x, gan.image_range, task.judge.image_range))
    return step, (time.monotonic() - start) / samples


def told(forecast: Mapping[str, Mapping[str, float]]) -> str:
    """A forecast in words."""

    def time_of(seconds: float) -> str:
        return duration(seconds) if seconds < 7200 else f"{seconds / 3600:.1f} hours"

    lines = [
        f"{method}: {row['cells']} cells of up to {row['steps']:,} steps, about {time_of(row['seconds'])} each"
        for method, row in forecast.items()
    ]
    total = sum(row["cells"] * row["seconds"] for row in forecast.values())
    cells = sum(row["cells"] for row in forecast.values())
    return "\n".join([*lines, f"{cells} cells to do, about {time_of(total)} in all on this machine"])
