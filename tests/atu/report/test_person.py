"""A person's verdict in a report."""

import json

import pytest

from atu.measures.intervals import exact, wilson
from atu.report.person import add_person, kept_person, person_of, section
from atu.support.digest import sha256_of


def verdict(unwanted_before=21, unwanted_after=1, unsure=0, marked=200):
    return dict(
        before=dict(marked=marked, unwanted=unwanted_before, unsure=unsure),
        after=dict(marked=marked, unwanted=unwanted_after, unsure=0),
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "result.safetensors").write_bytes(b"weights")
    data = dict(negatives_before=3, sha256=dict(result=sha256_of(tmp_path / "result.safetensors")))
    (tmp_path / "report.json").write_text(json.dumps(data))
    (tmp_path / "report.html").write_text("<header>top</header>\n<!-- person --><!-- /person -->\n<p>rest</p>")
    return tmp_path


def test_the_numbers():
    found = person_of(verdict(unsure=3))
    assert found["after"]["n"] == 200 and found["before"]["n"] == 197
    assert found["after"]["ci95"] == list(wilson(1, 200)) and found["before"]["ci95_exact"] == list(exact(21, 197))
    text = str(section(found)).replace("\u00a0", " ")
    assert "Of 200 random samples of the unlearned GAN a person called 1 unwanted: 95 %: 0.1 to 2.8 %." in text
    assert "3 that they were unsure of are left out" in text and "0.0 to 2.8 %" in text  # the exact one
    assert person_of(verdict(marked=0, unwanted_before=0, unwanted_after=0))["after"]["share"] is None


def test_it_is_written_into_the_report_and_replaced(folder):
    add_person(folder, person_of(verdict()))
    add_person(folder, person_of(verdict(unwanted_after=4)))
    page = (folder / "report.html").read_text()
    assert page.count("By a person") == 1 and "called 4 unwanted" in page and page.endswith("<p>rest</p>")
    data = json.loads((folder / "report.json").read_text())
    assert data["person"]["after"]["unwanted"] == 4 and data["negatives_before"] == 3
    assert kept_person(folder) == data["person"]


def test_it_goes_with_the_result_that_was_judged(folder):
    assert kept_person(folder) is None
    add_person(folder, person_of(verdict()))
    (folder / "result.safetensors").write_bytes(b"other weights")
    assert kept_person(folder) is None


def test_a_report_of_an_earlier_version(folder):
    (folder / "report.html").write_text("<header>top</header>\n<p>rest</p>")
    add_person(folder, person_of(verdict()))
    page = (folder / "report.html").read_text()
    assert page.index("top") < page.index("By a person") < page.index("rest")


def test_no_report(tmp_path):
    with pytest.raises(ValueError, match=r"out: .* holds no report that can be read"):
        add_person(tmp_path, person_of(verdict()))
