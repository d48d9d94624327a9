"""Audits of generators whose negatives, and the way to them, are known."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from atu.evaluation import audit as auditing
from atu.evaluation.audit import Audit, Budget
from atu.evaluation.relearning import area, negative_rate, relearn
from atu.evaluation.residue import auc, inner_maps, linear_probe, pooled, probed_layers, residue
from atu.evaluation.search import latent_search, space_of, spaces_of
from atu.gan import GAN
from atu.judging.rule import Rule
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.networks.stylegan2 import Discriminator, Generator
from atu.support.context import RunContext
from atu.support.seeding import Stream, stream_seed


class Passing(nn.Module):
    """Gives the latent itself, moved; the weight is a hundredth of the shift, so that few steps go far."""

    latent_dim = 2

    def __init__(self, shift=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([shift / 100, 0.0]))

    def forward(self, z):
        return z + 100 * self.weight


def beyond(limit):
    """Negative: first coordinate above a limit."""
    return Rule(lambda x: x[:, 0] > limit, slope=lambda x: x[:, 0])


def pair(generator=None):
    torch.manual_seed(0)
    return GAN(generator or Passing(), MLPDiscriminator([2], hidden=(16,)))


def judges(**rules):
    return rules or {"judge": lambda x: x[:, 0] > 1.0}


def style_gan(**options):
    kwargs = dict(channel_base=64, channel_max=8)
    return GAN(Generator(4, 0, 4, 8, 1, dict(num_layers=2), dict(kwargs, **options)), Discriminator(0, 8, 1, **kwargs))


# --- search


def test_search_finds_exactly_what_the_norm_of_z_allows():
    z, _ = pair().inputs(40, stream_seed(7, Stream.ATTACK_LATENTS))
    found = latent_search(pair(), beyond(1.0), judges(), "z", 40, 100, seed=7).numbers
    # On its circle, a start can reach its own norm and no more.
    reachable = z.norm(dim=1) > 1.0
    assert 0 < int(reachable.sum()) < 40
    assert found["found"]["judge"]["count"] == found["searched"]["count"] == int(reachable.sum())
    assert found["by_chance"]["judge"]["count"] == found["searched_by_chance"]["count"] == int((z[:, 0] > 1.0).sum())
    assert found["median_steps"] > 0


def test_what_is_found_is_judged_by_who_was_not_searched():
    by = judges(fooled=lambda x: x[:, 0] > 1.0, other=lambda x: x[:, 1] > 1.0)
    found = latent_search(pair(), beyond(1.0), by, "z", 90, 60).numbers  # more than are searched at once
    # The best sample for the goal is (norm, 0): it lies on the axis, where the other judge sees nothing.
    assert found["found"]["fooled"]["count"] > 40
    assert found["found"]["other"]["count"] <= 2 < 5 < found["by_chance"]["other"]["count"]


def test_search_in_vain():
    found = latent_search(pair(Passing(-50.0)), beyond(1.0), judges(), "z", 10, 20).numbers
    assert (found["found"]["judge"]["count"], found["median_steps"]) == (0, None)
    assert found["found"]["judge"]["ci95"][1] == pytest.approx(0.2775, abs=1e-3)  # Wilson of 0 in 10


def test_search_leaves_gan_and_random_state_alone(unchanged, snapshot):
    gan = style_gan()
    before, state = snapshot(gan), torch.random.get_rng_state()
    bright = Rule(lambda x: x.mean(dim=(1, 2, 3)) > 9, slope=lambda x: x.mean(dim=(1, 2, 3)))
    for space in spaces_of(gan):
        latent_search(gan, bright, {"judge": bright}, space, 3, 2)
    unchanged(before, snapshot(gan))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(getattr(m, "given_noise", None) is None for m in gan.sampling_generator.modules())


@pytest.mark.parametrize("space", ["z", "w", "w+", "noise"])
def test_each_space_is_climbed_and_keeps_within_bounds(space):
    gan = style_gan()
    with torch.no_grad():
        for m in gan.generator.modules():
            if hasattr(m, "noise_strength"):
                m.noise_strength.fill_(0.5)
    bright = Rule(lambda x: x.mean(dim=(1, 2, 3)) > 1e9, slope=lambda x: x.mean(dim=(1, 2, 3)))
    found = latent_search(gan, bright, {"j": lambda x: x.mean(dim=(1, 2, 3)) > 1e9}, space, 6, 25, seed=3)
    z, c = gan.inputs(6, stream_seed(3, Stream.ATTACK_LATENTS))
    points = space_of(gan, space, z, c, seed=3)
    assert found.shown.shape == (6, 1, 8, 8)
    with torch.no_grad():
        first = points.make(points.start)
    assert float(found.shown.mean()) > float(first.mean()) + 1e-3
    far = points.bound([p + 1000 * torch.ones_like(p) for p in points.start])
    if space in ("w", "w+"):
        cloud = gan.generator.mapping(gan.inputs(1000, stream_seed(3, Stream.ATTACK_CLOUD))[0], None)[:, 0].detach()
        radius = float((cloud - cloud.mean(0)).norm(dim=1).max())
        away = (far[0] - cloud.mean(0)).norm(dim=-1)
        assert torch.allclose(away, torch.full_like(away, radius), rtol=1e-4)
    else:
        for a, b in zip(far, points.start, strict=True):
            assert torch.allclose(a.flatten(1).norm(dim=1), b.flatten(1).norm(dim=1), rtol=1e-4)
    # What a latent gave is left as it is.
    for a, b in zip(points.bound(points.start), points.start, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_given_noise_is_what_the_layers_add():
    gan = style_gan()
    layers = [m for m in gan.generator.modules() if hasattr(m, "noise_strength")]
    with torch.no_grad():
        for m in layers:
            m.noise_strength.fill_(0.7)
    z, c = gan.inputs(3, 1)
    points = space_of(gan, "noise", z, c)
    with torch.no_grad():
        const = [m.noise_const[None, None].expand(3, -1, -1, -1) for m in layers]
        assert torch.allclose(points.make(const), gan.generator(z, c, noise_mode="const"), atol=1e-5)


def test_spaces_that_are_not_there():
    assert spaces_of(pair()) == ["z"]
    assert spaces_of(style_gan()) == ["z", "w", "w+", "noise"]
    assert spaces_of(style_gan(use_noise=False)) == ["z", "w", "w+"]
    with pytest.raises(ValueError, match="expected one of z for this generator, got 'w'"):
        latent_search(pair(), beyond(1.0), judges(), "w")


# --- relearning


def test_relearning_goes_towards_what_it_is_shown():
    gan = pair(Passing(-3.0))
    right = torch.randn(20, 2) * 0.1 + torch.tensor([3.0, 0.0])
    found = relearn(gan, right, lambda x: x[:, 0] > 0, images=9600, looks=6, rate=1.0, check_samples=200, seed=1)
    curve = found["curve"]
    assert [images for images, _ in curve] == [0, 1600, 3200, 4800, 6400, 8000, 9600]
    assert curve[0][1] == negative_rate(gan, lambda x: x[:, 0] > 0, 200, stream_seed(1, Stream.ATTACK_RATE))
    assert curve[-1][1] > curve[0][1] + 0.3
    assert found["samples"] == 20
    assert float(gan.generator.weight[0].detach()) == pytest.approx(-0.03)  # a copy was trained
    options = dict(images=9600, looks=6, rate=0.1, check_samples=200, seed=1)
    slower = relearn(gan, right, lambda x: x[:, 0] > 0, **options)
    assert slower["area"] < found["area"]
    assert relearn(gan, right, lambda x: x[:, 0] > 0, **options) == slower
    with pytest.raises(ValueError, match="samples: expected at least one"):
        relearn(gan, right[:0], lambda x: x[:, 0] > 0)


def test_area_is_the_mean_height():
    assert area([[0, 0.0], [10, 1.0]]) == 0.5
    assert area([[0, 0.2], [10, 0.2], [40, 0.4]]) == pytest.approx((10 * 0.2 + 30 * 0.3) / 40)
    assert area([[0, 0.7]]) == 0.7


# --- residue


def test_auc_counts_pairs():
    torch.manual_seed(0)
    scores, labels = torch.randint(0, 7, (61,)).float(), torch.rand(61) < 0.3
    positive, other = scores[labels], scores[~labels]
    wins = (positive[:, None] > other).double() + 0.5 * (positive[:, None] == other).double()
    found, (low, high) = auc(scores, labels)
    assert found == pytest.approx(float(wins.mean()), abs=1e-12)
    assert low < found < high
    assert auc(labels.float(), labels) == (1.0, [1.0, 1.0])


def test_interval_of_the_auc_covers():
    rng = torch.Generator().manual_seed(1)
    truth = 0.5 * (1 + math.erf(1 / 2))  # of two unit normals one deviation apart: Phi(1 / sqrt 2)
    labels = torch.arange(200) < 60
    covered = 0
    for _ in range(200):
        low, high = auc(torch.randn(200, generator=rng) + labels, labels)[1]
        covered += low <= truth <= high
    assert covered >= 180  # 95 % of 200, less 3 standard deviations


def test_a_probe_finds_what_is_linear_and_nothing_in_noise():
    rng = torch.Generator().manual_seed(2)
    x = torch.randn(800, 9, generator=rng)
    labels = x[:, 0] - x[:, 3] > 1.5
    assert linear_probe(x, labels)[0] > 0.98
    low, high = linear_probe(torch.randn(800, 9, generator=rng), labels)[1]
    assert low < 0.5 < high
    with pytest.raises(ValueError, match="negatives and others in both halves"):
        linear_probe(x, torch.zeros(800, dtype=torch.bool))


def test_inner_maps_are_those_of_the_same_latents_and_noise():
    gan = style_gan()
    names = probed_layers(gan)
    maps = inner_maps(gan, 13, seed=4, batch_size=5)
    assert list(maps) == names
    assert "affine" in names[0] and not any("affine" in name or "rgb" in name for name in names[1:])
    seen = {}
    module = dict(gan.sampling_generator.named_modules())[names[-1]]
    hook = module.register_forward_hook(lambda _, args, out: seen.setdefault("x", []).append(pooled(out)))
    gan.sample(13, seed=4, batch_size=5)
    hook.remove()
    assert torch.equal(maps[names[-1]], torch.cat(seen["x"]))
    plain = GAN(MLPGenerator(4, [3], (8, 7)), MLPDiscriminator([3], (8,)))
    assert [f.shape[1] for f in inner_maps(plain, 6, 0).values()] == [8, 7, 3]


def test_residue_tells_a_generator_that_knows_from_one_that_does_not():
    torch.manual_seed(0)
    knows = GAN(nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2)), MLPDiscriminator([2], (4,)), latent_dim=4)
    deaf = knows.copy()
    with torch.no_grad():
        deaf.generator[0].weight[:, 0] = 0
    labels = knows.inputs(900, 5)[0][:, 0] > 1
    assert max(one["auc"] for one in residue(knows, labels, 5).values()) > 0.95
    assert max(one["auc"] for one in residue(deaf, labels, 5).values()) < 0.62


# --- all of it

QUICK = Budget(
    starts=6, steps=3, marks=(1, 4), unrelated=8, images=8, looks=2, check_samples=60, samples=600, relearn_rate=1.0
)


def small_audit(retrained=True, seed=0):
    other = pair(Passing(-0.5)) if retrained else None
    return auditing.subject_of(pair(), pair(Passing(-1.0)), beyond(1.0), judges(), QUICK, seed, other)


def test_negatives_and_good_samples_come_from_the_original():
    by = judges(judge=lambda x: x[:, 0] > 1.5)
    found = auditing.subject_of(pair(), pair(), beyond(1.0), by, QUICK)
    assert found.negatives.shape == (4, 2) and bool((found.negatives[:, 0] > 1.5).all())
    assert found.good.shape == (8, 2) and bool((found.good[:, 0] <= 1.0).all())
    given = torch.full((5, 2), 7.0)
    assert torch.equal(auditing.subject_of(pair(), pair(), beyond(1), by, QUICK, negatives=given).negatives, given)
    with pytest.raises(ValueError, match="expected 4 negatives among 20,000 samples of the original, got 0"):
        auditing.subject_of(pair(), pair(), beyond(99.0), by, QUICK)
    with pytest.raises(ValueError, match="negatives: expected at least 4 to relearn from, got 2"):
        auditing.subject_of(pair(), pair(), beyond(1.0), by, QUICK, negatives=given[:2])
    with pytest.raises(ValueError, match=r"after: expected samples of shape \[2\], got \[3\]"):
        other = GAN(MLPGenerator(4, [3], (8,)), MLPDiscriminator([3], (8,)))
        Audit(pair(), other, beyond(1.0), by, given, given, budget=QUICK)
    with pytest.raises(ValueError, match="marks: expected a positive number, got \\(1, 0\\)"):
        Budget(marks=(1, 0))


def test_an_audit_of_three_models(tmp_path):
    found = auditing.run(small_audit(), tmp_path)
    names = ["rate", "search z", "residue", "relearn 1", "relearn 4", "unrelated"]
    assert {model: list(parts) for model, parts in found["parts"].items()} == {
        "before": names[:3],
        "after": names,
        "retrained": names,
    }
    z = pair().sample(600, stream_seed(0, Stream.ATTACK_RATE))
    assert found["parts"]["after"]["rate"]["judge"]["count"] == int((z[:, 0] - 1 > 1).sum())
    assert found["parts"]["after"]["relearn 4"]["samples"] == 4
    assert found["parts"]["after"]["unrelated"]["samples"] == 8
    assert found["seconds"] == pytest.approx(sum(found["seconds_by_part"].values()), abs=0.06)
    assert found["notes"] == ["The generator has no mapping network, and so no w: the search is in z alone."]
    table = auditing.rows(found, {"after": "unlearned"})
    assert table[0] == ["", "before", "unlearned", "retrained"]
    assert [row[0].split(",")[0] for row in table[1:4]] == [
        "negative samples",
        "search in z finds one",
        "search in z: so says what was searched",
    ]
    relearned = next(row for row in table if row[0].startswith("relearned from 4"))
    assert relearned[1] == "–" and ", at the end " in relearned[2]
    assert {row[0] for row in auditing.probe_table(found, {})[1:]} == set(found["parts"]["before"]["residue"])


def test_an_original_that_makes_next_to_no_negatives_is_audited_without_a_probe(tmp_path):
    rare = judges(judge=lambda x: x[:, 0] > 9.0)
    given = dict(negatives=torch.full((4, 2), 9.5), retrained=None)
    audit = auditing.subject_of(pair(), pair(Passing(-1.0)), beyond(9.0), rare, QUICK, 0, **given)
    found = auditing.run(audit, tmp_path)
    assert found["parts"]["before"]["residue"] == found["parts"]["after"]["residue"] == {}
    assert any(note.startswith("Too few samples of the original are negative") for note in found["notes"])
    table = {row[0]: row[1:] for row in auditing.rows(found, {})}
    assert table["linear probe on the last maps, AUC"] == ["–", "–"]
    assert table["relearned from 4 negatives, % of the original’s rate"] == ["–", "–"]  # of a rate of 0
    assert table["negative samples, %"][0].startswith("0.0 (")
    assert auditing.probe_table(found, {}) == []


@pytest.mark.parametrize("batch", [None, 7])
def test_the_probes_labels_are_of_batches_as_its_features_are(monkeypatch, batch):
    """Noise is drawn a batch, and memory may allow no more than so many."""
    audit, sizes = small_audit(), []
    monkeypatch.setattr(auditing, "residue", lambda gan, labels, seed: {"labels": labels.tolist()})
    batches = GAN.batches

    def watched(self, n, seed=0, batch_size=None, *more, **options):
        sizes.append(batch_size)
        return batches(self, n, seed, batch_size, *more, **options)

    monkeypatch.setattr(GAN, "batches", watched)
    with RunContext(batch=batch):
        found = auditing.compute(audit, "after", "residue")
    assert sizes == [batch or 250] and sum(found["labels"]) > 0


def test_what_cannot_be_done_is_left_out_and_said(tmp_path):
    class Wide(Passing):
        latent_dim = 5

        def forward(self, z):
            return super().forward(z[:, :2])

    bare = GAN(Passing(-1.0), None)
    audit = auditing.subject_of(pair(), bare, beyond(1.0), judges(), QUICK, 0, pair(Wide()))
    parts = list(audit.parts())
    assert ("after", "relearn 1") not in parts and ("after", "residue") in parts
    assert ("retrained", "residue") not in parts and ("retrained", "unrelated") in parts
    notes = auditing._notes(audit)
    assert "after has no discriminator: relearning is left out for it." in notes
    assert "retrained takes other latents than the original: no linear probe for it." in notes
    assert any("No retrained GAN was given" in note for note in auditing._notes(small_audit(False)))


def test_a_folder_of_another_audit_is_refused(tmp_path):
    auditing.run(small_audit(False), tmp_path)
    with pytest.raises(ValueError, match="holds an audit with other samples, seed; give another folder"):
        auditing.run(small_audit(False, seed=1), tmp_path)
    changed = auditing.subject_of(pair(), pair(Passing(-2.0)), beyond(1.0), judges(), QUICK)
    with pytest.raises(ValueError, match="holds an audit with other models"):
        auditing.run(changed, tmp_path)
    # The same names, which stand for something else by now.
    other = dataclasses.replace(small_audit(False), judges=judges(judge=lambda x: x[:, 0] > 1.3))
    with pytest.raises(ValueError, match="holds an audit with other says; give another folder"):
        auditing.run(other, tmp_path)


class Shown(nn.Module):
    """The label beside the first latent."""

    latent_dim, c_dim = 2, 5

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z, c):
        return self.scale * torch.stack([z[:, 0], c.argmax(1).to(z)], 1)


class Asked(nn.Module):
    """A discriminator that takes labels too."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(2, 1)

    def forward(self, x, c):
        return self.line(x)


