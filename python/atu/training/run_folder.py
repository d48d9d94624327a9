"""The run folder: settings, metrics, sample grids, checkpoints; and going on from where a killed run stopped.

OUT/config.toml          settings, complete
OUT/run.json             its format, what identifies the run (seed, hashes of config, GAN and samples), versions
OUT/metrics.jsonl        one line a logged step
OUT/tb/                  the same for TensorBoard
OUT/samples/*.png        sample grids
OUT/checkpoints/         adapted generators; state of the running stage, the last one and the one before (*.previous)
OUT/result.safetensors   the unlearned GAN
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from atu_ext import __version__

from ..data.images import grid
from ..data.marks import KEPT
from ..data.samples import Samples, read
from ..formats.tensors import CheckpointError
from ..gan import GAN
from ..support import progress, world
from ..support.digest import digest
from ..support.files import check_writable, remove_partial, write_atomic, write_json, write_text
from ..support.lock import FolderLock
from ..support.modules import state_of
from .state import FORMAT, load_state, save_state, written_by

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Settings(Protocol):
    """What a run folder asks of a run's settings; `Config` is one."""

    log_every: int
    save_every: int

    def to_dict(self) -> dict[str, Any]: ...

    def save(self, path: str | Path) -> Path: ...


def gan_digest(gan: GAN) -> str:
    return digest({f"{n}.{k}": v for n, m in gan.modules().items() for k, v in state_of(m).items()})


def samples_digest(samples: Samples) -> str:
    """Of the number of samples and up to 256 of them, evenly spread."""
    index = torch.linspace(0, len(samples) - 1, min(len(samples), 256)).long()
    labels: Tensor | None = getattr(samples, "labels", None)
    known = {} if labels is None else {"labels": labels}
    return f"{len(samples)}:{digest({'samples': read(samples, index), **known})}"


def recorded(out: str | Path | None) -> dict[str, Any]:
    """The precision and the threads that the run in a folder was begun with, and how many samples it makes at once.

    Nothing without a folder, or where it has no run that can be read; threads None in runs of before they were chosen,
    at_once None where samples are small.
    """
    if out is None:
        return {}
    try:
        found = json.loads((Path(out) / "run.json").read_text(encoding="utf-8"))
        config = {"precision": "float32", **found["identity"]["config"]}
        numbers = {"threads": config.get("threads"), "at_once": found["identity"].get("at_once")}
        known = {name: None if value is None else int(value) for name, value in numbers.items()}
        return {"precision": str(config["precision"]), **known}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


