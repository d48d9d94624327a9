"""The published table again: every method on every target with several seeds, cell by cell, beside the paper's rows.

Cells are computed side by side where several processes do so in one folder: each takes one that no other has begun.

OUT/cells.csv    one row a finished cell; what is there is not computed again
OUT/table.csv    the figures over the seeds; table.md shows them, figure.png draws them
OUT/pictures.jpg samples before and after, of every method and target
OUT/plan.json    what is computed, by what tells it from another
OUT/work         what is big of a cell: run folders, from which a stopped one goes on, pictures, moments, retrained GANs
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from atu import presets
from atu.config import Config
from atu.data.images import map_range
from atu.data.samples import TensorSamples
from atu.methods.registry import METHODS
from atu.report.words import duration
from atu.support import memory, progress
from atu.support.digest import digest
from atu.support.files import write_json
from atu.support.lock import claimed
from atu.support.modules import state_of
from atu.support.seeding import fork_rng
from atu.support.toml import read_toml
from atu.training.run_folder import gan_digest
from atu.training.step import AdversarialStep, Objective
from benchmarks.tables import add_row, number

from .cells import CELLS, Plan, Task, read_cells, run_cell, work_path
from .table import write_table

WAIT = 2.0  # seconds between looks at what other processes have finished
CELL_BYTES = 3 * 2**30  # memory that a cell takes on a CPU, about: those of the bundled GANs take less


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
    return read_toml(path)


def reproduce(plan: Plan, out: str | Path) -> dict[str, Any]:
    """Compute every cell that is not there yet, then write the table and the pictures; returns what `write_table` does.

    The table is written anew after each cell, so that a stopped reproduction shows what it has. Other processes may do
    the same in OUT meanwhile; each returns when all cells are there.
    """
    out = Path(out)
    _check_identity(plan, out)
    missing = _missing(plan, out)
    total = len(list(plan.cells()))
    with progress.bar("reproduce", total, total - len(missing)) as bar:
        while missing:
            if not _compute_one(plan, out, missing):
                time.sleep(WAIT)  # the others are at what is left
            missing = _missing(plan, out)
            if total - len(missing) > bar.done:
                bar.update(steps=total - len(missing) - bar.done)
    return write_table(plan, out)


def _missing(plan: Plan, out: Path) -> list[tuple[Task, int, str]]:
    there = read_cells(out)
    return [(task, seed, method) for task, seed, method in plan.cells() if (method, task.name, seed) not in there]


def _compute_one(plan: Plan, out: Path, missing: Sequence[tuple[Task, int, str]]) -> bool:
    """Compute the first of the missing cells that no other process has begun; whether there was one."""
    retraining = {(task.name, seed) for task, seed, method in missing if method == "retrain"}
    for task, seed, method in missing:
        if method != "retrain" and (task.name, seed) in retraining:
            continue  # it is compared with the retrained GAN
        claim = work_path(out, "claims", task, seed, method)
        with claimed(claim) as own:
            if not own or (method, task.name, seed) in read_cells(out):
                continue
            row = run_cell(plan, task, seed, method, out)
            add_row(out / CELLS, row)
        progress.log.info("%s, %s, seed %d: %s", method, task.name, seed, duration(float(str(row["seconds_in_all"]))))
        write_table(plan, out)
        return True
    return False


def jobs_for(plan: Plan, out: str | Path, threads: int) -> int:
    """How many cells to compute side by side with so many threads in all: one on a GPU, which a cell fills; else one a
    thread, as far as there are cells to do and memory for them."""
    if plan.gan.device.type != "cpu":
        return 1
    there = memory.free(plan.gan.device)
    room = threads if there is None else there // CELL_BYTES
    return max(min(threads, room, len(_missing(plan, Path(out)))), 1)


def _check_identity(plan: Plan, out: Path) -> None:
    """Raise ValueError where OUT holds cells of another plan; seeds, methods and targets may be added to."""
    own = dict(dataset=plan.dataset, gan=gan_digest(plan.gan), negatives=plan.negatives, samples=plan.samples)
    own.update(config=json.loads(json.dumps(dict(plan.config))), oracle=plan.oracle, extractor=plan.extractor_sha256)
    judges = {task.name: _networks(task) for task in plan.tasks}
    path = out / "plan.json"
    there = {"oracle": True, **json.loads(path.read_text(encoding="utf-8"))} if path.is_file() else {}
    known = there.get("judges", {})
    pairs = [(name, there.get(name, value), value) for name, value in own.items()]
    pairs += [(f"judge of {name}", known.get(name, value), value) for name, value in judges.items()]
    differs = [f"{name} ({before} there, {now} now)" for name, before, now in pairs if before != now]
    if differs:
        raise ValueError(f"out: {out} holds a reproduction with another {'; '.join(differs)}; give another folder")
    write_json(path, {**own, "judges": {**known, **judges}})


def _networks(task: Task) -> str:
    """Who judges and who answers, with what tells their weights."""
    networks = [task.judge] if task.oracle is None else [task.judge, task.oracle]
    return ", ".join(f"{one.name} {digest(state_of(one.module))}" for one in networks)


# --- how long it will take


def forecast(plan: Plan, out: str | Path) -> dict[str, dict[str, float]]:
    """method -> cells (to do), seconds (of one cell, about), steps (of training, at most, of one cell).

    Seconds are the mean of the method's cells that are there; else its steps by the time of one, measured here on a
    copy of the GAN, and its evaluation by the time of one batch.
    """
    there, measured = read_cells(Path(out)), None
    found: dict[str, dict[str, float]] = {}
    for method in dict.fromkeys(plan.methods):
        cells = [(method, task.name, seed) for task in plan.tasks for seed in range(plan.seeds)]
        done = [number(there[cell], "seconds_in_all") or 0.0 for cell in cells if cell in there]
        steps = _steps(plan, method)
        if done:
            seconds = mean(done)
        else:
            measured = measured or _measured(plan)
            seconds = steps * measured[0] + 3 * plan.samples * measured[1]
        found[method] = dict(cells=len(cells) - len(done), seconds=seconds, steps=steps)
    return found


def _steps(plan: Plan, method: str) -> int:
    """Steps of training of one cell, at most."""
    return METHODS[method].plan(plan.gan, Config.of(method, data=dict(plan.config))).steps


def _measured(plan: Plan, steps: int = 2, samples: int = 250) -> tuple[float, float]:
    """Seconds of one training step and of one sample made and judged."""
    gan, task = plan.gan.copy(), plan.tasks[0]
    settings = Config().repel.adversarial
    with fork_rng(gan.device, 0):
        x = gan.sample(settings.batch_size)
        trainer = AdversarialStep(gan, TensorSamples(x.cpu()), Objective(), settings)
        trainer.step()  # the first takes longer: R1, and memory that is new
        start = time.monotonic()
        for _ in range(steps):
            trainer.step()
        step = (time.monotonic() - start) / steps
    start = time.monotonic()
    for x in gan.batches(samples, batch_size=gan.fitting(samples)):
        task.judge.logits_and_features(map_range(x, gan.image_range, task.judge.image_range))
    return step, (time.monotonic() - start) / samples


def told(forecast: Mapping[str, Mapping[str, float]], jobs: int = 1) -> str:
    """A forecast in words, for so many cells side by side."""

    def time_of(seconds: float) -> str:
        return duration(seconds) if seconds < 7200 else f"{seconds / 3600:.1f} hours"

    lines = [
        f"{method}: {row['cells']} cells of up to {row['steps']:,} steps, about {time_of(row['seconds'])} each"
        for method, row in forecast.items()
    ]
    total = sum(row["cells"] * row["seconds"] for row in forecast.values()) / jobs
    cells = sum(row["cells"] for row in forecast.values())
    beside = f", {jobs} side by side" if jobs > 1 else ""
    return "\n".join([*lines, f"{cells} cells to do{beside}, about {time_of(total)} in all on this machine"])
