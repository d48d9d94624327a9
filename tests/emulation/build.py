"""Builds emulated modules: CUDA sources compiled as C++ against the emulation, incrementally, by ninja."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "emulation"

# -fsanitize=thread makes the compiler announce every load and store, -fsanitize=bounds every index of an array of known
# size; the announcements are caught by memory.cpp, no sanitizer is linked. No FMA contraction: the same bits on every
# CPU.
COMMON = "-std=c++20 -fPIC -fvisibility=hidden -g1 -Wall -Wextra -Wno-unknown-pragmas -DATU_EMULATED=1"
FLAGS = {
    "kernel": f"{COMMON} -x c++ -O1 -ffp-contract=off -fno-tree-vectorize -fno-tree-slp-vectorize -fsanitize=thread"
    " -fsanitize=bounds -Wno-unused-parameter",
    "host": f"{COMMON} -O0 -DATU_HAS_CUDA=1 "
    + " ".join(f'-DATU_BUILD_{x}=\\"\\"' for x in ("COMPILER", "CUDA_VERSION", "CUDA_ARCHITECTURES", "CUDA_REASON")),
    "emulator": f"{COMMON} -O2",
}
EMULATOR = [HERE / name for name in ("fiber.cpp", "memory.cpp", "runtime.cpp", "api.cpp")]


def kind(source: Path) -> str:
    if source.suffix == ".cu":
        return "kernel"
    return "emulator" if source in EMULATOR else "host"


def compiler() -> str:
    path = shutil.which("g++") or shutil.which("c++")
    if path is None:
        raise RuntimeError("g++ was not found: the emulation needs a C++20 compiler")
    return path


def ninja() -> str:
    path = shutil.which("ninja", path=str(Path(sys.executable).parent)) or shutil.which("ninja")
    if path is None:
        raise RuntimeError("ninja was not found; install it with: pip install ninja")
    return path


def build(name: str, sources: Sequence[Path], include: Sequence[Path] = ()) -> Path:
    """Compile `sources` and the emulator into the extension module `name`; return its path.

    `include` comes before the repository's own include folders, so that an altered copy of a header is taken.
    """
    import pybind11

    folder = BUILD / name
    folder.mkdir(parents=True, exist_ok=True)
    paths = [*include, HERE, ROOT / "csrc", ROOT / "csrc" / "kernels"]
    includes = " ".join(f"-I{p}" for p in paths)
    system = f"-isystem {pybind11.get_include()} -isystem {sysconfig.get_path('include')}"
    module = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    lines = ["builddir = .", f"cxx = {compiler()}"]
    for rule, flags in FLAGS.items():
        lines += [
            f"rule {rule}",
            f"  command = $cxx {flags} {includes} {system} -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
        ]
    lines += ["rule link", "  command = $cxx -shared -Wl,-z,lazy $in -o $out -ldl"]
    objects = []
    # The emulator first: of an inline function that several objects define the linker keeps the first, and the
    # emulator must not run instrumented copies.
    for source in [*EMULATOR, *sources]:
        objects.append(f"{source.stem}.{kind(source)}.o")
        lines.append(f"build {objects[-1]}: {kind(source)} {source}")
    lines += [f"build {module.name}: link {' '.join(objects)}", ""]
    plan = "\n".join(lines)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes side by side: the first builds, the others wait
        if not (folder / "build.ninja").exists() or (folder / "build.ninja").read_text() != plan:
            (folder / "build.ninja").write_text(plan)
        result = subprocess.run([ninja(), "-C", str(folder)], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"building {name} failed:\n{result.stdout[-8000:]}{result.stderr[-2000:]}")
    return module
