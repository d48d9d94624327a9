"""Metrics of other packages: what they are given, and where their figures go."""

from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from atu.evaluation.evaluate import evaluate
from atu.evaluation.metrics import METRICS
from atu.gan import GAN
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.report import report
from benchmarks.paper import cells as reproduction
from benchmarks.paper import table as reproduced_table


@pytest.fixture
def registered(monkeypatch):
    """Metrics registered here are gone after the test."""
    monkeypatch.setattr(METRICS, "_registered", {})
    return METRICS.register


@pytest.fixture(scope="module")
def gans():
    torch.manual_seed(0)
    shape = [1, 5, 5]
    before, after = (GAN(MLPGenerator(3, shape, (7,)), MLPDiscriminator(shape, (7,))) for _ in range(2))
    return before, after


def bright(x):
    """By a pixel that varies about this level in both networks."""
    return x[:, 0, 0, 3] > 0.17


def test_a_metric_compares_the_same_latents(registered, gans):
    @registered("fewer")
    def fewer(before, after):
        """Share of samples that were negative and are not.

        More of no interest.
        """
        return (before.negative & ~after.negative).float().mean()

    registered("endless")(lambda before, after: float("inf"))
    before, after = gans
    figures = evaluate(before, after, bright, n=83, seed=4).figures
    was, now = (bright(gan.sample(83, seed=4, batch_size=250)) for gan in gans)
    gone, endless = figures.metrics["fewer"], figures.metrics["endless"]
    assert gone.value == pytest.approx(float((was & ~now).float().mean())) and 0 < gone.value < 1
    assert gone.description == "Share of samples that were negative and are not"
    assert (endless.value, endless.description) == (None, "")
    rows = report.table(asdict(figures), ["before", "after"])
    assert rows[-2] == ["fewer: Share of samples that were negative and are not", "–", f"{gone.value:.3f}"]
    assert rows[-1] == ["endless", "–", "–"]


def test_a_metric_that_gives_no_number_is_named(registered, gans):
    registered("words")(lambda before, after: "many")
    with pytest.raises(TypeError, match="metric words: expected a number, got str"):
        evaluate(*gans, bright, n=20)


def test_no_metric_is_no_row(gans):
    figures = evaluate(*gans, bright, n=20).figures
    assert figures.metrics == {}


def test_the_reproduced_table_has_a_column_a_metric():
    cell = dict(pul=50.0)
    cells = [{**cell, "metrics.fewer": value, "seconds": 1.0} for value in (0.25, 0.75)]
    cells.append({**cell, "seconds": 1.0})  # computed before there was this metric
    row = reproduced_table.summarise(cells)
    assert row["metrics"] == {"fewer": dict(mean=0.5, deviation=pytest.approx(0.5 / 2**0.5), n=2)}
    task = reproduction.Task("8", SimpleNamespace(name="a judge"), ("8",), None)
    plan = reproduction.Plan("mnist", None, [task], ["cdc", "ewc"], seeds=3)
    table = {"cdc": {"8": row}, "ewc": {"8": reproduced_table.summarise(cells[2:])}}
    lines = [line for line in reproduced_table.markdown(plan, table).splitlines() if line.startswith("| ")]
    columns = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    at = columns[0].index("fewer")
    assert [line[at] for line in columns if line[0] in ("cdc", "ewc")] == ["0.500 ± 0.354", "–"]
    assert columns[0][-1].startswith("published") and {len(line) for line in columns} == {len(columns[0])}


def test_a_reproduced_table_of_what_no_paper_has_published_names_none():
    row = reproduced_table.summarise([dict(pul=5.0, seconds=1.0)])
    task = reproduction.Task("cat", SimpleNamespace(name="a judge"), ("cat",), None)
    text = reproduced_table.markdown(
        reproduction.Plan("animals", None, [task], ["ewc"], seeds=1), {"ewc": {"cat": row}}
    )
    assert text.startswith("# Every method: animals\n\nOne seed, ") and "published" not in text
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(lines) == 3 and len({line.count("|") for line in lines}) == 1
