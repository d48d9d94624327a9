"""GANs of the user's own classes: what builds them, and whose weights a file holds."""

from __future__ import annotations

import argparse
import copy
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from atu.formats.own_model import OwnModel, inspect_own, load_like, load_own, read_states
from atu.formats.tensors import CheckpointError
from atu.formats.torch_file import load_torch
from atu.gan import GAN

SOURCE = """
import torch
from torch import nn


class G(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.z_dim = 5
        self.body = nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.Linear(width, 2 * 7), nn.Tanh())

    def forward(self, z):
        return self.body(z).reshape(-1, 1, 2, 7)


class D(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.first, self.last = nn.Linear(14, width), nn.Linear(width, 1)

    def forward(self, x):
        return self.last(torch.relu(self.first(x.flatten(1))))


def pair(width=3):
    return G(width), D(width)


def triple(width=3):
    return G(width), D(width), G(width)


def alone():
    return G()


def arguments(width=3):
    return dict(generator=G(width), discriminator=D(width), image_range=(0, 1))


def number():
    return 3


def broken():
    return G(-1)


def blind():
    return nn.Linear(5, 2), D()


value = 7
"""


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "own_of_test.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def pair(source):
    """(model, GAN with other weights than those that it builds)."""
    torch.manual_seed(7)
    gan = OwnModel(f"{source}:pair").build()
    gan.sample(3)
    gan.generator.body[1].running_mean.normal_()
    return OwnModel(f"{source}:pair"), gan


def same(gan, other):
    x, y = gan.sample(7, seed=2), other.sample(7, seed=2)
    return torch.equal(x, y) and torch.equal(gan.logits(x), other.logits(x))


@pytest.mark.parametrize("name", ["pair", "triple", "alone", "arguments"])
def test_what_a_function_may_return(name, source):
    gan = OwnModel(f"{source}:{name}").build()
    assert gan.sample(3).shape == (3, 1, 2, 7) and gan.latent_dim == 5
    assert (gan.generator_ema is not None) == (name == "triple") and (gan.discriminator is None) == (name == "alone")


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("number", {}, "expected a GAN, .* got int"),
        ("value", {}, "is a int, which cannot be called"),
        ("missing", {}, "has no 'missing'"),
        ("broken", {}, r"own_of_test\.py:broken raised RuntimeError"),
        ("blind", {}, "makes no GAN: latent_dim: expected the latents' length"),
        ("pair", {"height": 3}, r"unexpected keyword argument 'height'; its arguments: width \(--arg"),
    ],
)
def test_functions_that_build_no_gan(name, arguments, words, source):
    with pytest.raises(ValueError, match=words):
        OwnModel(f"{source}:{name}", arguments).build()


def write(kind, gan, folder):
    """Weights in one of the ways that people keep them; the CKPT that names them."""
    g, d = gan.generator.state_dict(), gan.discriminator.state_dict()
    file = folder / "weights.pt"
    if kind in ("two files", "roles"):
        torch.save(g, folder / "G.pth")
        save_file({name: value.contiguous() for name, value in d.items()}, folder / "D.safetensors")
        names = (f"{folder}/G.pth", f"{folder}/D.safetensors")
        return ",".join(names) if kind == "two files" else f"discriminator={names[1]},generator={names[0]}"
    content = {
        "one file": {"netG": g, "netD": d, "epoch": 3, "loss": [0.5, 0.25]},
        "parallel": {"g": {f"module.{k}": v for k, v in g.items()}, "d": {f"_orig_mod.{k}": v for k, v in d.items()}},
        "lightning": {
            "state_dict": {**{f"gen.{k}": v for k, v in g.items()}, **{f"critic.{k}": v for k, v in d.items()}},
            "global_step": 7,
        },
        "with optimisers": {"G": g, "D": d, "optG": torch.optim.Adam(gan.generator.parameters()).state_dict()},
        "without counts": {"G": {k: v for k, v in g.items() if not k.endswith("num_batches_tracked")}, "D": d},
    }
    if kind == "flat safetensors":
        file = folder / "weights.safetensors"
        flat = {**{f"generator.{k}": v for k, v in g.items()}, **{f"discriminator.{k}": v for k, v in d.items()}}
        save_file({name: value.contiguous() for name, value in flat.items()}, file)
    elif kind == "old format":
        torch.save(content["one file"], file, _use_new_zipfile_serialization=False)
    else:
        torch.save(content[kind], file)
    return str(file)


