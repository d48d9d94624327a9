"""Checks of a GAN before a run: a pair that can be trained, whose samples and logits are what they should be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .gan import GAN
from .methods.registry import Plan
from .support.modules import eval_mode, state_of, trainable
from .support.seeding import fork_rng
from .training.losses import r1_penalty

# Of a graph, what leaves probabilities such.
_SHAPING = tuple(
    f"{name}Backward"
    for name in ("View", "UnsafeView", "Squeeze", "Select", "Slice", "ToCopy", "Clone", "Clamp", "Mean")
)


def check_gan(gan: Any) -> GAN:
    if not isinstance(gan, GAN):
        raise TypeError(
            f"gan: expected an atu_ext.GAN, got {type(gan).__name__}; wrap the pair: GAN(generator=..., ...)"
        )
    if gan.discriminator is None:
        raise ValueError(
            "gan: it has no discriminator, and both stages train against one; load a checkpoint that holds it, or fit "
            "one on generated samples first: atu_ext.fit_discriminator(gan, steps), or atu unlearn with "
            "--train-discriminator STEPS"
        )
    for name, module in gan.modules().items():
        if any(isinstance(each, torch.jit.ScriptModule) for each in module.modules()):
            raise ValueError(
                f"gan: the {name} is a TorchScript module, which cannot be trained anew; give its nn.Module"
            )
        odd = [(key, p.dtype) for key, p in module.named_parameters() if not p.is_floating_point()]
        if odd:
            raise ValueError(f"gan: expected weights of floats, got {name}.{odd[0][0]} of {odd[0][1]}")
        small = [p.dtype for p in module.parameters() if p.dtype in (torch.float16, torch.bfloat16)]
        if small:
            raise ValueError(
                f"gan: the {name}'s weights are of {str(small[0]).removeprefix('torch.')}, in which Adam's small steps "
                f"are lost; train in float32: gan.{name}.float()"
            )
        for key, value in module.state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise ValueError(f"gan: {name}.{key} holds values that are not finite")
    for name, first, second in zip(("latent", "label"), gan.inputs(2), gan.inputs(2), strict=True):
        if first is not None and (second is None or not torch.equal(first, second)):
            raise ValueError(
                f"gan: expected a {name}_sampler that draws by the torch.Generator that it is given, and so the same "
                "for the same seed"
            )
    shape, x = gan.sample_shape, gan.sample(2)
    if x.shape != (2, *shape) or not torch.isfinite(x).all():
        raise ValueError(f"gan: its generator gave {list(x.shape)} for 2 latents, or values that are not finite")
    _check_average(gan)
    _check_logits(gan, x)
    return gan


def _check_average(gan: GAN) -> None:
    """Raise ValueError where the EMA generator is another network than the generator, whose average it is to be."""
    if gan.generator_ema is None:
        return
    own, average = (
        {name: tuple(value.shape) for name, value in state_of(module).items()}
        for module in (gan.generator, gan.generator_ema)
    )
    differs = sorted(name for name in {*own, *average} if own.get(name) != average.get(name))
    if differs:
        raise ValueError(
            f"gan: expected a generator_ema of the generator's own parameters and buffers, but {differs[0]} is missing "
            "in one of them, or of another shape"
        )


def _check_logits(gan: GAN, x: Tensor) -> None:
    """Raise ValueError where the discriminator fails for samples x, or gives probabilities that pass for logits."""
    c = gan.labels(len(x), torch.Generator().manual_seed(0))
    assert gan.discriminator is not None
    with eval_mode(gan.discriminator):
        with torch.enable_grad():
            squashed = _is_sigmoids(gan.logits(x.clone().requires_grad_(), c))
        with torch.no_grad():  # last, as old hooks of spectral norm keep the graph of the last pass
            _check_any_number(gan, x)
            gan.logits(x, c)
    if gan.discriminator_output == "auto" and squashed:
        raise ValueError(
            "gan: its discriminator ends in torch.sigmoid, and its probabilities would be taken for logits; say so: "
            'GAN(..., discriminator_output="probability")'
        )


def _check_any_number(gan: GAN, x: Tensor) -> None:
    """Raise ValueError where the discriminator takes samples x and not one of them, or five."""
    for n in (1, min(5, gan.fitting(5))):
        c = gan.labels(n, torch.Generator().manual_seed(0))
        try:
            gan.logits(x[:1].expand(n, *x.shape[1:]), c)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"gan: its discriminator takes {len(x)} samples at once, but not {n}, and a run passes any number "
                f"({error}); where that is the group of a minibatch deviation, let it be a divisor of the batch "
                "(math.gcd), as it is in networks of GAN.load"
            ) from error


def rehearse(gan: GAN, plan: Plan, n: int = 3) -> None:
    """Raise ValueError where a step of training fails on a copy of the networks, in training mode. Of big samples it
    would take the time and the memory of one."""
    if gan.is_big:
        return
    n = min([n, *(stage.batch_size for stage in plan.stages if stage.batch_statistics)])
    with fork_rng(gan.device, 0), torch.enable_grad():
        twin = gan.copy()
        assert twin.discriminator is not None
        weights, _ = (trainable(module.train()) for module in (twin.generator, twin.discriminator))
        z, c = twin.inputs(n)
        try:
            x = twin.fake(z, c)
            slopes = torch.autograd.grad(twin.logits(x, c).sum(), weights, allow_unused=True)
            leaf = x.detach().requires_grad_(True)
            twin.logits(leaf, c).sum().backward()
            if any(stage.second_order for stage in plan.stages):  # by itself, as in training
                r1_penalty(twin.logits(leaf, c), leaf).backward()
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"gan: a step of training fails on these networks ({error})") from error
    if all(slope is None for slope in slopes):
        raise ValueError("gan: no gradient of the discriminator reaches the generator's weights; is one under no_grad?")


def _is_sigmoids(y: Tensor) -> bool:
    """Whether y is what a sigmoid gave, or means of it."""
    node: Any = y.grad_fn
    while node is not None and node.name().startswith(_SHAPING):
        node = node.next_functions[0][0] if node.next_functions else None
    return node is not None and node.name().startswith("SigmoidBackward")


def check_adapted(gan: GAN, adapted: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The state dicts as a list; ValueError where they are not `gan.generator`'s."""
    if isinstance(adapted, (Mapping, str, Path)) or len(adapted) == 0 or not isinstance(adapted[0], Mapping):
        raise ValueError("adapted: expected a list of at least one generator state dict")
    own = gan.generator.state_dict()
    for state in adapted:
        wrong = [k for k, v in own.items() if k not in state or state[k].shape != v.shape]
        if wrong:
            raise ValueError(
                f"adapted: expected state dicts of gan.generator, but {wrong[0]} is missing or of another shape"
            )
    return [{k: state[k].to(v.dtype) for k, v in own.items()} for state in adapted]
