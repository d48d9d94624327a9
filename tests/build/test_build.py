"""The package as users get it: what the module links, what its objects define, and sdist -> wheel -> install."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

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


def configure(tree: Path, cuda: str, path: str, *extra: str) -> tuple[int, str]:
    """Run CMake as setup.py does, with only `path` and the compilers' folders to look for nvcc in."""
    pybind11 = pytest.importorskip("pybind11")
    cmake = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if cmake is None:
        pytest.skip("no cmake")
    options = [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    env = {k: v for k, v in os.environ.items() if k not in ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "PATH")}
    env["PATH"] = os.pathsep.join([path, "/usr/bin", "/bin"])
    command = [cmake, "-S", str(ROOT), "-B", str(tree), "-G", "Unix Makefiles", *options, f"-DATU_CUDA={cuda}", *extra]
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


def real_nvcc(folder: Path) -> str:
    """An nvcc that works with this machine's compiler."""
    nvcc = shutil.which("nvcc", path=os.pathsep.join([os.environ["PATH"], "/usr/local/cuda/bin"]))
    if nvcc is None:
        pytest.skip("no nvcc")
    (folder / "trial.cu").write_text("int main() {}\n")
    if subprocess.run([nvcc, "trial.cu", "-o", "trial"], cwd=folder, capture_output=True).returncode:
        pytest.skip(f"{nvcc} does not work")
    return nvcc


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make", path="/usr/bin:/bin") is None, reason="no make")
def test_nvcc_is_looked_for_again_where_none_worked(tmp_path):
    nvcc = real_nvcc(tmp_path)
    code, text = configure(tmp_path / "tree", "auto", broken_nvcc(tmp_path))
    assert code == 0 and "CUDA kernels: 0" in text
    code, text = configure(tmp_path / "tree", "on", str(Path(nvcc).parent))
    assert code == 0 and "CUDA kernels: 1" in text, text[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make", path="/usr/bin:/bin") is None, reason="no make")
def test_an_nvcc_that_is_too_old_leaves_cuda_out(tmp_path):
    header, nvcc = tmp_path / "eleven.h", tmp_path / "nvcc"
    header.write_text("#undef __CUDACC_VER_MAJOR__\n#define __CUDACC_VER_MAJOR__ 11\n")
    nvcc.write_text(f'#!/bin/sh\nexec {real_nvcc(tmp_path)} --pre-include {header} "$@"\n')
    nvcc.chmod(0o755)
    for cuda, architectures in (("auto", ""), ("auto", "80-real"), ("on", "")):  # the second and third take no time
        code, text = configure(tmp_path / "tree", cuda, str(tmp_path), f"-DATU_CUDA_ARCHITECTURES={architectures}")
        expected = "ATU_CUDA=on but CUDA 11." if cuda == "on" else "CUDA kernels: 0 CUDA 11."
        assert (code == 0) == (cuda == "auto") and expected in text, text[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make", path="/usr/bin:/bin") is None, reason="no make")
def test_architectures_that_nvcc_does_not_know(tmp_path):
    folder = str(Path(real_nvcc(tmp_path)).parent)
    for cuda, asked, built in (
        ("auto", "12-real;80-real;999;998", r"80-real;\d+-virtual"),
        ("auto", "12", "75-real;80-real;.*"),  # the whole list
        ("on", "80-real", "80-real"),
    ):
        code, text = configure(tmp_path / "tree", cuda, folder, f"-DATU_CUDA_ARCHITECTURES={asked}")
        assert code == 0 and re.search(rf"CUDA kernels: 1 \S+ {built}\b", text), text[-2000:]
    code, text = configure(tmp_path / "tree", "on", folder, "-DATU_CUDA_ARCHITECTURES=999")
    assert code != 0 and "does not know architecture 999" in text, text[-2000:]


@pytest.mark.slow
def test_a_checkout_that_moved_is_configured_anew_and_keeps_its_objects(tmp_path, monkeypatch):
    pytest.importorskip("pybind11")
    import setuptools

    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **kw: None if "--build" in command else run(command, **kw))
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.setenv("ATU_CUDA", "off")

    def configured(root: Path) -> Path:
        """The build tree of setup.py in `root`, with nothing compiled."""
        monkeypatch.chdir(root)
        build = runpy.run_path(str(root / "setup.py"))["CMakeBuild"](setuptools.Distribution())
        build.ensure_finalized()
        build.build_extension(setuptools.Extension("atu_ext._C", sources=[]))
        (tree,) = (root / "build").glob("cmake-*")
        return tree

    first = tmp_path / "first"
    first.mkdir()
    for name in ("setup.py", "CMakeLists.txt"):
        shutil.copy(ROOT / name, first)
    for name in ("cmake", "csrc"):
        shutil.copytree(ROOT / name, first / name)
    (configured(first) / "CMakeFiles" / "some.o").touch()
    tree = configured(first.rename(tmp_path / "second"))
    assert f"CMAKE_HOME_DIRECTORY:INTERNAL={tmp_path / 'second'}\n" in (tree / "CMakeCache.txt").read_text()
    assert (tree / "CMakeFiles" / "some.o").exists()


@pytest.mark.parametrize("python", ["3.10.0", "3.11.0", "3.12.0", "3.13.0", "3.14.0"])
def test_what_is_pinned_can_be_installed_on_every_python(python):
    """As far as the pinned versions are installed here."""
    here = {"python_full_version": python, "python_version": python.rpartition(".")[0]}
    seen, cannot = 0, []
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        pin = Requirement(line)
        try:
            package = metadata.distribution(pin.name)
        except metadata.PackageNotFoundError:
            continue
        if not pin.specifier.contains(package.version) or (pin.marker and not pin.marker.evaluate(here)):
            continue
        seen += 1
        if not SpecifierSet(package.metadata.get("Requires-Python", "")).contains(python):
            cannot.append(line)
    assert seen and cannot == []


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