@pytest.mark.parametrize(
    "kind",
    [
        *("two files", "roles", "one file", "parallel", "lightning", "with optimisers", "without counts"),
        *("flat safetensors", "old format"),
    ],
)
def test_weights_however_they_were_kept(kind, pair, tmp_path):
    model, gan = pair
    assert not same(model.build(), gan)
    assert same(load_own(model, write(kind, gan, tmp_path)), gan)


def test_an_averaged_generator_is_known_by_its_name(pair, tmp_path):
    model, gan = pair
    average = copy.deepcopy(gan.generator)
    nn.init.normal_(average.body[0].weight)
    states = {"g": gan.generator.state_dict(), "g_ema": average.state_dict(), "d": gan.discriminator.state_dict()}
    torch.save(states, tmp_path / "x.pt")
    found = load_own(model, f"{tmp_path}/x.pt")
    assert torch.equal(found.generator_ema.body[0].weight, average.body[0].weight)
    assert torch.equal(found.generator.body[0].weight, gan.generator.body[0].weight)
    torch.save({"g_ema": states["g_ema"], "d": states["d"]}, tmp_path / "x.pt")  # the only one is the generator
    alone = load_own(model, f"{tmp_path}/x.pt")
    assert alone.generator_ema is None and torch.equal(alone.generator.body[0].weight, average.body[0].weight)
    third = tmp_path / "E.pt"
    torch.save(average.state_dict(), third)
    files = write("two files", gan, tmp_path)
    assert torch.equal(load_own(model, f"{files},{third}").generator_ema.body[0].weight, average.body[0].weight)
    kept = load_own(OwnModel(model.reference.replace("pair", "triple")), files)
    assert kept.generator_ema is None  # built, and no weights for it


def test_two_that_fit_alike_have_to_be_named(pair, tmp_path):
    model, gan = pair
    other = model.build()
    states = {"a": gan.generator.state_dict(), "b": other.generator.state_dict(), "d": gan.discriminator.state_dict()}
    path = tmp_path / "x.pt"
    torch.save(states, path)
    with pytest.raises(CheckpointError, match=r"a, b fit the generator alike; say which: generator=.*x\.pt#a"):
        load_own(model, str(path))
    assert same(load_own(model, f"generator={path}#a,discriminator={path}#d"), gan)
    with pytest.raises(CheckpointError, match=r"holds nothing named c; it holds a, b, d"):
        load_own(model, f"generator={path}#c")


def test_what_does_not_fit_is_named(pair, tmp_path, caplog):
    model, gan = pair
    state = gan.generator.state_dict()
    state["body.9.extra"] = state.pop("body.0.bias")
    state["body.0.weight"] = torch.zeros(4, 5)
    torch.save({"G": state, "D": gan.discriminator.state_dict()}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError) as error:
        load_own(model, f"{tmp_path}/x.pt")
    for words in (
        *("do not fit the generator: nearest is G", "missing body.0.bias", "unexpected body.9.extra"),
        "body.0.weight: expected shape [3, 5], got [4, 5]",
    ):
        assert words in str(error.value)
    torch.save({"G": gan.generator.state_dict(), "D": {"last.weight": torch.zeros(1, 9)}}, tmp_path / "x.pt")
    with caplog.at_level("WARNING", "atu"):
        found = load_own(model, f"{tmp_path}/x.pt")
    assert found.discriminator is None
    assert "no weights for the discriminator, which is left out: nearest is D; last.weight: expected" in caplog.text
    with pytest.raises(CheckpointError, match="do not fit the discriminator: nearest is D"):
        load_own(model, f"{tmp_path}/x.pt,{tmp_path}/x.pt")
    spoilt = copy.deepcopy(gan.generator.state_dict())
    spoilt["body.2.bias"][3] = torch.nan
    torch.save(spoilt, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"body\.2\.bias: holds values that are not finite"):
        load_own(model, f"{tmp_path}/x.pt")


