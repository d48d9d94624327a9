"""Stage 1, negative adaptation: fine-tune the GAN to the negatives under an EWC penalty.

Source: Tiwary et al., "Adapt then Unlearn" (arXiv 2309.14054), section 3.2; EWC: Kirkpatrick et al., arXiv 1612.00796.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atu_ext.ops import ParamPenalty

from ... import config
from ...feedback.feedback import Feedback
from ...gan import GAN
from ...support.modules import eval_mode
from ...support.seeding import Stream, fork_rng, stream_seed
from ...training.fisher import diagonal_fisher
from ...training.run_folder import RunFolder
from ...training.score import pictured
from ...training.stage import StageHooks, run_stage
from ...training.trainer import AdversarialTrainer


def fisher_of(gan: GAN, feedback: Feedback, cfg: config.Fisher, seed: int) -> list[Tensor]:
    """Fisher information of `gan`'s generator at samples chosen as `cfg` says, one tensor a parameter."""
    rng = torch.Generator().manual_seed(stream_seed(seed, Stream.FISHER_LATENTS))
    z, c = gan.latents(cfg.n, rng), gan.labels(cfg.n, rng)
    with fork_rng(gan.device, stream_seed(seed, Stream.FISHER_NOISE)):
        if cfg.samples == "negatives":
            z, c = _negative_latents(gan, feedback, cfg.n, rng)
        return diagonal_fisher(gan, z, c, cfg.of, cfg.parameters)


@torch.no_grad()
def _negative_latents(gan: GAN, feedback: Feedback, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
    found_z: list[Tensor] = []
    found_c: list[Tensor] = []
    for _ in range(100):
        z, c = gan.latents(100, rng), gan.labels(100, rng)
        with eval_mode(gan.generator):
            x = gan.fake(z, c)
        flags = feedback.is_negative(x).to(z.device)
        found_z.append(z[flags])
        if c is not None:
            found_c.append(c[flags])
        if sum(map(len, found_z)) >= n:
            break
    z = torch.cat(found_z)[:n]
    if len(z) == 0:
        raise ValueError("fisher.samples: expected some of 10,000 generated samples to be negative, none is")
    return z, torch.cat(found_c)[:n] if found_c else None


class Ewc:
    """Adds the gradient of weight/2 sum F (theta - anchor)^2 to the generator's.

    relative: divide the penalty by 1/2 sum F anchor^2, so that one weight means the same for every network.
    """

    def __init__(self, gan: GAN, anchor: list[Tensor], fisher: list[Tensor], weight: float, relative: bool):
        self.penalty = ParamPenalty(list(gan.generator.parameters()), anchor=anchor, fisher=fisher)
        self.weight = weight
        if relative:
            norm = 0.5 * sum(
                float((f.double() * a.double().square()).sum()) for f, a in zip(fisher, anchor, strict=True)
            )
            self.weight = weight / norm if norm > 0 else 0.0

    def add_grad(self) -> dict[str, float]:
        ewc, _ = self.penalty.value()
        self.penalty.add_grad_(self.weight, 0.0)
        return {"ewc": self.weight * ewc}


def adapt_one(
    gan: GAN, feedback: Feedback, fisher: list[Tensor], cfg: config.Adapt, run: RunFolder, index: int, seed: int
) -> dict[str, Tensor]:
    """Adapt a copy of `gan` to the negatives; returns its EMA generator's state dict."""
    stage = f"adapt-{index}"
    name = f"adapted-{index}"
    done = run.load(name)
    if done is not None:
        return done
    twin = gan.copy()
    with fork_rng(gan.device, stream_seed(seed, Stream.ADAPT, index)):
        anchor = [p.detach().clone() for p in gan.generator.parameters()]
        ewc = Ewc(twin, anchor, fisher, cfg.ewc_weight, cfg.ewc_relative)
        trainer = AdversarialTrainer(twin, feedback.negatives, cfg.adversarial, add_penalty_grad=ewc.add_grad)
        run_stage(run, stage, trainer, cfg.steps, StageHooks())
    state = {key: value.detach().clone() for key, value in twin.sampling_generator.state_dict().items()}
    run.picture(stage, twin.sample(pictured(twin), seed=stream_seed(seed, Stream.ADAPT_PICTURE)), gan.image_range)
    run.save(name, state)
    run.remove(f"{stage}-state")
    return state


def adapt_all(gan: GAN, feedback: Feedback, cfg: config.Adapt, run: RunFolder, seed: int) -> list[dict[str, Tensor]]:
    """The ensemble of N adapted generators, each with its own seed; their state dicts."""
    fisher = fisher_of(gan, feedback, cfg.fisher, seed)
    return [adapt_one(gan, feedback, fisher, cfg, run, index, seed) for index in range(cfg.models)]
