"""A simulated user of the labelling page: what it takes to find the unwanted, and to unlearn it, in rounds.

The user is the bundled classifier (and a measure of the stroke): it looks at the page's thumbnails, 24 at a time, marks
one by one what there is less of, unwanted or good, and the rest with one key more, and slips at 2 % of the samples.
With suggestions it goes through the page's rows, in a later round through Survived as long as its pages show some; in
random order through the grid. A round ends when the samples marked unwanted and the pages come to a hundred, or when
nothing more turns up. Marks, suggestions, runs and rounds are the page's own (`atu.label.studio`). The judge is a
classifier that never answered.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from atu.assets import asset
from atu.data.images import map_range, to_range
from atu.gan import GAN
from atu.judging.classifier import Classifier
from atu.judging.strokes import feature_rules
from atu.label.pool import Pool, Space
from atu.label.session import NONE, RANDOM
from atu.label.studio import Studio, open_studio
from atu.measures.shares import unlearning
from atu.support.environment import machine, versions
from atu.support.files import write_json, write_text
from atu.support.seeding import mix_seed
from benchmarks.numbers import marks_finding, marks_unlearning
from benchmarks.tables import Row, flatten, write_rows

PAGE = 24  # samples in view at once
SLIP = 0.02
SAMPLES, FEW = 10_000, 300  # that the page offers; in a quick run
FOUND = (10, 30, 100)  # unwanted samples to find
EFFORT = 100  # of a round, in samples marked unwanted and pages
BARE = 10  # pages in a row without anything unwanted, after which the user has enough of a round
ROUNDS = 3
ORDERS = ("suggestions", "random")
JUDGED = 10_000  # fixed latents of the judge
Rule = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Feature:
    """What is unwanted: digits, or those of them that have a measured feature of the stroke too. share: of the bundled
    GAN's samples, about."""

    share: str
    subject: str
    digits: tuple[str, ...]
    measured: str | None = None

    def rule(self, classifier: Classifier, gan: GAN) -> Rule:
        """Samples [N, 1, 32, 32] of the GAN -> bools [N], by a classifier."""
        wanted = torch.tensor(classifier.class_indices(self.digits))
        measured = None if self.measured is None else feature_rules(gan)[self.measured]

        @torch.no_grad()
        def is_unwanted(x: Tensor) -> Tensor:
            logits = classifier.logits(map_range(x, gan.image_range, classifier.image_range))
            found = torch.isin(logits.argmax(1).cpu(), wanted)
            return found if measured is None else found & measured(x).cpu()

        return is_unwanted


FEATURES = (
    Feature("3 %", "the digit 3, leaning to the left", ("3",), "left"),
    Feature("10 %", "the digit 3", ("3",)),
    Feature("30 %", "the digits 3, 5 and 9", ("3", "5", "9")),
)


class User:
    """Looks at pages and marks. looked, clicks, marked, found: samples seen, keys pressed, samples called unwanted, and
    how many of those are. bare: pages in a row with nothing unwanted. left: whether Survived is done with. file: where
    the count is kept, so that a killed session goes on."""

    def __init__(self, studio: Studio, is_unwanted: Rule, suggestions: bool, seed: int, file: Path | None = None):
        self.studio, self.is_unwanted, self.suggestions, self.seed, self.file = (
            studio, is_unwanted, suggestions, seed, file,
        )  # fmt: skip
        self.count = dict(pages=0, looked=0, clicks=0, marked=0, found=0, bare=0, left=0)
        if file is not None and file.exists():
            self.count = json.loads(file.read_text(encoding="utf-8"))

    def page(self) -> bool:
        """Look at one page and mark what is on it; False where there is nothing more to see."""
        studio, count = self.studio, self.count
        view, shown = self._shown()
        if not shown:
            return False
        truth = self.is_unwanted(torch.stack([self._seen(index) for index in shown])).numpy()
        slips = np.random.default_rng([self.seed, count["pages"]]).random(len(shown)) < SLIP
        said = truth ^ slips
        studio.session.mark([i for i, one in zip(shown, said, strict=True) if one], "unwanted", view)
        studio.session.mark([i for i, one in zip(shown, said, strict=True) if not one], "good", view)
        studio.touched()
        count["pages"] += 1
        count["looked"] += len(shown)
        count["clicks"] += min(int(said.sum()), int((~said).sum())) + 1  # one for the rest and the next page
        count["marked"] += int(said.sum())
        count["found"] += int((said & truth).sum())
        count["bare"] = 0 if said.any() else count["bare"] + 1
        count["left"] |= int(view == "survived" and not said.any())
        if self.file is not None:
            write_json(self.file, count)
        return True

    def _shown(self) -> tuple[str, list[int]]:
        """The view, and its samples that are not marked yet."""
        codes = self.studio.session.now.codes
        if self.suggestions:
            self.studio.work(self._is_fitted)
            views = self.studio.state(-1, 0)["views"]
            # What survived is shown first in a later round; then the likely ones, every third time the unsure ones.
            turn = ("unsure", "likely") if self.count["pages"] % 3 == 2 else ("likely", "unsure")
            for view in turn if self.count["left"] else ("survived", *turn):
                shown = [i for i in views.get(view, []) if codes[i] == NONE][:PAGE]
                if shown:
                    return view, shown
        found: list[int] = []
        at = codes.find(NONE, RANDOM)
        while at >= 0 and len(found) < PAGE:
            found.append(at)
            at = codes.find(NONE, at + 1)
        return "all", found

    def _is_fitted(self) -> bool:
        state = self.studio.state(-1, 0)
        return state["fitted"] and state["made"] >= state["size"] - RANDOM

    def _seen(self, index: int) -> Tensor:
        """The sample, as its thumbnail shows it."""
        studio = self.studio
        pool = studio.pools[studio.number]
        while (data := pool.thumb(index)) is None:
            studio.want(studio.number, index)
            studio.work(lambda: pool.thumb(index) is not None)
        pixels = torch.from_numpy(np.asarray(Image.open(io.BytesIO(data))).copy())
        return to_range(pixels.reshape(pool.gan.sample_shape), pool.gan.image_range)


