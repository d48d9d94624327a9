"""The methods by name, and the settings of the paper's reference implementation."""

from __future__ import annotations

from typing import Any

from .support.registry import Registry

# What `method=None` stands for: Adapt-then-Unlearn with this project's additions, as the defaults of `Config` say.
DEFAULT = "atu"

# Each is an `atu.methods.registry.Method`. It stands here as text, below the methods, since a config looks up in it
# which settings a method has.
METHODS: Registry[Any] = Registry(
    "atu.methods",
    {
        DEFAULT: "atu.methods.adapt_then_unlearn.stages:ATU",
        "el2": "atu.methods.adapt_then_unlearn.stages:EL2",
        "nl2": "atu.methods.adapt_then_unlearn.stages:NL2",
        "il2": "atu.methods.adapt_then_unlearn.stages:IL2",
        "extrapolate": "atu.methods.extrapolate:EXTRAPOLATE",
        "ewc": "atu.methods.ewc:EWC",
        "cf-k": "atu.methods.last_layers:CF_K",
        "eu-k": "atu.methods.last_layers:EU_K",
        "l1-sparse": "atu.methods.l1_sparse:L1_SPARSE",
        "cdc": "atu.methods.cdc:CDC",
        "rssa": "atu.methods.rssa:RSSA",
        "retrain": "atu.methods.retrain:RETRAIN",
    },
)
REPULSION = (DEFAULT, "el2", "nl2", "il2")  # methods whose second stage is `atu.methods.adapt_then_unlearn.repel`
COMPAT = ("reference",)

# Methods that go by the adapted weights alone adapt for longer than the default, on which these weigh little.
PAPER_ADAPT: dict[str, Any] = dict(steps=200)

# The paper's stage 2 is the adversarial loss on positives and the repulsion, for a fixed number of steps: no more.
PAPER_REPEL: dict[str, Any] = dict(
    guide_weight=0.0,
    hold_weight=0.0,
    strength=4.0,
    decay=0.0,
    adversarial=dict(beta1=0.0, r1_gamma=1.0, r2_gamma=0.0, r1_interval=16),
)


def check_method(method: str) -> str:
    """Raise ValueError unless `method` is one of METHODS."""
    return METHODS.check(method)


def check_compat(compat: str | None) -> str | None:
    """Raise ValueError unless `compat` is None or one of COMPAT."""
    if compat is not None and compat not in COMPAT:
        raise ValueError(f"compat: expected {' or '.join(COMPAT)}, got {compat!r}")
    return compat


def reference(method: str, models: int = 5) -> dict[str, Any]:
    """Settings of the paper's public reference implementation (StyleGAN2 on MNIST), beneath a config of the method.

    With N adapted models and T tensors its distance is v = N/2 (1/T) sum_t sum_k MSE(theta_t, theta_k,t), N^2/2 times
    this package's "tensor_mean". At its gamma of 1 its losses are 100 exp(-v), -v and 1 / v.

    models: N, on which the constants depend.
    """
    # Its EMA decay is 0.5^(32 / 10,000) a step of 16 images: a half life of 5,000 images. Adam's settings and their
    # rescaling for lazy regularisation are those of every StyleGAN kind here.
    adversarial = dict(
        batch_size=16,
        loss="logistic",
        beta1=0.0,
        r1_gamma=10.0,
        r2_gamma=0.0,
        r1_interval=16,
        pl_weight=2.0,
        pl_interval=4,
        style_mixing=0.9,
        ema_half_life=5000.0,
        augment="",
    )
    # Its `convs`: the styled convolutions above 4 x 4, with their affine layers, biases and noise strengths.
    fisher = dict(n=32, parameters=[r"^synthesis\.b(?!4\.)\d+\.conv\d\."])
    factor = models**2 / 2
    plain: dict[str, Any] = dict(steps=1000, adversarial=adversarial)
    stage1 = dict(models=models, steps=2000, ewc_weight=5e8, ewc_relative=False, fisher=fisher, adversarial=adversarial)
    repulsion: dict[str, Any] = dict(reduction="tensor_mean", schedule="constant")
    own: dict[str, dict[str, Any]] = {
        "el2": {**repulsion, "gamma": 100.0, "alpha": factor},
        "nl2": {**repulsion, "gamma": factor, "ceiling": 1e12},
        "il2": {**repulsion, "gamma": 1 / factor, "epsilon": 1e-12},
        "ewc": {**plain, "weight": 5e8, "relative": False, "fisher": fisher},
        "l1-sparse": {**plain, "weight": 5e-5, "schedule": "constant"},
        "cdc": {**plain, "weight": 1000.0},
        **dict.fromkeys(("cf-k", "eu-k", "rssa", "retrain"), plain),
    }
    return {
        "feedback": dict(pool=5000),
        "adapt": stage1,
        "repel": {**PAPER_REPEL, **plain},
        "methods": {method: own[method]} if method in own else {},
    }
