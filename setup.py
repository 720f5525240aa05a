"""Builds the two compiled libraries with CMake: _ops.abi3.so (torch ops, no Python) and _C (Python module, no torch).

Torch must be installed already; only its headers are read. They are looked for in $DIVA_TORCH_DIR, in an importable
torch, and in the target environment (pip's isolated build keeps that environment's interpreter).

Environment: DIVA_NO_CUDA=1, DIVA_FORCE_CUDA=1, CUDA_HOME, TORCH_CUDA_ARCH_LIST="8.0;9.0;10.0;12.0+PTX", MAX_JOBS,
CXX, DIVA_TORCH_DIR.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MINIMUM_TORCH = (2, 10)
DEFAULT_ARCHITECTURES = "8.0;9.0;10.0;12.0+PTX"


def fail(message: str) -> SystemExit:
    return SystemExit(f"diva-engine: {message}")


def find_program(name: str) -> str | None:
    """A program on PATH, or beside the running interpreter (an environment that is not activated)."""
    beside = str(Path(sys.executable).parent)
    return shutil.which(name) or shutil.which(name, path=beside)


def find_torch() -> Path:
    """The torch package folder whose headers are used."""
    named = os.environ.get("DIVA_TORCH_DIR")
    if named is not None and not (Path(named) / "version.py").is_file():
        raise fail(f"DIVA_TORCH_DIR={named} is not the folder of a torch package.")
    candidates = [Path(named)] if named is not None else []
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        candidates.append(Path(spec.origin).parent)
    candidates += [Path(sysconfig.get_path(scheme)) / "torch" for scheme in ("platlib", "purelib")]
    for candidate in candidates:
        if (candidate / "version.py").is_file():
            check_torch_version(candidate)
            return candidate
    raise fail(
        "PyTorch is not installed in this environment. Install it first (pip install 'torch>=2.10'), then install "
        "diva-engine again; with uv add --no-build-isolation, or name the torch package folder in DIVA_TORCH_DIR."
    )


def torch_version(torch_dir: Path) -> str:
    match = re.search(r"__version__ = '([^']+)'", (torch_dir / "version.py").read_text())
    return match[1] if match else "0.0"


def check_torch_version(torch_dir: Path) -> None:
    version = torch_version(torch_dir)
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < MINIMUM_TORCH:
        raise fail(f"torch {version} in {torch_dir} is too old; diva-engine needs torch >= 2.10.")


def find_nvcc() -> str | None:
    """The CUDA compiler to use, or None for a build without CUDA."""
    if os.environ.get("DIVA_NO_CUDA") == "1":
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")
    if nvcc is None and os.environ.get("DIVA_FORCE_CUDA") == "1":
        raise fail("DIVA_FORCE_CUDA=1, but no nvcc was found on PATH or in CUDA_HOME/bin.")
    if nvcc is None:
        print("diva-engine: no nvcc found, building for the CPU only (set CUDA_HOME to build the CUDA kernels)")
    return nvcc


def cmake_architectures(arch_list: str) -> str:
    """Torch's spelling to CMake's: "8.0;9.0+PTX" -> "80-real;90"."""
    names = [name for name in re.split(r"[;,\s]+", arch_list) if name]
    plain = [(name.removesuffix("+PTX").replace(".", ""), name.endswith("+PTX")) for name in names]
    return ";".join(number if with_ptx else f"{number}-real" for number, with_ptx in plain)


def check_compiler() -> None:
    named = os.environ.get("CXX")
    if named is not None and shutil.which(named.split()[0]) is None:
        raise fail(f"CXX={named} is not a program on PATH.")
    if named is None and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        raise fail("no C++ compiler was found. Install one (Debian and Ubuntu: apt install g++), or name it in CXX.")


def required_program(name: str) -> str:
    program = find_program(name)
    if program is None:
        raise fail(f"{name} was not found. Install it (pip install {name}), or build without --no-build-isolation.")
    return program


def commit() -> str:
    try:
        command = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
        return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def stale_cache(folder: Path) -> bool:
    """Whether CMake's cache names programs that are gone: pip deletes the build environment it ran them from."""
    cache = folder / "CMakeCache.txt"
    if not cache.is_file():
        return False
    programs = re.findall(r"^CMAKE_(?:MAKE_PROGRAM|COMMAND):\w+=(.+)$", cache.read_text(), re.MULTILINE)
    return not all(Path(program).exists() for program in programs)


