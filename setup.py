"""Builds atu_ext._C by handing over to CMakeLists.txt, the one build description."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def tool(name: str) -> str:
    """Path of a build tool: beside this interpreter, in a build-isolation overlay, or on PATH."""
    path = shutil.which(name, path=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]))
    if path is None:
        raise RuntimeError(f"{name} was not found; install it with: pip install {name}")
    return path


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # One build tree for each interpreter, kept between runs, so that a second `pip install -e .` is incremental.
        tree = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        tree.mkdir(parents=True, exist_ok=True)
        # The objects are kept, what CMake found is not: nvcc may have come or gone since, the checkout have moved.
        (tree / "CMakeCache.txt").unlink(missing_ok=True)
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": tool("ninja"),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "ATU_OUTPUT_DIR": target.parent,
            "ATU_OUTPUT_NAME": target.name,
            "ATU_CUDA": os.environ.get("ATU_CUDA", "auto"),
            "ATU_CUDA_ARCHITECTURES": os.environ.get("ATU_CUDA_ARCHITECTURES", ""),
        }
        cmake = tool("cmake")
        defines = [f"-D{key}={value}" for key, value in options.items()]
        subprocess.run([cmake, "-S", str(ROOT), "-B", str(tree), "-G", "Ninja", *defines], check=True)
        subprocess.run([cmake, "--build", str(tree)], check=True)


setup(ext_modules=[Extension("atu_ext._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
