"""What a report says in words: the outcome, a verdict, what to beware of, and why the run decided as it did."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..measures.intervals import wilson

LABELS = {
    "first": "first GAN",
    "before": "original",
    "previous": "before this round",
    "adapted": "adapted (stage 1)",
    "after": "unlearned",
    "retrained": "retrained without it",
}
SHORT = {**LABELS, "retrained": "retrained"}  # where there is little room
FEW = 30  # negatives of the original below which a percentage of them says little
UNITS = re.compile(r"(?<=\d) (?=(?:%|s|min|h|px|MiB|GiB|CPU|×)(?![\w/]))")


def unbreakable(text: str) -> str:
    """The text with no-break spaces between numbers and their units."""
    return UNITS.sub("\u00a0", text)


def number(value: Any, digits: int = 3) -> str:
    """A number as people write it; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        return f"{value:.2e}"
    return f"{value:,.{max(digits - len(str(int(abs(value)))), 0) if abs(value) >= 1 else digits}f}"


def duration(seconds: float) -> str:
    """Seconds as "42 s" or "3 min 5 s"."""
    whole = round(seconds)
    return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60} s"


def percent(value: float) -> str:
    """A percentage, rounded down: 99.96 is not 100."""
    return f"{math.floor(value * 10 + 1e-9) / 10:.1f} %"


def ratio(after: float | None, before: float | None) -> float | None:
    """after / before; None where it has no meaning."""
    return after / before if after is not None and before is not None and before > 0 else None


# --- outcome


def meets(data: Mapping[str, Any], required: float) -> bool:
    """Whether at least `required` percent of the negatives are gone, by report.json's content. False where the original
    showed none: then nothing was measured."""
    return data["pul"] is not None and data["pul"] >= required


def looks_swapped(data: Mapping[str, Any]) -> bool:
    """Whether there are more negatives afterwards than before, and not by chance: the 95 % intervals are apart."""
    n = data["n"]
    return wilson(data["negatives_after"], n)[0] > wilson(data["negatives_before"], n)[1]


def outcome(data: Mapping[str, Any]) -> str:
    """The title: what became of the unwanted, in one line."""
    subject, n, after = data["subject"], data["n"], data["negatives_after"]
    subject = subject[:1].upper() + subject[1:]
    if looks_swapped(data):
        return f"{subject}: more of it than before"
    if data["pul"] is None:
        return f"{subject}: none to begin with"
    if after == 0:
        return f"{subject}: none left in {n:,} samples"
    if data["pul"] <= 0:
        return f"{subject}: not gone, {after:,} of {n:,} samples show it"
    return f"{subject}: {percent(data['pul'])} gone, {after:,} of {n:,} left"


@dataclass(frozen=True)
class Verdict:
    """level: good, fair or poor. text: why."""

    level: str
    text: str


def verdict(data: Mapping[str, Any]) -> Verdict:
    """Whether it worked, and what it cost, in two short sentences."""
    if looks_swapped(data):
        return Verdict("poor", "It did not work, or the two GANs were given in the wrong order.")
    if data["pul"] is None:
        return Verdict("poor", "The original shows none of it, so nothing can be said.")
    if data["probe"]:
        return _by_probe(data)
    pul, apart = data["pul"], ratio(data["kept"]["frechet"], data["kept"]["frechet_chance"])
    if data["negatives_after"] == 0:
        gone = "None of it was found."
    elif pul >= 99:
        gone = "Nearly all of it is gone."
    elif pul >= 90:
        gone = "Most of it is gone, but not all."
    else:
        gone = "Part of it is gone." if pul >= 50 else "Most of it is still there."
    if apart is None:
        return Verdict("good" if pul >= 99 else "fair" if pul >= 90 else "poor", gone)
    changed = data["good_changed"]
    same = apart <= 2 and (changed is None or changed["share"] <= 0.02)
    if same:
        rest = "The rest is as it was."
    else:
        rest = "The rest has changed a little." if apart <= 5 else "The rest has changed: look at the pictures."
    return Verdict("good" if pul >= 99 and same else "fair" if pul >= 90 else "poor", f"{gone} {rest}")


def _by_probe(data: Mapping[str, Any]) -> Verdict:
    """Where the marks themselves have to judge: never good for certain."""
    n, pul, apart = data["n"], data["pul"], ratio(data["kept"]["frechet"], data["kept"]["frechet_chance"])
    if data["negatives_before"] > n / 2:
        return Verdict("poor", "The probe cannot tell: it calls most of the original's samples unwanted.")
    fair = pul >= 90 or _may_be_false(data)
    if data["negatives_after"] == 0:
        text = "The probe finds none of it."
    elif _may_be_false(data):
        text = "What the probe still finds is no more than its false alarms."
    else:
        text = f"The probe still finds {'little' if pul >= 90 else 'part' if pul >= 50 else 'most'} of it."
    if apart is not None:
        change = "is as it was" if apart <= 2 else "has changed a little" if apart <= 5 else "has changed"
        text += f" On the whole the rest {change}."
    advice = "A probe is no independent judge: look at the pictures, or judge a random sample."
    return Verdict("fair" if fair else "poor", f"{text} {advice}")


