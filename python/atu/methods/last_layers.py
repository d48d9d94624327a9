"""CF-k and EU-k: fine-tune on positives only the last k layers of the generator, as they are or re-initialised.

Source: Goel et al., "Towards Adversarial Evaluations for Inexact Machine Unlearning" (arXiv 2201.06640), for
classifiers: catastrophic forgetting (CF-k) and exact unlearning (EU-k) of the last k layers. In a GAN they are the
generator's; the discriminator, which only shows it what the positives are, is trained whole.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..config import STRICT, Adversarial, Config, PositiveCount
from ..gan import GAN
from ..support.modules import trainable
from ..support.seeding import Stream, fork_rng, stream_seed
from ..training.step import Objective
from .finetune import Finetune, finetune, finetune_plan, pretrained_copy
from .layers import Layer, last_layers, reinitialise
from .registry import Method, Outcome, Task


@dataclass(config=STRICT)
class CfK(Finetune):
    """Only the generator's last k layers are trained, on the positives."""

    k: Annotated[PositiveCount | None, Field(description="How many layers; unset, half of them, rounded up.")] = None


@dataclass(config=STRICT)
class EuK(CfK):
    """Only the generator's last k layers are trained, on the positives and from new weights."""

    adversarial: Annotated[Adversarial, Field(description="The adversarial loss, on the positives.")] = field(
        default_factory=lambda: Adversarial(ema_half_life=5000.0, ema_ramp=0.05)
    )


def _layers(gan: GAN, cfg: Config) -> list[Layer]:
    return last_layers(gan, cfg.own.k, f"methods.{cfg.method}.k")


class LastLayers(Objective):
    """The GAN loss, with the layers that are not trained kept bit for bit."""

    def set_modes(self, gan: GAN) -> None:
        """Put modules without trained weights into eval mode, so that their statistics stay too."""
        for module in gan.generator.modules():
            has_state = any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))
            if has_state and not any(p.requires_grad for p in module.parameters()):
                module.training = False


def cf_k(task: Task) -> Outcome:
    """Fine-tune the last k layers."""
    return _train(task, pretrained_copy(task.gan), _layers(task.gan, task.config))


def eu_k(task: Task) -> Outcome:
    """Re-initialise the last k layers, then train them."""
    layers = _layers(task.gan, task.config)
    twin = pretrained_copy(task.gan)
    with fork_rng(task.gan.device, stream_seed(task.seed, Stream.REINITIALISED_LAYERS)):
        drawn = reinitialise(twin.generator, {layer.name for layer in layers})
    if twin.generator_ema is not None:
        twin.generator_ema.load_state_dict(twin.generator.state_dict())
    outcome = _train(task, twin, layers)
    outcome.decisions["drawn_without_a_rule"] = len(drawn)
    return outcome


def _train(task: Task, twin: GAN, layers: list[Layer]) -> Outcome:
    names = {name for layer in layers for name in layer.parameters}
    flags = {p: p.requires_grad for p in twin.generator.parameters()}
    allowed = {id(p) for p in trainable(twin.generator)}
    for name, p in twin.generator.named_parameters():
        p.requires_grad_(name in names and id(p) in allowed)
    if not any(p.requires_grad for p in twin.generator.parameters()):
        raise ValueError(f"generator: expected a parameter that requires grad in its last {len(layers)} layers")
    outcome = finetune(task, twin, LastLayers())
    for p, flag in flags.items():
        p.requires_grad_(flag)
    outcome.decisions["k"] = len(layers)
    outcome.decisions["trained_layers"] = [layer.name for layer in layers]
    return outcome


CF_K = Method(cf_k, CfK, plan=finetune_plan(_layers))
EU_K = Method(eu_k, EuK, plan=finetune_plan(_layers))