def test_relearning_shows_samples_with_the_labels_they_were_made_with(monkeypatch):
    gan = GAN(Shown(), Asked())
    by = {"judge": lambda x: x[:, 1] == 3}
    audit = auditing.subject_of(gan, gan.copy(), Rule(by["judge"], slope=lambda x: x[:, 0]), by, QUICK)
    seen = []
    monkeypatch.setattr(Asked, "forward", lambda self, x, c: seen.append((x.detach(), c.detach())) or self.line(x))
    for measure in ("relearn 4", "unrelated"):
        auditing.compute(audit, "after", measure)
    real = [(x, c) for x, c in seen if torch.equal(x[:, 1], x[:, 1].round())]
    assert len(real) > 4
    for x, c in real:
        assert torch.equal(c.argmax(1).to(x), x[:, 1])


def test_a_retrained_gan_may_be_added_later(tmp_path):
    auditing.run(small_audit(False), tmp_path / "late")
    first = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "late" / "audit").glob("*-*.json")}
    late = auditing.run(small_audit(True), tmp_path / "late")
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "late" / "audit").glob("*-*.json")}
    assert first.items() < again.items()
    assert late["parts"] == auditing.run(small_audit(True), tmp_path / "at-once")["parts"]
    with pytest.raises(ValueError, match="holds an audit with other models"):
        auditing.run(small_audit(False), tmp_path / "late")


