"""The package as users get it: what the module links, what its objects define, and sdist -> wheel -> install."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

from atu_ext import _native

ROOT = Path(__file__).resolve().parents[2]
# The C and C++ run-time libraries and OpenMP's; no libtorch, no libpython, no libcudart.
ALLOWED = re.compile(r"(libgomp|libomp|libstdc\+\+|libgcc_s|libc|libm|libpthread|libdl|librt|ld-linux[-\w]*)\.so.*")


def needed(module: Path) -> list[str]:
    out = subprocess.run(["readelf", "-d", str(module)], check=True, capture_output=True, text=True).stdout
    return re.findall(r"\(NEEDED\).*\[(.+)\]", out)


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf")
@pytest.mark.skipif(_native._C is None, reason=str(_native.error))
def test_the_module_links_neither_torch_nor_python():
    names = needed(Path(_native._C.__file__))
    assert names
    assert [name for name in names if not ALLOWED.fullmatch(name)] == []


def wide_objects() -> list[Path]:
    tree = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}" / "CMakeFiles"
    return sorted([*tree.glob("atu_cpu_avx2.dir/**/*.o"), *tree.glob("atu_cpu_avx512*.dir/**/*.o")])


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
def test_no_shared_inline_function_is_compiled_for_one_instruction_set():
    """A weak symbol outside atu::avx2 / atu::avx512 could be picked by the linker for the baseline code."""
    objects = wide_objects()
    if not objects:
        pytest.skip("no build tree beside the sources")
    for path in objects:
        out = subprocess.run(["nm", "-C", str(path)], check=True, capture_output=True, text=True).stdout
        weak = re.findall(r"^[0-9a-f]* ?[WVu] (.+)$", out, re.M)
        own = re.compile(r"atu::avx(2|512|512_bf16)::|DW\.ref\.")
        assert [name for name in weak if not own.search(name)] == [], path


@pytest.mark.skipif(_native._C is None, reason=str(_native.error))
def test_the_instruction_set_can_be_chosen_by_environment():
    for isa in _native._C.cpu_isas():
        code = "from atu_ext import _native; print(_native._C.cpu_isa())"
        env = dict(os.environ, ATU_CPU_ISA=isa)
        out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env)
        assert out.stdout.strip() == isa


@pytest.mark.skipif(_native._C is None, reason=str(_native.error))
def test_importing_the_ops_imports_no_training_code():
    code = "import sys, atu_ext, atu_ext.ops; print(any(m == 'atu' or m.startswith('atu.') for m in sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "False"


def configure(tree: Path, cuda: str, path: str) -> tuple[int, str]:
    """Run CMake as setup.py does, with only `path` and the compilers' folders to look for nvcc in."""
    pybind11 = pytest.importorskip("pybind11")
    cmake = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if cmake is None:
        pytest.skip("no cmake")
    options = [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    env = {k: v for k, v in os.environ.items() if k not in ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "PATH")}
    env["PATH"] = os.pathsep.join([path, "/usr/bin", "/bin"])
    command = [cmake, "-S", str(ROOT), "-B", str(tree), "-G", "Unix Makefiles", *options, f"-DATU_CUDA={cuda}"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def broken_nvcc(folder: Path) -> str:
    """A folder with an nvcc that fails."""
    nvcc = folder / "nvcc"
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    nvcc.chmod(0o755)
    return str(folder)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make", path="/usr/bin:/bin") is None, reason="no make")
def test_the_build_says_why_there_is_no_cuda(tmp_path):
    folder = broken_nvcc(tmp_path)
    code, text = configure(tmp_path / "off", "off", folder)
    assert code == 0 and "CUDA kernels: 0 switched off by ATU_CUDA=off" in text
    code, text = configure(tmp_path / "auto", "auto", folder)
    assert code == 0 and f"CUDA kernels: 0 {folder}/nvcc failed on a trial program" in text
    code, text = configure(tmp_path / "on", "on", folder)
    assert code != 0 and f"ATU_CUDA=on but {folder}/nvcc failed on a trial program" in text
    code, text = configure(tmp_path / "wrong", "maybe", folder)
    assert code != 0 and "ATU_CUDA must be auto, on or off, got 'maybe'" in text


@pytest.mark.slow
def test_sdist_to_wheel_to_install_outside_the_checkout(tmp_path):
    pytest.importorskip("build")
    env = dict(os.environ, ATU_CUDA="off")
    env.pop("PYTHONPATH", None)

    def run(*command: object, cwd: Path = tmp_path) -> str:
        done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path / "sdist", ROOT)
    (sdist,) = (tmp_path / "sdist").glob("*.tar.gz")
    run("tar", "xzf", sdist)
    (tree,) = tmp_path.glob("atu[-_]ext-*")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "wheel", tree)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel)
    # The dependencies, torch above all, are this environment's.
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(site) / "dependencies.pth").write_text(str(Path(torch.__file__).parents[1]) + "\n")
    code = (
        "import torch, atu_ext, atu, pathlib\n"
        "from atu_ext import _native, ops\n"
        "assert _native.error is None, _native.error\n"
        f"assert {str(site)!r} in _native._C.__file__ and {str(site)!r} in atu.__file__\n"
        "y = ops.upfirdn2d(torch.ones(1, 1, 4, 4), ops.setup_filter([1, 3, 3, 1]), impl='native')\n"
        "assert torch.allclose(y, torch.ones(1, 1, 1, 1))\n"
        "print(sorted(p.name for p in pathlib.Path(atu.__file__).parent.rglob('*') if p.suffix == '.safetensors'))\n"
        "print(_native._C.__file__)\n"
    )
    assets, module = run(python, "-c", code).splitlines()
    committed = sorted(p.name for p in (ROOT / "python" / "atu").rglob("*.safetensors"))
    assert assets == str(committed)
    if shutil.which("readelf"):
        assert [name for name in needed(Path(module)) if not ALLOWED.fullmatch(name)] == []
