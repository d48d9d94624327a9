"""Both stages, one after the other."""

from __future__ import annotations

from ... import presets
from ...config import Config
from ...gan import GAN
from ..registry import Method, Outcome, Plan, Task
from . import repulsion
from .adapt import ADAPT_TITLE, adapt_all, adapt_stage
from .repel import REPEL_TITLE, repel_gan, repel_stage
from .repulsion import RepulsionLoss


def adapt_then_unlearn(task: Task) -> Outcome:
    """Both stages of Adapt-then-Unlearn (Tiwary et al., arXiv 2309.14054), with the repulsion loss of the settings."""
    adapted = adapt_all(task)
    unlearned, decisions = repel_gan(task, adapted)
    return Outcome(unlearned, decisions, adapted)


def _plan(gan: GAN, cfg: Config) -> Plan:
    return Plan([adapt_stage(gan, cfg, needed=cfg.repel.strength > 0), repel_stage(gan, cfg)])


def _method(loss: type[RepulsionLoss] | None = None) -> Method:
    """The default; or with one of the paper's losses the paper's method, and nothing added to it."""
    preset = {} if loss is None else {"adapt": presets.PAPER_ADAPT, "repel": presets.PAPER_REPEL}
    stages = {"adapt": ADAPT_TITLE, "repel": REPEL_TITLE}
    return Method(adapt_then_unlearn, loss, preset=preset, plan=_plan, stages=stages)


ATU, EL2, NL2, IL2 = _method(), _method(repulsion.EL2), _method(repulsion.NL2), _method(repulsion.IL2)
