"""Run by test_plugin.py in a process that finds the example installed: uses one of each, and prints JSON."""

import json
import sys
from pathlib import Path

import torch

from atu import GAN, Config, unlearn
from atu.evaluation.evaluate import evaluate
from atu.formats.inspect import inspect_checkpoint
from atu.judging.finding import find
from atu.networks.mlp import MLPDiscriminator
from atu.networks.registry import NETWORKS
from atu.report import report

out = Path(sys.argv[1])
found = {}

# The network: a GAN of it is saved and loaded by name.
torch.manual_seed(0)
gan = GAN(NETWORKS["example.Linear"](5, [1, 7, 7]), MLPDiscriminator([1, 7, 7], hidden=[11]))
again = GAN.load(gan.save(out / "gan.safetensors"))
found["network"] = type(again.generator).__name__
found["same_samples"] = torch.equal(again.sample(3), gan.sample(3))

# The format: chosen by the suffix, recognised by content under another name.
npz = gan.save(out / "gan.npz")
renamed = npz.rename(out / "gan.pt")
loaded = GAN.load(renamed)
found["format"] = loaded.origin["format"]
found["same_samples_of_format"] = torch.equal(loaded.sample(3), gan.sample(3))
described = inspect_checkpoint(renamed)
found["inspected"] = [described["format"], described["networks"]["generator"]["parameters"], described["notes"]]

# The oracle, the method and the metric: unlearn, evaluate, report.
oracle = find("bright:0.1")
x = gan.sample(200, seed=1)
result = unlearn(
    gan,
    x[oracle(x)][:9],
    is_negative=oracle,
    method="prune",
    config={"methods": {"prune": {"share": 0.25}}},
    out=out / "run",
)
found["decisions"] = {key: result.decisions[key] for key in ("method", "pruned")}
found["zeros"] = int((result.generator.map.weight == 0).sum())
found["config"] = Config.load(out / "run/config.toml").own.share
evaluation = evaluate(gan, result.gan, oracle, n=40)
models = evaluation.models
found["by_hand"] = float((models["before"].features - models["after"].features).norm(dim=1).mean())
context = report.Context("bright", {}, "", result.config.to_dict(), 0, decisions=result.decisions)
report.write(out / "run", evaluation, context)
print(json.dumps(found))
