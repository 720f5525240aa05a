"""The op tests once more over a library built with AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.slow


def runtime(name: str) -> str:
    """The sanitizer's runtime, which must be loaded before Python's own libraries."""
    compiler = os.environ.get("CXX", "g++")
    return subprocess.run(
        [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A folder with the package, its libraries sanitized, and a link to the tests."""
    folder = tmp_path_factory.mktemp("sanitized")
    package = folder / "diva_engine"
    shutil.copytree(ROOT / "diva_engine", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    build, torch_dir = folder / "build", Path(torch.__file__).parent
    settings = {
        "DIVA_SANITIZE": "address,undefined",
        "DIVA_TORCH_DIR": torch_dir,
        "DIVA_OUTPUT_DIR": package,
        "Python_EXECUTABLE": sys.executable,
    }
    definitions = [f"-D{name}={value}" for name, value in settings.items()]
    subprocess.run(["cmake", "-S", ROOT / "csrc", "-B", build, *definitions], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", build, "-j", "2"], check=True, capture_output=True)
    (package / "_ops.so").rename(package / "_ops.abi3.so")
    (folder / "python_tests").symlink_to(ROOT / "python_tests")
    return folder


def run_sanitized(package: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(package),
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself keeps memory to its end
        "PYTHONMALLOC": "malloc",
    }
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, check=False)


def test_the_op_tests_pass(package):
    words = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--import-mode=importlib")
    done = run_sanitized(package, *words, "python_tests/ops", "python_tests/test_arrays.py", "-k", "not compile")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_the_library_is_instrumented(package):
    library = package / "diva_engine" / "_ops.abi3.so"
    symbols = subprocess.run(["nm", "-D", "-u", str(library)], capture_output=True, text=True, check=True).stdout
    assert "__asan_report_load4" in symbols
    assert "__ubsan_handle_" in symbols
