"""A person's verdict on a run, in its report: they judged samples of both GANs shuffled, and answered nothing else."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ..measures.intervals import exact, wilson
from ..support.digest import sha256_of
from ..support.files import write_json, write_text
from .words import unbreakable

# What the page holds in place of the verdict, or round it.
PLACE = re.compile(r"<!-- person -->.*?<!-- /person -->", re.DOTALL)
SECTION = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""<!-- person -->
<section>
  <h2>By a person</h2>
  <p>{{ text }}</p>
  <p class="note">{{ note }}</p>
</section>
<!-- /person -->""")


def person_of(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """What report.json holds as `person`: for before and after, n (unsure ones left out), unwanted, unsure, share, and
    the 95 % intervals, Wilson's and the exact one.

    Args:
        verdict: before and after, each with marked, unwanted, unsure.
    """
    found: dict[str, Any] = {}
    for name in ("before", "after"):
        marked, unwanted, unsure = (int(verdict[name][key]) for key in ("marked", "unwanted", "unsure"))
        n = marked - unsure
        found[name] = dict(n=n, unwanted=unwanted, unsure=unsure, share=unwanted / n if n else None)
        found[name].update(ci95=list(wilson(unwanted, n)), ci95_exact=list(exact(unwanted, n)))
    return found


def sentence(share: Mapping[str, Any], whose: str) -> str:
    low, high = (100 * bound for bound in share["ci95"])
    return (
        f"Of {share['n']:,} random samples {whose} a person called {share['unwanted']:,} unwanted: 95 %: {low:.1f} to "
        f"{high:.1f} %."
    )


def section(person: Mapping[str, Any]) -> Markup:
    """The verdict as a part of the page."""
    after, before = person["after"], person["before"]
    text = f"{sentence(after, 'of the unlearned GAN')} {sentence(before, 'of the original')}"
    note = (
        "Both kinds were shown shuffled, of different latents, without telling which was which; none was learned from."
    )
    unsure = before["unsure"] + after["unsure"]
    if unsure:
        note += f" {unsure} that they were unsure of are left out."
    exactly = " and ".join(
        "{:.1f} to {:.1f} %".format(*(100 * x for x in one["ci95_exact"])) for one in (after, before)
    )
    note += f" Intervals: Wilson; the exact ones (Clopper and Pearson) are {exactly}."
    return Markup(SECTION.render(text=unbreakable(text), note=unbreakable(note)))


def add_person(out: Path, person: Mapping[str, Any]) -> None:
    """Write a verdict into OUT/report.json and OUT/report.html, in place of one that is there.

    Raises:
        ValueError: there is no report.
    """
    page, numbers = out / "report.html", out / "report.json"
    try:
        data, text = json.loads(numbers.read_text(encoding="utf-8")), page.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"out: {out} holds no report that can be read ({error})") from None
    made = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    told = {**person, "made": made, "result": data.get("sha256", {}).get("result")}
    put = section(told)
    changed, places = PLACE.subn(lambda _: str(put), text)
    if not places:  # a report of an earlier version
        changed = text.replace("</header>", f"</header>\n{put}", 1)
    write_text(page, changed)
    write_json(numbers, {**data, "person": told})


def kept_person(out: Path) -> dict[str, Any] | None:
    """The verdict in a report that is about to be written anew, where the result is still the one that was judged."""
    result = out / "result.safetensors"
    try:
        person = json.loads((out / "report.json").read_text(encoding="utf-8"))["person"]
        return dict(person) if result.is_file() and person["result"] == sha256_of(result) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
