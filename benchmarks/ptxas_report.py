"""What ptxas says of every CUDA kernel: registers, shared memory, spills, and the occupancy that follows from them.

    python benchmarks/ptxas_report.py            write benchmarks/results/ptxas.md
    python benchmarks/ptxas_report.py --check    compile and compare with it; fail where it differs, and on any spill

Needs nvcc, ptxas and c++filt, and no GPU. Registers depend on the toolkit, so with another version than the table's
--check compares the kernels' names alone, and still refuses spills.

Occupancy: resident warps over the most that a multiprocessor holds, from the block's threads (`__launch_bounds__`),
registers (given out to a warp in units of 256) and shared memory (in units of 128 bytes, 1 KiB a block reserved).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "csrc" / "kernels"
TABLE = ROOT / "benchmarks" / "results" / "ptxas.md"
# Compute capability -> shared memory of a multiprocessor. Threads 2048, blocks 32 and registers 65536 are the same.
SHARED_BYTES = {80: 164 * 1024, 90: 228 * 1024}
THREADS, BLOCKS, REGISTERS = 2048, 32, 65536


@dataclass(frozen=True)
class Usage:
    """One kernel on one architecture. dynamic is the shared memory asked for at the launch, None where it varies."""

    source: str
    kernel: str
    arch: int
    threads: int
    registers: int
    static: int
    dynamic: int | None
    spill_stores: int
    spill_loads: int
    stack: int

    @property
    def spills(self) -> bool:
        return self.spill_stores > 0 or self.spill_loads > 0

    @property
    def blocks(self) -> int:
        """That a multiprocessor can hold at once."""
        warps = -(-self.threads // 32)
        by_registers = REGISTERS // (-(-max(self.registers, 1) * 32 // 256) * 256) // warps
        shared = -(-(self.static + (self.dynamic or 0) + 1024) // 128) * 128
        return min(BLOCKS, THREADS // (warps * 32), by_registers, SHARED_BYTES[self.arch] // shared)

    @property
    def occupancy(self) -> float:
        return self.blocks * -(-self.threads // 32) * 32 / THREADS


def tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
    if found is None:
        raise SystemExit(f"{name} was not found: install the CUDA toolkit and binutils, and put them on PATH")
    return found


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return done.stdout + done.stderr


def toolkit_version() -> str:
    return re.search(r"V(\d+\.\d+\.\d+)", run(tool("nvcc"), "--version")).group(1)  # type: ignore[union-attr]


def demangle(names: list[str]) -> list[str]:
    """Readable names, without the namespaces and the parameters' list."""
    done = subprocess.run([tool("c++filt")], input="\n".join(names), capture_output=True, text=True, check=True)
    readable = []
    for name in done.stdout.splitlines():
        name = re.sub(r"atu::|cuda::|\(anonymous namespace\)::|^void ", "", name)
        name = name[: name.rindex("(")] if name.endswith(")") else name
        readable.append(name.replace("__nv_bfloat16", "bf16").replace("__half", "f16").replace("> >", ">>"))
    return readable


def dynamic_shared(kernel: str) -> int | None:
    """Bytes that the launch asks for. The GEMM's follow from its tile (modulated_conv2d_gemm_cuda.cu)."""
    tile = re.search(r"Tile<(\d+), (\d+), (\d+), (\d+), (\d+)>", kernel)
    if tile:
        warps_m, warps_n, tiles_m, tiles_n, stages = map(int, tile.groups())
        warp_rows, cols = 16 * tiles_m, 8 * tiles_n * warps_n
        return max(stages * (warps_m * warp_rows + cols + 1) * 64, warp_rows * (cols + 8) * 4)
    return None if kernel.startswith("upfirdn2d") else 0


def compile_one(source: Path, arch: int, folder: Path) -> list[Usage]:
    ptx = folder / f"{source.stem}.{arch}.ptx"
    include = [f"-I{KERNELS.parent}", f"-I{KERNELS}"]
    run(tool("nvcc"), "-std=c++20", "-O3", *include, "-ptx", f"-arch=compute_{arch}", str(source), "-o", str(ptx))
    text = run(tool("ptxas"), "-v", "-O3", f"-arch=sm_{arch}", str(ptx), "-o", str(ptx.with_suffix(".cubin")))
    blocks = re.findall(r"\.entry (\w+)\(.*?\)\s*\.maxntid (\d+), (\d+), (\d+)", ptx.read_text(), re.S)
    threads = {name: int(x) * int(y) * int(z) for name, x, y, z in blocks}
    pattern = (
        r"Compiling entry function '(\w+)' for.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill "
        r"loads.*?Used (\d+) registers([^\n]*)"
    )
    found = re.findall(pattern, text, re.S)
    names = demangle([name for name, *_ in found])
    usages = []
    for kernel, (name, stack, stores, loads, registers, rest) in zip(names, found, strict=True):
        if name not in threads:
            raise SystemExit(f"{kernel} in {source.name}: expected __launch_bounds__")
        shared = re.search(r"(\d+) bytes smem", rest)
        usages.append(
            Usage(
                source.name, kernel, arch, threads[name], int(registers), int(shared.group(1)) if shared else 0,
                dynamic_shared(kernel), int(stores), int(loads), int(stack),
            )
        )  # fmt: skip
    if not usages:
        raise SystemExit(f"{source.name}: ptxas named no kernel")
    return usages


