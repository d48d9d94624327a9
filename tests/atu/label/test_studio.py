"""Samples by index, the probe's rows, the files."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from atu.data.images import load_folder, to_uint8
from atu.gan import GAN
from atu.judging.rule import Rule
from atu.label import suggest
from atu.label.pool import Pool, Space, block_size, encode
from atu.label.session import JUDGED, RANDOM
from atu.label.studio import open_studio
from atu.networks.mlp import MLPGenerator
from atu.support.digest import sha256_of
from atu.support.seeding import mix_seed


def work(studio, most=400):
    """All that there is to do; a mark is as old as it need be."""
    studio._marked_at = 0.0
    for _ in range(most):
        if not studio._step():
            return
    raise AssertionError("the work does not end")


def sample(gan: GAN, seed: int, index: int, block: int = 64):
    return gan.sample(block, seed=mix_seed(seed, index // block), batch_size=block)[index % block]


def test_a_sample_is_keyed_by_seed_and_index(image_gan):
    pool = Pool(image_gan, Space(image_gan, 64, 300), 5, 64, 300)
    assert pool.thumb(131) is None
    pool.make(2)
    picture = np.asarray(Image.open(io.BytesIO(pool.thumb(131))))
    expected = to_uint8(sample(image_gan, 5, 131), image_gan.image_range)[0]
    assert np.array_equal(picture, expected.numpy())


def test_the_cache_of_thumbnails_is_bounded_and_made_again(image_gan):
    pool = Pool(image_gan, Space(image_gan, 64, 300), 5, 64, 640, cache_bytes=20_000)
    pool.make(0)
    first, each = pool.thumb(3), pool.cached
    for block in range(1, 10):
        pool.make(block)
        assert pool.cached <= max(20_000, each * 1.2)
    assert pool.thumb(3) is None and pool.thumb(9 * 64) is not None
    pool.make(0)
    assert pool.thumb(3) == first
    assert pool.cached == sum(len(data) for block in pool._thumbs.values() for data in block)


@pytest.mark.parametrize("shape", [(1, 300, 200), (3, 257, 257), (4, 500, 130), (3, 31, 17)])
def test_thumbnails_are_small(shape):
    image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = Image.open(io.BytesIO(encode(image)))
    assert max(picture.size) == min(max(shape[1:]), 128)
    assert abs(picture.size[0] / picture.size[1] - shape[2] / shape[1]) < 0.02


def test_samples_that_are_no_images_are_refused(vector_gan):
    with pytest.raises(ValueError, match=r"CKPT: its samples have shape \[2\]"):
        block_size(vector_gan)


def clusters(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, 8] whose first one says whether they are unwanted."""
    rng = np.random.default_rng(seed)
    unwanted = rng.random(n) < 0.3
    x = rng.normal(size=(n, 8)).astype(np.float32)
    x[:, 0] += np.where(unwanted, 3, -3)
    return x, unwanted


