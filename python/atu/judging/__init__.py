"""Who says what is unwanted: classifiers, rules, probes, and what a run is given.

Names are fetched on first use, so that importing a part of this room imports no more than it needs.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Classifier": "classifier",
    "Feedback": "feedback",
    "PartsClassifier": "parts",
    "Probe": "probe",
    "Rule": "rule",
    "class_rule": "rule",
    "confusion": "errors",
    "feature_rules": "strokes",
    "find": "finding",
    "mark_negatives": "marking",
    "probe_of": "probe",
    "rule_of": "finding",
    "text_rank": "text",
    "train_folder": "train",
    "with_slope": "probe",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'atu.judging' has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
