"""Outputs of the published networks' own code, computed once elsewhere, against ours on the same weights and inputs.

reference_values.json holds figures only: sixteen values of each output, its mean and its root mean square (see
`deterministic.probe`), for the configurations of cases.py with weights and inputs by formula.
"""

import json
from pathlib import Path

import cases
import pytest
import torch
from deterministic import fill, numbers, probe

from atu.networks import stylegan2, stylegan3

EXPECTED = json.loads(Path(__file__).with_name("reference_values.json").read_text())
BATCH = 4
TOLERANCE = 1e-4  # the bound in float32; what was seen is below 2e-6 times the image's largest value


def labels(c_dim):
    return torch.eye(c_dim)[torch.arange(BATCH) % c_dim] if c_dim else None


def close(output, name):
    assert probe(output) == pytest.approx(EXPECTED[name], abs=TOLERANCE)


def head(options):
    rest = dict(options)
    return {key: rest.pop(key) for key in ("c_dim", "img_resolution", "img_channels")}, rest


@pytest.mark.parametrize("name", cases.G2)
@pytest.mark.parametrize("forward", cases.FORWARDS)
def test_stylegan2_generator(name, forward):
    sizes, rest = head(cases.G2[name])
    network = fill(
        stylegan2.Generator(**cases.SIZES, **sizes, mapping_kwargs=cases.MAPPING[name], synthesis_kwargs=rest)
    )
    image = network(numbers("z", (BATCH, 16)), labels(sizes["c_dim"]), **cases.FORWARDS[forward])
    close(image, f"G2/{name}/{forward}")


@pytest.mark.parametrize("name", cases.D)
def test_stylegan2_discriminator(name):
    sizes, rest = head(cases.D[name])
    network = fill(stylegan2.Discriminator(**sizes, **rest))
    x = numbers("x", (BATCH, sizes["img_channels"], sizes["img_resolution"], sizes["img_resolution"]))
    close(network(x, labels(sizes["c_dim"])), f"D/{name}")


@pytest.mark.parametrize("name", cases.G3)
@pytest.mark.parametrize("forward", cases.FORWARDS)
def test_stylegan3_generator(name, forward):
    sizes, rest = head(cases.G3[name])
    network = fill(stylegan3.Generator(**cases.SIZES, **sizes, **rest))
    image = network(numbers("z", (BATCH, 16)), labels(sizes["c_dim"]), **cases.FORWARDS[forward])
    close(image, f"G3/{name}/{forward}")