@pytest.mark.parametrize("text", ["a.pt,b.pt,c.pt,d.pt", "generator=a.pt,generator=b.pt", "critic=a.pt,generator=b.pt"])
def test_roles_that_are_none(text, pair):
    with pytest.raises((ValueError, CheckpointError), match=r"expected at most 3 files|expected ROLE=FILE"):
        load_own(pair[0], text)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_in_the_weights_is_executed(pair, tmp_path, capsys):
    torch.save({"G": pair[1].generator.state_dict(), "x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"evil\.pt"):
        load_own(pair[0], f"{tmp_path}/evil.pt")
    torch.save(pair[1].generator, tmp_path / "whole.pt")  # a module, pickled with its class
    with pytest.raises(CheckpointError, match=r"whole\.pt"):
        load_own(pair[0], f"{tmp_path}/whole.pt")
    assert "executed" not in capsys.readouterr().out
    whole = (tmp_path / "evil.pt").read_bytes()
    for length in (0, 10, len(whole) // 2):
        (tmp_path / "torn.pt").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"torn\.pt"):
            load_own(pair[0], f"{tmp_path}/torn.pt")
    with pytest.raises(CheckpointError, match=r"none\.pt: no such file"):
        load_own(pair[0], "none.pt")


def schedule():
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    return torch.optim.lr_scheduler.MultiStepLR(optimiser, [30, 80, 80]).state_dict()


BESIDE = {
    "NumPy scalars": [np.float64(1.5), np.float32(0.5), np.int64(3), np.bool_(True), np.float16(2)],
    "arrays": {"2d": np.arange(6.0).reshape(2, 3), "columns": np.asfortranarray(np.eye(3)), "number": np.array(1.5)},
    "a long array": np.linspace(0, 1, 5000),
    "bytes as text of two bytes each": np.full(3000, 200, np.uint8),
    "an empty array": np.array([]),
    "NumPy's random state": np.random.RandomState(0).get_state(),
    "a dtype": np.dtype("f4"),
    "a Counter": Counter("abca"),
    "an empty Counter": Counter(),
    "lists by name": defaultdict(list, {"loss": [0.5]}),
    "numbers by name": defaultdict(float, {"loss": 0.5}),
    "Lightning's schedules": [schedule()],
    "bytes": [b"", b"abc", b"\xff" * 5000],
    "options": argparse.Namespace(lr=np.float64(0.1), steps=3),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("beside", BESIDE)
def test_what_lies_beside_the_weights_is_passed_over(beside, legacy, tmp_path):
    weights = nn.Linear(2, 3).state_dict()
    content = {"before": BESIDE[beside], "netG": weights, "after": BESIDE[beside]}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    found = read_states(tmp_path / "x.pt")
    assert found.keys() == {"netG"} and all(torch.equal(found["netG"][name], value) for name, value in weights.items())


def test_numpy_sees_nothing_of_the_file(tmp_path):
    torch.save({"x": np.arange(3, dtype="i2"), "s": np.float64(1.5), "long": np.zeros(5000)}, tmp_path / "x.pt")
    values = load_torch(tmp_path / "x.pt")
    assert not [value for value in values.values() if isinstance(value, (np.ndarray, np.generic))]


def test_arrays_of_either_numpy(tmp_path):
    """NumPy 2 renamed numpy.core."""
    content = {"netG": nn.Linear(2, 3).state_dict(), "x": [np.eye(2), np.float64(1.5)]}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "x.pt").read_bytes().replace(b"numpy._core.", b"numpy.core.")
    for core in (b"numpy.core.", b"numpy._core."):
        (tmp_path / "x.pt").write_bytes(whole.replace(b"numpy.core.", core))
        assert read_states(tmp_path / "x.pt").keys() == {"netG"}


class Claiming:
    """An array of 2 TiB, to be made before its state comes."""

    def __reduce__(self):
        return np.zeros(1).__reduce__()[0], (np.ndarray, (2**38,), b"f8")


def test_arrays_that_claim_memory_get_none(tmp_path):
    torch.save({"netG": nn.Linear(2, 3).state_dict(), "x": Claiming()}, tmp_path / "x.pt")
    assert read_states(tmp_path / "x.pt").keys() == {"netG"}


@pytest.mark.parametrize("value", [np.ma.array([1.0]), np.random.RandomState(0)])
def test_other_objects_of_numpy_are_refused(value, tmp_path):
    torch.save({"netG": nn.Linear(2, 3).state_dict(), "x": value}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"torch cannot read it: Unsupported global: GLOBAL numpy\.(ma|random)\."):
        read_states(tmp_path / "x.pt")


def test_what_torch_refuses_is_named(tmp_path):
    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    words = r"evil\.pt: torch cannot read it: Unsupported global: GLOBAL \S*print was not an allowed global by default"
    with pytest.raises(CheckpointError, match=rf"{words}\.$"):
        read_states(tmp_path / "evil.pt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_protocol_that_torch_does_not_read_is_named(tmp_path):
    torch.save({"netG": nn.Linear(2, 3).state_dict()}, tmp_path / "x.pt", pickle_protocol=4)
    with pytest.raises(CheckpointError, match=r"torch cannot read it: Unsupported operand 149$"):
        read_states(tmp_path / "x.pt")


def test_mappings_that_are_named_again_and_again(tmp_path):
    """60 entries in each of 5 levels, all the same mapping: 60^5 groups for whoever walks them."""
    nest = {"w": 1}
    for _ in range(5):
        nest = dict.fromkeys(range(60), nest)
    torch.save(nest, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="more than 2000000 entries in groups of weights"):
        read_states(tmp_path / "x.pt")


def test_what_gan_save_wrote_is_taken_whole(pair, tmp_path):
    model, gan = pair
    path = GAN(gan.generator, gan.discriminator, image_range=(0.0, 1.0)).save(tmp_path / "run.safetensors")
    found = load_own(model, str(path))
    assert same(found, gan) and found.image_range == (0.0, 1.0)
    other = model.build()
    before = other.sample(3)
    assert same(load_like(path, other), gan) and torch.equal(other.sample(3), before)
    with pytest.raises(CheckpointError, match=r"holds a discriminator of the class .*D, and the model has none"):
        load_like(path, GAN(other.generator))
    with pytest.raises(CheckpointError, match=r"generator is a .*G, which atu does not build itself.*--model FILE\.py"):
        GAN.load(path)


def test_a_flat_file_is_one_group_and_its_parts(tmp_path):
    torch.save({"a.x": torch.zeros(2), "a.y.z": torch.zeros(3), "b.x": torch.zeros(1)}, tmp_path / "x.pt")
    found = read_states(tmp_path / "x.pt")
    assert {name: sorted(state) for name, state in found.items()} == {
        "": ["a.x", "a.y.z", "b.x"],
        "a": ["x", "y.z"],
        "b": ["x"],
    }


def test_inspection_tells_what_is_missing_and_what_was_found(pair, tmp_path):
    model, gan = pair
    found = inspect_own(model, write("one file", gan, tmp_path))
    assert found["weights"]["generator"] == {"from": f"{tmp_path}/weights.pt#netG", "problems": []}
    x = gan.sample(16)
    assert found["gan"]["latent_dim"] == 5 and found["gan"]["sample_shape"] == [1, 2, 7]
    assert found["gan"]["values"] == [pytest.approx(float(x.min()), abs=1e-4), pytest.approx(float(x.max()), abs=1e-4)]
    assert found["gan"]["discriminator_output"] == "logit"
    assert found["networks"]["generator"]["parameters"] == sum(p.numel() for p in gan.generator.parameters())
    state = gan.generator.state_dict()
    state.pop("body.0.bias")
    torch.save(state, tmp_path / "G.pt")
    found = inspect_own(model, f"{tmp_path}/G.pt")
    assert found["weights"]["generator"]["problems"] == ["missing body.0.bias"]
    assert found["weights"]["discriminator"]["problems"][0].startswith("missing first.")
    assert any(note.startswith("discriminator: its weights are as built") for note in found["notes"])
    torch.save(gan.generator.state_dict(), tmp_path / "G.pt")
    found = inspect_own(model, f"{tmp_path}/G.pt")
    assert found["weights"]["discriminator"] == {"from": None, "problems": [f"{tmp_path}/G.pt holds none for it"]}
    built = inspect_own(OwnModel(model.reference.replace("pair", "alone")), None)
    assert built["weights"] == {} and any("no discriminator" in note for note in built["notes"])
