"""Training a GAN from scratch."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from ..config import Adversarial
from ..data.samples import Samples
from ..formats.tensors import load_tensors, save_tensors
from ..gan import GAN
from ..support import progress
from ..support.modules import eval_mode
from ..support.seeding import fork_rng
from .schedules import lr_decay
from .trainer import AdversarialTrainer

DECAY = 0.25  # last share of the steps, over which the learning rates fall to 0


def train(
    gan: GAN, real: Samples, config: Adversarial, steps: int, out: str | Path, seed: int = 0, save_every: int = 500
) -> GAN:
    """Train `gan` in place up to step `steps`, the learning rates falling to 0 over the last DECAY of them; returns it.

    out: folder for log.jsonl and state.safetensors, from which an interrupted training goes on.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    state_path, log_path = out / "state.safetensors", out / "log.jsonl"
    with fork_rng(gan.device, seed):
        trainer = AdversarialTrainer(gan, real, config)
        seconds = 0.0
        if state_path.exists():
            tensors, metadata = load_tensors(state_path)
            data = json.loads(metadata["data"])
            trainer.load_state(tensors, data)
            seconds = data["seconds"]
            progress.say(f"pretrain: resumed at step {trainer.step_count} of {steps}, from {out}")
        start = time.monotonic() - seconds
        with progress.bar("pretrain", steps, trainer.step_count) as bar, open(log_path, "a", encoding="utf-8") as log:
            while trainer.step_count < steps:
                trainer.set_lr_factor(lr_decay(trainer.step_count / steps, DECAY))
                metrics = trainer.step()
                bar.update(metrics)
                if trainer.step_count % 100 == 0:
                    row = dict(step=trainer.step_count, seconds=round(time.monotonic() - start, 1), **metrics)
                    log.write(json.dumps(row) + "\n")
                    log.flush()
                if trainer.step_count % save_every == 0 or trainer.step_count == steps:
                    tensors, data = trainer.state()
                    data["seconds"] = time.monotonic() - start
                    save_tensors(state_path, tensors, {"data": json.dumps(data)})
    return gan


@torch.no_grad()
def centre_logits(gan: GAN, real: Samples, n: int = 500) -> None:
    """Shift D's last bias so that real and generated samples lie evenly about 0: pairs of samples leave it free."""
    discriminator: Any = gan.discriminator
    index = torch.arange(min(n, len(real)))
    with eval_mode(discriminator):
        x = gan.sample(len(index)), real.batch(index).to(gan.device)
        middle = torch.stack([gan.logits(part).mean() for part in x]).mean()
    discriminator.b4.out.bias.sub_(middle)
