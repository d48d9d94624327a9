"""Shares and percentages unlearned, corrected for the errors of the judge that counted.

Of samples of which a share q is negative, a judge of sensitivity se and specificity sp calls p = q se + (1 - q)(1 - sp)
negative, hence q = (p + sp - 1) / (se + sp - 1) (Rogan and Gladen, American Journal of Epidemiology 107, 1978). The
percentage unlearned of two such shares, 100 (q1 - q2) / q1 = 100 (p1 - p2) / (p1 + sp - 1), does not depend on se.

The interval holds the error of everything that was counted: the pairs of verdicts on the n latents, and the verdicts on
held-out real samples that se and sp are estimated from. Each table of counts is drawn anew from its posterior under
Jeffreys' prior, and the figure's quantiles are taken (so do Lang and Reiczigel, Preventive Veterinary Medicine 113,
2014, for one share, in closed form). It rests on the judge erring on generated samples as on real ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEAST = 0.5  # of se + sp - 1, below which a correction says little
DRAWS = 20_000


@dataclass(frozen=True)
class Errors:
    """A judge's counts on held-out real samples: negatives that it called so (hits) of all of them (negatives), others
    that it did not (passed) of all of them (others)."""

    hits: int
    negatives: int
    passed: int
    others: int

    def __post_init__(self) -> None:
        for name, part, whole in (("hits", self.hits, self.negatives), ("passed", self.passed, self.others)):
            if not (0 <= part <= whole and whole > 0):
                raise ValueError(f"errors: expected {name} of at least one sample, got {part} of {whole}")

    @property
    def sensitivity(self) -> float:
        return self.hits / self.negatives

    @property
    def specificity(self) -> float:
        return self.passed / self.others


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """PUL and both shares, corrected, with 95 % intervals; None where a figure has no meaning, as no more is called
    negative before than the judge's false alarms; a bound of None is open. unreliable: why it is not to be relied on,
    in words, or None."""

    pul: float | None
    pul_ci95: tuple[float | None, float] | None
    share_before: float | None
    share_before_ci95: tuple[float, float] | None
    share_after: float | None
    share_after_ci95: tuple[float, float] | None
    unreliable: str | None


def corrected_share(share: float, errors: Errors) -> float | None:
    """The true share behind an observed one, within [0, 1]; None where the judge tells nothing (se + sp = 1)."""
    power = errors.sensitivity + errors.specificity - 1
    return None if power == 0 else min(max((share + errors.specificity - 1) / power, 0.0), 1.0)


def corrected_unlearning(both: int, before: int, after: int, n: int, errors: Errors, seed: int = 0) -> Corrected:
    """PUL and both shares, corrected.

    Args:
        both, before, after: how many of the n fixed latents the judge calls negative under both models, the original
            one, the unlearned one.
    """
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.array([both, before - both, after - both, n - before - after + both]) + 0.5, DRAWS)
    p1, p2 = table[:, 0] + table[:, 1], table[:, 0] + table[:, 2]
    se = rng.beta(errors.hits + 0.5, errors.negatives - errors.hits + 0.5, DRAWS)
    sp = rng.beta(errors.passed + 0.5, errors.others - errors.passed + 0.5, DRAWS)
    power, excess = errors.sensitivity + errors.specificity - 1, before / n - (1 - errors.specificity)

    def interval(p: np.ndarray) -> tuple[float, float] | None:
        with np.errstate(divide="ignore", invalid="ignore"):
            return None if power == 0 else _quantiles(np.clip((p + sp - 1) / (se + sp - 1), 0, 1))

    pul, pul_ci95 = None, None
    if excess > 0:
        pul = min(100 * (before - after) / (n * excess), 100.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = np.where(p1 + sp > 1, 100 * (p1 - p2) / (p1 + sp - 1), -np.inf)
        low, high = _quantiles(np.minimum(drawn, 100.0))
        pul_ci95 = (None if low == -np.inf else low, high)
    unreliable = None
    if float(np.quantile(se + sp - 1, 0.025)) < LEAST:
        unreliable = f"the judge tells negatives from others too badly (sensitivity + specificity - 1 is {power:.2f})"
    elif float(np.quantile(p1 + sp - 1, 0.025)) <= 0:
        unreliable = "what it calls negative before is hardly more than its false alarms"
    elif float(np.quantile(p2 + sp - 1, 0.975)) < 0:
        unreliable = (
            "fewer are called negative after than its false alarms on real samples come to, so it errs otherwise on "
            "generated ones"
        )
    return Corrected(
        pul=pul,
        pul_ci95=pul_ci95,
        share_before=corrected_share(before / n, errors),
        share_before_ci95=interval(p1),
        share_after=corrected_share(after / n, errors),
        share_after_ci95=interval(p2),
        unreliable=unreliable,
    )


def _quantiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)
