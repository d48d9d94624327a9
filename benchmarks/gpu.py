"""Everything that needs a GPU, in one call: install, tests, compute-sanitizer, benchmarks, and a report.

    python -m benchmarks.gpu                       on a machine with a CUDA device, torch and nvcc
    python -m benchmarks.gpu --device cpu --smoke --out FOLDER     tiny shapes, to see that it runs

Writes gpu.md and gpu.json into --out (benchmarks/results), and the times of the two convolution engines into --table,
the file that the dispatcher reads (atu_ext/ops/conv_engine.py). A part that fails is reported with its error, and the
others go on; the exit code is 1 then.

Times are medians of single calls between CUDA events, each after a flush of the second-level cache, in turns through
all implementations (atu.bench.measure). Every limit is measured in the same run: copies of the case's own bytes, a
matrix product, cuDNN's convolution.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from . import gpu_render

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TABLE = ROOT / "atu_ext" / "ops" / "conv_engines.json"
# Resolution of the network -> batch.
NETWORKS = {256: 8, 512: 4, 1024: 2}
SMOKE = {8: 2}
DTYPES = ("float32", "float16", "bfloat16")
CHANNEL_BASE, CHANNEL_MAX = 32768, 512
SHORT = """
log_every = 1
[feedback]
pool = 300
[adapt]
steps = 4
fisher.n = 8
[repel]
steps = 6
check_every = 3
check_samples = 100
guide_steps = 4
"""
SANITIZED = "tests/ops/test_backends.py"


def channels(resolution: int) -> int:
    return min(CHANNEL_BASE // resolution, CHANNEL_MAX)


# ---- parts that run as commands -------------------------------------------------------------------------------------


def command(*arguments: str, timeout: float = 1800, as_here: bool = False) -> dict[str, Any]:
    """Run it at the repository's root; exit code, and the end of what it printed. as_here: with this PYTHONPATH."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" or as_here}
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=timeout, env=environment)
    return dict(command=" ".join(arguments), code=done.returncode, output=(done.stdout + done.stderr)[-4000:])


def install() -> dict[str, Any]:
    """Build and install in place: the tests import the package from the checkout, and so does the rest of this run."""
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-build-isolation", "--no-deps", "-e", "."]
    result = command(*pip)
    if result["code"] != 0:
        raise RuntimeError(result["output"])
    sys.path[:0] = [str(ROOT), str(ROOT / "python")]  # a new installation in place is seen by new processes only
    importlib.invalidate_caches()
    return result


def tests() -> dict[str, Any]:
    """The op tests on the device: every comparison is with float64."""
    result = command(sys.executable, "-m", "pytest", "-q", "tests/ops", "-k", "[cuda", "-p", "no:cacheprovider")
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", result["output"])}
    return {**result, "counts": counts}


def one_rank(device: str, smoke: bool, as_here: bool) -> dict[str, Any]:
    """A short unlearning by torchrun with one process, which calls all that several would, beside the same without."""
    from safetensors.torch import load_file

    from atu.data.images import save_folder
    from benchmarks.step import bundled_gan, tiny_gan

    gan = tiny_gan() if smoke else bundled_gan()[0]
    by_torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1")
    starts = {"alone": (), "torchrun": by_torchrun}
    found: dict[str, Any] = dict(seconds={})
    weights = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        x = gan.sample(200)
        save_folder(x[x.flatten(1).mean(1).topk(50).indices], gan.image_range, folder / "negatives", 0)
        gan.save(folder / "gan.safetensors")
        (folder / "short.toml").write_text(SHORT, encoding="utf-8")
        words = ["unlearn", f"{folder}/gan.safetensors", "--negatives", f"{folder}/negatives"]
        words += ["--config", f"{folder}/short.toml", "--samples", "200", "--device", device, "--quiet", "--out"]
        for kind, start in starts.items():
            begin = time.monotonic()
            result = command(sys.executable, *start, "-m", "atu", *words, f"{folder}/{kind}", as_here=as_here)
            if result["code"] != 0:
                raise RuntimeError(f"{kind}: {result['output']}")
            found["seconds"][kind] = round(time.monotonic() - begin, 1)
            weights[kind] = load_file(folder / kind / "result.safetensors")
    pairs = [(value.double(), weights["torchrun"][name].double()) for name, value in weights["alone"].items()]
    return {**found, "largest_difference": max(float((a - b).abs().max()) for a, b in pairs if a.numel())}