# --- finding


def find(
    feature: Feature, order: str, seed: int, folder: Path, gan: GAN, user: Classifier, pool: Pool, wanted: int
) -> dict[str, Any]:
    """Mark until `wanted` unwanted samples are found: one row of counts a page. pool: made already."""
    studio = open_studio(gan, "mnist", folder, pool.size - RANDOM, pool.seed, [], None)
    try:
        studio.space, studio.pools = pool.space, {1: pool}
        person = User(studio, feature.rule(user, gan), order == "suggestions", seed)
        rows = []
        while person.count["found"] < wanted and person.page():
            rows.append(dict(person.count))
    finally:
        studio.close()
    return dict(feature=feature.share, subject=feature.subject, order=order, seed=seed, pages=rows)


def made_pool(gan: GAN, seed: int, samples: int) -> Pool:
    """The page's samples with their features, all of them."""
    space = Space(gan, 64, samples)
    pool = Pool(gan, space, seed, 64, RANDOM + samples)
    for block in range(len(pool.made)):
        pool.make(block)
    return pool


def to_find(rows: Sequence[Mapping[str, int]], n: int, key: str) -> int | None:
    """Samples looked at, or clicks, at the end of the page on which the n-th unwanted one was found."""
    return next((row[key] for row in rows if row["found"] >= n), None)


def told(cell: Mapping[str, Any]) -> dict[str, Any]:
    """What is reported of a cell: the counts at the end of the pages on which the n-th unwanted one was found."""
    rows = cell["pages"]
    found = {str(n): {key: to_find(rows, n, key) for key in ("looked", "clicks")} for n in FOUND}
    return {**{key: value for key, value in cell.items() if key != "pages"}, "found": found}


# --- unlearning


