"""The extra cuda-jit up to the launch: who asks for it, what it registers, what CUDA's driver is told. The launches
themselves run on emulated kernels in python_tests/emulation/test_cuda_jit.py."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import diva_engine
from diva_engine.ops import cuda_jit, run_time_compiler

ROOT = Path(__file__).resolve().parent.parent.parent
OPS = ("group_stats", "update_difficulty", "diva_advantage", "shared_std_advantage")


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


def test_registers_quietly_and_for_cuda_only():
    program = f"""
import torch
from diva_engine.ops import cuda_jit
library = cuda_jit.register()
for op in {OPS}:
    lines = torch._C._dispatch_dump(f"diva_engine::{{op}}").splitlines()
    print([line.split(" at ")[0] for line in lines if "cuda_jit.py" in line])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['CUDA: registered']"] * len(OPS)
    assert "Overriding" not in done.stderr


def test_a_wheel_holds_the_kernels_sources(tmp_path):
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", tmp_path]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    shipped = tmp_path / "diva_engine" / "_csrc"
    for source in (path for pattern in ("*.h", "*.cuh", "*.cu") for path in (ROOT / "csrc").rglob(pattern)):
        assert (shipped / source.relative_to(ROOT / "csrc")).read_bytes() == source.read_bytes()


class RecordingDriver:
    """In the place of cupy.cuda: the calls in their order, and what the launch's pointers lead to."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def setDevice(self, device):
        self.calls.append(("device", device))

    def moduleLoadData(self, image):
        self.calls.append(("load", image))
        return 11

    def moduleGetFunction(self, module, name):
        self.calls.append(("function", module, name))
        return 22

    def occupancyMaxActiveBlocksPerMultiprocessor(self, function, threads, shared_bytes):
        assert (function, shared_bytes) == (22, 0)
        return 2048 // threads

    def launchKernel(self, *words):
        *words, parameters, extra = words
        assert extra == 0
        self.calls.append(("launch", *words, self.first_two(parameters)))

    def launchCooperativeKernel(self, *words):
        *words, parameters = words
        self.calls.append(("launch together", *words, self.first_two(parameters)))

    @staticmethod
    def first_two(parameters):
        pointers = ctypes.cast(parameters, ctypes.POINTER(ctypes.c_void_p))
        return (
            ctypes.c_int64.from_address(pointers[0]).value,
            ctypes.c_double.from_address(pointers[1]).value,
        )


@pytest.fixture
def driver(monkeypatch):
    recording = RecordingDriver()
    for name in ("cupy", "cupy.cuda"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["cupy.cuda"].driver = sys.modules["cupy.cuda"].runtime = recording
    monkeypatch.setattr(run_time_compiler, "compile_kernel", lambda kernel, architecture: (b"cubin", f"{architecture}"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=77))
    properties = types.SimpleNamespace(multi_processor_count=3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return recording


@pytest.mark.parametrize("is_cooperative", [False, True], ids=["apart", "together"])
def test_what_the_driver_is_told(is_cooperative, driver, caplog):
    kernel = run_time_compiler.Kernel("an_op", f"a_kernel_{is_cooperative}", 256, is_cooperative)
    arguments = (ctypes.c_int64(5), ctypes.c_double(0.5))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            run_time_compiler.launch(kernel, 100, arguments, torch.device("cuda", 1))
    blocks, word = (24, "launch together") if is_cooperative else (100, "launch")  # 3 processors x 2048 / 256
    launch = (word, 22, blocks, 1, 1, 256, 1, 1, 0, 77, (5, 0.5))
    loading = [("load", b"cubin"), ("function", 11, "90")]
    assert driver.calls == [("device", 1), *loading, launch, ("device", 1), launch]
    assert caplog.messages == [f"built without nvcc: compiling {kernel.name} for sm_90 at run time (cuda-jit)"]