def sanitizer() -> dict[str, Any]:
    """memcheck and racecheck over the tests of all ops on the device."""
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None:
        return dict(missing="compute-sanitizer was not found; it comes with the CUDA toolkit")
    small = [sys.executable, "-m", "pytest", "-q", "-x", SANITIZED, "-k", "[cuda and not gradients"]
    found = {}
    for kind in ("memcheck", "racecheck"):
        found[kind] = command(tool, "--tool", kind, "--error-exitcode", "9", "--target-processes", "all", *small)
    return found


# ---- single ops -----------------------------------------------------------------------------------------------------


def epilogue_layer(shape: tuple[int, int, int, int], dtype: Any, device: str, layout: Any) -> Any:
    """The epilogue alone: demodulation, noise, bias, lrelu, gain, clamp."""
    import torch

    from atu.bench.case import Layer, Traffic, nbytes
    from atu_ext.ops import bias_act

    n, c, h, w = shape
    make = partial(torch.randn, dtype=dtype, device=device)
    u = make(*shape).to(memory_format=layout).requires_grad_()
    d, noise, bias = make(n, c).requires_grad_(), make(1, 1, h, w), make(c).requires_grad_()

    def ours(u, d, noise, bias):
        return torch.ops.atu_ext.epilogue(u, d, noise, bias, 2, 0.2, 2**0.5, 256.0)

    def reference(u, d, noise, bias):
        return bias_act(u * d[:, :, None, None] + noise, bias, act="lrelu", clamp=256.0, impl="reference")

    size = nbytes(u)
    traffic = {"forward": Traffic(size, size, 6 * u.numel()), "backward": Traffic(2 * size, size, 8 * u.numel())}
    name = f"epilogue {'x'.join(map(str, shape))}" + (" channels_last" if layout is torch.channels_last else "")
    return Layer(name, "epilogue", [u, d, noise, bias], ours, reference, traffic)


def op_cases(resolution: int, batch: int, dtype: Any, device: str, smoke: bool) -> Iterator[Any]:
    """The shapes of StyleGAN2's last blocks at this resolution."""
    import torch

    from atu.bench.case import cases_of
    from atu.bench.micro import bias_act, modulated_conv2d, param_penalty, upfirdn2d

    planar, pixels = torch.contiguous_format, torch.channels_last
    c, half = channels(resolution) if not smoke else 8, resolution // 2
    shape, odd = (batch, c, resolution, resolution), (batch, c, resolution + 1, resolution + 1)
    for layout in (planar,) if smoke else (planar, pixels):
        yield from cases_of(upfirdn2d.layer("same", odd, upfirdn2d.SAME, layout, dtype, device))
        yield from cases_of(upfirdn2d.layer("down 2", shape, upfirdn2d.DOWN, layout, dtype, device))
        yield from cases_of(bias_act.layer(shape, layout, "lrelu", dtype, device))
        yield from cases_of(epilogue_layer(shape, dtype, device, layout))
        for up, size in ((1, resolution), (2, half)):
            wide = c if up == 1 or smoke else channels(half)
            yield from cases_of(modulated_conv2d.layer(batch, wide, c, size, up, layout, dtype, device))
    yield from cases_of(upfirdn2d.layer("up 2", (batch, 3, half, half), upfirdn2d.UP, planar, dtype, device))
    yield param_penalty.case(32 if smoke else resolution, 1, dtype, device)


