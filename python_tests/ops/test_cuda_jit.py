"""The extra cuda-jit: who asks for it, and what a wheel ships for it. Its launches run on emulated kernels in
python_tests/emulation/test_cuda_jit.py, a whole build without nvcc in python_tests/native/test_without_nvcc.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import diva_engine
from diva_engine.ops import cuda_jit

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize(
    ("torch_cuda", "cupy", "library_cuda", "wanted"),
    [
        ("13.0", True, None, True),
        (None, True, None, False),
        ("13.0", False, None, False),
        ("13.0", True, "13.0", False),
    ],
    ids=["asked for", "torch without CUDA", "extra not installed", "built with nvcc"],
)
def test_is_wanted(torch_cuda, cupy, library_cuda, wanted, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    monkeypatch.setattr(cuda_jit, "find_spec", lambda name: object() if cupy and name == "cupy" else None)
    monkeypatch.setattr(diva_engine, "build_info", lambda: {"cuda": library_cuda})
    assert cuda_jit.is_wanted() is wanted


def test_a_wheel_holds_the_kernels_sources(tmp_path):
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", tmp_path]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    shipped = tmp_path / "diva_engine" / "_csrc"
    for source in (path for pattern in ("*.h", "*.cuh", "*.cu") for path in (ROOT / "csrc").rglob(pattern)):
        assert (shipped / source.relative_to(ROOT / "csrc")).read_bytes() == source.read_bytes()