def _may_be_false(data: Mapping[str, Any]) -> bool:
    """Whether the probe calls no more of the samples unwanted than of the good marks that were held out from it."""
    counts = data["probe"] or {}
    if counts.get("of_good", 0) < FEW:
        return False
    return bool(data["negatives_after"] / data["n"] <= wilson(counts["alarms"], counts["of_good"])[1])


def no_proof(data: Mapping[str, Any]) -> str:
    """How far the figures reach."""
    n = data["n"]
    most = math.ceil(1e4 * wilson(data["negatives_after"], n)[1])
    return (
        f"This is not a proof. A judge that can err looked at {n:,} samples; other inputs may still show it: up to "
        f"{most:,} of 10,000, at 95 % confidence and if the judge is right."
    )


def summary(data: Mapping[str, Any]) -> str:
    """The outcome in one plain paragraph."""
    n, before, after = data["n"], data["negatives_before"], data["negatives_after"]
    text = f"The original GAN showed {data['subject']} in {before:,} of {n:,} samples; "
    text += f"after unlearning, the same {n:,} random inputs show it in {after:,}."
    previous = data["models"].get("previous")
    if previous is not None:
        text += f" Before this round they showed it in {previous['negatives']:,}."
    changed = data["good_changed"]
    if changed is not None:
        text += f" Of the samples that were good already, {100 * changed['share']:.1f} % show something else now."
    first, last = (data["models"][name]["fid_cls"] for name in ("before", "after"))
    closer = ratio(last, first)
    if closer is not None:
        word = "closer to" if closer < 1 else "further from"
        text += (
            f" Its samples are now {'as far from' if abs(closer - 1) < 0.005 else word} the real samples without it"
            f" ({closer:.2f} times the distance before, which counted the unwanted samples too)."
        )
    return text


def cautions(data: Mapping[str, Any]) -> list[str]:
    """What the reader has to know before believing the figures: the run's own warnings, and those of the figures."""
    found = [str(one) for one in data["decisions"].get("warnings") or ()]
    before, after = data["negatives_before"], data["negatives_after"]
    if looks_swapped(data):
        found.append(
            f"The second GAN shows it more often than the first ({before:,} → {after:,}). Were they given in the wrong "
            "order? It is BEFORE first, then AFTER."
        )
    elif before == 0:
        found.append("The original shows none of it: give more samples, or check what counts as negative.")
    elif before < FEW:
        found.append(f"Only {before:,} of {data['n']:,} samples of the original show it: the percentage is uncertain.")
    return found


def _by(data: Mapping[str, Any]) -> str:
    """Which judge says so, where it has a name."""
    return f", by {data['judge']}"


