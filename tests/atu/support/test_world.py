"""Several processes: parts of batches, what they agree on, and a training that equals that of one process."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from atu.support import world
from atu.training.state import load_state

# Each process is started with torchrun's environment; argv: what to do, a folder, and options.
SCRIPT = """
import os, signal, sys
import torch
from atu import GAN, unlearn
from atu.config import Adversarial
from atu.data.samples import TensorSamples
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.networks.stylegan2 import Discriminator, Generator
from atu.support import progress, world
from atu.training.run_folder import RunFolder
from atu.training.losses import fake_loss
from atu.training.state import save_state
from atu.training.step import AdversarialStep, Objective

torch.set_num_threads(1)
progress.set_quiet(True)
world.join(None)
what, folder, *rest = sys.argv[1:]
torch.manual_seed(0)


def save(name, gan, **more):
    weights = {n: dict(m.state_dict()) for n, m in gan.modules().items()}
    save_state(f"{folder}/{name}-{world.rank()}-of-{world.size()}.safetensors", {**weights, **more})


class Beside(Objective):
    # Negatives as fakes, and a penalty of the generated samples.

    def __init__(self, negatives):
        self.negatives = negatives

    def discriminator_loss(self, step, real, fake):
        yield from super().discriminator_loss(step, real, fake)
        loss = fake_loss(step.logits(step.draw(self.negatives)))
        yield loss, {"negatives": loss}

    def generator_loss(self, step):
        fake = step.fake(*step.latents(step.fakes, step.group))
        loss, size = self.adversarial(step, fake), fake.samples.abs().mean()
        yield loss + 0.1 * fake.samples.square().mean(), {"loss_g": loss, "size": size}


if what == "steps":  # of vectors in float64: everything but noise, which each process draws for itself
    gan = GAN(MLPGenerator(4, [3], (16,)).double(), MLPDiscriminator([3], (16,)).double())
    real, fakes = (TensorSamples(torch.randn(n, 3, dtype=torch.float64)) for n in (23, 5))
    for loss in ("logistic", "relativistic"):
        settings = Adversarial(batch_size=12, loss=loss, r1_interval=2, r2_gamma=0.5, ema_half_life=20.0)
        seen = []
        trainer = AdversarialStep(gan, real, Beside(fakes), settings)
        for _ in range(5):
            seen.append(trainer.step())
        save(loss, gan, metrics={k: torch.tensor([row[k] for row in seen if k in row]) for k in seen[0]})
if what in ("images", "unlearn"):
    channels = dict(channel_base=64, channel_max=8)
    generator = Generator(4, 0, 4, 8, 1, dict(num_layers=2), dict(channels))
    gan = GAN(generator, Discriminator(0, 8, 1, **channels), image_range=(-9, 9))
if what == "images":  # noise, style mixing, augmentation, path length, minibatch deviation, w_avg: all agree
    settings = Adversarial(batch_size=16, pl_weight=2.0, style_mixing=0.9, augment="color,translation,cutout")
    trainer = AdversarialStep(gan, TensorSamples(torch.rand(9, 1, 8, 8)), Objective(), settings)
    for _ in range(3):
        trainer.step()
    save("images", gan, mean={"mean": trainer.path_length.mean}, rng={"cpu": torch.get_rng_state()})
if what == "unlearn":
    stage, step, number = rest[0], int(rest[1]), int(rest[2])
    log = RunFolder.log

    def log_and_die(self, name, at, seconds, metrics):
        log(self, name, at, seconds, metrics)
        if (name, at) == (stage, step) and world.rank() == number:
            os.kill(os.getpid(), signal.SIGKILL)

    RunFolder.log = log_and_die
    x = gan.sample(60)
    middle = x.mean([1, 2, 3]).median()
    bright = lambda x: x.mean([1, 2, 3]) > middle
    small = {"batch_size": 16, "pl_weight": 2.0, "pl_interval": 2}
    config = {
        "feedback": {"pool": 64},
        "adapt": {"steps": 2, "fisher": {"n": 2}, "adversarial": small},
        "repel": {"steps": 6, "check_every": 3, "check_samples": 40, "guide_steps": 2, "adversarial": small},
        "log_every": 1,
        "save_every": 2,
    }
    result = unlearn(gan, x[bright(x)], is_negative=bright, config=config, out=f"{folder}/run", seed=3)
    save("unlearned", result.gan)
