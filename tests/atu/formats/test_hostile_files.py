"""Hostile and damaged files: each is refused with a CheckpointError that says why, and nothing of it runs."""

import io
import json
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict

import nvidia_format as nf
import pytest
import test_rosinality
import torch

from atu.formats.inspect import inspect_checkpoint
from atu.formats.nvidia_pickle import MAX_MODULES, plain
from atu.formats.pickle_machine import MAX_OPCODES, Budget, PickleMachine
from atu.formats.stored_tensors import tensor_handlers
from atu.formats.tensors import CheckpointError
from atu.formats.torch_file import LEGACY_START
from atu.gan import GAN


def refused(tmp_path, data, message):
    path = tmp_path / "hostile.bin"
    path.write_bytes(data)
    for read in (GAN.load, inspect_checkpoint):
        with pytest.raises(CheckpointError, match=message) as error:
            read(path)
        assert str(path) in str(error.value)


def call(module, name, argument="'x'"):
    """A protocol-4 pickle that calls module.name(argument)."""

    def text(s):
        return b"\x8c" + bytes([len(s)]) + s.encode()

    return b"\x80\x04" + text(module) + text(name) + b"\x93" + text(argument) + b"\x85R."


CALLS = [
    ("os", "system"),
    ("posix", "system"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "getattr"),
    ("builtins", "__import__"),
    ("subprocess", "Popen"),
    ("numpy", "load"),
    ("numpy", "fromfile"),
    ("torch", "load"),
    ("torch.hub", "load"),
    ("torch.serialization", "load"),
    ("torch.utils.cpp_extension", "load"),
    ("runpy", "run_path"),
    ("importlib", "import_module"),
    ("pickle", "loads"),
    ("shutil", "rmtree"),
    ("webbrowser", "open"),
    ("socket", "socket"),
    ("operator", "attrgetter"),
    ("collections", "OrderedDict.__class__"),
    ("torch", "Tensor"),
    ("dnnlib.util", "open_url"),
    ("torch_utils.persistence", "import_hook"),
]


@pytest.mark.parametrize(("module", "name"), CALLS)
def test_global_outside_the_list(tmp_path, module, name):
    refused(tmp_path, call(module, name), f"{module}.{name}, which is not on the list")


@pytest.mark.parametrize(("module", "name"), CALLS[:6])
def test_global_outside_the_list_in_pt(tmp_path, module, name):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", f"\x80\x02c{module}\n{name}\n(S'x'\ntR.".encode("latin-1"))
        archive.writestr("archive/version", "3\n")
    refused(tmp_path, buffer.getvalue(), f"torch cannot read it: .*{name}")


def test_nothing_ran_and_nothing_was_imported(tmp_path):
    marker = tmp_path / "marker"
    before = set(sys.modules)

    class Attack:
        def __reduce__(self):
            return exec, (f"open({str(marker)!r}, 'w')",)

    refused(tmp_path, pickle.dumps(Attack()), "builtins.exec")
    refused(tmp_path, call("antigravity", "x"), "antigravity")
    assert not marker.exists()
    assert "antigravity" not in sys.modules and not {m for m in set(sys.modules) - before if "antigravity" in m}


def hostile_source(tmp_path):
    marker = tmp_path / "marker"
    data = nf.dumps(nf.snapshot(*nf.small_pair()))
    line = f"open({str(marker)!r}, 'w')\n".encode()
    return marker, data.replace(nf.SOURCE.encode(), line.ljust(len(nf.SOURCE), b"#"))


def test_embedded_source_never_runs(tmp_path):
    marker, data = hostile_source(tmp_path)
    path = tmp_path / "a.pkl"
    path.write_bytes(data)
    gan = GAN.load(path)
    gan.save(tmp_path / "b.pkl")
    inspect_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"hello world, this is not a pickle", "begins with"),
        (b"<html>404</html>", "HTML"),
        (b"\x80\x04", "truncated"),
        (b"\x80\xc8N.", "protocol 200"),
        (b"\x80\x01N.", "protocol 1"),
        (b"\x80\x04N.", "NoneType"),
        (b"\x80\x04(" + b"K\x01", "truncated"),
        (b"\x80\x04]h\x05.", "memo entry 5"),
        (b"\x80\x04R.", "stack is empty"),
        (b"\x80\x04K\x01K\x02R.", "not an admitted global"),
        (b"\x80\x04}]K\x01s.", "dictionary key of type list"),
        (b"\x80\x04\x8b" + struct.pack("<i", -5) + b".", "integer of -5 bytes"),
        (b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b".", "integer of 2147483647 bytes"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc", "truncated: 1099511627776 bytes are claimed"),
        (b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"abc", "truncated"),
        (b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b"N.", "truncated: a frame"),
        (b"\x80\x04N\x82\x01.", "opcode"),
        (b"\x80\x02cos\nsystem\n.", "os.system"),
        (b"\x80\x02(cos\nsystem\no.", "os.system"),
        (b"\x80\x02(S'ls'\nios\nsystem\n.", "opcode"),
        (b"\x80\x04Nr\xff\xff\xff\xff.", "NoneType"),  # a memo index that an array would pay 32 GiB for
    ],
)
def test_damaged_pickles(tmp_path, data, message):
    refused(tmp_path, data, message)


