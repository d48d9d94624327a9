"""The frontier's settings are known to the methods; its cells go on, and become a table and a picture."""

import pytest
from PIL import Image

from atu.config import Config
from benchmarks import frontier
from benchmarks.paper.cells import Plan


def cell(method, pul, changed):
    figures = {"kept.frechet": 0.6, "kept.frechet_chance": 0.2, "kept.tv": 0.0315}
    figures.update({"good_changed.share": changed, "judge.corrected.pul": pul + 1, "machine.cpu": "a processor"})
    figures.update({"landing.precision": 0.7, "landing.precision_chance": 0.875})
    return dict(method=method, pul=pul, marks=200, seconds=12.4, **figures)


@pytest.mark.parametrize("name", frontier.CURVES)
def test_settings_are_the_methods_own(name):
    curve = frontier.CURVES[name]
    own = [Config.of(curve.method, data=curve.settings(strength)) for strength in curve.strengths]
    assert len({str(config) for config in own}) == len(own) > 1


def test_cells_are_computed_once_and_tabled(tmp_path, monkeypatch):
    ran = []

    def run_cell(plan: Plan, task, seed, method, out):
        ran.append((task.name, seed, method, plan.config))
        return cell(method, 60 + 10 * len(ran), 0.05 * len(ran))

    monkeypatch.setattr(frontier, "run_cell", run_cell)
    strengths = {"il2": (0.5, 4.0), "extrapolate": (0.5,)}
    curves = {name: frontier.CURVES[name]._replace(strengths=some) for name, some in strengths.items()}
    monkeypatch.setattr(frontier, "CURVES", curves)
    for _ in range(2):
        assert frontier.main([str(tmp_path), "il2"]) == 0
    assert frontier.main([str(tmp_path)]) == 0
    assert ran == [
        ("8", 0, "il2", {"repel": {"strength": 0.5}}),
        ("8", 0, "il2", {"repel": {"strength": 4.0}}),
        ("8", 0, "extrapolate", {"methods": {"extrapolate": {"s": 0.5}}}),
    ]
    rows = (tmp_path / "table.md").read_text().splitlines()
    assert rows[0] == "Digit 8, seed 0, 200 negatives, an oracle; a processor."
    assert rows[-1] == "| extrapolate | 0.5 | 90.0 | 91.0 | 15.0 | 3.0 | 0.80 | 0.032 | 12 |"
    assert len(rows) == 2 + 2 + 3
    with Image.open(tmp_path / "frontier.png") as picture:
        assert picture.width > 900


def test_an_unknown_method_is_told(tmp_path, capsys):
    assert frontier.main([str(tmp_path), "el3"]) == 2
    assert "expected one of atu, el2, el2-long" in capsys.readouterr().out
