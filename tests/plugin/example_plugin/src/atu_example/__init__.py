"""One method, metric, format, oracle and network that another package adds to atu."""

from __future__ import annotations

import json
import math
import zipfile
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from atu.config import STRICT, Fraction
from atu.formats.registry import Format
from atu.formats.tensors import CheckpointError
from atu.gan import GAN
from atu.methods.registry import Method, Outcome, Plan, Stage
from atu.support.files import write_atomic

# --- a method: the generator's smallest weights become 0


@dataclass(config=STRICT)
class Prune:
    """Magnitude pruning, without training."""

    share: Annotated[Fraction, Field(description="Of the weights of each tensor that become 0.")] = 0.5


def _plan(gan, cfg):
    def check():
        if cfg.own.share == 1:
            raise ValueError("methods.prune.share: expected less than 1, which leaves nothing")

    return Plan([Stage("prune", "Pruning", check=check)])


def _prune(task):
    twin, share = task.gan.copy(), task.config.own.share
    with torch.no_grad():
        for p in twin.sampling_generator.parameters():
            n = int(share * p.numel())
            p.view(-1)[p.abs().flatten().argsort()[:n]] = 0
    return Outcome(twin, {"pruned": share, **task.feedback.notes})


PRUNE = Method(_prune, Prune, plan=_plan)


# --- a metric, an oracle


def feature_shift(before, after):
    """Mean distance between the features of one latent before and after."""
    return (before.features - after.features).norm(dim=1).mean()


def bright(arguments):
    """The oracle bright:LEVEL: samples whose mean is above LEVEL are negative."""
    level = float(arguments)
    return lambda x: x.flatten(1).mean(1) > level


# --- a network, and a format that holds a generator of it: an .npz, which is a zip as torch's files are


class Linear(nn.Module):
    """z [N, latent_dim] to samples [N, *sample_shape], by one matrix."""

    def __init__(self, latent_dim, sample_shape):
        super().__init__()
        self.init_kwargs = dict(latent_dim=latent_dim, sample_shape=list(sample_shape))
        self.latent_dim, self.sample_shape = latent_dim, tuple(sample_shape)
        self.map = nn.Linear(latent_dim, math.prod(sample_shape))

    def forward(self, z):
        return self.map(z).reshape(-1, *self.sample_shape)


def _sniff(path, start):
    if not start.startswith(b"PK") or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return "atu-example.npy" in archive.namelist()


def _load(path):
    with np.load(path, allow_pickle=False) as arrays:
        kwargs = json.loads(str(arrays["atu-example"]))
        state = {name: torch.from_numpy(arrays[name]) for name in ("map.weight", "map.bias")}
    generator = Linear(**kwargs)
    generator.load_state_dict(state)
    return GAN(generator)


def _export(gan, path):
    if not isinstance(gan.sampling_generator, Linear):
        raise CheckpointError(f"npz: expected a Linear generator, got {type(gan.sampling_generator).__name__}")
    arrays = {name: t.cpu().numpy() for name, t in gan.sampling_generator.state_dict().items()}
    arrays["atu-example"] = np.array(json.dumps(gan.sampling_generator.init_kwargs))
    return write_atomic(path, lambda temporary: np.savez(temporary, **arrays))


NPZ = Format(_sniff, _load, _export, suffixes=(".npz",))
