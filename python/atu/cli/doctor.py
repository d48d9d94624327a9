"""`atu doctor`: what is installed, built and usable; and for what is off, why, and how to turn it on."""

from __future__ import annotations

import importlib.util
import json
import platform
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click

EXTRAS = {
    "demo": ("mlxtend", "sklearn"),
    "label": ("starlette", "uvicorn"),
    "text": ("open_clip",),
    "timm": ("timm",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
}


@dataclass(frozen=True)
class Part:
    """One thing that can be on or off. `why` and `remedy` are given where it is off."""

    name: str
    on: bool
    detail: str = ""
    why: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Everything `atu doctor` tells, as plain data."""

    versions: dict[str, str]
    cpu: dict[str, str]
    parts: list[Part] = field(default_factory=list)


def openmp_runtimes() -> list[str]:
    """Files of the OpenMP runtimes loaded into this process; one is right, several would not share their threads."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        return []
    return sorted(set(re.findall(r"\S*/lib(?:gomp|omp|iomp5)[^/\s]*\.so\S*", maps)))


def _cpu_kernels() -> Part:
    from atu_ext import _native

    if _native._C is None:
        remedy = _native.remedy or "pip install --force-reinstall --no-deps ."
        return Part("CPU kernels", False, why=str(_native.error), remedy=remedy)
    known = ", ".join(_native._C.cpu_isas())
    return Part("CPU kernels", True, f"instruction set {_native._C.cpu_isa()} (this CPU has {known})")


def _bfloat16() -> Part:
    """Whether the CPU computes in bfloat16, and what `precision = "auto"` has found of it."""
    from ..support.environment import cpu_flags
    from ..training.compute import gain, measurements

    known = [flag for flag in ("amx_bf16", "avx512_bf16", "bf16") if flag in cpu_flags()]
    if not known:
        why = "this CPU names no bfloat16 instructions"
        return Part("bfloat16 on the CPU", False, why=why, remedy="none is needed: float32 runs (precision = float32)")
    found = [
        f"{gain(row):.2f} times as fast as float32 for {row['network']} {row['sample']}, {row['threads']} threads"
        for row in measurements().values()
        if row["threads"]
    ]
    told = "\n".join(found[-5:]) or "not compared with float32 yet (precision = auto does)"
    return Part("bfloat16 on the CPU", True, f"{', '.join(known)}\n{told}")


def _cuda_build() -> Part:
    import torch

    from atu_ext import _native
    from atu_ext.ops.dispatch import obstacle

    remedy = "install the CUDA toolkit, put nvcc on PATH, then ATU_CUDA=on pip install --force-reinstall --no-deps ."
    if _native._C is None:
        return Part("CUDA kernels built", False, why="there is no compiled module", remedy=remedy)
    info = _native._C.build_info()
    if not info["cuda"]:
        return Part("CUDA kernels built", False, why=info["cuda_reason"], remedy=remedy)
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        why, _, other = (obstacle(torch.device("cuda", index)) or "").partition("; ")
        if why:
            return Part("CUDA kernels built", False, why=why, remedy=other)
    return Part("CUDA kernels built", True, f"CUDA {info['cuda_version']}, architectures {info['cuda_architectures']}")


def _cuda_torch() -> Part:
    import torch

    if torch.version.cuda is None:
        return Part(
            "torch with CUDA",
            False,
            why=f"torch {torch.__version__} is a build without CUDA",
            remedy="install torch's CUDA build: https://pytorch.org/get-started/locally",
        )
    return Part("torch with CUDA", True, f"CUDA {torch.version.cuda}")


def _cuda_device() -> Part:
    import torch

    from atu_ext import _native

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Part("CUDA device", True, ", ".join(names))
    seen, problem = (0, "") if _native._C is None else _native._C.cuda_devices()
    if torch.version.cuda is None:
        why = f"torch cannot use one ({'the driver shows ' + str(seen) if seen else problem or 'none seen'})"
        return Part("CUDA device", False, why=why, remedy="see torch with CUDA")
    return Part("CUDA device", False, why=problem or "torch finds no device", remedy="check the driver with nvidia-smi")


def _several_processes() -> Part:
    """What several processes would train one GAN by, and the command that starts them."""
    import torch
    import torch.distributed as dist

    from ..support.environment import usable_cores

    name = "several processes"
    if not dist.is_available() or not dist.is_gloo_available():
        why = f"torch {torch.__version__} is a build without {'gloo' if dist.is_available() else 'torch.distributed'}"
        return Part(name, False, why=why, remedy="install a build of torch with it: https://pytorch.org/get-started")
    nccl = f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}" if dist.is_nccl_available() else ""
    gpus = torch.cuda.device_count() if nccl and torch.cuda.is_available() else 0
    cores = usable_cores()
    each = f" --threads {cores // 2}" if cores >= 4 else ""  # torchrun's own choice is one
    count, options = (gpus, " --device cuda") if gpus > 1 else (2, each)
    launcher = "torchrun" if shutil.which("torchrun") else "python -m torch.distributed.run"
    command = f"{launcher} --nproc-per-node {count} -m atu unlearn CKPT --negatives FOLDER --out DIR{options}"
    there = f"gloo on the CPU ({cores} {'core' if cores == 1 else 'cores'}), "
    there += f"{nccl} on CUDA ({gpus} {'device' if gpus == 1 else 'devices'})" if nccl else "no NCCL in this torch"
    return Part(name, True, f"{there}\n{command}")