def ops(networks: dict[int, int], dtypes: tuple[str, ...], device: str, smoke: bool) -> list[dict[str, Any]]:
    """Rows of `atu.bench.ops.run_case`; a case that fails has an error in its place."""
    import torch

    from atu.bench.limits import machine_rates
    from atu.bench.ops import run_case

    rows = []
    for name in dtypes:
        dtype = getattr(torch, name)
        plan = make_plan(device, smoke)
        rates = machine_rates(plan, dtype, smoke)
        rows.append(dict(name="limits", dtype=name, rates=rates))
        for resolution, batch in networks.items():
            for case in op_cases(resolution, batch, dtype, device, smoke):
                say(f"{name} {case.name} {case.direction}")
                try:
                    rows += run_case({dtype: case}, plan, {dtype: rates}, not smoke)
                except Exception as error:
                    rows.append(dict(name=case.name, direction=case.direction, dtype=name, error=str(error)[:500]))
    return rows


# ---- the two engines of the modulated convolution -------------------------------------------------------------------


def engine_layers(networks: dict[int, int], smoke: bool) -> list[tuple[int, int, int, int]]:
    """(batch, channels, size, kernel) of the layers that do not resample, of all networks."""
    found = []
    for resolution, batch in networks.items():
        size = 4
        while size <= resolution:
            found.append((batch, 8 if smoke else channels(size), size, 3))
            size *= 2
    return sorted(set(found))


