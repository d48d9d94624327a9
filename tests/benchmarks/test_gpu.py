"""benchmarks/gpu.py on the CPU: every part that needs no device runs, and the report says what it must.

The part that times the two convolution engines runs over the emulated kernels: its times mean nothing, but the table it
writes is one that the dispatcher reads.
"""

from __future__ import annotations

import json

import pytest

from atu_ext.ops import conv_engine
from atu_ext.ops.conv_engine import Layer, choose
from benchmarks import gpu, gpu_render


@pytest.mark.slow
def test_smoke_run_on_the_cpu(tmp_path):
    assert gpu.main(["--device", "cpu", "--smoke", "--no-install", "--out", str(tmp_path)]) == 0
    report = (tmp_path / "gpu.md").read_text()
    assert "Smoke run with tiny shapes: the numbers mean nothing." in report
    for text in (
        "## Ops",
        "## Engines",
        "## Synthesis network",
        "## Adam",
        "## Training steps",
        "## torchrun with one process",
        "Not measured: the implicit GEMM",
    ):
        assert text in report, text
    assert "## Aims" not in report
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["failed"] == {} and not any("error" in row for row in found["ops"])
    assert {row["op"] for row in found["ops"] if "op" in row} == {
        "upfirdn2d", "bias_act", "epilogue", "modulated_conv2d", "param_penalty"
    }  # fmt: skip
    for row in found["steps"][0]["rows"]:
        assert {"ours", "float16", "bfloat16"} <= row["times"].keys(), row["name"]
    assert found["one_rank"]["largest_difference"] == 0.0
    assert conv_engine.read_table(tmp_path / "conv_engines.json") == {}


def test_smoke_numbers_cannot_replace_the_report():
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--smoke", "--no-install"])


def test_the_engine_table_is_one_that_the_dispatcher_reads(cuda_kernels, tmp_path, monkeypatch):
    rows = gpu.engines({4: 1}, ("float16",), cuda_kernels.device, smoke=True)
    assert len(rows) == 4  # two layouts, two directions
    path = tmp_path / "table.json"
    assert gpu.write_table(path, "a card", rows) == 4
    assert gpu.write_table(path, "another card", rows[:1]) == 1
    monkeypatch.setenv("ATU_CONV_ENGINES", str(path))
    monkeypatch.delenv("ATU_CONV_ENGINE", raising=False)
    for row in rows:
        choice = choose(Layer(**{name: row[name] for name in Layer._fields}), "a card")
        assert choice.engine == ("gemm" if row["gemm_us"] < row["library_us"] else "library")
        assert choice.reason.startswith("measured on a card")


def test_a_failing_part_is_reported_and_the_others_go_on(tmp_path, monkeypatch):
    def broken() -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr(gpu, "parts", lambda options: {"adam": broken, "environment": lambda: {"machine": {}}})
    assert gpu.main(["--device", "cpu", "--smoke", "--out", str(tmp_path)]) == 1
    assert "**adam failed:** RuntimeError: no luck" in (tmp_path / "gpu.md").read_text()


def test_aims_take_the_worst_case():
    big, small = 200 << 20, 1 << 20
    ops = [
        dict(op="bias_act", bound="bytes", bytes=big, of_limit=1.1),
        dict(op="bias_act", bound="bytes", bytes=big, of_limit=1.25),
        dict(op="bias_act", bound="bytes", bytes=small, of_limit=9.0),  # within the cache: not asked for
        dict(op="epilogue", bound="bytes", bytes=big, of_limit=1.0),
    ]
    times = dict(ours=dict(median=1.0), eager=dict(median=2.0), compiled=dict(median=1.6))
    engines = [
        dict(direction="forward", library_us=11.0, gemm_us=10.0, conv_us=10.0),
        dict(direction="forward", library_us=13.0, gemm_us=12.0, conv_us=10.0),
        dict(direction="input_gradient", library_us=1.0, gemm_us=1.0),
    ]
    assert gpu_render.aims(dict(ops=ops, network=[dict(times=times)], engines=engines)) == [
        ["bias_act >= 85% of the copy", "80%", "not met"],
        ["epilogue >= 85% of the copy", "100%", "met"],
        ["synthesis >= 1.5 x the best other", "1.60", "met"],
        ["modulated layer <= 1.1 x the plain convolution", "1.20", "not met"],
    ]


def test_the_committed_report_is_of_a_card_or_says_that_there_is_none():
    report = (gpu.RESULTS / "gpu.md").read_text()
    table = conv_engine.read_table(conv_engine.TABLE)
    if "No GPU report yet" in report:
        assert table == {} and not (gpu.RESULTS / "gpu.json").exists()
    else:
        found = json.loads((gpu.RESULTS / "gpu.json").read_text())
        assert not found["smoke"] and found["environment"]["machine"]["gpu"] in report
