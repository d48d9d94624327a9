"""The marked samples as files: unwanted/ and good/ (PNG, full size), labels.json, latents.safetensors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..data.images import image_grid
from ..judging.places import generator_digest
from ..support.digest import sha256_of
from ..support.files import write_atomic, write_json
from .pool import Pool
from .session import FOLDERS, PICTURE, UNSURE, Session

LABELS = {**FOLDERS, UNSURE: "unsure"}


def file_name(number: int, index: int) -> str:
    """Of sample `index` of round `number`."""
    return f"r{number}-{index:07d}.png"


class Output:
    """Brings the files of a folder to where its marks are. hashes: SHA-256 of each file, by its path."""

    def __init__(self, session: Session):
        self.session = session
        self.hashes: dict[Path, str] = {}
        self.generators: dict[int, str] = {}  # digest of the weights that a round's samples are made with
        for name in FOLDERS.values():
            (session.folder / name).mkdir(exist_ok=True)

    def write(self, pools: Mapping[int, Pool], stop: Callable[[], bool] = lambda: False) -> bool:
        """Write what is missing, remove what is no longer marked; then labels.json, and the latents beside it.

        pools: of the rounds, counted from 1. stop: asked between blocks; whether to leave the rest for later.

        Returns:
            Whether all is written.
        """
        wanted = {
            (number, index): self.session.folder / folder / file_name(number, index)
            for number, found in enumerate(self.session.rounds, 1)
            for code, folder in FOLDERS.items()
            for index in found.indices(code)
        }
        self._remove_others(set(wanted.values()))
        blocks: dict[tuple[int, int], list[int]] = defaultdict(list)
        for (number, index), path in wanted.items():
            if path.is_symlink() or not path.exists():  # a link is replaced, what it leads to is left alone
                blocks[number, index // self.session.block].append(index)
        for (number, block), indices in blocks.items():
            if stop():
                return False
            images, pool = pools[number].images(block), pools[number]
            for index in indices:
                self._save(images[index % pool.block], pool.gan.image_range, wanted[number, index])
        self._write_labels(wanted, pools)
        return True

    def _remove_others(self, wanted: set[Path]) -> None:
        for folder in FOLDERS.values():
            for path in (self.session.folder / folder).iterdir():
                if PICTURE.fullmatch(path.name) and path not in wanted:
                    path.unlink()
                    self.hashes.pop(path, None)

    @staticmethod
    def _save(image: Tensor, image_range: tuple[float, float], path: Path) -> None:
        picture = image_grid(image[None].cpu(), image_range, 1, gap=0)
        write_atomic(path, lambda temporary: picture.save(temporary, "PNG"))

    def _write_labels(self, wanted: Mapping[tuple[int, int], Path], pools: Mapping[int, Pool]) -> None:
        session, samples, latents = self.session, [], []
        labels: dict[int, Tensor | None] = {}  # by seed; the same for every round: only the weights differ
        for number, found in enumerate(session.rounds, 1):
            for code, label in LABELS.items():
                for index in found.indices(code):
                    seed, row = pools[number].seed_of(index)
                    sample = dict(round=number, index=index, label=label, seed=seed, row=row, time=found.times[index])
                    if pools[number].gan.c_dim:
                        if seed not in labels:
                            labels[seed] = pools[number].gan.inputs(session.block, seed)[1]
                        drawn = labels[seed]
                        assert drawn is not None
                        sample["class"] = int(drawn[row].argmax())
                    path = wanted.get((number, index))
                    if path is not None:
                        sample.update(file=f"{path.parent.name}/{path.name}", sha256=self._hash(path))
                    samples.append(sample)
                    latents.append((number, index))
        rounds = [
            dict(
                ckpt=found.ckpt,
                gan=found.gan,
                generator=self._generator(number, pools),
                random_sample=session.verdict(found),
            )
            for number, found in enumerate(session.rounds, 1)
        ]
        how = "sample = GAN.sample(block, seed, batch_size=block)[row]; latents.safetensors holds its latent"
        data: dict[str, Any] = dict(format=1, seed=session.seed, block=session.block, how=how, rounds=rounds)
        write_json(session.folder / "labels.json", {**data, "samples": samples})
        if latents:
            self._write_latents(latents, pools)

    def _generator(self, number: int, pools: Mapping[int, Pool]) -> str:
        if number not in self.generators:
            self.generators[number] = generator_digest(pools[number].gan)
        return self.generators[number]

    def _hash(self, path: Path) -> str:
        if path not in self.hashes:
            self.hashes[path] = sha256_of(path)
        return self.hashes[path]

    def _write_latents(self, samples: list[tuple[int, int]], pools: Mapping[int, Pool]) -> None:
        """z [n, latent_dim] (and labels c [n, c_dim]) of the samples, in the order of labels.json."""
        made: dict[int, tuple[Tensor, Tensor | None]] = {}
        z, c = [], []
        for number, index in samples:
            pool = pools[number]
            seed, row = pool.seed_of(index)
            if seed not in made:  # the same for every round: only the weights differ
                made[seed] = pool.gan.inputs(pool.block, seed)
            latent, label = made[seed]
            z.append(latent[row].cpu())
            if label is not None:
                c.append(label[row].cpu())
        tensors = {"z": torch.stack(z), **({"c": torch.stack(c)} if c else {})}
        write_atomic(self.session.folder / "latents.safetensors", lambda path: save_file(tensors, path))
