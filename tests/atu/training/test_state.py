"""Nested state and the one file format it is kept in."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atu.formats.tensors import CheckpointError, load_tensors, save_tensors
from atu.training.state import FORMAT, flatten, load_state, save_state, unflatten

KEYS = st.text(alphabet="ab01/~.", max_size=4)
TENSORS = st.sampled_from(
    [torch.arange(6.0).reshape(2, 3).t(), torch.tensor(2.5, dtype=torch.float64), torch.empty(0), torch.tensor([True])]
)
LEAVES = TENSORS | st.none() | st.booleans() | st.integers() | st.floats() | KEYS | st.lists(st.floats(), max_size=3)
STATES = st.dictionaries(KEYS, st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=3)), max_size=4)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, float) and math.isnan(a):
        return math.isnan(b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(STATES)
def test_what_is_taken_apart_is_put_together_again(state):
    """Through JSON, too; whatever the keys, also "", "/" and "~1"."""
    tensors, data = flatten(state)
    assert all(isinstance(value, torch.Tensor) for value in tensors.values())
    assert same(unflatten(tensors, json.loads(json.dumps(data))), state)


def test_a_file_holds_it(tmp_path):
    """Tied weights, a transposed view, infinity, and an optimizer's scalar steps."""
    weight = torch.arange(6.0).reshape(2, 3)
    state = {
        "a": {"w": weight, "tied": weight, "t": weight.t()},
        "step": torch.tensor(3.0),
        "lowest": math.inf,
        "n": 0.1,
    }
    path = save_state(tmp_path / "x.safetensors", state)
    assert same(load_state(path), state)
    assert sorted(load_tensors(path)[0]) == ["a/t", "a/tied", "a/w", "step"]
    weight += 1
    assert load_state(path)["a"]["w"][0, 0] == 0, "the file follows the tensor"


def test_keys_that_are_no_strings():
    with pytest.raises(TypeError, match="state: expected keys that are strings, got 3"):
        flatten({"a": {3: torch.zeros(1)}})


def test_files_that_are_no_state(tmp_path):
    path = save_state(tmp_path / "x.safetensors", {"a": torch.zeros(3), "n": 1})
    tensors, metadata = load_tensors(path)
    for change, words in (
        (dict(format="1"), f"was written by atu .* in format 1, and this is atu .*, which reads format {FORMAT}"),
        (dict(data='{"n": 2}'), "its content was changed after it was written"),
        (dict(digest="0" * 16), "its content was changed after it was written"),
    ):
        save_tensors(path, tensors, {**metadata, **change})
        with pytest.raises(CheckpointError, match=rf"x\.safetensors:? {words}"):
            load_state(path)
    save_tensors(path, tensors, {"data": metadata["data"]})
    with pytest.raises(CheckpointError, match="was written by an earlier version of atu in an unknown format"):
        load_state(path)
