"""The run folder: config, metrics, sample grids, checkpoints; and going on from where a killed run stopped.

OUT/config.toml          settings, complete
OUT/run.json             what identifies the run (seed, hashes of config, GAN and samples), versions
OUT/metrics.jsonl        one line a logged step
OUT/tb/                  the same for TensorBoard
OUT/samples/*.png        sample grids
OUT/checkpoints/         adapted generators, best generator so far, state of the running stage
OUT/result.safetensors   the unlearned GAN
"""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atu_ext import __version__

from ..config import Config
from ..data.images import grid
from ..data.samples import Samples
from ..formats.tensors import CheckpointError, load_tensors, save_tensors
from ..gan import GAN
from ..support.digest import digest
from ..support.files import write_atomic, write_json, write_text


def gan_digest(gan: GAN) -> str:
    return digest({f"{n}.{k}": v for n, m in gan.modules().items() for k, v in m.state_dict().items()})


def samples_digest(samples: Samples) -> str:
    """Of the number of samples and up to 256 of them, evenly spread."""
    index = torch.linspace(0, len(samples) - 1, min(len(samples), 256)).long()
    labels: Tensor | None = getattr(samples, "labels", None)
    known = {} if labels is None else {"labels": labels}
    return f"{len(samples)}:{digest({'samples': samples.batch(index), **known})}"


class RunFolder:
    """One run, with a folder or (out None) without.

    Args:
        identity: plain data; an existing folder is taken up again only when it agrees.

    Raises:
        ValueError: the folder cannot be written, or holds a run with another identity (naming what differs), or
            something that is no run at all.
    """

    def __init__(self, out: str | Path | None, config: Config, identity: dict[str, Any], needed_bytes: int = 0):
        self.out = None if out is None else Path(out)
        self.config = config
        self.history: list[dict[str, Any]] = []
        self.writer = None
        self.resumed = False
        if self.out is None:
            return
        self._prepare(needed_bytes)
        identity = {"config": config.to_dict(), **identity}
        if (self.out / "run.json").exists():
            self._check_identity(identity)
            self.resumed = True
            self.history = self._read_history()
        else:
            # run.json first: it is what marks the folder as a run's, should the process be killed here.
            versions = {"atu_ext": __version__, "torch": torch.__version__, "python": platform.python_version()}
            write_json(self.out / "run.json", {"identity": identity, "versions": versions})
        config.save(self.out / "config.toml")
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.out / "tb"))

    # --- the folder

    def _prepare(self, needed_bytes: int) -> None:
        assert self.out is not None
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            write_text(self.out / ".write-test", "")
            (self.out / ".write-test").unlink()
        except OSError as error:
            raise ValueError(f"out: {self.out} cannot be written ({error.strerror})") from error
        # Other files (a demo's report, say) may lie there; a config or checkpoints of something else may not.
        foreign = (self.out / "config.toml").exists() or (self.out / "checkpoints").exists()
        if foreign and not (self.out / "run.json").exists():
            raise ValueError(f"out: {self.out} holds something that is not a run of atu; give another folder")
        free = shutil.disk_usage(self.out).free
        if free < needed_bytes:
            raise ValueError(
                f"out: {self.out} has {free / 1e6:.0f} MB free, and this run needs about {needed_bytes / 1e6:.0f} MB"
            )

    def _check_identity(self, identity: dict[str, Any]) -> None:
        assert self.out is not None
        path = self.out / "run.json"
        try:
            before = json.loads(path.read_text(encoding="utf-8"))["identity"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"out: {path} cannot be read ({error}); give another folder") from error
        differs = _differences(before, json.loads(json.dumps(identity)))
        if differs:
            raise ValueError(f"out: {self.out} holds a run with another {'; '.join(differs[:4])}; give another folder")

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

    def save(self, name: str, tensors: dict[str, Tensor], data: dict[str, Any] | None = None) -> Path | None:
        """Write checkpoints/NAME.safetensors."""
        path = self.path("checkpoints", f"{name}.safetensors")
        if path is not None:
            tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
            save_tensors(path, tensors, {"data": json.dumps(data or {})})
        return path

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What `save` wrote under that name; None when there is nothing."""
        path = self.path("checkpoints", f"{name}.safetensors")
        if path is None or not path.exists():
            return None
        tensors, metadata = load_tensors(path)
        try:
            return tensors, json.loads(metadata["data"])
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{path}: its state cannot be read ({error})") from error

    def remove(self, name: str) -> None:
        path = self.path("checkpoints", f"{name}.safetensors")
        if path is not None:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def _differences(a: Any, b: Any, name: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        names = sorted(a.keys() | b.keys())
        return [line for key in names for line in _differences(a.get(key), b.get(key), f"{name}.{key}".lstrip("."))]
    return [] if a == b else [f"{name} ({a} there, {b} now)"]