def _openmp() -> Part:
    import torch

    found = openmp_runtimes()
    if len(found) > 1:
        return Part(
            "one OpenMP runtime",
            False,
            ", ".join(found),
            why="several are loaded, and torch.set_num_threads governs torch's only",
            remedy="import torch before other packages that bring an OpenMP runtime",
        )
    return Part("one OpenMP runtime", True, f"{found[0] if found else 'not found'}, {torch.get_num_threads()} threads")


def _extra(name: str, modules: Sequence[str]) -> Part:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        why = f"not installed: {', '.join(missing)}"
        return Part(f"extra {name}", False, why=why, remedy=f"pip install 'atu-ext[{name}]'")
    return Part(f"extra {name}", True, ", ".join(modules))


def diagnose() -> Diagnosis:
    """Look at this installation. Changes nothing and needs no device."""
    import torch

    import atu_ext
    from atu_ext import _native

    from ..support.environment import cpu_name

    compiler = "no compiled module" if _native._C is None else _native._C.build_info()["compiler"]
    versions = {
        "atu-ext": atu_ext.__version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "compiler": compiler,
    }
    cpu = {
        "name": cpu_name(),
        "architecture": platform.machine(),
        "torch's choice": torch.backends.cpu.get_cpu_capability(),
    }
    parts = [_cpu_kernels(), _openmp(), _bfloat16(), _cuda_build(), _cuda_torch(), _cuda_device()]
    parts.append(_several_processes())
    parts += [_extra(name, modules) for name, modules in EXTRAS.items()]
    return Diagnosis(versions, cpu, parts)


def show(diagnosis: Diagnosis) -> None:
    """Print a diagnosis as tables."""
    from rich.table import Table
    from rich.text import Text

    from ..support.console import Console

    console = Console()
    facts = Table.grid(padding=(0, 2))
    for name, value in {**diagnosis.versions, "CPU": " · ".join(diagnosis.cpu.values())}.items():
        facts.add_row(Text(name, "bold"), value)
    console.print(facts)
    table = Table("", "", "", box=None, show_header=False, padding=(0, 2))
    for part in diagnosis.parts:
        lines = [part.detail] if part.detail else []
        if not part.on:
            lines += [f"why: {part.why}", f"turn it on: {part.remedy}"]
        state = Text("on", "green") if part.on else Text("off", "yellow")
        table.add_row(state, part.name, "\n".join(lines))
    console.print(table)


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Say what is built and usable here.

    And why what is off is off. The exit code is 1 where the CPU kernels are missing.
    """
    diagnosis = diagnose()
    if as_json:
        click.echo(json.dumps(asdict(diagnosis), indent=2))
    else:
        show(diagnosis)
    if not diagnosis.parts[0].on:
        ctx.exit(1)