def cards(data: Mapping[str, Any]) -> list[dict[str, str]]:
    """The few numbers that answer: is it gone, what did it cost?"""
    found: list[dict[str, str]] = []
    n, kept = data["n"], data["kept"]
    counts = f"{data['negatives_before']:,} → {data['negatives_after']:,} of {n:,} samples"
    if data["pul"] is not None and not looks_swapped(data):
        low, high = data["pul_ci95"]
        note = f"{counts}{_by(data)}; 95 % interval: {low:.1f} to {high:.1f} %"
        found.append(dict(name="Negatives gone", value=percent(data["pul"]), note=note))
    else:
        note = f"{counts}: {'more than before' if looks_swapped(data) else 'none to begin with'}"
        found.append(dict(name="Negatives", value=str(data["negatives_after"]), note=note))
    changed = data["good_changed"]
    if changed is not None:
        one = changed["count"] == 1
        note = f"{changed['count']:,} sample{'' if one else 's'} that {'was' if one else 'were'} good already "
        note += f"{'is' if one else 'are'} of another class now"
        sure = changed["sure"]
        if sure["of"]:
            note += f"; {100 * sure['share']:.1f} % of the {sure['of']:,} of whose class the judge was sure"
        if changed["by_a_pixel"]:
            note += f". Moved by one pixel, {100 * changed['by_a_pixel']['share']:.1f} % of the original's are, too"
        found.append(dict(name="Good samples changed", value=f"{100 * changed['share']:.1f} %", note=note))
    landed = data["landing"] or {}
    if landed.get("sure") is not None:
        note = "of what the unwanted became is of a class that the judge is sure of; of the original's good samples "
        note += f"{100 * landed['sure_chance']:.0f} %"
        found.append(dict(name="What replaces them", value=f"{100 * landed['sure']:.0f} % clear", note=note))
    apart = ratio(data["kept"]["frechet"], data["kept"]["frechet_chance"])
    if apart is not None:
        note = (
            f"times chance: Fréchet distance {number(kept['frechet'])} to the original's good samples, which are "
            f"{number(kept['frechet_chance'])} from each other"
        )
        alone = ratio(kept["frechet_redistribution"], kept["frechet_chance"])
        note += "" if alone is None else f"; {alone:.1f} × by where the unwanted went"
        found.append(dict(name="Distance to kept samples", value=f"{apart:.1f} ×", note=note))
    if kept["tv"] is not None:
        alone = kept["tv_redistribution"]
        note = "of the kept samples changed class share (total variation)"
        note += "" if alone is None else f"; {100 * alone:.1f} % by where the unwanted went"
        found.append(dict(name="Kept classes", value=f"{100 * kept['tv']:.1f} %", note=note))
    first, last = (data["models"][name]["fid_cls"] for name in ("before", "after"))
    closer = ratio(last, first)
    if closer is not None:
        note = f"FID_cls {number(first)} → {number(last)}, lower is better"
        found.append(dict(name="Distance to real data", value=f"× {closer:.2f}", note=note))
    if data["seconds"]:
        machine = data["machine"]
        where = machine.get("gpu") or f"{machine['threads']} CPU thread{'s' * (machine['threads'] > 1)}"
        note = f"on {where}, without the evaluation"
        found.append(dict(name="Time", value=duration(data["seconds"]), note=note))
    return found


# --- decisions


def explain(decisions: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the run decided, and why, as (question, answer)."""
    rows = [_round(decisions), _training(decisions), _who_answered(decisions)]
    if "positives" in decisions:
        doubted = decisions.get("positives_doubted")
        more = f", {doubted:,} more at second sight" if doubted else ""
        rows.append(("What it learned from", f"{decisions['positives']}{more}."))
    if "precision" in decisions:
        rows.append(("Precision", _precision(decisions["precision"])))
    if decisions.get("negatives_found"):
        found = decisions["negatives_found"]
        rows.append(("Negatives", f"{found:,} more were found among the original's samples, and joined those given."))
    filled = decisions.get("labels_filled")
    if filled:
        labels = ", ".join(map(str, filled))
        rows.append(("Labels", f"Labels that lost their samples ({labels}) were given samples of the others."))
    return [row for row in rows if row is not None]


def _round(decisions: Mapping[str, Any]) -> tuple[str, str] | None:
    if decisions.get("from_run") is None:
        return None
    return f"Round {decisions['round']}", f"It went on from {decisions['from_run']}, whose marks count too."


def _precision(name: str) -> str:
    if name == "float32":
        return "All of the training ran in float32."
    return f"The networks' passes ran in {name}; weights, optimiser, penalties and losses in float32."


def _training(decisions: Mapping[str, Any]) -> tuple[str, str] | None:
    steps = decisions.get("steps_run")
    if steps is None:
        return None
    text, rate, drift = f"{steps:,} steps.", decisions.get("negative_rate"), decisions.get("drift")
    if rate is not None:
        text += f" At their end {100 * rate:.2g} % of the samples looked at were negative"
        text += "." if drift is None else f", and the good ones had drifted by {number(drift)} (0: not at all)."
    return "The last training", text


def _who_answered(decisions: Mapping[str, Any]) -> tuple[str, str] | None:
    who = decisions.get("answered_by")
    if who is None:
        return None
    text = "The oracle that was given"
    if who == "probe":
        text = "A probe fitted on the negatives, as no oracle was given"
    share, pool = decisions.get("negative_share"), decisions.get("pool")
    if share is not None and pool is not None:
        text += f": it called {100 * share:.1f} % of {pool:,} samples of the original negative"
    more = decisions.get("recognition")
    return "Who said what is negative", f"{text}." if more is None else f"{text}. {more}"


def landed(transitions: Mapping[str, Mapping[str, int]]) -> list[tuple[str, str]]:
    """Per class that was negative: where its latents are now, the most frequent first."""
    rows = []
    for name, found in transitions.items():
        total = sum(found.values())
        ranked: Sequence[tuple[str, int]] = sorted(found.items(), key=lambda item: -item[1])
        words = [
            f"{'still ' if to == name else ''}{to}: {count:,} ({100 * count / total:.0f} %)" for to, count in ranked
        ]
        rows.append((f"{name} became", ", ".join(words)))
    return rows