class RunFolder:
    """One run, with a folder or (out None) without; `close` it at the end.

    Of several processes (`atu.support.world`) the first alone has the folder; what it loads, all get.

    Args:
        identity: plain data; a run is resumed from an existing folder only when it agrees.

    Raises:
        ValueError: the folder cannot be written, is in use, or holds a run with another identity (naming what differs),
            a run of another format, or something that is no run at all.
    """

    def __init__(self, out: str | Path | None, config: Settings, identity: dict[str, Any], needed_bytes: int = 0):
        self.out = None if out is None else Path(out)
        self.log_every, self.save_every = config.log_every, config.save_every
        self.history: list[dict[str, Any]] = []
        self.writer: SummaryWriter | None = None
        self.resumed = False
        if self.out is None:
            return
        self._prepare(self.out, needed_bytes)  # before the lock, which is a file in it
        self._lock = FolderLock(self.out, "out")
        try:
            self._begin(self.out, config, {"config": config.to_dict(), **identity})
        except BaseException:
            self._lock.release()
            raise

    # --- the folder

    def _begin(self, out: Path, config: Settings, identity: dict[str, Any]) -> None:
        if (out / "run.json").exists():
            self._check_identity(identity)
            self.resumed = True
            for folder in (out, out / "checkpoints", out / "samples"):
                remove_partial(folder)
            self.history = self._read_history()
            if self.finished:
                progress.log.info("%s: this run is finished; its result is taken from there", out)
        else:
            # run.json first: it is what marks the folder as a run's, should the process be killed here.
            versions = {"atu_ext": __version__, "torch": torch.__version__, "python": platform.python_version()}
            write_json(out / "run.json", {"format": FORMAT, "identity": identity, "versions": versions})
        config.save(out / "config.toml")
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(out / "tb"))

    @staticmethod
    def _prepare(out: Path, needed_bytes: int) -> None:
        check_writable(out, "out")
        # Other files (a demo's report, say) may lie there; a config or checkpoints of something else may not.
        foreign = (out / "config.toml").exists() or (out / "checkpoints").exists()
        if foreign and not (out / "run.json").exists():
            raise ValueError(f"out: {out} holds something that is not a run of atu; give another folder")
        free = shutil.disk_usage(out).free
        if free < needed_bytes and not (out / "run.json").exists():  # a run that is resumed has most of its files
            raise ValueError(
                f"out: {out} has {free / 1e6:.0f} MB free, and this run needs about {needed_bytes / 1e6:.0f} MB"
            )

    @property
    def finished(self) -> bool:
        """Whether the folder holds the run's result."""
        return self.out is not None and (self.out / "result.safetensors").exists()

    def _check_identity(self, identity: dict[str, Any]) -> None:
        assert self.out is not None
        path = self.out / "run.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            before, version = found["identity"], found["versions"]["atu_ext"]
            before["config"].setdefault("precision", "float32")  # of runs from before there was a choice
            before["config"].update(threads=identity["config"].get("threads"))  # it may go on with others
            before["at_once"] = identity.get("at_once")  # likewise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"out: {path} cannot be read ({error}); give another folder") from error
        if found.get("format") != FORMAT:
            told = written_by(found.get("format", 1), version)
            raise ValueError(f"out: the run in {self.out} {told}; finish it with that version, or give another folder")
        differs = _differences(before, json.loads(json.dumps(identity)))
        if differs:
            # Another method has other settings, which say nothing more.
            shown = [one for one in differs if one.startswith("config.method ")] or differs[:4]
            raise ValueError(f"out: {self.out} holds a run with another {'; '.join(shown)}; give another folder")

    def _read_history(self) -> list[dict[str, Any]]:
        assert self.out is not None
        rows = []
        path = self.out / "metrics.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                rows.append(json.loads(line))
            except ValueError:  # the last line of a killed run
                break
        return [row for row in rows if isinstance(row, dict) and {"stage", "step"} <= row.keys()]

    def path(self, *parts: str) -> Path | None:
        return None if self.out is None else self.out.joinpath(*parts)

    # --- metrics and pictures

    def log(self, stage: str, step: int, seconds: float, metrics: dict[str, float]) -> None:
        """Append one row to the history, the JSON lines and TensorBoard."""
        row = {"stage": stage, "step": step, "seconds": round(seconds, 3), **metrics}
        self.history.append(row)
        if self.out is not None:
            with open(self.out / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if self.writer is not None:
            for name, value in metrics.items():
                self.writer.add_scalar(f"{stage}/{name}", value, step)

    def rewind(self, stage: str, step: int) -> None:
        """Forget rows of `stage` past `step`, which a resumed run will log again."""
        self.history = [row for row in self.history if row["stage"] != stage or row["step"] <= step]
        if self.out is not None:
            write_text(self.out / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self.history))

    def picture(self, name: str, images: Tensor, image_range: tuple[float, float]) -> None:
        """Write samples/NAME.png, where the samples are images."""
        path = self.path("samples", f"{name}.png")
        if path is not None and images.ndim == 4 and images.shape[1] in (1, 3):
            write_atomic(path, lambda temporary: grid(images, image_range).save(temporary, format="PNG"))

    # --- checkpoints

    def _checkpoint(self, name: str) -> Path | None:
        return self.path("checkpoints", f"{name}.safetensors")

    def save(self, name: str, state: Mapping[str, Any]) -> None:
        """Write checkpoints/NAME.safetensors: nested dicts of tensors and plain data."""
        path = self._checkpoint(name)
        if path is not None:
            save_state(path, state)

    def load(self, name: str) -> dict[str, Any] | None:
        """What `save` wrote under that name; None when there is nothing.

        Raises:
            CheckpointError: it cannot be read.
        """
        return world.from_first(lambda: self._load(name))

    def _load(self, name: str) -> dict[str, Any] | None:
        path = self._checkpoint(name)
        if path is None or not path.exists():
            return None
        try:
            return load_state(path)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; remove it, and the same call makes it again") from error

    def save_latest(self, name: str, state: Mapping[str, Any]) -> None:
        """As `save`, but keep what was there before as NAME.previous; the rows logged so far are on disk before."""
        path = self._checkpoint(name)
        if path is None:
            return
        metrics = self.path("metrics.jsonl")
        if metrics is not None and metrics.exists():
            with open(metrics, "rb") as file:
                os.fsync(file.fileno())
        save_state(path, state, self._checkpoint(f"{name}.previous"))

    def load_latest(self, name: str) -> dict[str, Any] | None:
        """What `save_latest` wrote last, or before that where the last cannot be read; None when there is nothing.

        Raises:
            CheckpointError: neither can be read.
        """
        return world.from_first(lambda: self._load_latest(name))

    def _load_latest(self, name: str) -> dict[str, Any] | None:
        failed: list[CheckpointError] = []
        for path in self._states(name):
            try:
                state = load_state(path)
            except CheckpointError as error:
                failed.append(error)
                continue
            if failed:
                progress.log.warning("%s; going on from the one before, %s", failed[0], path)
                last = self._states(name)[0]
                last.replace(last.with_suffix(".unreadable"))  # or the next save would keep it as the one before
            return state
        if failed:
            told = "; ".join(map(str, failed))
            raise CheckpointError(f"{told}; remove what cannot be read, and the stage begins again") from failed[0]
        return None

    def _states(self, name: str) -> list[Path]:
        """The last and the one before, those of them that are there."""
        paths = (self._checkpoint(name), self._checkpoint(f"{name}.previous"))
        return [path for path in paths if path is not None and path.exists()]

    def remove(self, name: str) -> None:
        """Remove what `save` or `save_latest` wrote."""
        for path in self._states(name):
            path.unlink()

    def withdraw(self) -> None:
        """Leave nothing of a run that could not start, so that another may in the same folder; one that was resumed
        stays."""
        if self.out is None or self.resumed:
            return
        if self.writer is not None:
            self.writer.close()
        shutil.rmtree(self.out / "tb", ignore_errors=True)
        for name in ("config.toml", KEPT, "run.json"):  # the last is what marks the folder as a run's
            (self.out / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the folder."""
        if self.writer is not None:
            self.writer.close()
        if self.out is not None:
            self._lock.release()


def _differences(a: Any, b: Any, name: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        names = sorted(a.keys() | b.keys())
        return [line for key in names for line in _differences(a.get(key), b.get(key), f"{name}.{key}".lstrip("."))]
    return [] if a == b else [f"{name} ({a} there, {b} now)"]
