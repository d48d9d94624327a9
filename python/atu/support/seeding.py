"""Seeds, and random state left as it was found.

Everything random in a run follows from its one seed, through a stream for each use: no two uses draw the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import torch


class Stream(IntEnum):
    """What a seed is used for. A new use takes a new number; `BLOCKS` says which of them count on."""

    POOL = 1  # latents of the pool that positives are filtered from
    FISHER_LATENTS = 2
    FISHER_NOISE = 3
    ADAPT_PICTURE = 4
    SCORE = 5  # latents that choose the checkpoint
    LABELS_FILLED = 6
    MARKS = 77  # samples that are looked through for negatives
    ADAPT = 100  # + the index of the adapted generator
    REPEL = 200
    GUIDE = 201
    NEARBY = 202
    FINETUNE = 300
    REINITIALISED_LAYERS = 301
    REINITIALISED_NETWORKS = 302
    L1_WEIGHT = 303
    ATTACKS = 888
    ATTACK_LATENTS = 889
    ATTACK_CLOUD = 890  # latents that say how far from their mean w lies
    ATTACK_NOISE = 891
    ATTACK_RATE = 892  # latents that say how often a negative comes
    RELEARN = 893
    ATTACK_PROBE = 894  # samples that a rule's probe is fitted on, so that there is a gradient to climb
    AUDIT_GOOD = 895  # good samples that a generator is trained on with
    RESIDUE = 896  # latents that the inner maps are probed on
    KEPT_REFERENCE = 996  # latents of the good samples that what is kept is compared with
    EVALUATION_PROBE = 997  # pool of the probe that judges where there is no classifier
    PARAMETER_PATH = 998
    EVALUATION = 999  # latents that the outcome is measured on


BLOCKS = {Stream.ADAPT: Stream.REPEL - Stream.ADAPT}  # streams with an index, and how many numbers are theirs
_BEYOND = 1000  # indexes past a stream's block count on from here, in steps of this


def mix_seed(seed: int, index: int) -> int:
    """A seed for part `index` of a run seeded with `seed`: different for all indexes below a million."""
    return (seed * 1_000_003 + index * 7919 + 12345) % 2**63


def stream_seed(seed: int, stream: Stream, index: int = 0) -> int:
    """The seed of a stream of a run seeded with `seed`; index: which of several, for the streams in `BLOCKS`.

    Raises:
        ValueError: an index that the stream does not have.
    """
    block = BLOCKS.get(stream, 1)
    if index < 0 or (index > 0 and stream not in BLOCKS) or index >= _BEYOND:
        raise ValueError(f"index: expected one of stream {stream.name}, got {index}")
    return mix_seed(seed, stream + index if index < block else _BEYOND * stream + index)


@contextmanager
def fork_rng(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Leave the CPU's (and the device's) random state as it was found; `seed` both inside."""
    cuda = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        if seed is not None:  # not torch.manual_seed: it would seed every other device for good
            torch.default_generator.manual_seed(seed)
            for index in cuda:
                torch.cuda.default_generators[index].manual_seed(seed)
        yield
