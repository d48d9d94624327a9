"""How well a probe recognises what was marked: what is said of it before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping

from ..measures.intervals import exact

ENOUGH = 12  # held-out marks, of which a share says something
RECOGNISED = 0.8  # of the unwanted, below which some will stay
WRONG = 0.4  # of what is called unwanted, above which good samples will change


def wrong_share(marks: Mapping[str, int], share: float) -> tuple[float, float, float] | None:
    """What of the samples that a probe calls negative is not: estimate, and the ends of its 95 % interval. None without
    good marks, as negatives and unlabelled samples do not tell.

    With a share r of the negatives and a share a of the good samples called negative, a share q of all samples is where
    (q - a) / (r - a) are. The interval is that of the ends of r's and a's (Clopper and Pearson).

    Args:
        marks: counts on held-out marks (`Probe.marks`). share: of the GAN's samples that the probe calls negative.
    """
    if not marks["of_good"] or not share:
        return None

    def wrong(recognised: float, alarms: float) -> float:
        if recognised <= alarms:
            return 1.0
        return min(max(alarms * (recognised - share) / ((recognised - alarms) * share), 0.0), 1.0)

    recognised, alarms = ((marks[hits], marks[of]) for hits, of in (("recognised", "of"), ("alarms", "of_good")))
    ends = [wrong(r, a) for r in exact(*recognised) for a in exact(*alarms)]
    return wrong(recognised[0] / recognised[1], alarms[0] / alarms[1]), min(ends), max(ends)


def told(marks: Mapping[str, int], share: float) -> str:
    """One or two sentences on what the marks say to a probe."""
    recognised, of = marks["recognised"], marks["of"]
    text = f"Of what is unwanted a probe recognises {_percent(recognised / max(of, 1), *exact(recognised, of))}."
    wrong = wrong_share(marks, share)
    if wrong is None:
        return f"{text} Good marks (positives) would tell how much of what it takes for unwanted is not."
    return f"{text} Of what it takes for unwanted, {_percent(*wrong)} is not."


def recognition_remarks(marks: Mapping[str, int], share: float) -> list[str]:
    """Remarks on marks that say too little, surely so. Arguments as of `wrong_share`.

    Of a CIFAR-10 GAN's frogs 61 of 100 were recognised; 61 % were gone, and 22 % of the sure good samples changed. Of
    floppy ears it was 71 of 100, but hardly a wrong one; 99.6 % were gone, and 1.6 % changed.
    """
    remedy = "mark more of both kinds, or give a classifier (is_negative)"
    wrong = wrong_share(marks, share)
    if wrong is not None:
        if wrong[1] <= WRONG:
            return []
        return [
            f"positives: of what a probe takes for unwanted, {_percent(*wrong)} is not, so good samples will change; "
            f"{remedy}"
        ]
    recognised, of = marks["recognised"], marks["of"]
    if of < ENOUGH or exact(recognised, of)[1] >= RECOGNISED:
        return []
    return [
        f"negatives: of those held out from the probe it recognises {recognised} of {of}: some of what they show may "
        f"stay, and good samples may change; {remedy}"
    ]


def _percent(value: float, low: float, high: float) -> str:
    return f"{100 * value:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
