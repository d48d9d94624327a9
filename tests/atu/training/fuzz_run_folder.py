"""Kill runs at random moments, resume them, and compare with runs that nobody disturbed.

    python tests/atu/training/fuzz_run_folder.py --kills 50 --minutes 30 [--seed 0] [--folder DIR]

Two kinds of runs take turns: unlearning with a folder (two adapted generators, stage 2 with an oracle), and pretraining
in two phases. Each is started again and again in a process of its own; it is killed (SIGKILL) at a random moment
of the time that it takes undisturbed, until it ends. Then its weights and the rows of its metrics (but for
their seconds) must be those of the undisturbed run, bit for bit. Exits with 1 where one differs or fails.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.utils.tensorboard  # imported before the fork, as it takes a second

from atu import GAN, unlearn
from atu.config import Adversarial
from atu.data.samples import TensorSamples
from atu.networks.mlp import MLPDiscriminator, MLPGenerator
from atu.support import progress
from examples.scratch import train

SMALL = {"batch_size": 4}
CONFIG = {
    "feedback": {"pool": 200},
    "adapt": {"steps": 20, "models": 2, "adversarial": SMALL},
    "repel": {"steps": 30, "check_every": 10, "check_samples": 50, "guide_steps": 2, "adversarial": SMALL},
    "log_every": 1,
    "save_every": 7,
}


def images() -> GAN:
    torch.manual_seed(0)
    return GAN(MLPGenerator(4, [1, 4, 4], (8,), "tanh"), MLPDiscriminator([1, 4, 4], (8,)))


def unlearning(out: Path) -> None:
    gan = images()
    x = gan.sample(60)
    order = x.mean([1, 2, 3]).argsort()
    middle = x.mean([1, 2, 3]).quantile(0.2)
    unlearn(gan, x[order[:10]], is_negative=lambda x: x.mean([1, 2, 3]) < middle, config=CONFIG, out=out, seed=3)


def pretraining(out: Path) -> None:
    gan = images()
    samples = TensorSamples(torch.rand(50, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1)
    phases = [(40, Adversarial(batch_size=4, loss="relativistic")), (70, Adversarial(batch_size=4, r1_gamma=0.1))]
    train(gan, samples, phases, out, seed=2, log_every=1, save_every=7)
    gan.save(out / "result.safetensors")


KINDS: dict[str, Callable[[Path], None]] = {"unlearning": unlearning, "pretraining": pretraining}


def in_a_child(kind: str, out: Path, kill_after: float | None) -> tuple[int, float]:
    """Fork a run, and kill it after some seconds; its exit code (negative: the signal) and the seconds it took."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            KINDS[kind](out)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    while kill_after is not None and time.monotonic() - start < kill_after:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), time.monotonic() - start
        time.sleep(0.002)
    if kill_after is not None:
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), time.monotonic() - start


def weights(out: Path) -> dict[str, torch.Tensor]:
    gan = GAN.load(out / "result.safetensors")
    return {f"{n}.{k}": v for n, module in gan.modules().items() for k, v in module.state_dict().items()}


def rows(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in lines]


def difference(whole: Path, broken: Path) -> str:
    """What differs between two finished runs; "" for nothing."""
    a, b = weights(whole), weights(broken)
    different = [name for name in a if name not in b or not torch.equal(a[name], b[name])]
    if different or a.keys() != b.keys():
        return f"the weights {', '.join(different[:4])}"
    if rows(whole) != rows(broken):
        return f"the rows of the metrics ({len(rows(whole))} and {len(rows(broken))})"
    return ", ".join(f"left behind: {path.name}" for path in broken.rglob(".*.partial*"))


def fuzz(folder: Path, kills: int, minutes: float, seed: int) -> tuple[int, int]:
    """Kills made, runs compared.

    Raises:
        AssertionError: a run failed, or ended otherwise than the undisturbed one.
    """
    rng = random.Random(seed)
    end = time.monotonic() + 60 * minutes
    took = {}
    for kind in KINDS:
        code, took[kind] = in_a_child(kind, folder / kind, None)
        assert code == 0, f"{kind}: the undisturbed run ended with {code}"
        print(f"{kind}: {took[kind]:.1f} s undisturbed", flush=True)
    killed = runs = 0
    while killed < kills and time.monotonic() < end:
        kind = list(KINDS)[runs % len(KINDS)]
        out = folder / f"{kind}-{runs}"
        while True:
            last = killed >= kills or time.monotonic() >= end
            code, _ = in_a_child(kind, out, None if last else rng.uniform(0, took[kind]))
            if code != -signal.SIGKILL:
                break
            killed += 1
        assert code == 0, f"{out}: resumed, it ended with {code}"
        told = difference(folder / kind, out)
        assert not told, f"{out}: differs from the undisturbed run in {told}"
        runs += 1
        print(f"{out.name}: the same after {killed} kills in all", flush=True)
    return killed, runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs stay; a temporary folder when not given")
    args = parser.parse_args()
    progress.set_quiet(True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        killed, runs = fuzz(args.folder or Path(temporary), args.kills, args.minutes, args.seed)
    print(f"{killed} kills, {runs} runs, each the same as the undisturbed one")


if __name__ == "__main__":
    main()
