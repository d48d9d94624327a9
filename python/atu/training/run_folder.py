"""The run folder: settings, metrics, sample grids, checkpoints. A killed run resumes from it.

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
    """The settings that a run folder needs; `Config` has them."""

    log_every: int
    save_every: int

    def to_dict(self) -> dict[str, Any]: ...

    def save(self, path: str | Path) -> Path: ...


def gan_digest(gan: GAN) -> str:
    return digest({f"{n}.{k}": v for n, m in gan.modules().items() for k, v in state_of(m).items()})


def samples_digest(samples: Samples) -> str:
    """Digest of the number of samples and of up to 256 of them, evenly spread."""
    index = torch.linspace(0, len(samples) - 1, min(len(samples), 256)).long()
    labels: Tensor | None = getattr(samples, "labels", None)
    labelled = {} if labels is None else {"labels": labels}
    return f"{len(samples)}:{digest({'samples': read(samples, index), **labelled})}"


def recorded(out: str | Path | None) -> dict[str, Any]:
    """Precision and threads of the run in a folder, and how many samples it makes at once (None for small samples).

    Empty without a folder, or if it holds no run that can be read.
    """
    if out is None:
        return {}
    try:
        identity = json.loads((Path(out) / "run.json").read_text(encoding="utf-8"))["identity"]
        config, at_once = identity["config"], identity.get("at_once")
        return {
            "precision": str(config["precision"]),
            "threads": int(config["threads"]),
            "at_once": None if at_once is None else int(at_once),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


class RunFolder:
    """One run, with a folder or (out None) without one; `close` it at the end.

    If several processes train (`atu.support.world`), only the first has the folder; all get what it loads.

    Args:
        identity: plain data. A run resumes from an existing folder only if its identity is the same.
        needed_bytes: disk space of a whole run.

    Raises:
        ValueError: the folder cannot be written or is in use; or it holds a run with another identity (naming what
            differs), a run of another format, or something that is not a run.
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
            # run.json first: it marks the folder as a run's if the process is killed here.
            versions = {"atu_ext": __version__, "torch": torch.__version__, "python": platform.python_version()}
            write_json(out / "run.json", {"format": FORMAT, "identity": identity, "versions": versions})
        config.save(out / "config.toml")
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(out / "tb"))

    @staticmethod
    def _prepare(out: Path, needed_bytes: int) -> None:
        check_writable(out, "out")
        # The folder may hold other files, such as a demo's report, but no config or checkpoints of something else.
        foreign = (out / "config.toml").exists() or (out / "checkpoints").exists()
        if foreign and not (out / "run.json").exists():
            raise ValueError(f"out: {out} holds something that is not a run of atu; give another folder")
        free = shutil.disk_usage(out).free
        if free < needed_bytes and not (out / "run.json").exists():  # a resumed run has most of its files
            raise ValueError(
                f"out: {out} has {free / 1e6:.0f} MB free, and this run needs about {needed_bytes / 1e6:.0f} MB"
            )

    @property
    def finished(self) -> bool:
        """True if the folder holds the run's result."""
        return self.out is not None and (self.out / "result.safetensors").exists()

    def _check_identity(self, identity: dict[str, Any]) -> None:
        assert self.out is not None
        path = self.out / "run.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            before, version = content["identity"], content["versions"]["atu_ext"]
            before["config"].update(threads=identity["config"].get("threads"))  # a resumed run may use others
            before["at_once"] = identity.get("at_once")  # likewise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"out: {path} cannot be read ({error}); give another folder") from error
        if content.get("format") != FORMAT:
            why = written_by(content.get("format"), version)
            raise ValueError(f"out: the run in {self.out} {why}; finish it with that version, or give another folder")
        differs = _differences(before, json.loads(json.dumps(identity)))
        if differs:
            # Another method has other settings: naming them adds nothing.
            shown = [line for line in differs if line.startswith("config.method ")] or differs[:4]
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
        """Forget rows of `stage` past `step`: a resumed run logs them again."""
        self.history = [row for row in self.history if row["stage"] != stage or row["step"] <= step]
        if self.out is not None:
            write_text(self.out / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self.history))

    def picture(self, name: str, images: Tensor, image_range: tuple[float, float]) -> None:
        """Write samples/NAME.png if the samples are images."""
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
        """The state that `save` wrote under a name; None if there is none.

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
        """Like `save`, but keeps the last state as NAME.previous. The rows logged so far are on disk first."""
        path = self._checkpoint(name)
        if path is None:
            return
        metrics = self.path("metrics.jsonl")
        if metrics is not None and metrics.exists():
            with open(metrics, "rb") as file:
                os.fsync(file.fileno())
        save_state(path, state, self._checkpoint(f"{name}.previous"))

    def load_latest(self, name: str) -> dict[str, Any] | None:
        """The last state that `save_latest` wrote, or the one before if that cannot be read; None if there is none.

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
                last.replace(last.with_suffix(".unreadable"))  # else the next save keeps it as the one before
            return state
        if failed:
            why = "; ".join(map(str, failed))
            raise CheckpointError(f"{why}; remove what cannot be read, and the stage begins again") from failed[0]
        return None

    def _states(self, name: str) -> list[Path]:
        """Existing files of the last state and the one before."""
        paths = (self._checkpoint(name), self._checkpoint(f"{name}.previous"))
        return [path for path in paths if path is not None and path.exists()]

    def remove(self, name: str) -> None:
        """Remove the files of `save` or `save_latest`."""
        for path in self._states(name):
            path.unlink()

    def withdraw(self) -> None:
        """Remove a run that could not start, so that another can use the folder. A resumed run stays."""
        if self.out is None or self.resumed:
            return
        if self.writer is not None:
            self.writer.close()
        shutil.rmtree(self.out / "tb", ignore_errors=True)
        for name in ("config.toml", KEPT, "run.json"):  # the last one marks the folder as a run's
            (self.out / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files and release the folder."""
        if self.writer is not None:
            self.writer.close()
        if self.out is not None:
            self._lock.release()


def _differences(a: Any, b: Any, name: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        names = sorted(a.keys() | b.keys())
        return [line for key in names for line in _differences(a.get(key), b.get(key), f"{name}.{key}".lstrip("."))]
    return [] if a == b else [f"{name} ({a} there, {b} now)"]