def engine_runs(layer: tuple[int, int, int, int], dtype: Any, layout: Any, device: str) -> dict[str, dict[str, Any]]:
    """direction -> implementation -> call; `conv` is the plain convolution of that shape, forward only."""
    import torch
    import torch.nn.functional as F

    from atu_ext.ops import modulated_conv2d

    batch, c, size, k = layer
    make = partial(torch.randn, dtype=dtype, device=device)
    x, weight = make(batch, c, size, size).to(memory_format=layout), make(c, c, k, k)
    styles, noise, bias = make(batch, c), make(1, 1, size, size), make(c)
    d = torch.rand(batch, c, dtype=torch.float32, device=device).to(dtype)

    def forward(engine: str):
        with torch.no_grad():
            return modulated_conv2d(
                x, weight, styles, noise, padding=k // 2, bias=bias, act="lrelu", clamp=256.0, engine=engine,
                impl="native",
            )  # fmt: skip

    def backward(engine: str):
        leaves = x.detach().requires_grad_(), styles.detach().requires_grad_()
        settings = (1, k // 2, k // 2, 2, 0.2, 2**0.5, 256.0, True, engine)
        y, _ = torch.ops.atu_ext.modulated_gemm(leaves[0], weight, leaves[1], d, noise, bias, *settings)
        return partial(torch.autograd.grad, y, leaves, torch.randn_like(y), retain_graph=True)

    return {
        "forward": {
            "library": partial(forward, "library"),
            "gemm": partial(forward, "gemm"),
            "conv": lambda: F.conv2d(x, weight, padding=k // 2),
        },
        "input_gradient": {"library": backward("library"), "gemm": backward("gemm")},
    }


def engines(networks: dict[int, int], dtypes: tuple[str, ...], device: str, smoke: bool) -> list[dict[str, Any]]:
    """A row for each layer, dtype, layout and direction: what conv_engine.Layer holds, and microseconds."""
    import torch

    from atu.bench.measure import times
    from atu_ext.ops.modulated_gemm import obstacle

    rows: list[dict[str, Any]] = []
    plan = make_plan(device, smoke)
    for name in dtypes:
        for layout in ("contiguous", "channels_last"):
            for layer in engine_layers(networks, smoke):
                batch, c, size, k = layer
                dtype = getattr(torch, name)
                probe = torch.empty(1, 1, 1, 1, dtype=dtype, device=device)
                if (reason := obstacle(probe, probe, 1)) is not None:
                    return [*rows, dict(dtype=name, not_measured=reason)]
                say(f"engines {name} {layout} {batch}x{c}x{size}x{size}")
                memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
                for direction, runs in engine_runs(layer, dtype, memory_format, device).items():
                    found = {kind: entry["median"] * 1e6 for kind, entry in times(runs, plan).items()}
                    row: dict[str, Any] = dict(dtype=name, layout=layout, direction=direction, kernel=k, stride=1)
                    row.update(channels_in=c, channels_out=c, height=size, width=size, batch=batch)
                    rows.append({**row, **{f"{kind}_us": round(us, 2) for kind, us in found.items()}})
    return rows


def write_table(path: Path, device_name: str, rows: list[dict[str, Any]]) -> int:
    """Put this device's rows into the dispatcher's table, in place of earlier ones; how many."""
    from atu_ext.ops.conv_engine import Layer, read_table

    kept = [row for row in rows if "gemm_us" in row]
    names = (*Layer._fields, "library_us", "gemm_us")
    document = json.loads((path if path.exists() else TABLE).read_text(encoding="utf-8"))
    if kept:
        document["devices"][device_name] = dict(
            measured=datetime.date.today().isoformat(), rows=[{name: row[name] for name in names} for row in kept]
        )
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    read_table(path)
    return len(kept)


# ---- the network, and Adam with the penalty -------------------------------------------------------------------------


def network(networks: dict[int, int], device: str, smoke: bool) -> list[dict[str, Any]]:
    """The synthesis network, forward and backward, in float32 and mixed precision."""
    import torch

    from atu.bench.measure import peak_memory, times
    from atu.networks.stylegan2 import Generator
    from atu_ext.ops import default_impl

    rows = []
    for resolution, batch in networks.items():
        for halves in (0,) if smoke else (0, 4):
            say(f"synthesis network {resolution}, {halves} blocks in float16")
            torch.manual_seed(0)
            width = dict(channel_base=64, channel_max=8) if smoke else {}
            kwargs = dict(num_fp16_res=halves, conv_clamp=256 if halves else None, **width)
            net: Any = Generator(64, 0, 64 if smoke else 512, resolution, 3, None, kwargs).synthesis.to(device)
            ws = torch.randn(batch, net.num_ws, net.w_dim, device=device)

            def run(net: Any, ws: Any, impl: str) -> None:
                with default_impl(impl):
                    net(ws).square().mean().backward()

            runs: dict[str, Callable[[], Any]] = {
                "ours": partial(run, net, ws, "auto"),
                "eager": partial(run, net, ws, "reference"),
            }
            row: dict[str, Any] = dict(resolution=resolution, batch=batch, fp16_blocks=halves)
            if not smoke:
                try:
                    torch.compiler.reset()
                    runs["compiled"] = partial(run, torch.compile(net, dynamic=False), ws, "reference")
                    runs["compiled"]()
                except Exception as error:
                    del runs["compiled"]
                    row["not_compiled"] = str(error)[:300]
            row["peak_bytes"] = {kind: peak_memory(call, device) for kind, call in runs.items()}
            row["times"] = times(runs, make_plan(device, smoke))
            rows.append(row)
    return rows


def steps(networks: dict[int, int], device: str, smoke: bool) -> list[dict[str, Any]]:
    """Steps of the bundled GAN and of the smallest of the networks, in each precision (see step.py)."""
    from atu.gan import GAN
    from atu.networks.stylegan2 import Discriminator, Generator
    from benchmarks.step import run_step

    plan = make_plan(device, smoke)
    given: list[tuple[int, tuple[GAN, str] | None]] = [(32, None)]
    if not smoke:
        resolution = min(networks)
        width = dict(channel_base=CHANNEL_BASE, channel_max=CHANNEL_MAX)
        pair = Generator(512, 0, 512, resolution, 3, None, dict(width)), Discriminator(0, resolution, 3, **width)
        given.append((networks[resolution], (GAN(*pair), f"StyleGAN2 of {resolution} pixels, untrained")))
    return [run_step(plan, batch, not smoke and gan is None, smoke, say, DTYPES, gan) for batch, gan in given]


def adam(networks: dict[int, int], device: str, smoke: bool) -> list[dict[str, Any]]:
    """The penalty's gradient and Adam in one pass, beside two."""
    import torch

    from atu.bench.measure import times
    from atu.bench.micro.param_penalty import parameters
    from atu_ext.ops import ParamPenalty

    rows = []
    for resolution in networks:
        params = parameters(32 if smoke else resolution, torch.float32, device)
        anchor = [p.detach() + 0.01 for p in params]
        penalty = ParamPenalty(params, anchor, [torch.rand_like(p) for p in params], anchor, impl="native")
        optimizer = torch.optim.Adam(params, lr=1e-5, fused=True)
        for p in params:
            p.grad = torch.rand_like(p)
        penalty.adam_step_(optimizer, 1e-3, 1e-3)  # sets up the state

        def two(penalty=penalty, optimizer=optimizer) -> None:
            penalty.add_grad_(1e-3, 1e-3)
            optimizer.step()

        one = partial(penalty.adam_step_, optimizer, 1e-3, 1e-3)
        if not one():
            raise RuntimeError("adam_step_: expected the one pass, and it fell back to two")
        found = times({"one pass": one, "two passes": two}, make_plan(device, smoke))
        rows.append(dict(resolution=resolution, weights=sum(p.numel() for p in params), times=found))
    return rows


# ---- the report -----------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def make_plan(device: str, smoke: bool) -> Any:
    from atu.bench.measure import Plan

    return Plan(0.002 if smoke else 0.3, 2 if smoke else 7, 1, device)


def environment(device: str) -> dict[str, Any]:
    import torch

    from atu.support.environment import machine, versions
    from atu_ext import _native

    found: dict[str, Any] = dict(machine=machine(device), versions=versions(), build=dict(_native._C.build_info()))
    found["torch_cuda"] = torch.version.cuda
    if torch.device(device).type == "cuda":
        found["capability"] = list(torch.cuda.get_device_capability(device))
        found["cudnn"] = torch.backends.cudnn.version()
    return found


def parts(options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    smoke, device = options.smoke, options.device
    networks = SMOKE if smoke else {r: b for r, b in NETWORKS.items() if r in options.resolutions}
    dtypes = ("float32",) if device == "cpu" else DTYPES
    chosen: dict[str, Callable[[], Any]] = {}
    if not options.no_install:
        chosen["install"] = install
    if device != "cpu":
        chosen.update(tests=tests, sanitizer=sanitizer)
    chosen.update(
        environment=partial(environment, device),
        ops=partial(ops, networks, dtypes, device, smoke),
        engines=partial(engines, networks, dtypes, device, smoke),
        network=partial(network, networks, device, smoke),
        adam=partial(adam, networks, device, smoke),
        steps=partial(steps, networks, device, smoke),
        one_rank=partial(one_rank, device, smoke, options.no_install),
    )
    return chosen


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes; the numbers mean nothing")
    parser.add_argument("--no-install", action="store_true", help="use the atu_ext that is installed")
    parser.add_argument("--resolutions", type=int, nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of gpu.md and gpu.json")
    default = f"(default: {TABLE.relative_to(ROOT)}; with --smoke in --out)"
    parser.add_argument("--table", type=Path, help=f"table of engines {default}")
    options = parser.parse_args(args)
    if options.smoke and options.out == RESULTS:
        parser.error("--smoke: expected --out, so that its numbers stand in no report")
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = dict(smoke=options.smoke, failed={})
    for name, part in parts(options).items():
        say(f"== {name}")
        try:
            found[name] = part()
        except Exception as error:
            traceback.print_exc()
            found["failed"][name] = f"{type(error).__name__}: {error}"
    if not options.smoke:
        found["aims"] = gpu_render.aims(found)
    if "engines" in found and "environment" in found:
        path = options.table or (options.out / TABLE.name if options.smoke else TABLE)
        name = found["environment"]["machine"].get("gpu", options.device)
        say(f"{write_table(path, name, found['engines'])} rows in {path}")
    (options.out / "gpu.json").write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8")
    (options.out / "gpu.md").write_text(gpu_render.render(found), encoding="utf-8")
    say(f"report in {options.out / 'gpu.md'}")
    bad = [r for r in found.get("ops", []) if "error" in r]
    return 1 if found["failed"] or bad or found.get("tests", {}).get("code") else 0


if __name__ == "__main__":
    raise SystemExit(main())
