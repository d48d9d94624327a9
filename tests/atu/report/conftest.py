"""An outcome to report on: three models of 200 samples, and how they came about."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from atu.evaluation.evaluate import Evaluation, Original
from atu.evaluation.figures import (
    Figures,
    GoodChanged,
    JudgeFigures,
    Kept,
    Landing,
    ModelFigures,
    OverRemoval,
    SureChanged,
)
from atu.evaluation.judged import Judged
from atu.measures.manifold import MEASURES
from atu.measures.shares import Share, histogram
from atu.report import report


def judged(negative, seed):
    n = len(negative)
    x = torch.rand(min(n, 80), 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    labels = torch.where(negative, 1, torch.arange(n) % 2 * 2)
    return Judged(negative, torch.randn(n, 3), labels, torch.ones(n), x, shown=x[: min(int(negative.sum()), 24)])


def one_judge(before, after, answered=False, errors=None, corrected=None, made=None, fewer=False):
    """errors: sensitivity and specificity. made: how many negatives a retrained GAN makes."""
    pul = 100 * (before - after) / before
    sensitivity, specificity = (Share(count=0, share=rate, ci95=(0, 1)) for rate in errors) if errors else (None, None)
    over = OverRemoval(
        retrained=Share(count=made, share=0, ci95=(0, 1)),
        difference=0.0,
        difference_ci95=(-0.01, -0.001 if fewer else 0.001),
        fewer=fewer,
    )
    return JudgeFigures(
        negatives_before=before,
        negatives_after=after,
        pul=pul,
        pul_ci95=(pul - 2, pul + 1),
        answered=answered,
        sensitivity=sensitivity,
        specificity=specificity,
        held_out=4000 if errors else None,
        corrected=corrected,
        over_removal=None if made is None else over,
    )


@pytest.fixture
def change(evaluation):
    """Gives figures of the evaluation other values; those of a group by its name and a dict of them."""

    def changed(**values):
        own = evaluation.figures
        for name, value in values.items():
            nested = name in ("kept", "landing", "good_changed") and isinstance(value, dict)
            own = replace(own, **{name: replace(getattr(own, name), **value) if nested else value})
        evaluation.figures = own

    return changed


@pytest.fixture
def evaluation():
    flags = torch.arange(200) % 5 == 0
    models = {
        "before": judged(flags, 0),
        "adapted": judged(torch.arange(200) < 150, 1),
        "after": judged(flags & False, 2),
    }
    share = partial(Share, ci95=(0.02, 0.09))
    distances = {"before": (40, 2.0), "adapted": (150, 8.0), "after": (0, 3.0)}
    figures = Figures(
        negatives_before=40,
        negatives_after=0,
        pul=100.0,
        pul_ci95=(91.5, 100.0),
        n=200,
        seed=0,
        judge="blind",
        features="classifier",
        probe=None,
        models={
            name: ModelFigures(
                negatives=negatives,
                classes=histogram(models[name].labels, ["a", "b", "c"]),
                confident=None,
                attributes={},
                fid_cls=distance,
                kid_cls=None,
            )
            for name, (negatives, distance) in distances.items()
        },
        judges={"blind": one_judge(40, 0)},
        agreed=None,
        kept=Kept(
            **dict.fromkeys(f"{name}{end}" for name in MEASURES for end in ("", "_chance")),
            frechet=0.5,
            frechet_chance=0.4,
            frechet_redistribution=0.44,
            kid=0.01,
            kid_chance=-0.0001,
            compared=160,
            reference=155,
            tv=0.031,
            tv_redistribution=0.02,
        ),
        good_changed=GoodChanged(
            count=8,
            share=0.05,
            ci95=(0.02, 0.09),
            sure=SureChanged(count=1, of=125, share=0.008, ci95=(0.001, 0.04)),
            by_a_pixel=share(count=5, share=0.031),
        ),
        landing=Landing(
            latents=40,
            still_negative=0,
            compared=40,
            transitions={"b": {"a": 30, "c": 10}},
            precision=0.5,
            precision_chance=None,
            frechet=2.0,
            frechet_chance=None,
            density=None,
            density_chance=None,
            sure=0.55,
            sure_chance=0.78,
        ),
        real_images=None,
        distances={},
        metrics={},
    )
    original = Original(models["before"], judged(flags, 3), None, None)
    return Evaluation(figures, models, original, (-1.0, 1.0), ["a", "b", "c"], [1])


@pytest.fixture
def context():
    history = [dict(stage="adapt-0", step=s, seconds=s, loss_d=1.0, loss_g=0.5, ewc=0.1 * s) for s in (1, 2, 3)]
    history += [dict(stage="repel", step=s, seconds=s, loss_d=1.0, loss_g=0.5, distance=1.0 + s) for s in (1, 2)]
    history += [dict(stage="repel", step=3, seconds=3, loss_d=1.0, negative_rate=0.1, drift=0.2)]
    return report.Context(
        subject="the <digit> 8",
        seconds={"repel": 61.0, "evaluate": 9.0},
        command="atu demo mnist --class 8 --out DIR",
        config={"repel": {"steps": 600, "gamma": None}, "list": [1, 2.5]},
        seed=0,
        history=history,
        decisions={
            "steps_run": 600,
            "score": float("nan"),
            "negative_rate": 0.003,
            "drift": 0.02,
            "answered_by": "probe",
            "negative_share": 0.2,
            "pool": 5000,
            "positives": "4000 generated samples, 1000 dropped as negative",
            "positives_doubted": 96,
            "warnings": ["Only <12> samples were marked."],
        },
        notes=["A note."],
    )
