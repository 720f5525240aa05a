"""The kernel files are also what CUDA's run-time compiler reads, without a driver: the way of the cuda-jit extra."""

from __future__ import annotations

import ctypes
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench import registers
from diva_engine.ops import cuda_jit, run_time_compiler

pytestmark = pytest.mark.slow


def nvrtc() -> ctypes.CDLL:
    """The library of the package nvidia-cuda-nvrtc, or of an installed toolkit."""
    spec = find_spec("nvidia")
    folders = [Path(folder) for folder in spec.submodule_search_locations] if spec else []
    found = [path for folder in folders for path in sorted(folder.glob("*/lib/libnvrtc.so.*"))]
    if not found:
        pytest.skip("nvidia-cuda-nvrtc is not installed: kernels cannot be compiled at run time here")
    for builtins in found[0].parent.glob("libnvrtc-builtins.so.*"):
        ctypes.CDLL(str(builtins))
    return ctypes.CDLL(str(found[0]))


def cuda_headers() -> list[Path]:
    nvcc = shutil.which("nvcc", path="/usr/local/cuda/bin") or shutil.which("nvcc")
    candidates = [Path(nvcc).resolve().parent.parent / "include"] if nvcc else []
    candidates += sorted(Path("/usr/local").glob("cuda-*/include"))
    headers = next((folder for folder in candidates if (folder / "cooperative_groups.h").is_file()), None)
    if headers is None:
        pytest.skip("no CUDA headers were found")
    return [headers, headers / "cccl"]


def compile_at_run_time(source: Path, architecture: int) -> str:
    """Compiler's words; empty or warnings where it worked."""
    library, program = nvrtc(), ctypes.c_void_p()
    text = source.read_bytes()
    assert library.nvrtcCreateProgram(ctypes.byref(program), text, source.name.encode(), 0, None, None) == 0
    flags = ["-std=c++17", f"-arch=sm_{architecture}", *(f"-I{folder}" for folder in (registers.CSRC, *cuda_headers()))]
    encoded = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
    error = library.nvrtcCompileProgram(program, len(flags), encoded)
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    words = log.value.decode()
    return words if error else ""


KERNEL_FILES = [path for path in registers.kernel_files() if path.parent.name != "common"]


@pytest.mark.parametrize("source", KERNEL_FILES, ids=lambda path: path.parent.name)
def test_compiles_at_run_time(source):
    assert compile_at_run_time(source, 90) == ""


def test_a_fault_is_told(tmp_path):
    broken = tmp_path / "broken.cu"
    broken.write_text("__global__ void kernel() { unknown(); }")
    assert "unknown" in compile_at_run_time(broken, 90)


RUN_TIME_KERNELS = (
    cuda_jit.GROUP_STATS,
    cuda_jit.UPDATE_DIFFICULTY,
    cuda_jit.DIVA_ADVANTAGE,
    cuda_jit.SHARED_STD_ADVANTAGE,
)


@pytest.mark.parametrize("kernel", RUN_TIME_KERNELS, ids=lambda kernel: kernel.op)
@pytest.mark.parametrize("architecture", [80, 90, 100, 120])
def test_cuda_jit_compiles(kernel, architecture):
    pytest.importorskip("cupy")
    cubin, name = run_time_compiler.compile_kernel(kernel, architecture)
    assert cubin.startswith(b"\x7fELF")
    assert name.encode() in cubin


def test_cuda_jit_tells_why_a_kernel_does_not_compile():
    pytest.importorskip("cupy")
    with pytest.raises(RuntimeError, match=r"group_stats: NVRTC could not compile it for sm_30: .*gpu-architecture"):
        run_time_compiler.compile_kernel(cuda_jit.GROUP_STATS, 30)
