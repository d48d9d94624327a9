"""Rounds: a run that goes on from a finished one."""

import json

import pytest
import torch

from atu import unlearn
from atu.data.images import save_folder
from atu.data.marks import kept_marks
from atu.evaluation.evaluate import evaluate
from atu.training.run_folder import gan_digest

QUICK = {
    "feedback": {"pool": 64},
    "adapt": {"steps": 2, "fisher": {"n": 4}, "adversarial": {"batch_size": 4}},
    "repel": {"steps": 3, "check_every": 2, "check_samples": 50, "guide_steps": 2, "adversarial": {"batch_size": 4}},
}

pytestmark = pytest.mark.filterwarnings("ignore::atu.support.remarks.InputWarning")


def bright(gan, n=12, seed=1):
    x = gan.sample(100, seed=seed)
    return x[x.flatten(1).mean(1).argsort(descending=True)[:n]]


def dark(gan, n=12, seed=1):
    x = gan.sample(100, seed=seed)
    return x[x.flatten(1).mean(1).argsort()[:n]]


@pytest.fixture
def first(image_gan, tmp_path):
    return unlearn(image_gan, bright(image_gan), dark(image_gan), config=QUICK, out=tmp_path / "run-1")


def test_the_second_round_begins_where_the_first_ended(image_gan, first, tmp_path):
    found = bright(first.gan, 9, seed=2)
    out = tmp_path / "run-2"
    second = unlearn(image_gan, found, config=QUICK, out=out, from_run=tmp_path / "run-1")
    assert second.original is image_gan
    assert gan_digest(second.previous) == gan_digest(first.gan)
    assert torch.equal(second.negatives.tensor, torch.cat([found, bright(image_gan)]))
    kept, positives = kept_marks(out, image_gan.image_range, "from_run")
    assert torch.equal(kept.tensor, second.negatives.tensor) and torch.equal(positives.tensor, dark(image_gan))
    identity = json.loads((out / "run.json").read_text())["identity"]
    assert identity["round"] == 2 and identity["from"]["gan"] == gan_digest(first.gan)
    assert identity["gan"] == gan_digest(image_gan)
    decisions = json.loads((out / "decisions.json").read_text())
    assert (decisions["round"], decisions["from_run"]) == (2, str(tmp_path / "run-1"))
    # The same by hand: the joined marks on the first round's GAN.
    by_hand = unlearn(first.gan, second.negatives.tensor, dark(image_gan), config=QUICK)
    for name, value in by_hand.gan.sampling_generator.state_dict().items():
        assert torch.equal(value, second.gan.sampling_generator.state_dict()[name]), name

    third = unlearn(image_gan, bright(second.gan, 5, seed=3), config=QUICK, out=tmp_path / "run-3", from_run=out)
    assert len(third.negatives.tensor) == 5 + 9 + 12 and third.decisions["round"] == 3
    data = third.report(judge=lambda x: x.flatten(1).mean(1) > 0.1, n=200)
    told = evaluate(image_gan, third.gan, lambda x: x.flatten(1).mean(1) > 0.1, n=200, seed=data["seed"])
    assert data["negatives_before"] == told.figures.negatives_before  # the original's, not the second round's
    assert data["models"].keys() == {"before", "previous", "adapted", "after"}
    assert data["sha256"]["before"] == told.sha256["before"]
    page = (tmp_path / "run-3" / "report.html").read_text()
    assert "before this round" in page and "Round 3" in page


def test_a_stopped_round_goes_on(image_gan, first, tmp_path, monkeypatch):
    from atu.training.step import AdversarialStep

    config = {**QUICK, "save_every": 1, "log_every": 1}
    arguments = dict(config=config, from_run=tmp_path / "run-1")
    negatives = bright(first.gan, 9, seed=2)
    whole = unlearn(image_gan, negatives, **arguments)
    step, count = AdversarialStep.step, 0

    def failing(self):
        nonlocal count
        count += 1
        if count == 4:
            raise RuntimeError("the power failed")
        return step(self)

    out = tmp_path / "run-2"
    monkeypatch.setattr(AdversarialStep, "step", failing)
    with pytest.raises(RuntimeError, match="the power failed"):
        unlearn(image_gan, negatives, out=out, **arguments)
    monkeypatch.setattr(AdversarialStep, "step", step)
    resumed = unlearn(image_gan, negatives, out=out, **arguments)
    for name, value in whole.gan.sampling_generator.state_dict().items():
        assert torch.equal(value, resumed.gan.sampling_generator.state_dict()[name]), name
    with pytest.raises(ValueError, match=r"out: .* holds a run with another from"):
        unlearn(image_gan, negatives, config=config, out=out)


def test_what_was_marked_otherwise_since_counts_no_longer(image_gan, first, tmp_path):
    now = torch.cat([dark(image_gan)[:2], bright(first.gan, 7, seed=2)])
    second = unlearn(image_gan, now, bright(image_gan)[:3], config=QUICK, from_run=tmp_path / "run-1")
    assert torch.equal(second.negatives.tensor, torch.cat([now, bright(image_gan)[3:]]))


def test_folders_are_joined_at_eight_bits(image_gan, tmp_path):
    """As the page does it: the folder of the second round holds the first one's pictures too."""
    negatives = tmp_path / "negatives"
    save_folder(bright(image_gan), image_gan.image_range, negatives)
    first = unlearn(image_gan, negatives, config=QUICK, out=tmp_path / "run-1")
    save_folder(bright(first.gan, 3, seed=2), image_gan.image_range, negatives, seed=2)
    second = unlearn(image_gan, negatives, config=QUICK, from_run=tmp_path / "run-1")
    assert len(second.negatives) == 12 + 3


def test_errors_name_what_is_wrong(image_gan, first, tmp_path):
    def go_on(gan=image_gan, run=tmp_path / "run-1", out=None):
        unlearn(gan, bright(image_gan), config=QUICK, from_run=run, out=out)

    with pytest.raises(ValueError, match=r"from_run: expected the folder of a run, and .*nowhere holds no run.json"):
        go_on(run=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"from_run: .* began from another GAN .* give the original"):
        go_on(gan=first.gan)
    with pytest.raises(ValueError, match="out: expected another folder than that of the run that this goes on from"):
        go_on(out=tmp_path / "run-1")
    (tmp_path / "run-1" / "marks.safetensors").rename(tmp_path / "kept")
    with pytest.raises(ValueError, match=r"from_run: .* does not hold the negatives"):
        go_on()
    (tmp_path / "kept").rename(tmp_path / "run-1" / "marks.safetensors")
    (tmp_path / "run-1" / "result.safetensors").unlink()
    with pytest.raises(ValueError, match=r"from_run: the run in .* is not finished; go on with it first"):
        go_on(out=tmp_path / "run-2")
    assert not (tmp_path / "run-2").exists()


def test_networks_of_the_users_own(conv_gan, tmp_path):
    """Not built by atu: the earlier result is filled into copies, with and without labels."""
    middle = float(conv_gan.sample(200).mean([1, 2, 3]).median())
    oracle = lambda x: x.mean([1, 2, 3]) > middle  # noqa: E731
    out = tmp_path / "run-1"
    first = unlearn(conv_gan, bright(conv_gan), is_negative=oracle, config=QUICK, out=out)
    second = unlearn(conv_gan, bright(first.gan, 3, 2), is_negative=oracle, config=QUICK, from_run=out)
    assert gan_digest(second.previous) == gan_digest(first.gan)
    assert type(second.generator) is type(conv_gan.generator)
