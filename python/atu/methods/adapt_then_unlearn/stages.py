"""Both stages, one after the other."""

from __future__ import annotations

from ... import presets
from ...config import Config
from ...gan import GAN
from ..registry import Method, Outcome, Plan, Task
from .adapt import ADAPT_TITLE, adapt_all, adapt_stage
from .repel import REPEL_TITLE, repel_gan, repel_stage


def adapt_then_unlearn(task: Task) -> Outcome:
    """Both stages of Adapt-then-Unlearn (Tiwary et al., arXiv 2309.14054), with the repulsion loss of the settings."""
    adapted = adapt_all(task)
    unlearned, decisions = repel_gan(task, adapted)
    return Outcome(unlearned, decisions, adapted)


def _method(loss: str | None = None) -> Method:
    """The default; or with one of the paper's losses the paper's method, and nothing added to it."""

    def plan(gan: GAN, cfg: Config) -> Plan:
        return Plan([adapt_stage(gan, cfg, needed=cfg.repel.loss != "none"), repel_stage(gan, cfg, loss)])

    preset = {} if loss is None else {"adapt": presets.PAPER_ADAPT, "repel": {**presets.PAPER_REPEL, "loss": loss}}
    return Method(adapt_then_unlearn, preset=preset, plan=plan, stages={"adapt": ADAPT_TITLE, "repel": REPEL_TITLE})


ATU, EL2, NL2, IL2 = _method(), _method("el2"), _method("nl2"), _method("il2")
