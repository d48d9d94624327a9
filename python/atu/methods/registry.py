"""The methods of unlearning, by name: one function each, of one signature.

    run(gan, feedback, config, run, seed) -> Outcome

gan is the pretrained pair (left as it is), feedback the negatives, the positives and what tells them apart, run
the run folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..config import Config
from ..feedback.feedback import Feedback
from ..gan import GAN
from ..training.run_folder import RunFolder
from .adapt_then_unlearn.stages import adapt_then_unlearn
from .cdc import cdc
from .extrapolate import extrapolate
from .finetune import Outcome
from .last_layers import cf_k, eu_k
from .layers import last_layers
from .penalties import ewc, l1_sparse
from .retrain import retrain
from .rssa import rssa
from .taps import tapped_layers


@dataclass(frozen=True)
class Method:
    """run: does it. check: raises ValueError, before any work, where settings and GAN do not fit."""

    run: Callable[[GAN, Feedback, Config, RunFolder, int], Outcome]
    check: Callable[[GAN, Config], object] = lambda gan, cfg: None


REGISTRY: dict[str, Method] = {
    "atu": Method(adapt_then_unlearn),
    "el2": Method(adapt_then_unlearn),
    "nl2": Method(adapt_then_unlearn),
    "il2": Method(adapt_then_unlearn),
    "extrapolate": Method(extrapolate),
    "ewc": Method(ewc),
    "cf-k": Method(cf_k, lambda gan, cfg: last_layers(gan, cfg.methods.cf_k.k, "methods.cf_k.k")),
    "eu-k": Method(eu_k, lambda gan, cfg: last_layers(gan, cfg.methods.eu_k.k, "methods.eu_k.k")),
    "l1-sparse": Method(l1_sparse),
    "cdc": Method(cdc, lambda gan, cfg: tapped_layers(gan, cfg.methods.cdc.layers, "methods.cdc.layers")),
    "rssa": Method(rssa, lambda gan, cfg: tapped_layers(gan, cfg.methods.rssa.layers, "methods.rssa.layers", True)),
    "retrain": Method(retrain),
}