def test_truncated_anywhere(tmp_path):
    data = nf.dumps(nf.snapshot(*nf.small_pair()))
    path = tmp_path / "cut.pkl"
    for cut in [1, 2, 10, 100, 1000, len(data) // 2, len(data) - 1]:
        path.write_bytes(data[:cut])
        with pytest.raises(CheckpointError):
            GAN.load(path)


def test_billion_laughs(tmp_path):
    nest = b"\x80\x04]\x94" + b"".join(b"(" + b"h\x00" * 10 + b"l\x94h" + bytes([i]) + b"2\x86" for i in range(200))
    refused(tmp_path, nest + b".", "expected networks|memo|malformed|holds|opcode")
    doubling = b"\x80\x04)" + b"2\x86" * 60 + b"}2K\x01s."  # 2^60 leaves if anyone walked it
    refused(tmp_path, doubling, "holds|expected|keys|dict|malformed")
    key = b"\x80\x04}" + b")" + b"2\x86" * 60 + b"K\x01s."  # hashing it would take 2^60 steps
    refused(tmp_path, key, "dictionary key of type tuple")


def test_keys_of_one_hash(tmp_path):
    """Multiples of 2^61 - 1: a dictionary of 20,000 would take seconds, of 100,000 minutes."""
    keys = b"".join(b"\x8a\x0a" + (k * (2**61 - 1)).to_bytes(10, "little") + b"N" for k in range(1, 20_000))
    refused(tmp_path, b"\x80\x04}(" + keys + b"u.", "a dictionary key of 61 bits")


def test_recursive_structures(tmp_path):
    refused(tmp_path, b"\x80\x04]\x94h\x00a.", "a pickle of list")
    loop = b"\x80\x04}\x94\x8c\x01Gh\x00s."
    refused(tmp_path, loop, "without networks")


def test_opcode_budget(tmp_path):
    refused(tmp_path, b"\x80\x04" + b"N0" * (MAX_OPCODES // 2 + 5) + b".", f"more than {MAX_OPCODES}")


def test_repeated_copies_are_charged(tmp_path):
    """A list of 100,000 numbers, copied again and again by a call that is admitted."""
    big = b"\x80\x04](" + b"K\x01" * 100_000 + b"e\x94"
    step = b"\x8c\x08builtins\x8c\x03set\x93h\x00\x85R0"
    refused(tmp_path, big + step * 1000 + b"N.", f"more than {MAX_OPCODES}")


def named(module, name):
    """Opcodes that push a global."""
    return b"".join(b"\x8c" + bytes([len(s)]) + s.encode() for s in (module, name)) + b"\x93"


def mapping(**entries):
    """Opcodes that push a mapping of such opcodes."""
    pairs = (b"\x8c" + bytes([len(key)]) + key.encode() + value + b"s" for key, value in entries.items())
    return b"}" + b"".join(pairs)


def stored(**attributes):
    """Opcodes that push a pickled module."""
    meta = mapping(type=b"\x8c\x05class", class_name=b"\x8c\x01X", state=mapping(**attributes))
    return named("torch_utils.persistence", "_reconstruct_persistent_obj") + meta + b"\x85R"


NEST = b")" + b"2\x86" * 18  # 2^18 leaves as text, of one tuple named twice on each level


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (NEST + b"N\x93.", r"asks for tuple\.None"),
        (NEST + b")K\x01\x92.", "keyword arguments for tuple"),
        (named("numpy", "dtype") + b"\x8c\x02f8\x85R" + NEST + b"b.", "dtype with state tuple"),
        (named("numpy", "dtype") + NEST + b"\x85R.", "dtype 'tuple'"),
        (named("_codecs", "encode") + b"\x8c\x01x" + NEST + b"\x86R.", "encoding tuple"),
        (named("_codecs", "encode") + b"\x8c\x01x\x8c\x08punycode\x86R.", "encoding punycode; expected latin1"),
    ],
)
def test_nests_are_never_written_out(tmp_path, data, message):
    refused(tmp_path, b"\x80\x04" + data, message)


def test_a_device_of_a_nest_is_no_text_of_it():
    data = b"\x80\x04" + named("torch", "device") + NEST + b"\x85R."
    assert PickleMachine(io.BytesIO(data), len(data), tensor_handlers(Budget())).run() == "tuple"


def test_options_are_shown_in_part():
    """60 lists in each of 4 levels, all the same list: 60^4 numbers for whoever shows them all."""
    nest = [1]
    for _ in range(4):
        nest = [nest] * 60
    assert len(json.dumps(plain({"a": nest, "b": nest}))) < 500_000
    assert plain({"a": [1, "x", None, (2.5,)]}) == {"a": [1, "x", None, [2.5]]}


def test_copies_of_an_array_are_charged(tmp_path):
    """Five bytes of the file would be 4096 numbers in memory, again and again."""
    one = named("numpy.core.numeric", "_frombuffer") + b"\x94B" + struct.pack("<I", 4096) + b"\x01" * 4096
    one += named("numpy", "dtype") + b"\x8c\x02u1\x85R\x86\x94"
    refused(tmp_path, b"\x80\x04" + one + b"](" + b"h\x00h\x01R" * 600 + b"e.", f"more than {MAX_OPCODES}")
    state = b"(K\x01)" + named("numpy", "dtype") + b"\x8c\x02u1\x85R\x89" + b"B" + struct.pack("<I", 4096)
    array = named("numpy.core.multiarray", "_reconstruct") + b"\x94" + state + b"\x01" * 4096 + b"t\x94"
    refused(tmp_path, b"\x80\x04" + array + b"](" + b"h\x00)Rh\x01b" * 600 + b"e.", f"more than {MAX_OPCODES}")


def text(s):
    return b"X" + struct.pack("<I", len(s)) + s.encode()


def legacy(before=b"", count=0):
    """A storage in torch's older format, with opcodes before its fourth pickle."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K" + bytes([count])
    keys = b"]" + text("0") + b"a."
    return LEGACY_START + b"M\xe9\x03." + mapping(little_endian=b"\x88") + b"." + before + storage + b"tQ." + keys


def located(data, times):
    bytes_ = b"\x94B" + struct.pack("<I", len(data)) + data + b"\x85\x94"
    step = b"h\x00h\x01R0"
    return b"\x80\x04" + named("torch.storage", "_load_from_bytes") + bytes_ + step * times + b"]."


def test_all_pickles_of_a_file_share_a_budget(tmp_path):
    """A storage inside a pickle is five pickles more, and may be named again and again."""
    whole = legacy() + struct.pack("<q", 0)
    refused(tmp_path, located(whole, 50), "a pickle of list")
    refused(tmp_path, located(whole, 16_000), f"more than {MAX_OPCODES}")
    refused(tmp_path, located(legacy(b"N0" * 20_000) + struct.pack("<q", 0), 60), f"more than {MAX_OPCODES}")


def test_modules_named_again_and_again(tmp_path):
    """Two names for the same module on each of 15 levels: 2^15 modules for whoever walks them."""
    data = b"\x80\x04" + stored() + b"\x94"
    for level in range(15):
        data += stored(_modules=mapping(a=b"h" + bytes([level]), b=b"h" + bytes([level]))) + b"\x94"
    synthesis = stored(_modules=mapping(input=b"h\x00", x=b"h\x0f"))
    network = stored(_modules=mapping(mapping=b"h\x00", synthesis=synthesis))
    refused(tmp_path, data + mapping(G=network) + b".", f"more than {MAX_MODULES} modules")


def test_entries_that_are_no_tensors_are_charged(tmp_path):
    """One module of 10,000 such entries, named 300 times."""
    data = b"\x80\x04" + stored(_parameters=b"}(" + numbered(10_000) + b"u") + b"\x94"
    synthesis = stored(_modules=mapping(input=b"h\x00", **{f"x{i}": b"h\x00" for i in range(300)}))
    network = stored(_modules=mapping(mapping=b"h\x00", synthesis=synthesis))
    refused(tmp_path, data + mapping(G=network) + b".", f"more than {MAX_MODULES} modules")


def numbered(count):
    return b"".join(b"M" + struct.pack("<H", i) + b"N" for i in range(count))


def stylegan2_of(options):
    """A snapshot whose G has the parts of a StyleGAN2 generator and such options."""
    b4 = stored(_modules=mapping(conv1=stored()))
    parts = mapping(mapping=stored(), synthesis=stored(_modules=mapping(b4=b4)))
    return b"\x80\x04" + mapping(G=stored(_init_kwargs=options, _modules=parts)) + b"."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (mapping(synthesis_kwargs=b"K\x03"), "synthesis_kwargs: expected a mapping, got int"),
        (mapping(mapping_kwargs=mapping(num_layers=b"}\x94" + b"\x8c\x01ah\x00s")), r"num_layers\.a\.a: .* 3 deep"),
        (mapping(mapping_kwargs=mapping(num_layers=b"(" + numbered(65) + b"d")), "at most 64 options.* got 65"),
    ],
)
def test_options_of_another_kind(tmp_path, options, message):
    path = tmp_path / "x.pkl"
    path.write_bytes(stylegan2_of(options))
    inspect_checkpoint(path)
    with pytest.raises(CheckpointError, match=message):
        GAN.load(path)


def tensor_pickle(**changes):
    """A snapshot whose first tensor has other numbers."""

    class Forged:
        def __reduce__(self):
            arguments = {"offset": 0, "size": (2, 3), "stride": (3, 1), **changes}
            return torch._utils._rebuild_tensor_v2, (
                torch.arange(6.0)._typed_storage(),
                arguments["offset"],
                arguments["size"],
                arguments["stride"],
                False,
                {},
            )

    return nf.dumps({"G": Forged()})


@pytest.mark.parametrize(
    "changes",
    [
        dict(size=(2, 4)),
        dict(offset=1),
        dict(stride=(300, 1)),
        dict(size=(2**38,), stride=(0,)),
        dict(size=(2**20, 2**20), stride=(0, 0)),
        dict(size=(2, 3), stride=(-3, 1)),
        dict(offset=-1),
        dict(size=(2.0, 3), stride=(3, 1)),
        dict(size=(1,) * 40, stride=(1,) * 40),
        dict(size=(2, 3), stride=(1,)),
    ],
)
def test_tensors_outside_their_storage(tmp_path, changes):
    refused(tmp_path, tensor_pickle(**changes), "a tensor")


def test_storage_that_claims_more_than_it_has(tmp_path):
    data = nf.dumps({"G": torch.arange(6.0)})
    claimed = data.replace(b"K\x06Ntq\x04Q", b"K\x60Ntq\x04Q")
    assert claimed != data
    refused(tmp_path, claimed, "claims 96 elements")


def pt(content, legacy=False):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def rezip(data, compression=zipfile.ZIP_STORED, change=None):
    source, buffer = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for record in source.infolist():
            content = source.read(record)
            archive.writestr(record.filename, content if change is None else change(record.filename, content))
    return buffer.getvalue()


def test_zip_bombs(tmp_path):
    good = pt({"g": {"input.input": torch.zeros(64, 1024)}})
    refused(tmp_path, rezip(good, zipfile.ZIP_DEFLATED), "claim more bytes than the file|compressed")
    short = rezip(good, change=lambda name, data: data[:16] if "/data/" in name else data)
    refused(tmp_path, short, "torch cannot read it: .*storage")
    refused(tmp_path, good[: len(good) // 2], "truncated or damaged")
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme.txt", "x")
    refused(tmp_path, other.getvalue(), "readme.txt|not a StyleGAN2")


@pytest.mark.parametrize("zipped", [False, True])
def test_zero_strides_in_a_pt(tmp_path, zipped):
    refused(tmp_path, pt({"g": {"input.input": torch.zeros(1).expand(2**38)}}, not zipped), "does not fit its storage")


def test_attributes_that_stand_before_methods(tmp_path):
    top = OrderedDict(g=test_rosinality.state("g"))
    top.get = 1
    refused(tmp_path, pt(top), "cannot be read")


def test_tensors_that_a_file_made_odd(tmp_path):
    """By attributes that stand before their methods, and by the negative bit."""
    state = test_rosinality.state("g")
    top = {"g": dict(state)}
    for name in [name for name in state if name.endswith("bias")]:
        weight = torch.nn.Parameter(torch._neg_view(-state[name]))
        weight.clone = weight.numel = weight.isfinite = None
        top["g"][name] = weight
    (tmp_path / "plain.pt").write_bytes(pt({"g": state}))
    (tmp_path / "odd.pt").write_bytes(pt(top))
    plain, odd = (GAN.load(tmp_path / f"{name}.pt") for name in ("plain", "odd"))
    assert torch.equal(plain.sample(2), odd.sample(2))
    odd.save(tmp_path / "again.safetensors")
    assert torch.equal(plain.sample(2), GAN.load(tmp_path / "again.safetensors").sample(2))


@pytest.mark.parametrize("kind", [torch.int32, torch.bool, torch.uint8])
def test_weights_that_are_no_floats(tmp_path, kind):
    state = test_rosinality.state("g")
    name = next(name for name in state if name.endswith("conv.weight"))
    (tmp_path / "x.pt").write_bytes(pt({"g": {**state, name: state[name].to(kind)}}))
    with pytest.raises(CheckpointError, match="expected floats, got"):
        GAN.load(tmp_path / "x.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_average_that_is_not_finite(tmp_path, value):
    state = test_rosinality.state("g")
    width = state["style.1.weight"].shape[0]
    (tmp_path / "x.pt").write_bytes(pt({"g": state, "latent_avg": torch.full((width,), value)}))
    with pytest.raises(CheckpointError, match="latent_avg: holds values"):
        GAN.load(tmp_path / "x.pt")


def test_unknown_pt_lists_its_content(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(pt({"model": {"fc.weight": torch.zeros(2)}, "epoch": 3}))
    with pytest.raises(CheckpointError, match=r"model: 1 entries \(fc.weight"):
        GAN.load(path)


def test_pt_with_objects(tmp_path):
    for legacy in (False, True):
        path = tmp_path / "x.pt"
        path.write_bytes(pt({"g": torch.nn.Linear(2, 2)}, legacy))
        with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear"):
            GAN.load(path)
