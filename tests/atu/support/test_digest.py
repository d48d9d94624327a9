"""Hashes against hashlib's own."""

from __future__ import annotations

import hashlib

import torch

from atu.support.digest import digest, sha256, sha256_of


def test_file_and_folder(tmp_path):
    data = bytes(range(256)) * 5000  # more than a block
    (tmp_path / "b.bin").write_bytes(data)
    expected = hashlib.sha256(data).hexdigest()
    assert sha256_of(tmp_path / "b.bin") == expected
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_bytes(b"a")
    lines = f"{expected}  b.bin\n{hashlib.sha256(b'a').hexdigest()}  sub/a.txt\n"
    assert sha256_of(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()


def test_tensors_by_name_dtype_shape_and_value():
    one = {"w": torch.arange(6.0), "b": torch.zeros(2)}
    assert sha256(one) == sha256(dict(reversed(one.items())))
    assert digest(one) == sha256(one)[:16]
    others = [{**one, "w": torch.arange(6.0).reshape(2, 3)}, {**one, "w": torch.arange(6)}, {**one, "c": torch.ones(1)}]
    assert len({sha256(other) for other in [one, *others]}) == 4