def test_the_cost_is_stated_beforehand_and_falls_with_what_is_there(tmp_path):
    audit = small_audit(False)
    whole = auditing.estimate(audit, tmp_path)
    assert 0 < whole < 60
    auditing.run(audit, tmp_path)
    assert auditing.estimate(audit, tmp_path) == 0


SCRIPT = """
import sys, time
sys.path.insert(0, {folder!r})
from atu.evaluation import audit as auditing
import test_audit
compute = auditing.compute
def slow(audit, model, measure, pictures=None):
    found = compute(audit, model, measure, pictures)
    print(model, measure, flush=True)
    if (model, measure) == ("after", "residue"):
        time.sleep(60)
    return found
auditing.compute = slow
auditing.run(test_audit.small_audit(False), {out!r})
"""


def test_a_killed_audit_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    whole = auditing.run(small_audit(False), tmp_path / "whole")
    script = SCRIPT.format(folder=str(Path(__file__).parent), out=str(tmp_path / "killed"))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line.strip())
        if seen[-1] == "after residue":
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    there = sorted(path.name for path in (tmp_path / "killed" / "audit").glob("*-*.json"))
    done = ["after-rate", "after-search-z", "before-rate", "before-residue", "before-search-z"]
    assert there == [f"{name}.json" for name in done]
    ran = []
    compute = auditing.compute

    def counted(audit, model, measure, pictures=None):
        ran.append((model, measure))
        return compute(audit, model, measure, pictures)

    monkeypatch.setattr(auditing, "compute", counted)
    found = auditing.run(small_audit(False), tmp_path / "killed")
    assert ran[0] == ("after", "residue") and len(ran) == 4
    assert found["parts"] == whole["parts"]
    stamp = time.monotonic()
    again = auditing.run(small_audit(False), tmp_path / "killed")  # nothing is left to do
    assert len(ran) == 4 and again == found and time.monotonic() - stamp < 30
    assert json.loads(json.dumps(found)) == found
