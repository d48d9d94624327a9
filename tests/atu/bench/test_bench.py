"""The suite runs, says what it says, and what it found good stays so: by counts of bytes and copies, not by times."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys

import click
import pytest
import torch

from atu.bench import growth, limits, measure, output
from atu.bench.case import Traffic, cases_of
from atu.bench.cli import bench
from atu.bench.micro import OPS, bias_act, cases, modulated_conv2d, param_penalty, upfirdn2d
from atu.bench.ops import _checked, _tensors, disagreement
from atu_ext import _native

pytestmark = pytest.mark.skipif(_native._C is None, reason=str(_native.error))


def run(*arguments: str) -> int:
    """Exit code of `atu bench ARGUMENTS`."""
    return bench.main(list(arguments), standalone_mode=False) or 0


def test_ops_writes_and_compares(tmp_path, capsys):
    first, picture = tmp_path / "first.json", tmp_path / "ops.png"
    options = ("--op", "upfirdn2d", "--quick", "--no-growth", "--threads", str(torch.get_num_threads()))
    assert run(*options, "--save", str(first), "--plot", str(picture)) == 0
    found = json.loads(first.read_text())
    assert found["limits"].keys() == {"copy", "read", "matmul", "conv"}
    assert all(rate > 0 for rate in found["limits"].values())
    assert found["limits_of"].keys() == {"float32", "bfloat16"} and found["limits_of"]["float32"] == found["limits"]
    low = [row for row in found["rows"] if row["dtype"] == "bfloat16"]
    assert len(low) == len(found["rows"]) // 2 and all(row["name"].endswith(" bfloat16") for row in low)
    for row in low:
        (wide,) = [
            r for r in found["rows"] if (f"{r['name']} bfloat16", r["direction"]) == (row["name"], row["direction"])
        ]
        assert row["bytes"] == wide["bytes"] // 2
        ratio = wide["times"]["ours"]["median"] / row["times"]["ours"]["median"]
        assert row["speedup"]["float32"] == pytest.approx(ratio)
    for row in found["rows"]:
        assert row["times"].keys() == {"ours", "reference"}
        assert row["of_limit"] == pytest.approx(row["times"]["ours"]["median"] / row["limit"])
        assert row["times"]["ours"]["peak_bytes"] > 0
    told = capsys.readouterr().out
    assert all(row["name"] in told for row in found["rows"])
    assert picture.stat().st_size > 1000


def test_compare_points_out_what_got_slower():
    def result(of_limit: float, fastest: float = 1.0) -> dict:
        times = dict(ours=dict(median=of_limit, fastest=fastest * of_limit))
        return dict(what="ops", rows=[dict(name="a", direction="forward", of_limit=of_limit, times=times)])

    assert output.compare(result(1.0), result(1.2)) == []
    assert output.compare(result(1.0), result(1.3)) == ["a forward"]
    assert output.compare(result(1.0, 0.9), result(1.5, 0.6)) == []  # the fastest turn is as fast as before
    with pytest.raises(ValueError, match="--compare"):
        output.compare(dict(result(1.0), what="job"), result(1.0))
    with pytest.raises(ValueError, match="--compare: one of the two results is of --quick"):
        output.compare(dict(result(1.0), quick=True), result(1.0))


def test_compare_judges_a_step_by_the_reference():
    def result(ours: float, reference: float) -> dict:
        times = {k: dict(median=t, fastest=t) for k, t in (("ours", ours), ("reference", reference))}
        return dict(what="step", rows=[dict(name="stage 2: step", times=times)])

    assert output.compare(result(1.0, 2.0), result(3.0, 6.0)) == []
    assert output.compare(result(1.0, 2.0), result(1.3, 2.0)) == ["stage 2: step"]


def test_quick_never_judges(tmp_path, capsys):
    """Its times mean nothing: the comparison is shown, and the exit code is 0 even against what no machine reaches."""
    first = tmp_path / "first.json"
    options = ("--op", "bias_act", "--quick", "--no-growth", "--dtype", "float32")
    assert run(*options, "--save", str(first)) == 0
    found = json.loads(first.read_text())
    for row in found["rows"]:
        row["of_limit"] /= 1000
    first.write_text(json.dumps(found))
    assert run(*options, "--compare", str(first)) == 0
    assert "slower" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("upfirdn2d", "2x3x9x7", "--up", "2"), {"upfirdn2d up 2 2x3x9x7"}),
        (("upfirdn2d", "2x3x9x7", "--down", "3", "--channels-last"), {"upfirdn2d down 3 2x3x9x7 channels_last"}),
        (("upfirdn2d", "1x5x4x6"), {"upfirdn2d same 1x5x4x6"}),
        (("bias_act", "3x17"), {"bias_act lrelu 3x17", "bias_act swish 3x17"}),
        (("modulated_conv2d", "2x5x7x7", "--up", "2", "--out-channels", "3"), {"modulated_conv2d up 2 2x5x7x7 to 3"}),
    ],
)
def test_a_shape_of_your_own(tmp_path, arguments, names):
    op, shape, *rest = arguments
    path = tmp_path / "own.json"
    quick = ("--quick", "--dtype", "float32", "--save", str(path))
    assert run("--op", op, "--shape", shape, *rest, *quick) == 0
    found = json.loads(path.read_text())
    assert {row["name"] for row in found["rows"]} == names and "growth" not in found


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--plot", "{}/x.foo"), "plot: expected a file ending in one of .*png.*, got .*x.foo"),
        (("--plot", "{}/file/x.png"), "plot: .*x.png cannot be written"),
        (("--save", "{}/file/x.json"), "save: .*x.json cannot be written"),
        (("--save", "{}/file"), "file"),
    ],
)
def test_what_cannot_be_written_is_said_before_it_is_measured(options, told, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")  # under a file nobody can write, root included
    monkeypatch.setattr(limits, "machine_rates", lambda *_: pytest.fail("it measures"))
    with pytest.raises(ValueError, match=told):
        run("--quick", *(word.format(tmp_path) for word in options))
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--shape", "8x64"), "--shape needs one --op"),
        (("--op", "upfirdn2d", "--shape", "8xx4"), "expected sizes like"),
        (("--op", "upfirdn2d", "--up", "2"), "are of --shape"),
        (("--op", "upfirdn2d", "--shape", "2x3"), "upfirdn2d takes NxCxHxW"),
        (("--op", "modulated_conv2d", "--shape", "2x3x4x5"), "square|SxS"),
        (("--op", "param_penalty", "--shape", "2x3x4x5"), "param_penalty takes lists of parameters"),
        (("--dtype", "float16"), "on the CPU, got float16"),
        (("--dtype", "float32", "--dtype", "float32"), "expected different ones"),
    ],
)
def test_what_cannot_be_measured_is_said(arguments, told):
    with pytest.raises((ValueError, click.ClickException)) as caught:
        run("--quick", *arguments)
    assert re.search(told, getattr(caught.value, "message", str(caught.value)))


def test_exponent_of_a_power_law():
    assert growth.exponent([1, 2, 4, 8], [3 * s**1.5 for s in (1, 2, 4, 8)]) == pytest.approx(1.5)


def test_peak_memory_counts_what_is_alive_at_once():
    def one_after_another():
        for _ in range(3):
            torch.empty(1000, dtype=torch.float32)

    assert measure.peak_memory(one_after_another) == 4000
    assert measure.peak_memory(lambda: [torch.empty(1000) for _ in range(3)]) == 12000


def test_limit_moves_the_bytes_of_the_case():
    copy = limits.traffic_run(Traffic(reads=400, writes=400), "cpu")
    assert copy().nbytes == 400
    target, _ = limits.traffic_run(Traffic(reads=1200, writes=400), "cpu")()
    assert target.nbytes == 400


@pytest.mark.parametrize("op", OPS)
def test_implementations_of_a_case_agree(op):
    torch.manual_seed(0)
    for made in cases((op,), [torch.float64, torch.bfloat16], "cpu", quick=True):
        wide, low = made.values()
        assert disagreement(wide) < 1e-6, f"{wide.name} {wide.direction}"
        assert _checked(low, torch.bfloat16) < 0.02, f"{low.name} {low.direction}"


@pytest.mark.parametrize("wrong", [1.05, 0.0, float("nan")])
def test_what_is_wrong_in_16_bits_is_found(wrong):
    layer = upfirdn2d.layer("up 2", (2, 8, 9, 7), upfirdn2d.UP, torch.contiguous_format, torch.bfloat16, "cpu")
    for case in cases_of(layer):
        _checked(case, torch.bfloat16)
        ours = case.ours
        spoiled = dataclasses.replace(case, ours=lambda ours=ours: [t * wrong for t in _tensors(ours())])
        with pytest.raises(RuntimeError, match="ours and the reference in float64 differ by"):
            _checked(spoiled, torch.bfloat16)


# ---- what was gained and must not be lost


def test_ops_allocate_no_more_than_their_results():
    """One output forward; backward the gradient and, of bias_act, the bias's."""
    planar = torch.contiguous_format
    made = {
        "upfirdn2d": upfirdn2d.layer("up 2", (2, 8, 32, 32), upfirdn2d.UP, planar, torch.float32, "cpu"),
        "bias_act": bias_act.layer((2, 8, 64, 64), planar, "lrelu", torch.float32, "cpu"),
    }
    for name, layer in made.items():
        for case in cases_of(layer):
            if case.direction == "second":
                continue
            peak = measure.peak_memory(case.ours)
            assert case.traffic.writes <= peak <= 1.02 * case.traffic.writes + 1024, (name, case.direction)


