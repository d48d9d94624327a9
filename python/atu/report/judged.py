"""What a report says of its judges: whose figures these are, how far to believe them, and what others say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .words import number, percent

WEAK = 0.95  # of a rate on real images, below which a judge is said to err


def _own(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the judge says whose figures these are."""
    own: Mapping[str, Any] = data["judges"][data["judge"]]
    return own


def _bounds(bounds: Any) -> str:
    if bounds is None or bounds[1] is None:
        return ""
    low = "less" if bounds[0] is None else f"{bounds[0]:.1f}"
    return f"{low} to {bounds[1]:.1f}"


def _interval(bounds: Any) -> str:
    text = _bounds(bounds)
    return f" ({text})" if text else ""


def _floor(value: float) -> str:
    """A percentage as in the headline, without its sign."""
    return percent(value).removesuffix(" %")


def who_judged(data: Mapping[str, Any]) -> str:
    """Whose figures these are, and its errors on real samples, in words."""
    found = _own(data)
    known = {True: ", which answered during the run too", False: ", which did not answer during the run", None: ""}
    text = f"Judge: {data['judge']}{known[found['answered']]}"
    if data["probe"]:
        return f"{text}. {_of_marks(data['probe'])}"
    if found["sensitivity"] is None:
        return f"{text}; its errors on real samples are not known."
    hits, passed = (100 * found[key]["share"] for key in ("sensitivity", "specificity"))
    return (
        f"{text}. Of {found['held_out']:,} real samples that it has not seen it finds {hits:.1f} % of the unwanted, "
        f"and calls {100 - passed:.2f} % of the others unwanted."
    )


def _of_marks(counts: Mapping[str, int]) -> str:
    """What a probe says of the marks that were held out from it, in words."""
    text = f"Of the marks held out from it, it recognises {counts['recognised']:,} of {counts['of']:,} unwanted ones"
    if counts["of_good"]:
        text += f" and takes {counts['alarms']:,} of {counts['of_good']:,} good ones for unwanted"
    if counts["contradicted"]:
        text += f"; unwanted ones that the others contradict, slips perhaps, were left out: {counts['contradicted']:,}"
    return f"{text}. Marks are no random sample, so its figures are estimates."


def judges_table(data: Mapping[str, Any]) -> list[list[str]]:
    """What each judge says, one row a judge, the one whose figures these are first; last what all that did not answer
    call negative, where there are several."""
    judges: Mapping[str, Any] = data["judges"]
    if data["agreed"]:
        asked = any(one["answered"] for one in judges.values())
        judges = {**judges, "all but the oracle" if asked else "all of them": data["agreed"]}
    with_retrained = any(one["over_removal"] is not None for one in judges.values())
    header = ["judge", "before", "after", *["retrained"] * with_retrained, "gone, %", "corrected, %"]
    rows = [[*header, "finds, %", "false alarms, %"]]
    for name, one in judges.items():
        cells = [f"{name} (oracle of the run)" if one["answered"] else name]
        cells += [f"{one['negatives_before']:,}", f"{one['negatives_after']:,}"]
        if with_retrained:
            made = one["over_removal"]
            cells.append("–" if made is None else f"{made['retrained']['count']:,}")
        cells.append("–" if one["pul"] is None else f"{_floor(one['pul'])}{_interval(one['pul_ci95'])}")
        cells.append(_corrected(one["corrected"]))
        cells.append("–" if one["sensitivity"] is None else f"{100 * one['sensitivity']['share']:.1f}")
        cells.append("–" if one["specificity"] is None else f"{100 * (1 - one['specificity']['share']):.2f}")
        rows.append(cells)
    return rows


def _corrected(found: Mapping[str, Any] | None) -> str:
    if found is None or found["pul"] is None:
        return "–"
    text = f"{_floor(found['pul'])}{_interval(found['pul_ci95'])}"
    return text if found["unreliable"] is None else f"{text}, unreliable"


def corrected_card(data: Mapping[str, Any]) -> list[dict[str, str]]:
    """The percentage that is gone, corrected for the errors of the judge whose figures these are, where known."""
    found = _own(data)["corrected"]
    if found is None or found["pul"] is None:
        return []
    note, bounds = f"for the errors of {data['judge']} on real samples", _bounds(found["pul_ci95"])
    note += f"; 95 % interval: {bounds} %" if bounds else ""
    if found["unreliable"] is not None:
        note += f"; unreliable: {found['unreliable']}"
    return [dict(name="Gone, corrected", value=percent(found["pul"]), note=note)]


def judge_cautions(data: Mapping[str, Any]) -> list[str]:
    """Over-removal, a judge that is an oracle, corrections that are not to be relied on, judges that disagree."""
    own, found = _own(data), []
    if own["answered"]:
        found.append(
            f"The judge of these figures, {data['judge']}, answered during the run: what was trained to satisfy it is "
            "measured by it. Give another judge."
        )
    found += over_removal(data)
    corrected = own["corrected"]
    if corrected is not None and corrected["unreliable"] is not None:
        found.append(f"The corrected percentage is unreliable: {corrected['unreliable']}.")
    for name, one in data["judges"].items():
        apart = None if own["pul_ci95"] is None or one["pul_ci95"] is None else one["pul_ci95"][1] < own["pul_ci95"][0]
        if apart:
            found.append(
                f"Another judge, {name}, says that less is gone: {percent(one['pul'])}, not {percent(own['pul'])}"
                + _known_to_err(one)
            )
    return found


def _known_to_err(one: Mapping[str, Any]) -> str:
    rates = [one[key]["share"] for key in ("sensitivity", "specificity") if one[key] is not None]
    if not rates or min(rates) >= WEAK:
        return "."
    corrected = one["corrected"]
    if corrected is None or corrected["pul"] is None:
        return ". It errs on real samples too."
    truth = f"{number(corrected['pul'])}{_interval(corrected['pul_ci95'])} %"
    return f". It errs on real samples too: corrected for that, {truth}."


def over_removal(data: Mapping[str, Any]) -> list[str]:
    """That fewer negatives are left than a retrained GAN makes, or more, where that is certain."""
    found = _own(data)["over_removal"]
    if found is None:
        return []
    made, left = found["retrained"]["count"], data["negatives_after"]
    if found["fewer"]:
        return [
            f"Over-removal: {left:,} of {data['n']:,} samples are negative, and {made:,} of a GAN that was retrained "
            "without them. It avoids more than a GAN that never saw any: samples that only look like them are gone too."
        ]
    if found["difference_ci95"][0] > 0:
        return [f"A GAN that was retrained without them makes {made:,} of {data['n']:,}: fewer than the {left:,} left."]
    return []
