"""An outcome to report on: three models of 200 samples, and how they came about."""

from __future__ import annotations

import pytest
import torch

from atu.evaluation.evaluate import Evaluation, Original
from atu.evaluation.judged import Judged
from atu.measures.shares import histogram
from atu.report import report


def judged(negative, seed):
    n = len(negative)
    x = torch.rand(min(n, 80), 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    labels = torch.where(negative, 1, torch.arange(n) % 2 * 2)
    return Judged(negative, torch.randn(n, 3), labels, torch.ones(n), x, shown=x[: min(int(negative.sum()), 24)])


@pytest.fixture
def evaluation():
    flags = torch.arange(200) % 5 == 0
    models = {
        "before": judged(flags, 0),
        "adapted": judged(torch.arange(200) < 150, 1),
        "after": judged(flags & False, 2),
    }
    numbers = dict(
        pul=100.0,
        pul_ci95=[91.5, 100.0],
        negatives_before=40,
        negatives_after=0,
        negatives={"before": 40, "adapted": 150, "after": 0},
        fid_cls_before=2.0,
        fid_cls_adapted=8.0,
        fid_cls_after=3.0,
        frechet_kept=0.5,
        frechet_kept_chance=0.4,
        kid_kept=0.01,
        kid_kept_chance=-0.0001,
        kept_compared=160,
        kept_reference=155,
        good_changed=dict(
            count=8,
            share=0.05,
            ci95=[0.02, 0.09],
            sure=dict(count=1, of=125, share=0.008),
            by_a_pixel=dict(count=5, share=0.031),
        ),
        landing=dict(
            latents=40,
            still_negative=0,
            transitions={"b": {"a": 30, "c": 10}},
            precision=0.5,
            frechet=2.0,
            sure=0.55,
            sure_chance=0.78,
        ),
        tv_kept=0.031,
        tv_redistribution=0.02,
        frechet_redistribution=0.44,
        n=200,
        seed=0,
        features="classifier",
    )
    for name, model in models.items():
        numbers[f"class_histogram_{name}"] = histogram(model.labels, ["a", "b", "c"])
    original = Original(models["before"], judged(flags, 3), None, None)
    return Evaluation(numbers, models, original, (-1.0, 1.0), ["a", "b", "c"], [1])


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
