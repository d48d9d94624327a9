"""Several judges of one pair: whose figures are whose, corrections, over-removal."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from atu.evaluation.evaluate import evaluate
from atu.formats.tensors import CheckpointError
from atu.gan import GAN
from atu.judging.classifier import Classifier
from atu.judging.errors import confusion, error_counts
from atu.judging.finding import rule_of
from atu.measures.intervals import difference
from atu.measures.prevalence import Errors, corrected_unlearning
from atu.networks.classifier import ConvClassifier, ResidualClassifier
from atu.networks.mlp import MLPDiscriminator


class Shift(nn.Module):
    """Passes the latent on, moved to the right."""

    latent_dim = 2

    def __init__(self, offset: float = 0.0):
        super().__init__()
        self.offset = nn.Parameter(torch.tensor([offset, 0.0]))

    def forward(self, z):
        return z + self.offset


class Sides(nn.Module):
    """Logits of left and right of a border."""

    def __init__(self, border: float = 0.0):
        super().__init__()
        self.border = nn.Parameter(torch.tensor(border))

    def forward(self, x):
        return 30 * torch.stack([self.border - x[:, 0], x[:, 0] - self.border], 1)


def gan(offset: float = 0.0) -> GAN:
    return GAN(Shift(offset), MLPDiscriminator([2], hidden=(8,)))


COUNTS = torch.tensor([[97, 3], [5, 995]])


def judge(border: float = 0.0, counts: torch.Tensor | None = None, name: str = "sides") -> Classifier:
    return Classifier(Sides(border), ["left", "right"], (-1.0, 1.0), name, counts)


def test_the_first_judge_gives_the_figures_and_the_others_count_beside_it():
    found = evaluate(
        gan(),
        gan(1.0),
        judge(counts=COUNTS),
        ["left"],
        judges={"far": judge(-0.5, name="x"), "rule": lambda x: x[:, 1] < 0},
        answered=["far"],
        n=1009,
        seed=3,
    )
    z = gan().sample(1009, 3, batch_size=250)
    figures, judges = found.figures, found.figures.judges
    assert (figures.judge, list(judges)) == ("sides", ["sides", "far", "rule"])
    assert figures.negatives_after == judges["sides"].negatives_after == int((z[:, 0] < -1).sum())
    assert judges["far"].negatives_before == int((z[:, 0] < -0.5).sum())
    assert judges["far"].negatives_after == int((z[:, 0] < -1.5).sum())
    assert judges["rule"].pul == 0  # a shift to the right moves nothing over the other axis
    assert [one.answered for one in judges.values()] == [False, True, False]
    counts = [int(flags.sum()) for flags in (z[:, 0] < -1, z[:, 0] < 0, z[:, 0] < -1)]
    assert judges["sides"].corrected == corrected_unlearning(*counts, 1009, Errors(97, 100, 995, 1000))
    assert judges["sides"].sensitivity.share == 0.97
    assert judges["far"].corrected is judges["far"].sensitivity is None


def test_what_all_judges_call_negative_is_counted_beside_each():
    """Those that answered during the run do not count: what was trained against them may fool them."""
    other = {"rule": lambda x: x[:, 1] < 0.2, "fooled": lambda x: x[:, 0] > 9}
    options = dict(judges=other, answered=["fooled"], retrained=gan(0.7), n=1009, seed=3)
    found = evaluate(gan(), gan(1.0), judge(), ["left"], **options).figures.agreed
    z = gan().sample(1009, 3, batch_size=250)
    before, after, made = (((z[:, 0] + by < 0) & (z[:, 1] < 0.2)).sum().item() for by in (0.0, 1.0, 0.7))
    assert (found.negatives_before, found.negatives_after) == (before, after)
    assert found.pul == pytest.approx(100 * (before - after) / before)
    assert found.over_removal.retrained.count == made
    assert found.corrected is None
    alone = dict(judges={"fooled": other["fooled"]}, answered=["fooled"], n=99)
    assert evaluate(gan(), gan(1.0), judge(), ["left"], **alone).figures.agreed is None
    assert evaluate(gan(), gan(1.0), judge(), ["left"], n=99).figures.agreed is None
    unknown = dict(judges=other, answered=None, n=99)  # any of them may have answered
    assert evaluate(gan(), gan(1.0), judge(), ["left"], **unknown).figures.agreed is None


def test_over_removal_is_what_a_retrained_gan_would_not_do():
    good = evaluate(gan(), gan(3.0), judge(), ["left"], retrained=gan(1.5), n=1009).figures
    z = gan().sample(1009, 0, batch_size=250)
    made, left = int((z[:, 0] < -1.5).sum()), int((z[:, 0] < -3).sum())
    found = good.judges["sides"].over_removal
    assert (found.retrained.count, good.models["retrained"].negatives) == (made, made)
    assert found.difference_ci95 == difference(left, 1009, made, 1009)
    assert found.fewer
    same = evaluate(gan(), gan(1.5), judge(), ["left"], retrained=gan(1.5), n=1009).figures
    assert not same.judges["sides"].over_removal.fewer
    assert evaluate(gan(), gan(), judge(), ["left"], n=99).figures.judges["sides"].over_removal is None
    with pytest.raises(ValueError, match=r"retrained: expected samples of shape \[2\], got \[3\]"):
        other = GAN(nn.Linear(3, 3), nn.Linear(3, 1), latent_dim=3)
        evaluate(gan(), gan(), judge(), ["left"], retrained=other, n=99)


def test_a_retrained_gan_may_take_other_latents():
    class Wide(Shift):
        latent_dim = 5

        def forward(self, z):
            return z[:, :2] + self.offset

    other = GAN(Wide(2.0), MLPDiscriminator([2], hidden=(8,)))
    figures = evaluate(gan(), gan(), judge(), ["left"], retrained=other, n=307, seed=2).figures
    assert figures.models["retrained"].negatives == int((other.sample(307, 2, batch_size=250)[:, 0] < 0).sum())


@pytest.mark.parametrize(("answered", "spoke"), [(True, (True, False)), (None, (None, None)), ((), (False, False))])
def test_who_answered_may_be_the_first_or_unknown(answered, spoke):
    judges = evaluate(gan(), gan(), judge(), ["left"], judges={"b": judge()}, answered=answered, n=9).figures.judges
    assert tuple(one.answered for one in judges.values()) == spoke


def test_names_that_clash_or_are_not_there():
    with pytest.raises(ValueError, match="sides gives the figures already"):
        evaluate(gan(), gan(), judge(), ["left"], judges={"sides": judge()}, n=9)
    with pytest.raises(ValueError, match=r"names of judges \(sides, b\), got 'c'"):
        evaluate(gan(), gan(), judge(), ["left"], judges={"b": judge()}, answered=["c"], n=9)


def test_a_judge_is_its_own_judge_and_rules_have_no_errors():
    one = rule_of(judge(counts=COUNTS), gan(), ["left"])
    assert rule_of(one, gan()) is one
    assert (one.name, one.errors) == ("sides", Errors(97, 100, 995, 1000))
    by_rule = rule_of(lambda x: x[:, 0] < 0, gan())
    assert (by_rule.name, by_rule.errors) == ("rule", None)
    empty = rule_of(judge(counts=torch.tensor([[0, 0], [5, 995]])), gan(), ["left"])
    assert empty.errors is None  # no held-out image of the class


def test_confusion_counts_truth_by_rows():
    x = torch.tensor([[-1.0, 0], [-2.0, 0], [1.0, 0], [1.0, 0], [-0.2, 0]])
    labels = torch.tensor([0, 0, 0, 1, 1])
    counts = confusion(judge(), x, labels, batch_size=2)
    assert counts.tolist() == [[2, 1], [1, 1]]
    three = torch.tensor([[5, 1, 0], [2, 7, 3], [0, 4, 8]])
    assert error_counts(three, [0, 1]) == (5 + 1 + 2 + 7, 18, 8, 12)


@pytest.mark.parametrize("kind", [ConvClassifier, ResidualClassifier])
def test_files_keep_the_network_the_errors_and_give_the_name(tmp_path, kind):
    widths = (4, 4, 4, 4, 4) if kind is ConvClassifier else (8, 16)
    classifier = Classifier(kind(2, 8, 1, widths, 5), ["a", "b"], (0.0, 1.0), confusion=COUNTS)
    back = Classifier.load(classifier.save(tmp_path / "judge-1.safetensors"))
    assert (type(back.module), back.name, back.confusion.tolist()) == (kind, "judge-1", COUNTS.tolist())
    x = torch.rand(7, 1, 8, 8)
    assert torch.equal(back.logits(x), classifier.logits(x))
    assert back.errors()["b"]["specificity"]["share"] == 0.97
    with pytest.raises(ValueError, match="the errors of classifier on held-out images are not known"):
        Classifier(kind(2, 8, 1, widths, 5), ["a", "b"]).errors()


@pytest.mark.parametrize(
    "counts", [[[1, 2]], [[1, 2], [3]], [[1, -1], [0, 1]], [["x", 1], [1, 1]], 7, [[1e300, 1], [1, 1]]]
)
def test_a_file_with_errors_that_cannot_be(tmp_path, counts):
    import json

    from atu.formats.tensors import load_tensors, save_tensors

    path = Classifier(ConvClassifier(2, 8, 1, (4, 4, 4, 4, 4), 5), ["a", "b"]).save(tmp_path / "c.safetensors")
    tensors, metadata = load_tensors(path)
    config = json.dumps({**json.loads(metadata["config"]), "confusion": counts})
    save_tensors(path, tensors, {"format": metadata["format"], "config": config})
    with pytest.raises(CheckpointError, match="its config cannot be read"):
        Classifier.load(path)