def test_the_probe_finds_what_was_marked_and_what_contradicts():
    x, unwanted = clusters(101)
    marked = unwanted.copy()
    marked[17] = not marked[17]
    probe = suggest.fit(x, marked, x[:0])
    assert probe.contradictions[0] == 17
    right, of = probe.recall
    assert of == marked.sum() and right >= 0.9 * of
    assert probe.specificity[0] >= 0.9 * probe.specificity[1]
    more, truth = clusters(1009, seed=1)
    scores = probe.score(more)
    assert ((scores > 0) == truth).mean() > 0.95
    free = np.ones(1009, bool)
    free[:100] = False
    found = suggest.likely(scores, free)
    assert len(found) == suggest.ROW and truth[found].all() and min(found) >= 100
    # Of the likelier half, and of all of it: some score above its median, some below.
    kept = np.sort(scores[free & (scores > 0)])
    assert scores[found].min() >= np.median(kept) > 0
    assert 4 <= (scores[found] > np.median(kept[len(kept) // 2 :])).sum() <= suggest.ROW - 4
    few = suggest.likely(scores, np.isin(np.arange(1009), found[:5]))
    assert sorted(few) == sorted(found[:5])
    least = suggest.unsure(scores, free)
    assert abs(scores[least]).max() <= np.partition(abs(scores[100:]), suggest.ROW)[suggest.ROW]


def test_the_probe_with_few_marks():
    x, unwanted = clusters(200)
    two = np.flatnonzero(unwanted)[:2]
    assert suggest.fit(x[two], np.ones(2, bool), x) is None
    some = np.flatnonzero(unwanted)[:7]
    probe = suggest.fit(x[some], np.ones(7, bool), x)  # the others stand in for good ones
    scores = probe.score(x)
    assert (scores[unwanted][:, None] > scores[~unwanted][None]).mean() > 0.97
    assert probe.specificity == (0, 0) and probe.contradictions == []


def test_near_duplicates():
    x = np.random.default_rng(0).normal(size=(40, 64)).astype(np.float32)
    x[31] = x[4] + 0.01
    assert suggest.near_duplicates(x) == [31]
    assert suggest.near_duplicates(x[:1]) == []


def test_when_to_stop():
    rising = [(m, min(m / 100, 0.9)) for m in range(10, 100, 5)]
    assert not suggest.settled(rising)
    assert suggest.settled(rising + [(m, 0.9) for m in range(100, 140, 5)])
    assert not suggest.settled([(200, 0.9)]) and not suggest.settled([])
    assert "stop here" in suggest.advice(dict(unwanted=40, good=80, unsure=0), True)
    assert "100 of each" in suggest.advice(dict(unwanted=40, good=80, unsure=0), False)


def test_rows_follow_the_marks(studio):
    work(studio)
    assert studio.state(-1, 0)["probe"] is None and studio.views == {}
    dark = [sample(studio.space.gan, 5, RANDOM + i).mean() for i in range(60)]
    order = [RANDOM + int(i) for i in np.argsort(dark)]
    studio.session.mark(order[:20], "unwanted")
    studio.session.mark(order[-20:], "good")
    work(studio)
    state = studio.state(-1, 0)
    assert state["fitted"] and state["probe"]["recall"]["of"] == 20
    rows = studio.views["likely"] + studio.views["unsure"]
    assert studio.views["likely"] and not set(rows) & set(order[:20] + order[-20:]) and min(rows) >= RANDOM
    assert state["cost"]["seconds"] > 0 and state["cost"]["bytes"] > 0


def test_state_tells_changes_or_all(studio):
    studio.session.mark([4], "good")
    whole = studio.state(-1, 0)
    assert len(whole["codes"]) == RANDOM + 300 and whole["codes"][4] == "g"
    studio.session.mark([6], "unsure")
    assert studio.state(whole["version"], 1)["changes"] == [(6, ord("u"))]
    assert "codes" in studio.state(99, 1) and "codes" in studio.state(1, 2)


def test_files_follow_the_marks(studio, marks):
    own = marks / "good" / "mine.png"
    own.write_bytes(b"the user's")
    at = [RANDOM + 2, RANDOM + 70, RANDOM + 71]
    studio.session.mark(at, "unwanted")
    studio.session.mark([RANDOM + 5], "good")
    studio.session.mark([9], "unsure")
    work(studio)
    images = load_folder(marks / "unwanted", studio.space.gan.sample_shape)
    for image, index in zip(images, at, strict=True):
        assert torch.equal(image, to_uint8(sample(studio.space.gan, 5, index), (-1, 1)))
    data = json.loads((marks / "labels.json").read_text())
    by_index = {one["index"]: one for one in data["samples"]}
    assert sorted(by_index) == sorted([*at, RANDOM + 5, 9])
    assert by_index[9]["label"] == "unsure" and "file" not in by_index[9]
    z = load_file(marks / "latents.safetensors")["z"]
    for latent, one in zip(z, data["samples"], strict=True):
        drawn, _ = studio.space.gan.inputs(data["block"], one["seed"])
        assert torch.equal(latent, drawn[one["row"]])
        if "file" in one:
            assert sha256_of(marks / one["file"]) == one["sha256"]
    studio.session.mark([RANDOM + 70], "none")
    studio.session.mark([RANDOM + 2], "good")
    work(studio)
    assert len(list((marks / "unwanted").iterdir())) == 1
    assert sorted(path.name for path in (marks / "good").iterdir()) == [
        "mine.png",
        "r1-0001026.png",
        "r1-0001029.png",
    ]


def test_a_link_in_place_of_a_picture_is_replaced(studio, marks, tmp_path):
    target = tmp_path / "mine.png"
    target.write_bytes(b"the user's")
    link = marks / "unwanted" / f"r1-{RANDOM + 2:07d}.png"
    link.symlink_to(target)
    studio.session.mark([RANDOM + 2], "unwanted")
    work(studio)
    assert not link.is_symlink() and link.stat().st_size > 0 and target.read_bytes() == b"the user's"
    data = json.loads((marks / "labels.json").read_text())
    assert data["samples"][0]["sha256"] == sha256_of(link)


def test_files_are_written_at_the_end(image_gan, marks):
    studio = open_studio(image_gan, "small", marks, 300, 5, [], None)
    studio.start()
    studio.session.mark([RANDOM + 1], "unwanted")
    studio.touched()
    studio.close()
    assert [path.name for path in (marks / "unwanted").iterdir()] == ["r1-0001025.png"]


def test_a_folder_of_marks_without_its_journal_keeps_its_pictures(image_gan, marks):
    """As it may be handed on."""
    studio = open_studio(image_gan, "small", marks, 300, 5, [], None)
    studio.session.mark([RANDOM + 1, RANDOM + 2], "unwanted")
    studio.close()
    (marks / "journal.jsonl").unlink()
    before = {path: path.read_bytes() for path in marks.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"out: .* is there without a journal"):
        open_studio(image_gan, "small", marks, 300, 5, [], None).close()
    assert {path: path.read_bytes() for path in marks.rglob("*") if path.is_file()} == before
    assert len(list((marks / "unwanted").iterdir())) == 2


def test_runs_of_earlier_marks_under_this_name_are_not_taken_for_its_own(image_gan, marks):
    run, new = marks.with_name("marks-run-2"), (image_gan, "small", marks, 300, 5, [], None)
    for path in (run, marks.with_name("marks-run-1-stopped-1"), marks.with_name("marks-run-notes")):
        path.mkdir()
    with pytest.raises(ValueError, match=r"out: .*marks-run-2 is of earlier marks .* move it away, or give another"):
        open_studio(*new)
    assert not marks.exists()
    run.rmdir()  # the others are no run that it would go on with
    open_studio(*new).close()
    run.mkdir()
    open_studio(*new).close()  # of these marks


def test_what_training_takes_is_estimated_of_frozen_networks_too(image_gan, marks):
    for module in image_gan.modules().values():
        module.requires_grad_(False)
    studio = open_studio(image_gan, "small", marks, 100, 5, [], None)
    work(studio)
    cost = studio.state(-1, 0)["cost"]
    studio.close()
    weights = 4 * sum(p.numel() for module in image_gan.modules().values() for p in module.parameters())
    assert cost["seconds"] > 0 and cost["bytes"] > studio.runs.own_bytes + 8 * weights


def test_an_estimate_that_fails_is_not_shown_and_stops_nothing(studio, marks, monkeypatch):
    asked = []

    def short():
        asked.append(1)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(studio.runs, "cost", short)
    work(studio)
    studio.session.mark([RANDOM + 1], "unwanted")
    work(studio)
    assert asked == [1] and studio.state(-1, 0)["cost"] is None
    assert len(list((marks / "unwanted").iterdir())) == 1


def test_a_gan_without_a_discriminator_can_be_marked(marks):
    gan = GAN(MLPGenerator(4, [1, 8, 8], hidden=(16,), output="tanh"))
    studio = open_studio(gan, "small", marks, 100, 0, [], None)
    studio.session.mark([RANDOM + 1], "unwanted")
    work(studio)
    assert studio.views.get("likely", []) == [] and len(list((marks / "unwanted").iterdir())) == 1
    with pytest.raises(ValueError, match="no discriminator"):
        studio.unlearn()
    studio.close()


def test_what_survived_and_what_changed(studio, marks, monkeypatch):
    """The second round's GAN is the first one with its weights moved a little."""
    work(studio)
    bright = sorted(range(RANDOM, RANDOM + 60), key=lambda i: float(sample(studio.space.gan, 5, i).mean()))
    studio.session.mark(bright[:20], "unwanted")
    studio.session.mark(bright[-20:], "good")
    result = marks.with_name("marks-run-1") / "result.safetensors"
    changed = studio.space.gan.copy()
    with torch.no_grad():
        for p in changed.generator.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    changed.save(result)
    (result.parent / "report.html").write_text("<p>done</p>")
    assert studio.runs.status(1)["state"] == "finished"
    monkeypatch.setattr(studio, "_in_thread", lambda work: work())
    studio.next_round()
    assert studio.number == 2
    with pytest.raises(ValueError, match="nothing of this round is marked yet"):
        studio.unlearn()
    work(studio)
    # Of what was unwanted before, by a mark or by the probe, the likeliest to be so still, whatever the sign says.
    scores = [studio.probe.score(studio.pools[k].features[: RANDOM + 300]) for k in (1, 2)]
    were = [i for i in range(RANDOM, RANDOM + 300) if i in bright[:20] or (scores[0][i] > 0 and i not in bright[-20:])]
    ranked = sorted(were, key=lambda i: -scores[1][i])
    assert studio.views["survived"] == ranked[: suggest.ROW] and len(were) > suggest.ROW
    assert sorted(studio.views["were_unwanted"]) == sorted(bright[:20])
    assert sorted(studio.views["were_good"]) == sorted(bright[-20:])
    now, before = studio.pools[2], studio.pools[1]
    moved = np.linalg.norm(now.features[bright[-20:]] - before.features[bright[-20:]], axis=1)
    assert studio.views["damaged"][0] == bright[-20:][int(moved.argmax())]
    words = studio.runs.command(2)
    assert words[1] == "small" and words[words.index("--from") + 1] == str(result.parent)
    studio.session.mark(ranked[:7], "good")
    work(studio)
    assert not set(ranked[:7]) & set(studio.views["survived"])  # so that Enter brings the next ones


def test_the_result_is_judged_blind(studio, marks):
    with pytest.raises(ValueError, match="there is no result to judge yet"):
        studio.mark([-1], "good", "judge")
    result = marks.with_name("marks-run-1") / "result.safetensors"
    changed = studio.space.gan.copy()
    with torch.no_grad():
        for p in changed.generator.parameters():
            p.mul_(0.5)
    changed.save(result)
    data = dict(negatives_before=3, sha256=dict(result=sha256_of(result)))
    (result.parent / "report.json").write_text(json.dumps(data))
    (result.parent / "report.html").write_text("<header></header>")
    studio.session.mark([RANDOM + 3], "unwanted")
    work(studio)
    state = studio.state(-1, 0)
    assert state["judging"] == dict(judged=0, of=2 * JUDGED, revealed=False) and len(state["blind"]) == 2 * JUDGED
    # Each position shows a sample of its own latents, of the GAN that the order says.
    gans, order = (studio.space.gan, changed), studio.session.blind_order(1)
    for position in (0, 1, 57, 2 * JUDGED - 1):
        studio.want(1, -1 - position)
        work(studio)
        which, at = divmod(int(order[position]), JUDGED)
        picture = np.asarray(Image.open(io.BytesIO(studio.thumb(1, -1 - position))))
        expected = to_uint8(sample(gans[which], mix_seed(5, 900_002 + which), at), (-1, 1))[0]
        assert np.array_equal(picture, expected.numpy())
    with pytest.raises(ValueError, match="judge some samples first"):
        studio.reveal()
    stamp = studio.session.stamp
    studio.mark([-1 - p for p in range(30)], "good", "judge")
    studio.mark([-1 - p for p in range(30) if order[p] < JUDGED][:4], "unwanted", "judge")
    assert studio.state(stamp - 1, 1)["judging"] == dict(judged=30, of=2 * JUDGED, revealed=False)  # not yet told
    studio.reveal()
    told = studio.state(-1, 0)["judging"]
    assert told["revealed"] and told["before"]["unwanted"] == 4 and told["after"]["unwanted"] == 0
    person = json.loads((result.parent / "report.json").read_text())["person"]
    assert person["before"]["unwanted"] == 4 and person["after"]["n"] == told["after"]["marked"]
    assert "By a person" in (result.parent / "report.html").read_text()
    work(studio)
    assert json.loads((marks / "labels.json").read_text())["samples"][0]["index"] == RANDOM + 3
    assert len(json.loads((marks / "labels.json").read_text())["samples"]) == 1  # what was judged is no mark


def test_an_oracle_ranks_and_proposes(image_gan, marks):
    def brightness(x):
        return x.flatten(1).mean(1)

    x = torch.stack([sample(image_gan, 5, RANDOM + i) for i in range(300)])
    limit = float(brightness(x).quantile(0.95))
    oracle = Rule(lambda x: brightness(x) > limit, name="bright", score=brightness)
    studio = open_studio(image_gan, "small", marks, 300, 5, [], None, oracle=oracle)
    work(studio)
    state = studio.state(-1, 0)
    expected = [RANDOM + int(i) for i in brightness(x).argsort(descending=True)[:24]]
    assert state["oracle"] == "bright" and state["views"]["ranked"] == expected
    assert state["called"] == [i for i in expected if brightness(x)[i - RANDOM] > limit] and state["called"]
    assert studio.session.counts()["unwanted"] == 0  # a proposal is no mark
    studio.session.mark(expected[:3], "unwanted")
    work(studio)
    assert not set(studio.views["ranked"]) & set(expected[:3])
    studio.close()


def test_the_next_round_of_networks_of_the_users_own(conv_gan, marks):
    """What atu does not build itself is filled into copies of the networks that were given."""
    studio = open_studio(conv_gan, "own", marks, 100, 5, [], None)
    result = marks.with_name("marks-run-1") / "result.safetensors"
    changed = conv_gan.copy()
    with torch.no_grad():
        changed.generator.fc.weight.mul_(0.5)
    changed.save(result)
    (result.parent / "report.html").write_text("<header></header>")
    studio.next_round()
    studio.session.mark([RANDOM + 3], "unwanted")
    studio.close()
    again = open_studio(conv_gan, "own", marks, 100, 5, [], None)
    assert again.number == 2 and type(again.pools[2].gan.generator) is type(conv_gan.generator)
    expected = changed.sample(64, seed=mix_seed(5, (RANDOM + 3) // 64), batch_size=64)
    assert torch.equal(again.pools[2].images((RANDOM + 3) // 64), expected)
    again.close()
