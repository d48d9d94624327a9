"""The report in words: numbers and their units, verdicts, warnings, and whose figures they are."""

from __future__ import annotations

import re
from dataclasses import asdict, replace

import pytest

from atu.measures.prevalence import Corrected
from atu.report import judged as judged_words
from atu.report import report, tables, words

from .conftest import one_judge


def test_cards_and_summary_in_words(evaluation, context):
    data = report.report_data(evaluation, context)
    cards = {card["name"]: card for card in words.cards(data)}
    assert cards["Negatives gone"]["value"] == "100.0 %"
    assert "40 → 0 of 200" in cards["Negatives gone"]["note"]
    assert cards["Good samples changed"]["value"] == "5.0 %"
    assert cards["Good samples changed"]["note"].endswith(
        "; 0.8 % of the 125 of whose class the judge was sure. Moved by one pixel, 3.1 % of the original's are, too"
    )
    assert cards["What replaces them"]["value"] == "55 % clear"
    assert cards["What replaces them"]["note"].endswith("of the original's good samples 78 %")
    assert cards["Distance to kept samples"]["value"] == "1.2 ×"
    assert cards["Distance to kept samples"]["note"].endswith("; 1.1 × by where the unwanted went")
    learnt = dict(words.explain(data["decisions"]))["What it learned from"]
    assert learnt == "4000 generated samples, 1000 dropped as negative, 96 more at second sight."
    assert cards["Distance to real data"]["value"] == "× 1.50"
    assert cards["Kept classes"]["value"] == "3.1 %"
    assert cards["Time"]["value"] == "61 s"
    assert "in 40 of 200 samples" in words.summary(data)
    assert "further from" in words.summary(data)


def test_cards_without_negatives_real_data_or_classes(evaluation, context, change):
    models = {name: replace(model, fid_cls=None) for name, model in evaluation.figures.models.items()}
    change(pul=None, pul_ci95=None, models=models, good_changed=None, landing=None)
    change(kept=dict(tv=None, frechet=None, kid=None))
    data = report.report_data(evaluation, context)
    assert [card["name"] for card in words.cards(data)] == ["Negatives", "Time"]
    assert tables.kept_table(data) == []


CHANGED = {"good_changed": {"share": 0.021}}
NOTHING = {"probe": None, "good_changed": None, "kept": {"frechet": None, "frechet_chance": None}}


def by_probe(alarms, of_good, contradicted=0):
    return {"probe": dict(recognised=97, of=101, alarms=alarms, of_good=of_good, contradicted=contradicted)}


def figures(before, after, **more):
    pul = 100 * (before - after) / before if before else None
    data = dict(subject="hats", n=10_000, negatives_before=before, negatives_after=after, pul=pul, decisions={})
    return {**NOTHING, **data, **more}


def far(distance, chance=1.0):
    return {"kept": {"frechet": distance, "frechet_chance": chance}}


@pytest.mark.parametrize(
    ("data", "title", "level", "text"),
    [
        (figures(777, 13), "Hats: 98.3 % gone, 13 of 10,000 left", "fair", "Most of it is gone"),
        (figures(777, 0), "Hats: none left in 10,000 samples", "good", "None of it was found."),
        (figures(3000, 1), "Hats: 99.9 % gone, 1 of 10,000 left", "good", "Nearly all of it is gone."),
        (figures(777, 300), "Hats: 61.3 % gone, 300 of 10,000 left", "poor", "Part of it is gone."),
        (figures(777, 790), "Hats: not gone, 790 of 10,000 samples show it", "poor", "Most of it is still there."),
        (figures(13, 777), "Hats: more of it than before", "poor", "wrong order"),
        (figures(0, 21), "Hats: more of it than before", "poor", "wrong order"),
        (figures(0, 0), "Hats: none to begin with", "poor", "nothing can be said"),
        (figures(777, 0, **far(1.9)), None, "good", "The rest is as it was."),
        (figures(777, 0, **far(4.0)), None, "fair", "has changed a little"),
        (figures(777, 0, **far(1.9), **CHANGED), None, "fair", "has changed a little"),
        (figures(777, 0, **far(9.0)), None, "fair", "look at the pictures"),
        (figures(777, 0, **far(9.0, 0.0)), None, "good", "None of it was found."),
        # By a probe: 3 % left, where it takes 5 % of the good marks for unwanted (Wilson: 3.3 to 7.6 %); none known.
        (figures(900, 300, **by_probe(20, 400)), None, "fair", "finds is no more than its false alarms. A probe is no"),
        (figures(900, 300, **by_probe(1, 400)), None, "poor", "The probe still finds part of it."),
        (figures(900, 300, **by_probe(1, 20)), None, "poor", "The probe still finds part of it."),
        (figures(900, 600, **by_probe(0, 0)), None, "poor", "The probe still finds most of it."),
        (figures(900, 60, **by_probe(0, 0)), None, "fair", "The probe still finds little of it."),
        (
            figures(900, 0, **far(1.9), **by_probe(20, 400)),
            None,
            "fair",
            "The probe finds none of it. On the whole the rest is as it was. A probe is no independent judge",
        ),
        (figures(8000, 7900, **by_probe(20, 400)), None, "poor", "The probe cannot tell"),
    ],
)
def test_outcome_and_verdict(data, title, level, text):
    assert title is None or words.outcome(data) == title
    found = words.verdict(data)
    assert found.level == level
    assert text in found.text