def measure(jobs: int = 1) -> list[Usage]:
    """Every kernel of every .cu file on every architecture, sorted."""
    sources = sorted(KERNELS.glob("*_cuda.cu"))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        tasks = [(source, arch, Path(folder)) for source in sources for arch in SHARED_BYTES]
        results = list(pool.map(lambda task: compile_one(*task), tasks))
    return sorted((u for usages in results for u in usages), key=lambda u: (u.source, u.kernel, u.arch))


def row(source: str, kernel: str, usages: list[Usage]) -> str:
    """One line for one kernel, with a value for each architecture where they differ."""

    def each(values: list) -> str:
        values = [str(v) for v in values]
        return values[0] if len(set(values)) == 1 else " / ".join(values)

    cells = [
        f"`{kernel}`",
        each([u.threads for u in usages]),
        each([u.registers for u in usages]),
        each([u.static if u.dynamic == 0 else f"{u.static} + {'varies' if u.dynamic is None else u.dynamic}"
              for u in usages]),
        each([u.spill_stores + u.spill_loads for u in usages]),
        each([f"{100 * u.occupancy:.0f} %" for u in usages]),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def render(usages: list[Usage], version: str) -> str:
    archs = " and ".join(f"sm_{arch}" for arch in SHARED_BYTES)
    lines = [
        "# Resources of the CUDA kernels",
        "",
        f"As ptxas of CUDA {version} reports them for {archs}; two values where these differ. Written by",
        "`python benchmarks/ptxas_report.py`, compared by `make ptxas`. Shared memory in bytes, static and (after a",
        "plus) asked for at the launch; 'varies' depends on the call and is left out of the occupancy. Spills in",
        "bytes. Occupancy: warps that a multiprocessor can hold at once, of 64.",
    ]  # fmt: skip
    groups: dict[str, dict[str, list[Usage]]] = {}
    for u in usages:
        groups.setdefault(u.source, {}).setdefault(u.kernel, []).append(u)
    for source, kernels in groups.items():
        lines += ["", f"## {source}", "", "| kernel | threads | registers | shared | spills | occupancy |"]
        lines += ["|---|---|---|---|---|---|", *(row(source, kernel, us) for kernel, us in kernels.items())]
    return "\n".join([*lines, ""])


def spilling(usages: list[Usage]) -> list[str]:
    return [
        f"{u.kernel} ({u.source}, sm_{u.arch}): {u.spill_stores} + {u.spill_loads} bytes" for u in usages if u.spills
    ]


def names(table: str) -> list[str]:
    return re.findall(r"^\| `(.+?)` \|", table, re.M)


def difference(new: str, old: str) -> str:
    """What is wrong with the committed table, or nothing."""
    same_toolkit = re.search(r"CUDA ([\d.]+)", new).group(1) == re.search(r"CUDA ([\d.]+)", old).group(1)  # type: ignore
    if same_toolkit and new != old:
        changed = set(new.splitlines()) ^ set(old.splitlines())
        return "the committed table differs:\n" + "\n".join(sorted(changed))
    if names(new) != names(old):
        return "the committed table names other kernels: " + ", ".join(sorted(set(names(new)) ^ set(names(old))))
    return ""


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed table instead of writing it")
    parser.add_argument("--jobs", type=int, default=1, help="compilers that run side by side (2 GB each)")
    options = parser.parse_args(args)
    usages = measure(options.jobs)
    table = render(usages, toolkit_version())
    for line in spilling(usages):
        print(f"spill: {line}", file=sys.stderr)
    if not options.check:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(table, encoding="utf-8")
        print(f"{len(usages)} kernels in {TABLE}")
        return 1 if spilling(usages) else 0
    fault = difference(table, TABLE.read_text(encoding="utf-8"))
    if fault:
        print(f"{fault}\nwrite it anew: python benchmarks/ptxas_report.py", file=sys.stderr)
    return 1 if fault or spilling(usages) else 0


if __name__ == "__main__":
    raise SystemExit(main())
