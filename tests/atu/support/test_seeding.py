"""One seed, many streams: none may draw another's numbers."""

from itertools import product

import pytest
import torch

from atu.support import seeding
from atu.support.seeding import BLOCKS, Stream, fork_rng, mix_seed, stream_seed


def test_fork_rng_seeds_inside_only():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    with fork_rng(torch.device("cpu"), 7):
        a = torch.rand(2)
    assert torch.equal(a, torch.rand(2, generator=torch.Generator().manual_seed(7)))
    assert torch.equal(torch.rand(2), expected)


def test_no_two_streams_are_equal():
    """Every stream, and every index of those that have some, for neighbouring seeds and for large ones."""
    assert len(Stream.__members__) == len(Stream), "two names of one number"
    used = [(stream, index) for stream in Stream for index in range(1000 if stream in BLOCKS else 1)]
    seeds = (0, 1, 2, 3, 999, 2**31 - 1)
    assert len({stream_seed(seed, *use) for seed, use in product(seeds, used)}) == len(seeds) * len(used)


def test_numbers_are_what_they_were():
    """The same seeds give the same bits in later versions too."""
    assert mix_seed(3, 5) == 3 * 1_000_003 + 5 * 7919 + 12345
    old = dict(POOL=1, FISHER_LATENTS=2, FISHER_NOISE=3, SCORE=5, MARKS=77, REPEL=200, GUIDE=201, FINETUNE=300)
    for name, number in (old | dict(EVALUATION=999)).items():
        assert stream_seed(4, Stream[name]) == mix_seed(4, number)
    assert [stream_seed(4, Stream.ADAPT, i) for i in (0, 1, 99)] == [mix_seed(4, i) for i in (100, 101, 199)]


def test_numbers_of_two_levels_stay_apart():
    """Part of a stream (its batches, the samples that are looked through) against the streams themselves."""
    parts = range(0, 100_000, 500)
    own = {stream_seed(seed, stream) for seed in range(4) for stream in Stream}
    nested = {mix_seed(stream_seed(seed, stream), part) for seed in range(4) for stream in Stream for part in parts}
    assert len(nested) == 4 * len(Stream) * len(parts) and not own & nested


@pytest.mark.parametrize(("stream", "index"), [(Stream.POOL, 1), (Stream.ADAPT, -1), (Stream.ADAPT, 1000)])
def test_an_index_that_a_stream_does_not_have(stream, index):
    with pytest.raises(ValueError, match=f"index: expected one of stream {stream.name}, got {index}"):
        seeding.stream_seed(0, stream, index)