def test_what_held_out_marks_say_of_a_probe(judges, evaluation, context, change):
    change(judge="asked", **by_probe(3, 41, contradicted=2))
    told = judged_words.who_judged(report.report_data(evaluation, context))
    assert "it recognises 97 of 101 unwanted ones and takes 3 of 41 good ones for unwanted; unwanted" in told
    assert "slips perhaps, were left out: 2." in told
    change(**by_probe(0, 0))
    told = judged_words.who_judged(report.report_data(evaluation, context))
    assert "recognises 97 of 101 unwanted ones. Marks are no random sample" in told


def test_swapped_checkpoints_are_said_to_be(evaluation, context, change):
    assert any("wrong order" in text for text in words.cautions(figures(0, 21)))
    assert any("wrong order" in text for text in words.cautions(figures(13, 777)))
    assert words.cautions(figures(777, 790)) == []  # by chance
    change(pul=-900.0, pul_ci95=(-3000.0, 100.0), negatives_before=4, negatives_after=40)
    card = words.cards(report.report_data(evaluation, context))[0]
    assert (card["name"], card["value"]) == ("Negatives", "40")
    assert "4 → 40 of 200 samples: more than before" in card["note"]
    change(pul=None, pul_ci95=None, negatives_before=0, negatives_after=40)
    page = report.render(report.report_data(evaluation, context), evaluation, context)
    assert "in the wrong order" in page
    assert "none to begin with" not in page


@pytest.mark.parametrize(
    ("before", "after", "percent", "met"),
    [(1000, 10, 99, True), (1000, 11, 99, False), (1000, 0, 100, True), (0, 0, 0, False), (0, 5, 0, False)],
)
def test_what_is_required_is_met(before, after, percent, met):
    assert words.meets(figures(before, after), percent) is met


def test_it_says_that_it_is_no_proof():
    # Wilson's upper limit of 0 in n is z^2 / (n + z^2).
    assert words.no_proof(figures(777, 0)).startswith("This is not a proof.")
    assert 3 < 1e4 * 3.8415 / 10003.8415 < 4 and "up to 4 of 10,000" in words.no_proof(figures(777, 0))


def test_warnings_and_decisions_in_words(evaluation, context):
    data = report.report_data(evaluation, context)
    page = report.render(data, evaluation, context)
    assert "<li>Only &lt;12&gt; samples were marked.</li>" in page
    assert data["warnings"] == ["Only <12> samples were marked."]
    assert data["verdict"] == "None of it was found. The rest has changed a little."
    why = dict(words.explain(data["decisions"]))
    assert why["The last training"].startswith("600 steps. At their end 0.3 % of the samples")
    assert why["Who said what is negative"].startswith("A probe fitted on the negatives")
    assert "20.0 % of 5,000" in why["Who said what is negative"]
    assert words.explain({}) == []
    assert words.landed(data["landing"]["transitions"]) == [("b became", "a: 30 (75 %), c: 10 (25 %)")]


def test_the_lead_has_no_jargon(evaluation, context):
    page = report.render(report.report_data(evaluation, context), evaluation, context)
    lead = page[page.index("<header>") : page.index("</header>")].lower()
    assert not re.search(r"\b(fid|fréchet|latents?|logits?|ewc|pul|adapted)\b|_cls|tv_", lead)


def test_numbers_keep_their_units(evaluation, context):
    assert (
        words.unbreakable("98.3 % in 3 min 5 s, 12 px; 5 samples")
        == "98.3\xa0% in 3\xa0min 5\xa0s, 12\xa0px; 5 samples"
    )
    context.command = "atu eval a --scale 5 s"
    page = report.render(report.report_data(evaluation, context), evaluation, context)
    assert "<code>atu eval a --scale 5 s</code>" in page  # copied, it must still run
    assert not re.search(
        r"\d (%|min|s|px)[\s<,;.]", re.sub(r"<code>.*?</code>|<style>.*?</style>", "", page, flags=re.S)
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (True, "yes"), (12345, "12,345"), (0.1234, "0.123"), (12.345, "12.3"), (1234.5, "1,234")]
    + [(1e-5, "1.00e-05"), (0.0, "0.000"), ("x", "x")],
)
def test_number(value, text):
    assert words.number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.26, "0.3 s"), (59.6, "60 s"), (185, "3 min 5 s")])
def test_duration(seconds, text):
    assert words.duration(seconds) == text


def corrected(pul, unreliable=None):
    shares = dict.fromkeys(("share_before", "share_before_ci95", "share_after", "share_after_ci95"))
    return Corrected(pul=pul, pul_ci95=(pul - 3, 100.0), unreliable=unreliable, **shares)