def test_the_modulated_layer_allocates_two_images():
    """The modulated input and the output, which the epilogue overwrites; the reference makes more of them."""
    layer = modulated_conv2d.layer(4, 16, 16, 32, 1, torch.channels_last, torch.float32, "cpu")
    case = next(cases_of(layer))
    image = 4 * 16 * 32 * 32 * 4
    assert measure.peak_memory(case.ours) < 2.2 * image
    assert measure.peak_memory(case.reference) > 2.5 * image


@pytest.mark.parametrize("anchors", [1, 5])
def test_the_penalty_allocates_no_arrays_whatever_the_number_of_anchors(anchors):
    case = param_penalty.case(32, anchors, torch.float32, "cpu")
    assert measure.peak_memory(case.ours) < 0.02 * case.traffic.writes


def test_resampling_is_far_faster_than_the_reference():
    """A ratio within one run, with a wide margin: 34 was measured at 4x3x256x256."""
    layer = upfirdn2d.layer("up 2", (1, 3, 128, 128), upfirdn2d.UP, torch.contiguous_format, torch.float32, "cpu")
    case = next(cases_of(layer))
    found = measure.times(dict(ours=case.ours, reference=case.reference), measure.Plan(0.02, 5))
    assert found["reference"]["fastest"] > 3 * found["ours"]["fastest"]


@pytest.mark.parametrize("code", ["import atu_ext", "import atu.cli.main"])
def test_imports_stay_light(code):
    """`import atu_ext` brings no training code, and `atu --help` not even torch."""
    heavy = ("atu.api", "matplotlib") + (("torch",) if "cli" in code else ())
    check = f"import sys; {code}; print([m for m in {heavy!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "[]"


def test_rates_are_positive():
    rates = limits.machine_rates(measure.Plan(0.001, 2), quick=True)
    assert all(rate > 0 for rate in rates.values())