def unlearn_in_rounds(
    feature: Feature, order: str, samples: int, effort: int, rounds: int, folder: Path, gan: GAN, user: Classifier,
    say: Callable, options: list[str], config: Path | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Mark and unlearn through a page of `samples`, `effort` a round; what was marked by the end of each round.

    A killed one goes on: marks, runs and counts are in `folder`.
    """
    studio = open_studio(gan, "mnist", folder / "marks", samples, 0, options, config)
    rule, rows = feature.rule(user, gan), []
    try:
        for number in range(1, rounds + 1):
            path = folder / f"round-{number}.json"
            if not path.exists():
                person = User(studio, rule, order == "suggestions", mix_seed(1, number), folder / f"user-{number}.json")
                count = person.count
                while count["marked"] + count["pages"] < effort and count["bare"] < BARE and person.page():
                    pass
                started = time.monotonic()
                if not studio.runs.finished(number):
                    studio.unlearn()
                    _wait(studio, number, say)
                row = dict(person.count, round=number, counts=studio.session.counts())
                write_json(path, {**row, "seconds": round(time.monotonic() - started)})
            rows.append(json.loads(path.read_text(encoding="utf-8")))
            if studio.number == number < rounds:
                studio.next_round()
    finally:
        studio.close()
    return rows


def _wait(studio: Studio, number: int, say: Callable[[str], None]) -> None:
    last = ""
    while studio.runs.busy:
        time.sleep(1)
        status = studio.runs.status(number)
        text = f"  round {number}: {status.get('stage', 'starting')}"
        if text != last:
            say(text)
        last = text
    if not studio.runs.finished(number):
        raise ValueError(f"out: the run of round {number} failed: {studio.runs.status(number).get('line', '')}")


def judged(
    feature: Feature, original: GAN, result: Path, judge: Classifier, user: Classifier, n: int = JUDGED
) -> dict[str, Any]:
    """What is gone of a run's unwanted, by the judge and by the user's own classifier, and the share of good samples
    that are of another class now by the judge, on n fixed latents."""
    after = GAN.load(result)
    flags: dict[str, list[Tensor]] = {name: [] for name in ("before", "after", "user_before", "user_after")}
    rules = {"": feature.rule(judge, original), "user_": feature.rule(user, original)}
    classes: dict[str, list[Tensor]] = {"before": [], "after": []}
    for name, gan in (("before", original), ("after", after)):
        for x in original.batches(n, 4_000_001, 250, gan.sampling_generator):
            for who, rule in rules.items():
                flags[f"{who}{name}"].append(rule(x))
            with torch.no_grad():
                classes[name].append(judge.logits(map_range(x, gan.image_range, judge.image_range)).argmax(1).cpu())
    told = {name: torch.cat(parts) for name, parts in flags.items()}
    changed = torch.cat(classes["before"]) != torch.cat(classes["after"])
    return dict(
        judge=asdict(unlearning(told["before"], told["after"])),
        user=asdict(unlearning(told["user_before"], told["user_after"])),
        good_changed=float(changed[~told["before"]].float().mean()),
    )


# --- all of it


def run_marks(
    out: Path, quick: bool, seeds: int, rounds: int, only: Sequence[str], say: Callable[[str], None],
    judge: Path | None = None, orders: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Both parts, cell by cell; OUT/marks-finding.csv and marks-unlearning.csv are written anew after each. Cells that
    are there are not computed again.

    Args:
        seeds: of finding. rounds: of unlearning; 0 leaves it out. only: shares ("3 %") to unlearn; all when empty; what
        an earlier call unlearned stays in the table. judge: a classifier's file; the bundled judge's when not given.
        orders: to unlearn in; both when empty.

    Raises:
        ValueError: OUT holds cells of the other kind of `quick`.
    """
    known = out / "marks.json"
    if known.exists() and json.loads(known.read_text(encoding="utf-8"))["quick"] != quick:
        raise ValueError(
            f"out: {out} holds cells that were made {'without' if quick else 'with'} --quick; give another"
        )
    gan = GAN.load(asset("mnist-gan.safetensors"))
    user = Classifier.load(asset("mnist-classifier.safetensors"))
    about = dict(what="marks", machine=machine("cpu"), versions=versions(), quick=quick, slip=SLIP, page=PAGE)
    if not known.exists():
        write_json(known, about)
    found = _finding(out, quick, seeds, gan, user, say)
    data = {**about, "finding": found, "unlearning": []}
    _write(out, data)
    for order in ORDERS:
        for feature in sorted(FEATURES, key=lambda one: one.share != "10 %"):
            wanted = (not only or feature.share in only) and (not orders or order in orders)
            there = len(list(_folder(out, feature, order).glob("judged-*.json")))
            _chain(out, quick, feature, order, max(rounds * wanted, there), gan, user, judge, say, data)
    return data


def _folder(out: Path, feature: Feature, order: str) -> Path:
    return out / "unlearning" / f"{feature.share.split()[0]}-{order}"


def _finding(out: Path, quick: bool, seeds: int, gan: GAN, user: Classifier, say: Callable) -> list[dict[str, Any]]:
    rows = []
    samples, wanted = (FEW, 3) if quick else (SAMPLES, FOUND[-1])
    for seed in range(seeds):
        pool: Pool | None = None
        for feature in FEATURES:
            for order in ORDERS:
                path = out / "finding" / f"{feature.share.split()[0]}-{order}-{seed}.json"
                if not path.exists():
                    say(f"finding {feature.subject} ({feature.share}), {order}, seed {seed}")
                    pool = made_pool(gan, 100 + seed, samples) if pool is None else pool
                    folder = out / "finding" / f"{path.stem}-marks"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    _remove(folder)
                    write_json(path, find(feature, order, seed, folder, gan, user, pool, wanted))
                    _remove(folder)
                rows.append(told(json.loads(path.read_text(encoding="utf-8"))))
    return rows


def _remove(folder: Path) -> None:
    """The marks of a cell that was stopped, or is done."""
    import shutil

    if (folder / "journal.jsonl").exists():
        shutil.rmtree(folder)


def _chain(
    out: Path, quick: bool, feature: Feature, order: str, rounds: int, gan: GAN, user: Classifier, judge: Path | None,
    say: Callable, data: dict[str, Any],
) -> None:  # fmt: skip
    if not rounds:
        return
    folder = _folder(out, feature, order)
    folder.mkdir(parents=True, exist_ok=True)
    samples, effort, options, config = SAMPLES, EFFORT, ["--samples", "1000"], None
    if quick:
        samples, effort, config = FEW, 5, folder / "quick.toml"
        write_text(config, QUICK)
        options = ["--samples", "64", "--config", str(config)]
    for upto in range(1, rounds + 1):
        say(f"unlearning {feature.subject} ({feature.share}), {order}, {upto} round{'s' * (upto > 1)}")
        done = unlearn_in_rounds(feature, order, samples, effort, upto, folder, gan, user, say, options, config)
        path = folder / f"judged-{upto}.json"
        if not path.exists():
            knows = Classifier.load(judge or asset("mnist-judge.safetensors"))
            result = folder / f"marks-run-{upto}" / "result.safetensors"
            report = json.loads((result.parent / "report.json").read_text(encoding="utf-8"))
            own = {key: report[key] for key in ("pul", "pul_ci95", "negatives_before", "negatives_after")}
            write_json(path, {**judged(feature, gan, result, knows, user, 500 if quick else JUDGED), "report": own})
        row: dict[str, Any] = dict(feature=feature.share, subject=feature.subject, order=order, rounds=upto)
        row["clicks"] = sum(one["clicks"] for one in done)
        row["looked"] = sum(one["looked"] for one in done)
        row.update(counts=done[-1]["counts"], seconds=done[-1]["seconds"])
        data["unlearning"].append({**row, **json.loads(path.read_text(encoding="utf-8"))})
        _write(out, data)


def _write(out: Path, data: Mapping[str, Any]) -> None:
    write_rows(out / "marks-finding.csv", finding_rows(data["finding"]))
    write_rows(out / "marks-unlearning.csv", unlearning_rows(data["unlearning"]))


def finding_rows(cells: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row a seed, an order and a number of samples found."""
    return [
        {**_about(one), "order": one["order"], "seed": one["seed"], "found": int(n), **counts}
        for one in cells
        for n, counts in one["found"].items()
    ]


def unlearning_rows(rounds: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row a round."""
    names = {"feature", "subject"}
    return [{**_about(one), **dict(flatten({name: one[name] for name in one if name not in names}))} for one in rounds]


def _about(one: Mapping[str, Any]) -> Row:
    return {"share": one["feature"], "unwanted": one["subject"]}


QUICK = """
[feedback]
pool = 100
[adapt]
steps = 2
fisher.n = 2
[repel]
steps = 2
check_every = 2
check_samples = 64
guide_steps = 2
"""


@click.command("marks")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for its parts; the same command goes on from there.",
)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="How often it looks.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(0), help="Rounds of unlearning.")
@click.option(
    "--share",
    "shares",
    multiple=True,
    type=click.Choice([feature.share.split()[0] for feature in FEATURES]),
    help="Share in %; all if not given.",
)
@click.option("--order", "orders", multiple=True, type=click.Choice(ORDERS), help="Both if not given.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; torch's own number when not given.")
@click.option("--quick", is_flag=True, help="Few samples, to see that it runs; the numbers mean nothing.")
def main(
    out: Path,
    seeds: int,
    rounds: int,
    shares: tuple[str, ...],
    orders: tuple[str, ...],
    threads: int | None,
    quick: bool,
) -> None:
    """Count what the labelling page takes: a simulated user looks for what is unwanted, with the page's suggestions and
    in random order, and unlearns it in rounds. OUT/marks-finding.csv and
    OUT/marks-unlearning.csv are its tables."""
    if threads is not None:
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of the runs, which are processes of their own
    only = [feature.share for feature in FEATURES if feature.share.split()[0] in shares]
    run_marks(out, quick, seeds, rounds, only, lambda text: click.echo(text, err=True), orders=orders)
    click.echo(f"{marks_finding(out)}\n\n{marks_unlearning(out)}")


if __name__ == "__main__":
    main()
