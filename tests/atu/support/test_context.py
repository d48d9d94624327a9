"""What a run computes with: what is given holds inside, what is not stays, and all is as before afterwards."""

from __future__ import annotations

import pickle
import threading

import pytest
import torch

import atu
from atu.support.context import RunContext, current


def test_what_is_given_holds_inside_and_the_rest_stays():
    threads = torch.get_num_threads()
    with RunContext(batch=7) as outer:
        assert outer == current() == RunContext("float32", None, 7)
        with RunContext("bfloat16", threads + 1):
            assert current() == RunContext("bfloat16", threads + 1, 7)
            assert torch.get_num_threads() == threads + 1
        assert current() == outer and torch.get_num_threads() == threads
    assert current() == RunContext("float32")


def test_one_may_be_entered_again_and_ends_with_an_error_too():
    again = atu.RunContext(batch=3)
    with pytest.raises(KeyError), again, again:
        raise KeyError
    assert current().batch is None


def test_it_is_of_one_thread():
    seen = []
    with RunContext(batch=5):
        other = threading.Thread(target=lambda: seen.append(current().batch))
        other.start()
        other.join()
    assert seen == [None]


def test_it_can_be_sent_to_another_process():
    with RunContext("bfloat16", batch=4) as inner:
        assert pickle.loads(pickle.dumps(inner)) == inner


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (dict(precision="half"), "precision: expected one of float32, bfloat16, float16, got 'half'"),
        (dict(threads=0), "threads: expected a positive int, got 0"),
        (dict(batch=True), "batch: expected a positive int, got True"),
        (dict(batch=2.0), "batch: expected a positive int, got 2.0"),
    ],
)
def test_what_cannot_be_is_named(given, told):
    with pytest.raises(ValueError, match=told):
        RunContext(**given)
