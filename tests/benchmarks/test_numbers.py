"""The numbers of the pages are those of the results, and a page that is stale is noticed."""

import json
import re
from pathlib import Path

import pytest

from atu.report.report import schema
from benchmarks import numbers
from benchmarks.tables import add_row, flatten, read_rows, select, write_rows

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", numbers.PAGES, ids=lambda path: path.name)
def test_pages_have_the_numbers_of_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert numbers.filled(text) == text, "run python -m benchmarks.numbers"


def test_the_schema_of_the_report_is_that_of_its_fields():
    assert json.loads(numbers.SCHEMA.read_text(encoding="utf-8")) == schema(), "run python -m benchmarks.numbers"


def test_a_stale_page_is_noticed_and_mended(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("Gone: <!-- numbers: cell gone mnist-default 8 -->97.4<!-- /numbers --> %.")
    monkeypatch.setattr(numbers, "PAGES", [page])
    monkeypatch.setattr(numbers, "SCHEMA", tmp_path / "schema.json")
    monkeypatch.setattr(numbers, "ROOT", tmp_path)
    assert numbers.main(["--check"]) == 1 and "97.4" in page.read_text()
    assert numbers.main([]) == 0 and numbers.main(["--check"]) == 0
    assert page.read_text() == "Gone: <!-- numbers: cell gone mnist-default 8 -->89.0<!-- /numbers --> %."
    assert capsys.readouterr().out == "stale: page.md schema.json\nwritten: page.md schema.json\n"


def test_a_cell_that_is_not_there_is_an_error():
    with pytest.raises(LookupError, match="mnist-default: no cell of 3"):
        numbers.filled("<!-- numbers: cell gone mnist-default 3 --><!-- /numbers -->")


def test_readme_has_the_dcgans_row_of_the_results():
    """Against the mean of the rows themselves."""
    rows = read_rows(ROOT / "benchmarks/results/others.csv")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    gone = [row["pul"] for row in select(rows, gan="dcgan", target=8, given="oracle")]
    assert len(gone) == 3
    assert f"| digit 8 | small DCGAN | 200 marks, a classifier | {sum(gone) / 3:.1f} |" in text


def test_every_result_file_that_a_page_names_is_there():
    names = {path.name for path in (ROOT / "benchmarks/results").iterdir()}
    for page in numbers.PAGES:
        for name in re.findall(r"`(?:benchmarks/results/)?([\w-]+\.csv)`", page.read_text(encoding="utf-8")):
            if name not in ("cells.csv", "table.csv", "trials.csv", "trials-ops.csv"):
                assert name in names, (page.name, name)


def test_rows_come_back(tmp_path):
    rows = [
        dict(flatten(dict(a=1, b={"c": 0.123456789, "ci95": [0.1, 0.2]}, none=None, names=["x", "y"]))),
        dict(a=2, d="some, text", flag=True),
    ]
    assert rows[0] == {"a": 1, "b.c": 0.123456789, "b.ci95.low": 0.1, "b.ci95.high": 0.2, "none": None}
    write_rows(tmp_path / "t.csv", rows[:1])
    add_row(tmp_path / "t.csv", rows[1])
    first, second = read_rows(tmp_path / "t.csv")
    assert first == {"a": 1, "b.c": 0.123457, "b.ci95.low": 0.1, "b.ci95.high": 0.2, "d": None, "flag": None}
    assert second == {"a": 2, "b.c": None, "b.ci95.low": None, "b.ci95.high": None, "d": "some, text", "flag": True}
    assert read_rows(tmp_path / "none.csv") == []