class CMakeExtension(Extension):
    """A library that CMake builds as `target`."""

    def __init__(self, name: str, target: str, *, any_python: bool) -> None:
        super().__init__(name, sources=[], py_limited_api=any_python)
        self.target = target


class CMakeBuild(build_ext):
    """Configures and builds once, then copies each library to where setuptools wants it."""

    built_in: Path | None = None

    def build_extension(self, ext: CMakeExtension) -> None:
        if self.built_in is None:
            self.built_in = self.build_all()
        found = [path for path in self.built_in.iterdir() if path.name.split(".")[0] == ext.target]
        destination = Path(self.get_ext_fullpath(ext.name)).resolve()
        destination.parent.mkdir(parents=True, exist_ok=True)
        # Written beside and renamed: a running process may have the old library mapped.
        fresh = destination.with_suffix(".new")
        shutil.copy2(found[0], fresh)
        fresh.replace(destination)

    def build_all(self) -> Path:
        check_compiler()
        folder = Path(self.build_temp).resolve()
        output = folder / "output"
        cmake = required_program("cmake")
        shutil.rmtree(output, ignore_errors=True)
        subprocess.check_call([cmake, *self.configure_arguments(folder, output)])
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        subprocess.check_call([cmake, "--build", str(folder), "--parallel", jobs])
        return output

    def configure_arguments(self, folder: Path, output: Path) -> list[str]:
        torch_dir = find_torch()
        nvcc = find_nvcc()
        arguments = ["--fresh"] if stale_cache(folder) else []
        arguments += ["-S", str(ROOT / "csrc"), "-B", str(folder), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
        arguments += [f"-DCMAKE_MAKE_PROGRAM={required_program('ninja')}", f"-DPython_EXECUTABLE={sys.executable}"]
        arguments += [f"-DDIVA_TORCH_DIR={torch_dir}", f"-DDIVA_TORCH_VERSION={torch_version(torch_dir)}"]
        arguments += [f"-DDIVA_OUTPUT_DIR={output}", f"-DDIVA_COMMIT={commit()}"]
        arguments += [f"-DDIVA_VERSION={self.distribution.get_version()}", f"-DDIVA_CUDA={'ON' if nvcc else 'OFF'}"]
        if nvcc is not None:
            architectures = cmake_architectures(os.environ.get("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHITECTURES))
            arguments += [f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DCMAKE_CUDA_ARCHITECTURES={architectures}"]
        return arguments + pybind11_arguments()


class BuildWithKernelSources(build_py):
    """Puts what the kernels are made of into the wheel, for the extra cuda-jit, which compiles them at run time."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for pattern in ("*.h", "*.cuh", "*.cu"):
            for source in sorted((ROOT / "csrc").rglob(pattern)):
                destination = Path(self.build_lib) / "diva_engine" / "_csrc" / source.relative_to(ROOT / "csrc")
                destination.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, destination)


def pybind11_arguments() -> list[str]:
    """Where CMake finds pybind11; without the package it takes the headers that torch ships."""
    spec = importlib.util.find_spec("pybind11")
    if spec is None or spec.origin is None:
        return []
    return [f"-Dpybind11_DIR={Path(spec.origin).parent / 'share/cmake/pybind11'}"]


setup(
    cmdclass={"build_ext": CMakeBuild, "build_py": BuildWithKernelSources},
    ext_modules=[
        CMakeExtension("diva_engine._ops", "_ops", any_python=True),
        CMakeExtension("diva_engine._C", "_C", any_python=False),
    ],
)