@pytest.fixture
def judges(change):
    found = {
        "blind": one_judge(40, 0, errors=(0.985, 0.998), corrected=corrected(99.0), made=9, fewer=True),
        "asked": one_judge(50, 1, answered=True, made=3),
        "poor": one_judge(60, 30, errors=(0.9, 0.91), corrected=corrected(90.0, "it tells too little")),
    }
    change(judge="blind", judges=found)
    return found


def test_every_figure_says_whose_it_is(judges, evaluation, context):
    data = report.report_data(evaluation, context)
    page = report.render(data, evaluation, context)
    text = judged_words.who_judged(data)
    assert text == (
        "Judge: blind, which did not answer during the run. Of 4,000 real samples that it has not seen it finds 98.5 % "
        "of the unwanted, and calls 0.20 % of the others unwanted."
    )
    assert words.unbreakable(text) in page
    cards = report._cards(data)
    assert ", by blind;" in cards[0]["note"]
    assert (cards[1]["name"], cards[1]["value"]) == ("Gone, corrected", "99.0 %")
    assert "96.0 to 100.0 %" in cards[1]["note"]
    table = judged_words.judges_table(data)
    assert table[0] == [
        "judge",
        "before",
        "after",
        "retrained",
        "gone, %",
        "corrected, %",
        "finds, %",
        "false alarms, %",
    ]
    assert table[1][:4] == ["blind", "40", "0", "9"]
    assert table[1][5:] == ["99.0 (96.0 to 100.0)", "98.5", "0.20"]
    assert table[2][0] == "asked (oracle of the run)" and table[2][5:] == ["–", "–", "–"]
    assert table[3][3] == "–" and table[3][5] == "90.0 (87.0 to 100.0), unreliable"
    assert "What each judge says" in page


def test_a_name_keeps_its_parentheses(judges, evaluation, context, change):
    change(judges={"net (v2).pt": judges["blind"]}, judge="net (v2).pt")
    (card,) = judged_words.corrected_card(report.report_data(evaluation, context))
    assert card["note"] == "for the errors of net (v2).pt on real samples; 95 % interval: 96.0 to 100.0 %"


def test_the_table_rounds_as_the_headline_does(judges):
    judges["blind"] = replace(judges["blind"], pul=100 * 8 / 53, corrected=corrected(99.99))
    told = {name: asdict(one) for name, one in judges.items()}
    table = judged_words.judges_table(dict(judge="blind", judges=told, agreed=None))
    assert table[1][4].startswith("15.0 (") and table[1][5].startswith("99.9 (")


def test_what_all_judges_call_unwanted_stands_last(judges, evaluation, context, change):
    change(agreed=one_judge(30, 3, made=2))
    data = report.report_data(evaluation, context)
    row = ["30", "3", "2", "90.0 (88.0 to 91.0)", "–", "–", "–"]
    assert judged_words.judges_table(data)[-1] == ["all but the oracle", *row]
    assert "those that all" in report.render(data, evaluation, context)
    data["judges"]["asked"]["answered"] = False
    assert judged_words.judges_table(data)[-1] == ["all of them", *row]


def test_over_removal_and_judges_that_disagree_are_said(judges, evaluation, context, change):
    warnings = report.report_data(evaluation, context)["warnings"]
    assert any(text.startswith("Over-removal: 0 of 200 samples are negative, and 9 of a GAN") for text in warnings)
    assert any(
        text
        == "Another judge, poor, says that less is gone: 50.0 %, not 100.0 %. It errs on real samples too: corrected "
        "for that, 90.0 (87.0 to 100.0) %."
        for text in warnings
    )
    assert not any("asked" in text for text in warnings)  # 98 %, whose interval meets the other's
    more = replace(judges["blind"].over_removal, fewer=False, difference_ci95=(0.01, 0.02))
    judges["blind"] = replace(judges["blind"], over_removal=more)
    change(negatives_after=30)
    assert (
        "A GAN that was retrained without them makes 9 of 200: fewer than the 30 left."
        in report.report_data(evaluation, context)["warnings"]
    )


def test_an_oracle_that_judges_and_a_correction_that_says_little_are_said(judges, evaluation, context, change):
    change(judge="asked")
    data = report.report_data(evaluation, context)
    assert any("asked, answered during the run" in text for text in data["warnings"])
    assert judged_words.who_judged(data) == (
        "Judge: asked, which answered during the run too; its errors on real samples are not known."
    )
    assert judged_words.corrected_card(data) == []
    judges["asked"] = replace(judges["asked"], answered=None)
    data = report.report_data(evaluation, context)
    assert judged_words.who_judged(data) == "Judge: asked; its errors on real samples are not known."
    assert not any("answered during the run" in text for text in data["warnings"])
    change(judge="poor")
    data = report.report_data(evaluation, context)
    assert "The corrected percentage is unreliable: it tells too little." in data["warnings"]
    assert "unreliable: it tells too little" in judged_words.corrected_card(data)[0]["note"]
