"""setup.py says in one line what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import setuptools

ROOT = Path(__file__).resolve().parent.parent.parent


def refusal(folder: Path, python: str | Path = sys.executable, **environment: str) -> str:
    """What the build says before it stops."""
    command = [python, "setup.py", "-q", "build_ext", "--build-temp", folder / "build", "--build-lib", folder / "lib"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def torch_of_version(folder: Path, version: str) -> Path:
    package = folder / "torch"
    package.mkdir()
    (package / "version.py").write_text(f"__version__ = '{version}'\n")
    return package


def test_no_compiler(tmp_path):
    assert "CXX=none-such is not a program on PATH" in refusal(tmp_path, CXX="none-such")


def test_no_nvcc_where_cuda_is_demanded(tmp_path):
    words = refusal(tmp_path, DIVA_FORCE_CUDA="1", CUDA_HOME=str(tmp_path))
    assert "DIVA_FORCE_CUDA=1, but no nvcc was found" in words


def test_torch_too_old(tmp_path):
    old = torch_of_version(tmp_path, "2.9.1+cu128")
    assert "torch 2.9.1+cu128" in (words := refusal(tmp_path, DIVA_TORCH_DIR=str(old)))
    assert "needs torch >= 2.10" in words


def test_no_torch_in_the_named_folder(tmp_path):
    assert "is not the folder of a torch package" in refusal(tmp_path, DIVA_TORCH_DIR=str(tmp_path))


def test_no_torch(tmp_path):
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    site = next(environment.glob("lib/python*/site-packages"))
    installed = Path(setuptools.__file__).parent
    for name in ("setuptools", "_distutils_hack", "pkg_resources"):
        if (installed.parent / name).is_dir():
            shutil.copytree(installed.parent / name, site / name)
    words = refusal(tmp_path, environment / "bin" / "python", PYTHONPATH="")
    assert "PyTorch is not installed in this environment. Install it first" in words
