"""CF-k and EU-k: fine-tune on positives only the last k layers of the generator, as they are or re-initialised.

Source: Goel et al., "Towards Adversarial Evaluations for Inexact Machine Unlearning" (arXiv 2201.06640), for
classifiers: catastrophic forgetting (CF-k) and exact unlearning (EU-k) of the last k layers. In a GAN the generator is
the model to be unlearned; the discriminator, which only tells it what the positives are, is trained whole.
"""

from __future__ import annotations

from torch import nn

from .. import config
from ..feedback.feedback import Feedback
from ..gan import GAN
from ..support.modules import trainable
from ..support.seeding import Stream, fork_rng, stream_seed
from ..training.run_folder import RunFolder
from .finetune import Outcome, finetune, pretrained_copy
from .layers import Layer, last_layers, reinitialise


def cf_k(gan: GAN, feedback: Feedback, cfg: config.Config, run: RunFolder, seed: int) -> Outcome:
    """Fine-tune the last k layers."""
    layers = last_layers(gan, cfg.methods.cf_k.k, "methods.cf_k.k")
    return _train(pretrained_copy(gan), layers, "cf-k", gan, feedback, cfg.methods.cf_k, run, seed)


def eu_k(gan: GAN, feedback: Feedback, cfg: config.Config, run: RunFolder, seed: int) -> Outcome:
    """Re-initialise the last k layers, then train them."""
    layers = last_layers(gan, cfg.methods.eu_k.k, "methods.eu_k.k")
    twin = pretrained_copy(gan)
    with fork_rng(gan.device, stream_seed(seed, Stream.REINITIALISED_LAYERS)):
        drawn = reinitialise(twin.generator, {layer.name for layer in layers})
    if twin.generator_ema is not None:
        twin.generator_ema.load_state_dict(twin.generator.state_dict())
    outcome = _train(twin, layers, "eu-k", gan, feedback, cfg.methods.eu_k, run, seed)
    outcome.decisions["drawn_without_a_rule"] = len(drawn)
    return outcome


def _train(
    twin: GAN,
    layers: list[Layer],
    stage: str,
    gan: GAN,
    feedback: Feedback,
    cfg: config.Finetune,
    run: RunFolder,
    seed: int,
) -> Outcome:
    names = {name for layer in layers for name in layer.parameters}
    flags = {p: p.requires_grad for p in twin.generator.parameters()}
    allowed = {id(p) for p in trainable(twin.generator)}
    for name, p in twin.generator.named_parameters():
        p.requires_grad_(name in names and id(p) in allowed)
    if not any(p.requires_grad for p in twin.generator.parameters()):
        raise ValueError(f"generator: expected a parameter that requires grad in its last {len(layers)} layers")
    outcome = finetune(twin, stage, gan, feedback, cfg, run, seed, prepare=_hold_the_rest)
    for p, flag in flags.items():
        p.requires_grad_(flag)
    outcome.decisions["k"] = len(layers)
    outcome.decisions["trained_layers"] = [layer.name for layer in layers]
    return outcome


def _hold_the_rest(generator: nn.Module) -> None:
    """Put what has weights or statistics, and none that is trained, into eval mode, so that these stay too."""
    for module in generator.modules():
        has_state = any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))
        if has_state and not any(p.requires_grad for p in module.parameters()):
            module.training = False