"""


def start(count: int, *arguments: str) -> list[subprocess.Popen[str]]:
    """So many processes that know of each other as torchrun tells them."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    there = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *arguments],
            env={**there, "RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": str(count)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]


def run(count: int, *arguments: str) -> list[tuple[int, str]]:
    """Exit code and stderr of each."""
    started = start(count, *arguments)
    return [(one.returncode, err) for one in started for _, err in [one.communicate(timeout=400)]]


def flat(state, path=""):
    for key, value in state.items():
        if isinstance(value, dict):
            yield from flat(value, f"{path}.{key}")
        elif isinstance(value, torch.Tensor):
            yield f"{path}.{key}", value


def loaded(folder: Path, name: str, rank: int, size: int):
    return dict(flat(load_state(folder / f"{name}-{rank}-of-{size}.safetensors")))


def ok(found: list[tuple[int, str]]) -> None:
    assert all(code == 0 for code, _ in found), "\n".join(err[-2000:] for _, err in found)


# --- parts


@pytest.mark.parametrize(("n", "group", "size"), [(12, 1, 2), (12, 4, 3), (32, 4, 2), (24, 3, 4), (7, 1, 7)])
def test_parts_cover_the_batch_and_keep_groups_together(n, group, size):
    parts = [world._part(n, group, i) for i in range(size)]
    assert torch.cat(parts).sort().values.tolist() == list(range(n))
    for part in parts:
        alone = part.view(group, -1)  # how the minibatch deviation groups them
        assert ((alone - alone[0]) % (n // group) == 0).all()


def test_alone_nothing_is_divided_or_changed():
    x, rng = torch.randn(3), torch.get_rng_state()
    assert world.part(7, 4) == slice(None) and world.gather(x) is x and world.size() == 1 and world.is_first()
    with world.own_rng(torch.device("cpu")):
        pass
    assert torch.equal(torch.get_rng_state(), rng) and world.from_first(lambda: 3) == 3


def test_the_order_of_what_is_summed_is_that_of_the_tensors(monkeypatch):
    """Each process must ask for the same, dtype by dtype."""
    dtypes = [torch.float64, torch.bfloat16, torch.float16, torch.float32]
    for order in itertools.permutations(dtypes):
        seen = []
        monkeypatch.setattr(world, "is_joined", lambda: True)
        monkeypatch.setattr(world, "size", lambda: 2)
        monkeypatch.setattr(world.dist, "all_reduce", lambda x, seen=seen: seen.append(x.dtype) or x.mul_(2))
        tensors = [torch.full((2,), 3.0, dtype=dtype) for dtype in [*order, *order]]
        world.mean_(tensors)
        assert seen == list(order) and all((t == 3).all() for t in tensors)


def test_a_batch_that_cannot_be_divided_is_named(monkeypatch):
    monkeypatch.setattr(world, "size", lambda: 3)
    with pytest.raises(ValueError, match=r"batch_size: expected a multiple of 3 processes times 4 samples .* got 32"):
        world._part(32, 4, 0)


# --- trainings


def test_two_processes_train_as_one(tmp_path):
    ok(run(1, "steps", str(tmp_path)))
    ok(run(2, "steps", str(tmp_path)))
    for loss in ("logistic", "relativistic"):
        alone = loaded(tmp_path, loss, 0, 1)
        both = [loaded(tmp_path, loss, i, 2) for i in range(2)]
        assert alone.keys() == both[0].keys() and len(alone) == 20
        for key, value in alone.items():
            assert torch.equal(both[0][key], both[1][key]), key
            torch.testing.assert_close(both[0][key], value, rtol=1e-9, atol=1e-11, msg=key)


def test_all_processes_have_the_same_of_what_each_draws_for_itself(tmp_path):
    ok(run(2, "images", str(tmp_path)))
    a, b = (loaded(tmp_path, "images", i, 2) for i in range(2))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
def test_a_run_whose_process_is_killed_stops_whole_and_goes_on(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    ok(run(2, "unlearn", str(whole), "none", "0", "0"))
    first, second = run(2, "unlearn", str(broken), "repel", "5", "1")
    assert second[0] == -signal.SIGKILL
    assert first[0] == 1 and "another process of this run has stopped" in first[1], first[1][-2000:]
    assert not (broken / "run" / "result.safetensors").exists()
    ok(run(2, "unlearn", str(broken), "none", "0", "0"))
    a, b = loaded(whole, "unlearned", 0, 2), loaded(broken, "unlearned", 1, 2)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert (broken / "run" / "result.safetensors").exists()
